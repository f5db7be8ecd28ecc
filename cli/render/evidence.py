"""What an unlearning measured: before beside after, and the settings that a search tried."""

from __future__ import annotations

from collections.abc import Mapping
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


def render_search(session: Session, log: Any) -> None:
    """The trials of a search as one compact table; nothing when there was none."""
    if not isinstance(log, list | tuple) or not log or not all(isinstance(entry, Mapping) for entry in log):
        return
    from .console import print_table

    columns = list(dict.fromkeys(key for entry in log for key in entry))
    rows = [[_number(entry.get(column)) for column in columns] for entry in log]
    session.line(session.paint.dim(f"  {text.count(len(log), 'trial')} to find the strength:"))
    print_table(session.console(), [c.replace("_", " ") for c in columns], rows)


def _words(key: str) -> str:
    return "membership " + key.removeprefix("mia_").removesuffix("_after").replace("_", " ").replace("auc ", "AUC, ")


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) or value is None:
        return text.number(value)
    return text.printable(str(value))
