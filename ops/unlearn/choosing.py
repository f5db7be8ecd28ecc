"""Which rows stand for a set: chosen by digest, so that the choice depends on the records and not on their order in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...registry.ids import blob_digest

if TYPE_CHECKING:
    from .context import Context, Part

STEERED = 256  # rows of either set that steer a search
SPARED = 8  # one retain row in so many is held out
LEAST = 16  # held-out retain pairs below which none is: then all retain rows steer


def spared(ctx: Context) -> list[int]:
    """Retain rows that are measured and never trained on: one in SPARED of either kind, by digest; none where that is too few."""
    if ctx.retain is None:
        return []
    found: list[int] = []
    for pairs, least in ((True, LEAST), (False, 1)):
        rows = ctx.retain.rows.of(pairs=pairs)
        count = min(STEERED if pairs else STEERED // 8, len(rows) // SPARED)
        if count >= least:
            found += by_digest(ctx.retain, rows)[:count]
    return found


def by_digest(part: Part, rows: list[int]) -> list[int]:
    """Rows in the order of their digests: the same choice whatever the order of the file."""
    first = {owner: number for number, owner in reversed(list(enumerate(part.rows.owner)))}

    def key(row: int) -> tuple[str, int]:
        owner = part.rows.owner[row]
        place = row - first[owner]
        return blob_digest(part.items.items[owner].normal() + place.to_bytes(8, "big")), row

    return sorted(rows, key=key)
