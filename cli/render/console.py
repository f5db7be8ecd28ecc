"""The rich console and the one way to print a table. Imported only by answers that have tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_FROM = 1000  # rows: above, rich spends seconds on measuring what nobody reads on a screen


def make_console(stream: TextIO, *, colour: bool, width: int) -> Console:
    """A console that writes what it is told: no markup, no guessing of numbers and paths."""
    return Console(
        file=stream, width=width, no_color=not colour, force_terminal=colour, highlight=False, markup=False, emoji=False, soft_wrap=False
    )


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    styles: dict[str, str] | None = None,
    whole: Sequence[str] = (),
    title: str | None = None,
) -> None:
    """Rows under a header line. `right`: right-aligned columns; `styles`: the colour of some; `whole`: those never wrapped."""
    if len(rows) > PLAIN_FROM:
        _print_plain(console.file, columns, rows, right)
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(
            name, justify="right" if name in right else "left", style=(styles or {}).get(name), overflow="fold", no_wrap=name in whole
        )
    for row in rows:
        table.add_row(*(Text.from_ansi(cell) if "\x1b" in cell else Text(cell) for cell in row))
    console.print(table)


def _print_plain(stream: Any, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    widths = [max(len(name), *(len(row[i]) for row in rows)) for i, name in enumerate(columns)]
    pads = [(str.rjust if name in right else str.ljust) for name in columns]
    for row in (columns, *rows):
        cells = [pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)]
        stream.write("  ".join(cells).rstrip() + "\n")
