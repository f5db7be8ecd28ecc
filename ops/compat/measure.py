"""What a compatible update did, on anchors: flips against the old version before and after, and how far the answers moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels.logit_flips import logit_flips
from ..engine.local import placed
from ..evaluate.flips import Counts, report
from ..models import load_model
from .anchors import Anchors
from .teacher import Teacher

if TYPE_CHECKING:
    from ...registry.view import ModelView

MEASURED = 1024  # anchors at most, evenly spaced


@torch.no_grad()
def beside(before: ModelView, after: ModelView, anchors: Anchors, chosen: Sequence[int], old: Teacher) -> dict[str, Any]:
    """Both versions are asked together. An example is a record, or a token of a plain text. Rates are against the old version's answers."""
    chosen = [chosen[i] for i in torch.linspace(0, len(chosen) - 1, min(MEASURED, len(chosen))).round().long().tolist()]
    modules = [placed(load_model(view, dtype=torch.float32)).eval() for view in (before, after)]
    right: list[Tensor] = []
    sums = torch.zeros(3, dtype=torch.float64)
    decisions = 0
    for part in anchors.parts(chosen):
        first, owners, targets = anchors.answers(modules[0], part)
        found = logit_flips(first, anchors.answers(modules[1], part)[0], targets)
        hits = torch.stack([old.at(part, first.device).hit, found.best_old == targets, found.best_new == targets])
        right.append(_examples(hits, owners, [anchors.pairs[i] for i in part]).cpu())
        moved = (found.logprob_new - found.logprob_old).double()
        sums += torch.stack([found.agree.double().sum(), found.kl.double().sum(), moved.sum()]).cpu()
        decisions += len(targets)
    agreement, divergence, gained = (sums / decisions).tolist()
    was, is_now = (_against(torch.cat(right, dim=1), place) for place in (1, 2))
    return {
        "examples": was["n"],
        "accuracy_old": was["acc_a"],
        "accuracy_before": was["acc_b"],
        "accuracy_after": is_now["acc_b"],
        "nfr_before": was["nfr"],
        "nfr_after": is_now["nfr"],
        "pfr_after": is_now["pfr"],
        "agreement": _number(agreement),
        "divergence": _number(divergence),
        "logprob_gained": _number(gained),
    }


def _examples(hits: Tensor, owners: Tensor, pairs: Sequence[bool]) -> Tensor:
    """bool [3, examples] from bool [3, decisions]: records are right as a whole, tokens of plain texts one by one."""
    whole = torch.tensor(pairs, device=owners.device)
    misses = torch.zeros(3, len(pairs), dtype=torch.int64, device=owners.device).index_add(1, owners, (~hits).long())
    return torch.cat([(misses == 0)[:, whole], hits[:, ~whole[owners]]], dim=1)


def _against(right: Tensor, place: int) -> dict[str, Any]:
    old, new = right[0], right[place]
    cells = [int((a & b).sum()) for a, b in ((old, new), (old, ~new), (~old, new), (~old, ~new))]
    found = report(Counts(*cells, churned=cells[1] + cells[2]))
    return {"n": found.n, "acc_a": found.acc_a, "acc_b": found.acc_b, "nfr": found.nfr, "pfr": found.pfr}


def _number(value: float) -> float | None:
    return round(value, 6) if value - value == 0 else None
