"""NPO: negative preference optimisation (Zhang et al., 2404.05868).

    L_forget = -(2/beta) E log sigmoid( beta (NLL - NLL_start) ),  NLL summed over the answer's tokens

Its gradient is that of ascent times 2 sigmoid(-beta (NLL - NLL_start)): 1 at the start, 0 once a record is forgotten. As beta goes to 0
it becomes ascent. (WAGLE's code takes the token mean here, which makes its beta |y| times smaller; this is the paper's sum.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..task import batches, device_of
from . import Likelihood

if TYPE_CHECKING:
    from ..context import Context


class NPO(Likelihood):
    """NPO with the start's NLL kept per row, so that no second model is."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx)
        self.beta = ctx.op.sharpness
        self.start = start_sums(ctx)

    def forget(self, module: nn.Module, chosen: Sequence[int]) -> Tensor:
        """At the start weights (2/beta) ln 2."""
        sums, _ = self.task.token_sums(module, self.rows, chosen)
        return npo_loss(sums, self.start[list(chosen)], self.beta)


@torch.no_grad()
def start_sums(ctx: Context) -> Tensor:
    """fp32 [rows]: summed NLL of every forget row under the module as it is now."""
    rows, found = ctx.forget.rows, torch.zeros(len(ctx.forget.rows), device=device_of(ctx.module))
    for chosen in batches(rows, range(len(rows))):
        found[chosen] = ctx.task.token_sums(ctx.module, rows, chosen)[0]
    return found


def npo_loss(sums: Tensor, start: Tensor, beta: float) -> Tensor:
    """-(2/beta) mean log sigmoid(beta (sums - start)), from summed NLL [B]."""
    return -(2 / beta) * nn.functional.logsigmoid(beta * (sums - start)).mean()
