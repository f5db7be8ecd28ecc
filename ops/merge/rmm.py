"""Reversible merging of many small differences: one mean, a few basis vectors, and coefficients from which each model is rebuilt.

Alipour and Mohammadi Amiri, 2510.14163, with the least-squares optimum (Eckart and Young) in closed form. A position is a vector that every
model has: a row of a low-rank factor, or with one position per tensor the whole tensor. p = n - 1 basis vectors rebuild n models exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Basis:
    """mean `[M, r]`, basis `[M, r, p]` (orthonormal columns), coefficients `[M, p, n]`, error `[M]`: what is left, in the vectors' norm."""

    mean: Tensor
    basis: Tensor
    coefficients: Tensor
    error: Tensor

    @property
    def relative_error(self) -> float:
        """The norm of all that is lost over the norm of all that was given."""
        return float(self.error.square().sum().sqrt() / self._norm()) if float(self._norm()) > 0 else 0.0

    def _norm(self) -> Tensor:
        n = self.coefficients.shape[2]
        given = n * self.mean.square().sum() + self.coefficients.square().sum() + self.error.square().sum()
        return given.sqrt()  # the three parts are orthogonal


def fit(positions: Tensor, p: int) -> Basis:
    """The best mean and p basis vectors of each position, in float64.

    Args: positions `[M, r, n]`: n models, M positions of r numbers. p from 0 to n; beyond min(r, n - 1) nothing is gained.
    Raises ValueError.
    """
    if positions.dim() != 3 or not 0 <= p <= positions.shape[2] or not positions.shape[2]:
        raise ValueError(f"p lies between 0 and the number of models; positions are [M, r, n], not {list(positions.shape)} with p {p}")
    x = positions.double()
    mean = x.mean(dim=2)
    y = x - mean.unsqueeze(2)
    u, s, vh = _svd(y)
    p = min(p, s.shape[1])
    error = s[:, p:].square().sum(dim=1).sqrt()
    return Basis(mean, u[:, :, :p], s[:, :p, None] * vh[:, :p], error)


def _svd(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of each position. Long vectors of few models go through their triangle, which is small."""
    if y.shape[1] <= 4 * y.shape[2]:
        return torch.linalg.svd(y, full_matrices=False)
    q, triangle = torch.linalg.qr(y)
    u, s, vh = torch.linalg.svd(triangle, full_matrices=False)
    return q @ u, s, vh


def rebuild(found: Basis, model: int) -> Tensor:
    """The vectors `[M, r]` of one model: mean + P c, float64."""
    return found.mean + (found.basis @ found.coefficients[:, :, model, None]).squeeze(2)


def smallest(positions: Tensor, error: float = 0.05) -> Basis:
    """The fit with the fewest basis vectors whose relative error is at most `error`."""
    n = positions.shape[2]
    whole = fit(positions, n)
    for p in range(whole.basis.shape[2] + 1):
        found = fit(positions, p)
        if found.relative_error <= error:
            return found
    return whole


def aligned(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product up @ down in a gauge that factors of different models can be compared in: U sqrt(S), sqrt(S) V^T, signs fixed.

    Args: up `[m, r]`, down `[r, d]`. Independent training leaves A R and R^-1 B for any R; singular vectors, with the greatest entry of
    each column of U made positive, leave no choice but among equal singular values. float64.
    """
    qa, ra = torch.linalg.qr(up.double())
    qb, rb = torch.linalg.qr(down.double().t())
    u, s, vh = torch.linalg.svd(ra @ rb.t())
    left, right = qa @ u, vh @ qb.t()
    top = left.abs().argmax(dim=0)
    sign = torch.where(left.gather(0, top[None]).squeeze(0) < 0, -1.0, 1.0).double()
    root = s.sqrt()
    return left * (sign * root), (sign * root)[:, None] * right


def stack(factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Factors (up `[m, r]`, down `[r, d]`) of n models as positions `[m + d, r, n]`: rows of up, columns of down."""
    return torch.stack([torch.cat([up, down.t()]) for up, down in factors], dim=2)


def unstack(vectors: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Rows of up and columns of down `[m + d, r]` as the two factors again."""
    return vectors[:m], vectors[m:].t()
