"""Weighted means and their kin: linear and soups, model stock, SCE, nearswap, passthrough.

Wortsman et al. 2203.05482 (soups), Jang et al. 2403.19522 (model stock), Wan et al. 2408.07990 (SCE).
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from ...kernels.merge import weighted_sum
from ...kernels.select import top_k_masks
from .case import Case


def linear(case: Case) -> Tensor:
    """sum w_i x_i, divided by sum w_i when `normalize`: products and sums in float32, each rounded by itself, rounded once at last.

    In parity mode a product and its sum may be fused, as the processor does it.
    """
    weights = case.values("weight")
    total = float(torch.tensor(weights, dtype=torch.float32).sum()) if case.shared["normalize"] else None
    if not case.parity and all(x.dtype != torch.float64 for x in case.tensors):
        return weighted_sum(*case.tensors, weights=weights, total=total)
    first = case.tensors[0]
    sums = torch.zeros_like(first, dtype=torch.float64 if first.dtype == torch.float64 else torch.float32)
    for x, weight in zip(case.tensors, weights, strict=True):
        sums.addcmul_(x, torch.tensor(weight, dtype=sums.dtype))
    if case.shared["normalize"]:
        sums.div_(torch.tensor(weights, dtype=sums.dtype).sum())
    return sums.to(first.dtype)


def sparse_soup(case: Case) -> Tensor:
    """The linear merge of copies of one pruned model, whose zeros stay exact zeros (Zimmer et al., 2306.16788).

    Raises ValueError when the zeros of a matrix differ between the ingredients, unless `union` accepts that the result is less sparse.
    """
    first, *others = case.tensors
    zeros = first == 0
    if first.dim() > 1 and not case.shared["union"] and any(not (x == 0).equal(zeros) for x in others):
        raise ValueError("its zeros lie elsewhere in each ingredient, so the mean would be less sparse; --set union=true accepts that")
    merged = linear(case)
    return merged.masked_fill(merged == 0, 0.0)  # +0.0, whatever the signs were


def model_stock(case: Case) -> Tensor:
    """t mean(x_i) + (1 - t) b with t = N c / (1 + (N - 1) c), c the mean cosine between task vectors (per row when `filter_wise`).

    Where the denominator vanishes the base stays.
    """
    base, tensors = case.wide()
    assert base is not None
    shape = base.shape
    if case.shared["filter_wise"]:
        base, *tensors = (x.reshape(1, -1) if x.dim() < 2 else x for x in (base, *tensors))
    else:
        base, *tensors = (x.reshape(-1) for x in (base, *tensors))
    deltas = [x - base for x in tensors]
    cosine = torch.stack([_cosine(a, b) for a, b in combinations(deltas, 2)]).mean(dim=0).unsqueeze(-1)
    n = len(tensors)
    below = 1 + (n - 1) * cosine
    flat = below.abs() < 1e-6
    t = torch.where(flat, torch.zeros_like(cosine), (n * cosine) / torch.where(flat, torch.ones_like(below), below))
    return (t * (sum(tensors) / n) + (1 - t) * base).reshape(shape)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    lengths = torch.norm(a, dim=-1) * torch.norm(b, dim=-1)
    return ((a * b).sum(dim=-1) / lengths.clamp(min=1e-6)).clamp(-1, 1)


def sce(case: Case) -> Tensor:
    """Task vectors where they vary most (`select_topk`), weighted by their mean square, without entries against the elected sign."""
    base, tensors = case.wide()
    assert base is not None
    deltas = torch.stack([x - base for x in tensors])
    if case.shared["select_topk"] < 1:
        deltas = deltas * _varying(deltas, case.shared["select_topk"], case.parity)
    agree = deltas.sign() == torch.where(deltas.sum(dim=0) >= 0, 1, -1).to(deltas.dtype)
    shares = deltas.square().reshape(len(deltas), -1).mean(dim=1)
    total = float(shares.sum())
    shares = torch.ones_like(shares) / len(shares) if abs(total) < 1e-6 else shares / total
    left = shares.reshape(-1, *[1] * base.dim()) * agree
    return base + (deltas * left).sum(dim=0) / left.sum(dim=0).clamp(min=1e-6)


def _varying(deltas: Tensor, share: float, parity: bool) -> Tensor:
    variance = torch.var(deltas, dim=0, unbiased=False)
    k = int(torch.count_nonzero(variance) * share)
    if parity:
        mask = torch.zeros(variance.numel(), dtype=deltas.dtype)
        if k:
            mask[torch.topk(variance.reshape(-1), k=k).indices] = 1
        return mask.reshape(variance.shape)
    return top_k_masks([variance.to(torch.float32)], k)[0].to(deltas.dtype)


def nearswap(case: Case) -> Tensor:
    """The ingredient where it is nearer to the base than t, and ever less of it beyond: share min(1, t / |b - x|)."""
    base, (x,) = case.wide()
    assert base is not None
    share = (case.shared["t"] / (base - x).abs().clamp(min=1e-6)).clamp(min=0, max=1)
    return share * x + (1 - share) * base


def passthrough(case: Case) -> Tensor:
    """The one ingredient, times `scale` when that is set."""
    scale = case.each[0]["scale"]
    x = case.tensors[0] if scale is None else case.wide()[1][0]
    return x if scale is None else x * scale
