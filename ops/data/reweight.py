"""How much each row of a batch counts, by its own loss (Sow et al., 2502.06733, ICLR 2025; equations as in the authors' code).

h = (2 l - (max + min)) / max(max - min, 1e-6) lies in [-1, 1]; f(h) says what is wanted; w ~ exp((f - max f) / r). Weights are of one
micro-batch: with the mean 1, so that equal weights leave the plain mean over tokens. Measuring stays unweighted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STRATEGIES = ("none", "linupper", "quadratic", "extremes")
GUARD = 1e-6  # least spread of losses: a batch of equal losses has equal weights


def centred(losses: Tensor) -> Tensor:
    """h in [-1, 1], fp32 [n]: -1 at the least loss of the batch, 1 at the greatest; -1 to 1 whatever the scale of the losses."""
    most, least = losses.max(), losses.min()
    spread = (most - least).clamp_min(GUARD)
    return (2 * (losses - least) - (most - least)) / spread


def row_weights(losses: Tensor, strategy: str, r: float = 1.0) -> Tensor:
    """Weights [n] with mean 1 from mean losses [n]. `linupper` turns easy rows down, `quadratic` favours the middle, `extremes` both ends.

    `r` is the temperature: without end, weights are equal. For linupper and quadratic the greatest is at most e^(1/r).
    """
    h = centred(losses.detach().float())
    if strategy == "linupper":
        wanted = (h + 1).clamp_max(1.0)
    elif strategy == "quadratic":
        wanted = 1 - h.square()
    elif strategy == "extremes":
        wanted = h.abs()
    else:
        raise ValueError(f"no such strategy: {strategy}")
    return ((wanted - wanted.max()) / r).softmax(0) * len(losses)
