"""How tensors become short and come back exactly: codecs, their choice, and the statistics of a change.

Importing this package is light; torch and numpy arrive with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .buffers import Buffer
    from .chooser import Encoded

MAX_DEPTH = 8  # deltas between a tensor and its keyframe


def encode(word: str, shape: Sequence[int], data: Buffer, read_base: Callable[[int, int], Buffer] | None = None) -> Encoded:
    """See `chooser.encode`."""
    from . import chooser

    return chooser.encode(word, shape, data, read_base)
