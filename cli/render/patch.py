"""Patches as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .style import Paint
from .text import ago, count, percent, printable, size

if TYPE_CHECKING:
    from ..context import Session


def patch_lines(patch: dict[str, Any], paint: Paint) -> list[str]:
    """One patch: name and cost, then facts."""
    share = patch["bytes"] / patch["full_bytes"] if patch["full_bytes"] else None
    facts = [
        ("signature", paint.yellow(patch["signature"][:12])),
        ("size", f"{size(patch['bytes'])}, {percent(share)} of the same tensors in float32"),
        ("form", f"{_form(patch)}; {patch['layers']} layers, for strength {patch['strength']:g}"),
        ("changes", f"{patch['tensors']} tensors" + (f", {patch['statistics']} running statistics" if patch["statistics"] else "")),
        ("from", f"{patch['robust'][:12]} against {patch['clean'][:12]}" + (f", from {patch['base'][:12]}" if patch["projected"] else "")),
        ("message", printable(patch.get("message", ""))),
    ]
    rows = [f"  {paint.dim(label.ljust(9))}  {value}" for label, value in facts if value]
    rows += [f"    {change['how']:8}  {printable(change['name'])} {change['shape']}" for change in patch.get("changes", ())]
    return [f"Patch {paint.green(patch['name'])}", *rows]


def overlay_line(check: dict[str, Any], paint: Paint) -> str:
    """What lies over a version after a change, in one line."""
    laid = ", ".join(f"{paint.green(p['name'])} at {p['strength']:g}" for p in check.get("patches", ()))
    if laid:
        return f"Patches: {laid}; {count(check['tensors_patched'], 'tensor')} changed against the clean version."
    return f"Patches: none; snapshot {check.get('clean_snapshot')} is the clean one again."


def render_list(session: Session, document: dict[str, Any]) -> None:
    """A table of all patches; those in force are marked."""
    from .console import print_table

    applied = {p["signature"]: p["strength"] for p in document["applied"]}
    rows = [
        (
            *("*" if p["signature"] in applied else "", p["name"], p["signature"][:12], _form(p), p["layers"], size(p["bytes"])),
            *(f"{applied.get(p['signature'], p['strength']):g}", ago(p["time"]) if "time" in p else ""),
        )
        for p in document["patches"]
    ]
    if not rows:
        session.line("No patch yet.")
        return
    columns = ("", "name", "signature", "form", "layers", "size", "strength", "made")
    print_table(
        session.console(), columns, rows, right=("size", "strength"), styles={"name": "green", "signature": "yellow"}, whole=("signature",)
    )
    for grown in document["part_of_weights"]:
        session.line(f"{grown['name']} was applied by {grown['commit'][:12]}; the weights were changed since, and it is part of them.")


def _form(patch: dict[str, Any]) -> str:
    bits = patch["bits"] if patch["bits"] == "ternary" else f"{patch['bits']}-bit"
    return bits if patch["density"] == 1 else f"{bits}, top {patch['density']:.0%}"


def robustness_lines(check: dict[str, Any]) -> list[str]:
    """What training did: right answers among the held-out records, on inputs as they are and when moved against the model."""
    if "robust_after" not in check:
        return []
    told = f"Held-out records: {check['rows']}."
    pairs = (("clean inputs", "clean"), ("under attack", "robust"))
    return [told, *(f"  {label.ljust(12)}  {percent(check[f'{key}_before'])} -> {percent(check[f'{key}_after'])}" for label, key in pairs)]
