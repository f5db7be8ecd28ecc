"""Merges that know what the ingredients were trained on, from statistics kept with them: Fisher-weighted means and RegMean.

Matena and Raffel 2111.09832 (Fisher); Jin et al. 2212.09849 (RegMean). Pure functions over one tensor of every ingredient; where the
statistics come from (an artifact of each version) is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOOR = 1e-6  # added to every importance: where nobody has any, the plain mean
RIDGE = 1e-6  # of the mean diagonal: what keeps a Gram matrix of few inputs invertible


def fisher_shares(norms: Sequence[float] | None, count: int) -> list[float]:
    """The factor of each ingredient's importance: 1/n, or with global norms of the importances (sum of squares, rooted) 1/n times the
    inverse norms made to sum to one, so that no ingredient wins by the size of its gradients alone."""
    if norms is None:
        return [1.0 / count] * count
    inverse = [1.0 / (norm + FLOOR) for norm in norms]
    return [value / sum(inverse) / count for value in inverse]


def fisher_mean(tensors: Sequence[Tensor], importances: Sequence[Tensor], shares: Sequence[float] | None = None) -> Tensor:
    """sum c_i (F_i + 1e-6) x_i / sum c_i (F_i + 1e-6), elementwise in float32 (float64 stays), in the order given, in x_1's type.

    Args: importances: not negative, of the tensors' shape; shares: c_i, from `fisher_shares`. Raises ValueError when they do not fit.
    """
    if not tensors or len(tensors) != len(importances) or any(f.shape != x.shape for x, f in zip(tensors, importances, strict=True)):
        raise ValueError("every ingredient needs an importance of its own shape")
    shares = shares or [1.0] * len(tensors)
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    above, below = torch.zeros_like(tensors[0], dtype=wide), torch.zeros_like(tensors[0], dtype=wide)
    for x, importance, share in zip(tensors, importances, shares, strict=True):
        weight = (importance.to(wide) + FLOOR) * share
        above += weight * x.to(wide)
        below += weight
    return (above / below).to(tensors[0].dtype)


def reg_mean(weights: Sequence[Tensor], grams: Sequence[Tensor], ratio: float = 1.0, *, transposed: bool = False) -> Tensor:
    """The linear map W that comes nearest to every ingredient's outputs on its own inputs: (sum G_i)^-1 sum G_i W_i^T, transposed.

    Args: weights `[out, in]` (`[in, out]` when `transposed`); grams `[in, in]`: X^T X / tokens of each; ratio: what off-diagonal entries
    are multiplied with (below 1 it leans towards the mean weighted by the diagonals). Solved in float64 with a ridge of 1e-6 of the mean
    diagonal, which pulls towards the plain mean. Returns the first one's type and layout. Raises ValueError for shapes that do not fit.
    """
    rows = [w if transposed else w.t() for w in weights]  # [in, out]
    if not rows or len(rows) != len(grams) or any(g.shape != (len(w), len(w)) for w, g in zip(rows, grams, strict=True)):
        raise ValueError("every ingredient needs the Gram matrix [in, in] of its inputs")
    scaled = [_scaled(gram.double(), ratio) for gram in grams]
    total = sum(scaled[1:], scaled[0])
    ridge = RIDGE * total.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    plain = sum((w.double() for w in rows[1:]), rows[0].double()) / len(rows)
    right = sum((g @ w.double() for g, w in zip(scaled[1:], rows[1:], strict=True)), scaled[0] @ rows[0].double()) + ridge * plain
    solved = torch.linalg.solve(total + ridge * torch.eye(len(total), dtype=torch.float64), right)
    return (solved if transposed else solved.t()).contiguous().to(weights[0].dtype)


def _scaled(gram: Tensor, ratio: float) -> Tensor:
    return gram if ratio == 1 else gram * ratio + torch.diag(gram.diagonal() * (1 - ratio))
