"""Merges along the sphere: slerp of two, nuslerp, multislerp and the Karcher mean of many. A tensor is one vector (or one per row).

Shoemake 1985 for slerp. Reductions are torch's, in a fixed number of threads; the result is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .case import Case, column

CHUNK = 1 << 20  # elements whose norms and products are summed at a time: mergekit's number, for the same bits
STRAIGHT = 0.9995  # cosines beyond this are interpolated on the line
TINY = 1e-8


def slerp(case: Case) -> Tensor:
    """(sin((1-t)θ) b + sin(tθ) x) / sin θ with θ the angle between base and ingredient; on the line where they nearly coincide.

    Always in float32 (float64 stays): norms and products of parts of CHUNK elements, joined.
    """
    base, x = case.anchor(), case.tensors[0]
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    t = torch.tensor(case.shared["t"], dtype=wide)
    pairs = [(b.to(wide), y.to(wide)) for b, y in zip(base.reshape(-1).split(CHUNK), x.reshape(-1).split(CHUNK), strict=True)]
    norms = [vector_norm(torch.stack([vector_norm(pair[side]) for pair in pairs])) for side in (0, 1)]
    first, second = (torch.where(norm > TINY, norm, 1.0) for norm in norms)
    cosine = torch.stack([((b / first) * (y / second)).sum() for b, y in pairs]).sum().clamp(-1, 1)
    if abs(cosine) > STRAIGHT:
        left, right = 1 - t, t
    else:
        angle = torch.acos(cosine)
        left, right = (torch.sin(part * angle) / torch.sin(angle) for part in (1 - t, t))
    out = torch.cat([left * b + right * y for b, y in pairs]).reshape(base.shape)
    return out.to(base.dtype) if case.native else out


def nuslerp(case: Case) -> Tensor:
    """slerp of two ingredients with t = w2 / (w1 + w2), of their task vectors when there is a base; whole, by row or by column."""
    base, (x, y) = case.wide()
    weights = case.values("weight")
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    flat, by_row = case.shared["nuslerp_flatten"], case.shared["nuslerp_row_wise"]
    if base is not None:
        x, y = x - base, y - base
    shape = x.shape
    if flat:
        x, y = x.reshape(-1), y.reshape(-1)
    elif by_row:
        x, y = x.transpose(0, -1), y.transpose(0, -1)
    out = _along_last(t, x, y)
    out = (out.transpose(0, -1) if by_row and not flat else out).reshape(shape)
    return out if base is None else base + out


def _along_last(t: float, x: Tensor, y: Tensor) -> Tensor:
    cosine = (_unit(x) * _unit(y)).sum(dim=-1, keepdim=True).clamp(-1, 1)
    straight = (1 - cosine.square()) <= TINY**2
    angle = torch.acos(torch.where(straight, 0, cosine))
    bent = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return torch.where(straight, (1 - t) * x + t * y, bent)


def _unit(x: Tensor) -> Tensor:
    return x / torch.norm(x, dim=-1, keepdim=True).clamp(min=1e-7)


def multislerp(case: Case) -> Tensor:
    """Interpolation in the tangent space at the weighted mean direction, length the weighted mean length. Of task vectors with a base.

    Raises ValueError when the weighted directions cancel each other.
    """
    base, tensors = case.wide()
    if len(tensors) == 1:
        return tensors[0]
    eps = case.shared["eps"]
    shape, rows = tensors[0].shape, torch.stack([(x if base is None else x - base).reshape(-1) for x in tensors])
    weights = column(case.values("weight"), rows)
    if case.shared["normalize_weights"]:
        weights = weights / weights.sum()
    lengths = torch.norm(rows, dim=-1, keepdim=True)
    units = rows / (lengths + eps)
    mean = (units * weights).sum(0)
    length = torch.norm(mean)
    if length < eps:
        if len(tensors) > 2:
            raise ValueError("the weighted directions cancel each other")
        out = rows[0] * weights[0] + rows[1] * weights[1]
    else:
        mean = mean / length
        tangent = ((units - (units * mean).sum(-1, keepdim=True) * mean) * weights).sum(0)
        angle = torch.norm(tangent) + eps
        out = (mean * torch.cos(angle) + tangent * (torch.sin(angle) / angle)) * (lengths * weights).sum()
    out = out.reshape(shape)
    return out if base is None else out + base


def karcher(case: Case) -> Tensor:
    """The mean on the sphere: from the mean direction, steps along the mean tangent until it is shorter than `tol`; mean length."""
    _, tensors = case.wide()
    if len(tensors) == 1:
        return tensors[0]
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    tolerance = case.shared["tol"]
    lengths = [vector_norm(x.to(wide)) for x in tensors]
    valid = [(x / n).to(x.dtype) for x, n in zip(tensors, lengths, strict=True) if float(n) > tolerance]
    if not valid:
        return torch.zeros_like(tensors[0])
    share = 1.0 / len(valid)
    mean = _sum([share * u for u in valid])
    start = vector_norm(mean.to(wide))
    mean = valid[0].clone() if float(start) < tolerance else (mean / start).to(mean.dtype)
    for _ in range(case.shared["max_iter"]):
        tangent = _tangent(mean, valid, share, tolerance)
        angle = vector_norm(tangent.to(wide))
        if float(angle) < tolerance:
            break
        mean = (torch.cos(angle) * mean + torch.sin(angle) * (tangent / angle)).to(mean.dtype)
        if float(length := vector_norm(mean.to(wide))) > tolerance:
            mean = (mean / length).to(mean.dtype)
    return sum(1.0 / len(tensors) * n for n in lengths) * mean  # type: ignore[return-value]


def _tangent(mean: Tensor, units: Sequence[Tensor], share: float, tolerance: float) -> Tensor:
    tangent = torch.zeros_like(mean)
    for unit in units:
        cosine = torch.dot(mean.flatten(), unit.flatten()).clamp(-1, 1)
        angle = torch.arccos(cosine)
        if float(angle) >= tolerance:
            tangent = tangent + share * (angle / torch.sin(angle)) * (unit - cosine * mean)
    return tangent


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total
