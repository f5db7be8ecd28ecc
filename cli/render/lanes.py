"""The picture left of `mlc log --graph`: lanes from the registry's layout, made to sit beside text lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...registry.lineage import graph, thinned

NODE, TIP, REFUSED = "○", "●", "✗"


def lanes_of(rows: Sequence[Any], shown: set[int], tips: set[str], encoding: str | None) -> Iterator[list[str]]:
    """Per shown row: the picture beside its line, then lines that are picture only.

    `rows` are catalog log rows without gaps; those not in `shown` (by seq) are bridged. `tips` are commits that a branch stands at.
    """
    marks = {row.seq: REFUSED if row.outcome == "refused" else TIP if row.commit in tips else NODE for row in rows}
    plain = (encoding or "").lower().replace("-", "") not in ("utf8", "utf16", "utf32")
    if plain:
        marks = {seq: {NODE: "o", TIP: "*", REFUSED: "x"}[mark] for seq, mark in marks.items()}
    pairs: Sequence[tuple[int, Sequence[int]]] = [(row.seq, row.parent_seqs) for row in rows]
    if len(shown) < len(rows):
        pairs = thinned(pairs, shown)
    pictures = [row.ascii() if plain else row for row in graph(pairs, marks.__getitem__)]
    width = min(12, max((len(picture.node) for picture in pictures), default=0))
    for picture in pictures:
        yield [picture.node.ljust(width), *([picture.link] if picture.link else [])]
