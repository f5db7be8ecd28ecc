"""The blocks of a model as an update plans them: a row each, with a heat bar that shows how far it turns the new text.

Bars are scaled to the blocks that importance ranks: the first one rewrites the embedding, and beside it the others would look alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .style import Paint
from .text import printable

WIDTH = 6  # cells of a full bar
EIGHTHS = " ▏▎▍▌▋▊▉"
COLUMNS = ("block", "from", "heat", "new data", "old data", "difference", "plan")
RIGHT = ("block", "from", "new data", "old data", "difference")


def block_rows(blocks: Sequence[Mapping[str, Any]], paint: Paint) -> list[tuple[str, ...]]:
    """The cells of the table, in the order of COLUMNS."""
    top = _top(blocks)
    rows = []
    for row in blocks:
        told = "" if row["ranked"] or row["plan"] == "new" or row["new_data"] is None else paint.dim(" (not ranked)")
        angles = (_angle(row["new_data"]), _angle(row["old_data"]), _angle(row["difference"], "+"))
        rows.append((str(row["block"]), str(row["from"]), _heat(row, top, paint), *angles, _plan(row["plan"], paint) + told))
    return rows


def block_lines(blocks: Sequence[Mapping[str, Any]], paint: Paint) -> list[str]:
    """The same table as plain aligned lines; without angles only what is planned."""
    if all(row["new_data"] is None for row in blocks):
        return [f"{row['block']:>3}  from {row['from']:<3}  {_plan(row['plan'], paint)}" for row in blocks]
    plain = [COLUMNS, *block_rows(blocks, Paint(False))]
    widths = [max(len(row[i]) for row in plain) for i in range(len(COLUMNS))]
    lines = []
    for number, row in enumerate([COLUMNS, *block_rows(blocks, paint)]):
        cells = []
        for i, cell in enumerate(row):
            space = " " * (widths[i] - len(plain[number][i]))
            cells.append(space + cell if COLUMNS[i] in RIGHT else cell + space)
        lines.append("  ".join(cells).rstrip())
    return [paint.dim(lines[0]), *lines[1:]]


def print_blocks(console: Any, blocks: Sequence[Mapping[str, Any]], how: Mapping[str, Any], paint: Paint) -> None:
    """The table on a rich console, and a line that says how it was measured."""
    from .console import print_table

    print_table(console, COLUMNS, block_rows(blocks, paint), right=RIGHT)
    if how:
        over = "at the last token of a row" if how["token"] == "last" else "over all tokens"
        console.print(f"Angle between what enters a block and what leaves it, over pi, {over}.", style="dim")
        console.print(f"Measured on {how['rows_new']} rows of new text and {_old_text(how)}.", style="dim")


def _old_text(how: Mapping[str, Any]) -> str:
    if how["old_text"] is None:
        return "no old text"
    return f"{how['rows_old']} rows " + ("that the model wrote" if how["old_text"] == "self" else f"of {printable(how['old_text'])}")


def _top(blocks: Sequence[Mapping[str, Any]]) -> float:
    """The angle of a full bar: the largest of a ranked block, else of any."""
    angles = [row["new_data"] for row in blocks if row["new_data"] is not None]
    ranked = [row["new_data"] for row in blocks if row["ranked"] and row["new_data"] is not None]
    return max(ranked or angles or [0.0])


def _heat(row: Mapping[str, Any], top: float, paint: Paint) -> str:
    """A bar in eighths of a cell; green when cool, yellow, red when hot. Empty for a block that is new."""
    angle = row["new_data"]
    if angle is None or top <= 0:
        return ""
    share = min(1.0, angle / top)
    full, rest = divmod(round(share * WIDTH * 8), 8)
    bar = "█" * full + (EIGHTHS[rest] if rest else "")
    colour = paint.red if share > 2 / 3 else paint.yellow if share > 1 / 3 else paint.green
    return colour(bar or EIGHTHS[1])


def _angle(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.4f}"


def _plan(word: str, paint: Paint) -> str:
    return {"new": paint.green, "tuned": paint.yellow}.get(word, paint.dim)(word)
