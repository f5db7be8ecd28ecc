"""How tensors become short and come back exactly: codecs, their choice, and the statistics of a change.

Importing this package is light; torch and numpy arrive with the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .buffers import Buffer
    from .chooser import Encoded

MAX_DEPTH = 8  # deltas between a tensor and its keyframe


def encode(word: str, shape: Sequence[int], data: Buffer, read_base: Callable[[int, int], Buffer] | None = None) -> Encoded:
    """A tensor coded the shortest way that is worth it, proven to decode; see `chooser.encode`."""
    from . import chooser

    return chooser.encode(word, shape, data, read_base)


def stats(word: str, target: Buffer, reference: Buffer) -> dict[str, int | float | None]:
    """How far `target` moved from `reference`: nnz, l2, rel_l2, max_abs; see `distance.stats`."""
    from .distance import stats as measure

    return measure(word, target, reference)
