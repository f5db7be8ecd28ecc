"""How a lineage behaved: drift step by step, and the matrix of versions and suites."""

from __future__ import annotations

from typing import Any

from ..context import Session
from . import text

NUMBERS = {
    "last": "mean of the last version",
    "forgetting": "forgetting (best before - last)",
    "bwt": "backward transfer",
    "fwt": "forward transfer",
    "accumulation": "accumulation",
    "retention": "retention",
}
SURE = 0.05  # a form is shown when its p is under this


def render_drift(session: Session, steps: list[dict[str, Any]]) -> None:
    """One table per step, one row per suite; then the forms of answers that surely moved."""
    from .console import print_table

    paint = session.paint
    columns = ("suite", "n", "accuracy", "mismatch", "at least", "length", "p (Holm)")
    for step in steps:
        session.line(f"{paint.yellow(step['a'][:12])} -> {paint.yellow(step['b'][:12])}  {paint.cyan(step['op'])}")
        if not step["suites"]:
            session.line(paint.dim("  no suite is stored for both: mlc drift --measure"))
            continue
        rows = [(name, *_row(s)) for name, s in step["suites"].items()]
        print_table(session.console(), columns, rows, right=columns[1:])
        for name, s in step["suites"].items():
            for key in ("answered", "variety"):
                if s[f"{key}_a"] != s[f"{key}_b"]:
                    session.line(f"  {paint.cyan(name)}  {key}: {text.percent(s[f'{key}_a'])} -> {text.percent(s[f'{key}_b'])}")
            for form in s["forms"]:
                if form["p"] < SURE:
                    shares = f"{text.percent(form['share_a'])} -> {text.percent(form['share_b'])}"
                    session.line(f"  {paint.cyan(name)}  {form['form']}: {shares} of the answers")
            if s["only_a"] or s["only_b"]:
                session.line(paint.dim(f"  {name}: {s['only_a']:,} examples only before, {s['only_b']:,} only after: left out"))
    if not steps:
        session.line("No step changed anything.")


def _row(s: dict[str, Any]) -> tuple[str, ...]:
    length = "-" if s["length_ratio"] is None else f"{s['length_ratio']:.2f}x"
    accuracy = "-" if s["accuracy_a"] is None else f"{text.percent(s['accuracy_a'])} -> {text.percent(s['accuracy_b'])}"
    p = "<0.0001" if s["p"] < 1e-4 else f"{s['p']:.4f}"
    return f"{s['n']:,}", accuracy, text.percent(s["mismatch"]), text.percent(s["mismatch_lower95"]), length, p


def render_matrix(session: Session, document: dict[str, Any]) -> None:
    """Versions down, suites across, newest at the bottom; the cell of the version that was to learn a suite is marked."""
    from .console import print_table

    suites, paint = document["suites"], session.paint
    if not suites:
        session.line("No version behind this one was measured: mlc eval REV --suite FILE.")
        return
    rows = []
    for version, cells in zip(document["versions"], document["matrix"], strict=True):
        marks = ["*" if document["learned"].get(name) == version["commit"] else "" for name in suites]
        shown = [_cell(document["scores"][name], value) + mark for name, value, mark in zip(suites, cells, marks, strict=True)]
        rows.append((paint.yellow(version["commit"][:12]), version["op"], *shown))
    print_table(session.console(), ("version", "op", *suites), rows, right=suites)
    known = {label: document["summary"][key] for key, label in NUMBERS.items() if document["summary"][key] is not None}
    session.line(
        "  ".join(f"{label} {paint.cyan(f'{value:+.4f}' if 'transfer' in label else f'{value:.4f}')}" for label, value in known.items())
    )
    if document["learned"]:
        session.line(paint.dim("*: the version that was to learn this suite."))
    else:
        session.line(paint.dim("Transfer, accumulation and retention want to know who learned what: --learned SUITE=REV."))


def _cell(kind: str, value: float | None) -> str:
    return "-" if value is None else text.percent(value) if kind == "accuracy" else f"{value:.3f}"
