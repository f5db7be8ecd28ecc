"""SimNPO: NPO without a reference, on the mean NLL per token (Fan et al., 2410.07163).

    L_forget = -(2/beta) E log sigmoid( beta (NLL/|y| - margin) )

The margin stands inside beta ( ), as in the authors' code; the paper's gamma is beta times it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from . import Likelihood

if TYPE_CHECKING:
    from ..context import Context


class SimNPO(Likelihood):
    """Short answers are not pushed less than long ones, and what is unlikely already is left alone."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx)
        self.beta, self.margin = ctx.op.sharpness, ctx.op.margin

    def forget(self, module: nn.Module, chosen: Sequence[int]) -> Tensor:
        """(2/beta) ln 2 where NLL is 0 and the margin is 0."""
        return simnpo_loss(self.task.losses(module, self.rows, chosen), self.beta, self.margin)


def simnpo_loss(losses: Tensor, beta: float, margin: float) -> Tensor:
    """-(2/beta) mean log sigmoid(beta (losses - margin)), from mean NLL per token [B]."""
    return -(2 / beta) * nn.functional.logsigmoid(beta * (losses - margin)).mean()
