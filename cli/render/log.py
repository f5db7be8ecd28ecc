"""The log: one line per commit, plain text that ten thousand of cost nothing, with lanes on request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from . import text
from .style import Paint

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
) -> Iterator[str]:
    """Lines for catalog log rows. `lanes` gives, per row, the picture left of it and any lines of picture alone below."""
    now = datetime.now(UTC)
    width = max((len(row.op) for row in rows), default=0)
    labels = [name.removesuffix(".accuracy") for name in metrics]
    for row, picture in zip(rows, lanes or _nothing(), strict=False):
        line = _line(row, names.get(row.commit), labels, width, paint, now)
        if not picture:
            yield line
            continue
        yield f"{picture[0]} {line}"
        yield from picture[1:]


def _nothing() -> Iterator[Sequence[str]]:
    while True:
        yield ()


def _line(row: Any, names: list[str] | None, labels: Sequence[str], width: int, paint: Paint, now: datetime) -> str:
    parts = [paint.yellow(row.commit[:12]), paint.magenta(row.op.ljust(width))]
    if names:
        parts.append(paint.green(f"({', '.join(names)})"))
    if row.outcome in OUTCOMES:
        parts.append(paint.red(OUTCOMES[row.outcome]))
    if row.message:
        parts.append(text.first_line(row.message))
    parts.append(paint.dim(text.ago(row.time, now)))
    shown = [f"{label} {text.number(value)}" for label, value in zip(labels, row.metrics, strict=True) if value is not None]
    if shown:
        parts.append(paint.cyan("  ".join(shown)))
    return "  ".join(parts)
