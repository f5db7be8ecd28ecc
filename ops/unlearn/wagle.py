"""Method `wagle`: train with an objective, and only the weights that matter to the forget set (mask.py says which)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .dense import trained
from .mask import masks_for
from .objectives import Objective

if TYPE_CHECKING:
    from .context import Context


def apply(ctx: Context) -> dict[str, Tensor]:
    """The trained parameters; masked elements keep the bits they had."""
    if ctx.op.objective == "rmu":
        Objective(ctx)  # leaves gradients to the steered blocks alone: the mask is chosen among them
    return trained(ctx, masks_for(ctx))
