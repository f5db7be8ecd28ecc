"""The closed form: which change of W writes residuals R at keys K and spares the keys of ordinary text. float64 throughout.

MEMIT (2210.07229, eq. 14): D = R K^T (lC + E E^T + K K^T)^-1, with E the keys of earlier edits (C_p). Written as D = R A^T, and solved by
Woodbury: with X = [E K] and M = lC, (M + X X^T)^-1 X = M^-1 X (1 + X^T M^-1 X)^-1, so that only one factor of C per layer is needed.
AlphaEdit (2410.02355): the same with M^-1 replaced by P / b, P the projector onto the directions that ordinary keys do not use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Spread = Callable[[Tensor], Tensor]  # X [d0, n] -> M^-1 X [d0, n], for a strength of one

RIDGE = 1e-4  # of the mean eigenvalue, added when C has no Cholesky factor (fewer keys than d0)


@dataclass(frozen=True, slots=True)
class Metric:
    """How dear a direction is to ordinary text: `spread` applies C^-1 (or P), `ridge` says what had to be added to C."""

    spread: Spread
    moment: Tensor  # C [d0, d0]
    ridge: float = 0.0
    rank: int = 0  # directions that may be written into


def memit_metric(moment: Tensor) -> Metric:
    """C^-1 by Cholesky; C float64 [d0, d0], uncentred. A singular C gets a ridge of 1e-4 tr(C)/d0."""
    factor, ridge = _cholesky(moment)
    return Metric(lambda x: torch.cholesky_solve(x, factor), moment, ridge, len(moment))


def alphaedit_metric(moment: Tensor, threshold: float) -> Metric:
    """P: projector onto the eigenvectors of C that together hold at most `threshold` of its energy (trace)."""
    values, vectors = torch.linalg.eigh(moment)
    held = values.clamp_min(0).cumsum(0) / values.clamp_min(0).sum().clamp_min(torch.finfo(values.dtype).tiny)
    free = vectors[:, held <= threshold]
    return Metric(lambda x: free @ (free.T @ x), moment, 0.0, free.shape[1])


def _cholesky(moment: Tensor) -> tuple[Tensor, float]:
    mean = (moment.trace() / len(moment)).item()
    # Keys are computed in float32: below the square of its rounding (a few units) a direction holds nothing but noise.
    floor = (10 * torch.finfo(torch.float32).eps) ** 2 * len(moment) * mean
    factor, fault = torch.linalg.cholesky_ex(moment)
    # A factor exists by luck of rounding too: what it divides by must stand clear of the noise.
    if not int(fault) and bool((factor.diagonal() ** 2 > floor).all()):
        return factor, 0.0
    ridge = RIDGE * mean if mean > 0 else 1.0
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return torch.linalg.cholesky(moment + ridge * eye), ridge


def factors(metric: Metric, keys: Tensor, weight: float, earlier: Tensor | None = None) -> Tensor:
    """A [d0, u] with D = R A^T: keys [d0, u], earlier keys E [d0, e] or None, weight the lambda (or AlphaEdit's b)."""
    wide = keys if earlier is None or not earlier.shape[1] else torch.cat([earlier, keys], 1)
    spread = metric.spread(wide) / weight
    gram = wide.T @ spread
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # (1 + S)^-1 is symmetric: solving for the unit vectors of K's columns gives the ones that are wanted.
    return spread @ torch.linalg.solve(eye + (gram + gram.T) / 2, eye[:, wide.shape[1] - keys.shape[1] :])


def single_fractions(metric: Metric, keys: Tensor, weight: float) -> Tensor:
    """s / (1 + s) per key [u]: what share of its residual a fact gets that is written alone."""
    s = (keys * metric.spread(keys)).sum(0) / weight
    return s / (1 + s)


def joint_fractions(keys: Tensor, written: Tensor) -> Tensor:
    """a_i k_i per key [u]: the share of its own residual that a fact gets when all are written, `written` being A [d0, u]."""
    return (keys * written).sum(0)


def weight_for(metric: Metric, keys: Tensor, share: float) -> float:
    """The lambda at which the mean single-fact write fraction is `share`, by bisection over 200 decades' halvings."""
    energy = (keys * metric.spread(keys)).sum(0)
    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        s = energy / 10**middle
        low, high = (middle, high) if (s / (1 + s)).mean().item() > share else (low, middle)
    return 10 ** ((low + high) / 2)


def drift(up: Tensor, down: Tensor, weight: Tensor, moment: Tensor) -> float:
    """tr(D C D^T) / tr(W C W^T), D = up @ down, up [d1, u], down [u, d0], W [d1, d0]: expected squared change on ordinary keys."""
    moved = down @ moment @ down.T
    before = ((weight @ moment) * weight).sum().item()
    after = ((up @ moved) * up).sum().item()
    return after / before if before > 0 else 0.0


def resolve_without(
    metric: Metric, keys: Tensor, residuals: Tensor, weight: float, drop: Tensor, earlier: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(R' [d1, v], A' [d0, v]) of the facts that stay: the closed form again, without the columns marked in `drop` (bool [u]).

    The keys that go no longer take part, so the others get at least the write fraction they had.
    """
    stay = ~drop
    left = keys[:, stay]
    if not left.shape[1]:
        return residuals[:, stay], left
    return residuals[:, stay], factors(metric, left, weight, earlier)
