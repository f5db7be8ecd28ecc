"""The log: one line per commit, plain text that ten thousand of cost nothing, with lanes on request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from . import text
from .style import Paint

SHORTEST = 12  # characters of a message that are always shown
OUTCOMES = {"refused": "refused"}  # what is worth a word; accepted and ungated are the usual


def names_of(head: str, branches: Mapping[str, str], tags: Mapping[str, str], aliases: Mapping[str, str]) -> dict[str, list[str]]:
    """Commit -> the names it goes by, the current branch first."""
    found: dict[str, list[str]] = {}
    for branch in sorted(branches, key=lambda name: (name != head, name)):
        found.setdefault(branches[branch], []).append(f"HEAD -> {branch}" if branch == head else branch)
    for name, commit in [*sorted(tags.items()), *((f"@{alias}", commit) for alias, commit in sorted(aliases.items()))]:
        found.setdefault(commit, []).append(name)
    return found


def log_lines(
    rows: Sequence[Any],
    names: Mapping[str, list[str]],
    metrics: Sequence[str],
    paint: Paint,
    *,
    lanes: Iterable[Sequence[str]] | None = None,
    columns: int | None = None,
) -> Iterator[str]:
    """Lines for catalog log rows. `lanes` gives, per row, the picture left of it and any lines of picture alone below.

    With `columns`, messages are shortened so that lines fit a terminal.
    """
    now = datetime.now(UTC)
    width = max((len(row.op) for row in rows), default=0)
    labels = [name.removesuffix(".accuracy") for name in metrics]
    for row, picture in zip(rows, lanes or _nothing(), strict=False):
        room = columns - (len(picture[0]) + 1 if picture else 0) if columns is not None else None
        line = _line(row, names.get(row.commit), labels, width, paint, now, room)
        yield f"{picture[0]} {line}" if picture else line
        yield from picture[1:]


def _nothing() -> Iterator[Sequence[str]]:
    while True:
        yield ()


def _line(row: Any, names: list[str] | None, labels: Sequence[str], width: int, paint: Paint, now: datetime, room: int | None) -> str:
    name = f"({', '.join(names)})" if names else ""
    outcome, age = OUTCOMES.get(row.outcome, ""), text.ago(row.time, now)
    metrics = "  ".join(f"{label} {text.number(value)}" for label, value in zip(labels, row.metrics, strict=True) if value is not None)
    message = text.first_line(row.message)
    if room is not None and message:
        others = 12 + sum(len(part) + 2 for part in (row.op.ljust(width), name, outcome, age, metrics) if part)
        message = text.first_line(row.message, max(SHORTEST, room - others - 2))
    painted = (
        paint.yellow(row.commit[:12]),
        paint.magenta(row.op.ljust(width)),
        paint.green(name),
        paint.red(outcome),
        text.printable(message),
        paint.dim(age),
        paint.cyan(metrics),
    )
    return "  ".join(part for part in painted if part)
