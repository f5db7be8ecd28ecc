"""What an unlearning measured: before beside after, and the settings that a search tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..context import Session
from . import text
from .style import Paint

ROWS = {
    "forget": "forget set right",
    "forget_probability": "its probability",
    "retain": "retain set right",
    "retain_probability": "its probability",
    "text_perplexity": "text perplexity",
    "mia_auc": "membership AUC",
    "mia_auc_loss": "membership AUC (loss)",
}
MOST = 12  # trials shown to people
ALONE = {"strength": "strength", "relearn_after": "forget set right after relearning", "forget_int8": "after rounding to 8 bits"}


def measured_lines(check: Mapping[str, Any], paint: Paint) -> list[str]:
    """An aligned table of what was measured twice, then what was measured once; nothing for a check without such numbers."""
    named = {**ROWS, **{key[: -len("_after")]: _words(key) for key in check if key.startswith("mia_") and key.endswith("_after")}}
    rows = [
        (ROWS.get(stem, title), _number(check[f"{stem}_before"]), _number(check[f"{stem}_after"]))
        for stem, title in named.items()
        if f"{stem}_before" in check and f"{stem}_after" in check
    ]
    lines = []
    if rows:
        widths = [max(len(row[column]) for row in (*rows, ("", "before", "after"))) for column in range(3)]
        lines.append(paint.dim(f"  {'':<{widths[0]}}  {'before':>{widths[1]}}  {'after':>{widths[2]}}"))
        lines += [f"  {title:<{widths[0]}}  {was:>{widths[1]}}  {now:>{widths[2]}}" for title, was, now in rows]
    if isinstance(check.get("selected"), int) and isinstance(check.get("weights"), int):
        lines.append(f"  {check['selected']:,} of {check['weights']:,} weights selected ({text.percent(check['selected_fraction'])}).")
    elif isinstance(check.get("selected_fraction"), float):
        lines.append(f"  {text.percent(check['selected_fraction'])} of the weights selected.")
    lines += [f"  {title}: {_number(check[key])}" for key, title in ALONE.items() if check.get(key) is not None]
    return lines


def render_search(session: Session, found: Any) -> None:
    """What a search for the strength tried, one row for each trial, and why it chose; nothing when there was none."""
    rows = trials(found)
    if not rows:
        return
    from .console import print_table

    shown = sorted(sorted(range(len(rows)), key=lambda n: (_forgot(rows[n]), n))[:MOST])  # those that forgot most, in order
    some = f", the {MOST} that forgot most shown (--json has all)" if len(rows) > MOST else ""
    session.line(session.paint.dim(f"  {text.count(len(rows), 'trial')} to find the strength{some}:"))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print_table(session.console(), columns, [[_number(rows[n].get(column)) for column in columns] for n in shown])
    if isinstance(found, Mapping) and found.get("why"):
        session.line(f"  {text.sentence(text.printable(str(found['why'])))}")


def trials(found: Any) -> list[dict[str, Any]]:
    """The trials in the record of a search as flat rows: a list of them, attempts with their last look, or logs by tensor or damping."""
    if isinstance(found, Mapping):
        if "attempts" in found:
            return [_attempt(entry, found.get("columns", ()), n == found.get("chosen")) for n, entry in enumerate(found["attempts"])]
        found = [{**_plain(group), **entry} for group in found.get("tries") or found.get("tensors") or () for entry in group.get("log", ())]
    return [_plain(entry) for entry in found if isinstance(entry, Mapping)] if isinstance(found, list | tuple) else []


def _forgot(row: Mapping[str, Any]) -> float:
    value = row.get("forget", row.get("forget recall"))
    return float(value) if isinstance(value, int | float) else 0.0


def _attempt(entry: Mapping[str, Any], columns: Iterable[str], chosen: bool) -> dict[str, Any]:
    looks = entry.get("looks") or [()]
    last = {name: value for name, value in zip(columns, looks[-1], strict=False) if name != "step"}
    return {**_plain(entry), **last, "chosen": chosen}


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has no place in a cell."""
    return {key: value for key, value in entry.items() if not isinstance(value, list | tuple | Mapping) and key != "monotone"}


def _words(key: str) -> str:
    return "membership " + key.removeprefix("mia_").removesuffix("_after").replace("_", " ").replace("auc ", "AUC, ")


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) or value is None:
        return text.number(value)
    return text.printable(str(value))
