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
    "forget_loss": "its loss",
    "retain": "retain set right",
    "retain_probability": "its probability",
    "text_perplexity": "text perplexity",
    "mia_auc": "membership AUC",
    "mia_auc_loss": "membership AUC (loss)",
}
MOST = 12  # trials shown to people
TIMES = ("before", "after", "reference")  # the last one when there is a model that was retrained without the forget set
ALONE = {
    "strength": "strength",
    "ks_p": "losses on the forget set as those of the retrained model (KS test), p",
    "relearn_after": "forget set right after relearning",
    "relearn_resistance": "resistance to relearning, 1 as the retrained model",
    "forget_int8": "after rounding to 8 bits",
    "forget_int4": "after rounding to 4 bits",
}


def measured_lines(check: Mapping[str, Any], paint: Paint) -> list[str]:
    """An aligned table of what was measured twice, then what was measured once; nothing for a check without such numbers."""
    named = {**ROWS, **{key[: -len("_after")]: _words(key) for key in check if key.startswith("mia_") and key.endswith("_after")}}
    times = [t for t in TIMES if t != "reference" or any(f"{stem}_{t}" in check for stem in named)]
    both = [stem for stem in named if f"{stem}_before" in check and f"{stem}_after" in check]
    rows = [
        (ROWS.get(stem, named[stem]), *(_number(check[key]) if (key := f"{stem}_{t}") in check else "" for t in times)) for stem in both
    ]
    lines = []
    if rows:
        head = ("", *("retrained" if t == "reference" else t for t in times))
        widths = [max(len(row[column]) for row in (*rows, head)) for column in range(len(head))]
        laid = [[cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))] for cells in (head, *rows)]
        lines = ["  " + "  ".join(cells).rstrip() for cells in laid]
        lines[0] = paint.dim(lines[0])
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
