"""What an edit measured, and what two worlds differ in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import text
from .style import Paint

ROWS = {
    "efficacy": "new answer preferred",
    "exact_match": "new answer said",
    "paraphrase": "in other words",
    "neighbourhood": "neighbours as before",
    "other_subjects": "other subjects' answers kept",
    "same_subject": "other answers of the subjects kept",
    "earlier_efficacy": "facts of earlier edits that hold",
    "score": "score (harmonic mean)",
}
COSTS = {
    "drift": "drift on ordinary text",
    "write_fraction": "share of each change written",
    "capacity_used": "capacity used",
}
CLASSES = ("new", "changed", "obsolete", "static", "undetermined")
BACK = {"restored": "back to the answer before", "efficacy": "other facts that hold"}


def edit_lines(check: Mapping[str, Any], paint: Paint) -> list[str]:
    """An aligned table of rates, then what the edit cost; nothing for a check without such numbers."""
    rows = [(title, text.percent(check[key]), _before(check, key)) for key, title in ROWS.items() if isinstance(check.get(key), float)]
    if not rows:
        return []
    width, numbers = max(len(title) for title, _, _ in rows), max(len(value) for _, value, _ in rows)
    lines = [f"  {title:<{width}}  {value:>{numbers}}{paint.dim(was)}" for title, value, was in rows]
    asked, layers = check.get("requested"), check.get("layers")
    where = f", written into {text.count(len(layers), 'layer')} ({_span(layers)})" if isinstance(layers, list) and layers else ""
    head = [f"  {text.count(asked, 'fact')}{where}."] if isinstance(asked, int) else []
    costs = [f"{title} {_cost(key, check[key])}" for key, title in COSTS.items() if isinstance(check.get(key), int | float)]
    return [*head, *lines, *([paint.dim("  " + ", ".join(costs) + ".")] if costs else [])]


def taken_back_lines(check: Mapping[str, Any], paint: Paint) -> list[str]:
    """What a selective revert measured."""
    rows = [(title, text.percent(check[key]), _before(check, key)) for key, title in BACK.items() if isinstance(check.get(key), float)]
    width = max((len(title) for title, _, _ in rows), default=0)
    lines = [f"  {title:<{width}}  {value}{paint.dim(was)}" for title, value, was in rows]
    if corrected := check.get("corrected"):
        steps = check.get("correction", {}).get("steps", 0)
        told = f"corrected after the closed form: {text.count(len(corrected), 'fact')}, {text.count(steps, 'step')}."
        lines.append(paint.dim(f"  {told}"))
    if turned := check.get("turned"):
        lines.append(f"  turned all the same: {', '.join(map(text.printable, turned))}.")
    return lines


def world_lines(details: Mapping[str, Any], paint: Paint) -> list[str]:
    """What changed between two worlds: a line of counts, one line for each change, and what an edit cannot do."""
    if "changes" not in details:
        return []
    counts = ", ".join(f"{details[name]:,} {name}" for name in CLASSES if name in details)
    lines = [f"  {counts}; {text.count(details['to_write'], 'fact')} to write."]
    cells = [[text.printable(str(row[key])) for key in ("scenario", "subject", "relation")] for row in details["changes"]]
    widths = [max((len(row[i]) for row in cells), default=0) for i in range(3)]
    for row, change in zip(cells, details["changes"], strict=True):
        told = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        was, now = (text.printable(change[key]) or paint.dim("nothing") for key in ("obsolete", "new"))
        lines.append(f"  {told}  {was} -> {now}")
    if details.get("more_changes"):
        lines.append(paint.dim(f"  and {details['more_changes']:,} more (--json has the first {len(cells)} only)"))
    if unsure := details.get("undetermined"):
        lines.append(f"  {text.count(unsure, 'question')} left alone: the files do not say when the answers began or ended.")
    if forget := details.get("needs_unlearning"):
        lines.append(f"  {text.count(len(forget), 'answer')} only went away: an edit cannot take answers away, `mlc unlearn` can.")
    if left := details.get("beyond_an_edit"):
        lines.append(f"  {text.count(len(left), 'change')} left alone: an answer beside others, or several at once.")
    return lines


def _before(check: Mapping[str, Any], key: str) -> str:
    was = check.get(f"{key}_before")
    return f"  (was {text.percent(was)})" if isinstance(was, float) else ""


def _span(layers: list[int]) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"


def _cost(key: str, value: float) -> str:
    return text.percent(value) if key != "drift" else text.number(value)
