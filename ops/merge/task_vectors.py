"""One formula, eight methods: base + lambda * (what is left of the weighted task vectors after a trim and, maybe, a vote on signs).

Ilharco et al. 2212.04089 (task arithmetic), Yadav et al. 2306.01708 (TIES), Yu et al. 2311.03099 (DARE), Deep et al. 2406.11617 (DELLA),
Davari and Belilovsky 2312.06795 (breadcrumbs). Which is which stands in `table`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.merge import NEVER, elect_sum, task_sum, weighted_sum
from .case import Case, Threshold, column
from .table import Method
from .trims import difference, magnitude_mask, masked, outlier_mask, random_mask, rank_mask, thresholds

NARROW = (torch.float32, torch.bfloat16, torch.float16)  # sums of these are float32's
NOTHING = 1e-8  # a smaller sum of weights is not divided by


def merge_task_vectors(case: Case, method: Method) -> Tensor:
    """The merged tensor, in the base's type (float32 sums) or in the tensors' own type throughout when `case.native`."""
    weights, factor = case.values("weight"), case.shared["lambda"]
    total = divisor(weights) if case.shared["normalize"] else None
    wide = torch.float64 if case.anchor().dtype == torch.float64 else torch.float32
    kind = case.anchor().dtype if case.native else wide
    typed = case.parity or kind != torch.float32  # as mergekit: every step in the tensors' type, sums by torch
    if method.trim is None and not method.vote and not typed:
        return task_sum(case.anchor(), *case.tensors, weights=weights, factor=factor, total=total)
    if (cuts := election(case, method)) is not None:
        return _elect(case, case.tensors, cuts)
    base, deltas = (
        case.anchor().to(kind),
        [_trimmed(difference(x, case.anchor(), kind), case, i, method) for i, x in enumerate(case.tensors)],
    )
    if typed:
        return _own_type(base, deltas, weights, case, method)
    if method.vote:
        return _elect(case, deltas, [(NEVER, -1)] * len(deltas), vectors=True)
    return (base + weighted_sum(*deltas, weights=weights, total=total) * factor).to(case.anchor().dtype)


def election(case: Case, method: Method) -> Sequence[Threshold] | None:
    """Where each task vector is cut, for what is a trim by magnitude (or none), a vote and float32 sums; None for any other merge.

    Raises ValueError for NaN.
    """
    if method.formula != "task" or not method.vote or method.trim not in ("magnitude", None) or case.shared["rescale"] or case.parity:
        return None
    kind = case.anchor().dtype
    if kind != torch.float32 and (case.native or kind not in NARROW):
        return None
    return case.thresholds or thresholds(case.tensors, case.anchor(), case.values("density"))


def _elect(case: Case, tensors: Sequence[Tensor], cuts: Sequence[Threshold], vectors: bool = False) -> Tensor:
    low, last = [c[0] for c in cuts], [c[1] for c in cuts]
    more = {"normalize": case.shared["normalize"], "factor": case.shared["lambda"], "vectors": vectors}
    return elect_sum(case.anchor(), *tensors, weights=case.values("weight"), low=low, last=last, **more)


def _trimmed(delta: Tensor, case: Case, index: int, method: Method) -> Tensor:
    parameters = case.each[index]
    density = parameters["density"]
    if method.trim is None or density >= 1 or delta.numel() < 2:  # a single number is never trimmed
        return delta
    if method.trim == "magnitude":
        mask = magnitude_mask(delta, density, case.parity).to(delta.dtype)
    elif method.trim == "outliers":
        mask = outlier_mask(delta, density, parameters["gamma"], case.parity).to(delta.dtype)
    elif method.trim == "random":
        mask = random_mask(delta, density, case.draws[index])
    else:
        mask = rank_mask(delta, density, parameters["epsilon"], case.draws[index])
    return masked(delta, mask, case.shared["rescale"])


def _own_type(base: Tensor, deltas: list[Tensor], weights: list[float], case: Case, method: Method) -> Tensor:
    """The same in float64, or in a 16-bit type, where sums are rounded once and every other step is rounded: mergekit's arithmetic."""
    stacked = torch.stack(deltas)
    shares = column(weights, stacked)
    terms = stacked * shares
    if method.vote:
        wanted = torch.where(terms.sum(dim=0) >= 0, 1, -1).to(terms.dtype)
        agree = terms.sign() == wanted
        mixed, divisor = (terms * agree).sum(dim=0), (shares * agree).sum(dim=0)
        divisor = torch.where(divisor == 0, torch.ones_like(divisor), divisor)
    else:
        mixed, divisor = terms.sum(dim=0), shares.sum(dim=0)
        divisor = torch.where(divisor.abs() < NOTHING, torch.ones_like(divisor), divisor)
    if case.shared["normalize"]:
        mixed = mixed / divisor
    if case.shared["lambda"] != 1:
        mixed = mixed * case.shared["lambda"]
    return base + mixed


def divisor(weights: Sequence[float]) -> float | None:
    """What a sum with these weights is divided by to normalize; None for a sum of weights that is next to nothing."""
    total = float(torch.tensor(list(weights), dtype=torch.float32).sum())
    return None if abs(total) < NOTHING else total
