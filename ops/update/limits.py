"""What an update may ask of a model, and the learning rate when none is given. Pure Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...registry.errors import BadParameter
from ..arch import family_of

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .train import Update


USUAL_ROW = 128  # tokens per row when nothing is said


def row_length(op: Update, view: ModelView) -> int:
    """Tokens per row: as asked, else USUAL_ROW or the model's longest sequence. Raises BadParameter when more is asked than that."""
    family, config = family_of(view.config), view.config or {}
    limit = config.get(family.context_key) if family and family.context_key else None
    limit = limit if isinstance(limit, int) else None
    if op.seq_len is None:
        return min(USUAL_ROW, limit or USUAL_ROW)
    if limit is not None and op.seq_len > limit:
        raise BadParameter(f"--seq-len {op.seq_len} is longer than the model's context of {limit}", hint=f"use --seq-len {limit} or less")
    return op.seq_len


def default_rate(parameters: int, method: str) -> float:
    """Peak rate when none is given: 5e-4 at a quarter of a million parameters, falling as N^-0.3 (about 4e-5 at 1 B, 2e-5 at 7 B).

    New blocks, chosen blocks and adapters take three times that: most weights stay as they are, and few carry the change.
    """
    rate = 5e-4 * min(1.0, (260_000 / max(parameters, 1)) ** 0.3)
    return float(f"{rate * (1 if method == 'full' else 3):.2g}")
