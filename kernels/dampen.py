"""Selective dampening of weights: those that matter far more to a forget set than to all data are shrunk in proportion.

Foster et al., AAAI 2024 (arXiv 2308.07707), with the two importances as inputs. Elementwise, in one rounding of the weight's own type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import accelerated

DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
CHUNK = 1 << 18  # elements per step: temporaries stay small beside the weight, and in the cache


@accelerated("dampen")
def dampen(w: Tensor, f_forget: Tensor, f_all: Tensor, alpha: float, lam: float, floor: float = 0.0) -> tuple[Tensor, int]:
    """Where f_forget > alpha f_all: w times beta = min(lam f_all / f_forget, 1), at least `floor`; elsewhere w to the bit.

    Args: w of any shape in float64, float32, float16 or bfloat16; f_forget and f_all of w's shape, not negative; alpha and lam >= 0,
    floor in [0, 1]. Computed in float32 (float64 for float64) and rounded once. Nothing is divided by zero: where f_forget is 0 (or
    either is NaN) nothing is selected. Returns (new w, how many were selected); bit-exact on every road. Raises ValueError.
    """
    check(w, f_forget, f_all, alpha, lam, floor)
    wide = torch.float64 if w.dtype is torch.float64 else torch.float32
    out, count = torch.empty_like(w, memory_format=torch.contiguous_format), 0
    parts = (t.reshape(-1).split(CHUNK) for t in (w, f_forget, f_all, out))
    for old, few, every, new in zip(*parts, strict=True):
        few, every, old_wide = few.to(wide), every.to(wide), old.to(wide)
        chosen = few > every * alpha
        beta = (every * lam / torch.where(chosen, few, 1.0)).clamp_(max=1.0).clamp_(min=floor)
        new.copy_(torch.where(chosen, (old_wide * beta).to(w.dtype), old))
        count += int(chosen.sum())
    return out, count


def check(w: Tensor, f_forget: Tensor, f_all: Tensor, alpha: float, lam: float, floor: float) -> None:
    """Raise ValueError unless the three tensors have one shape and the numbers make sense."""
    if w.dtype not in DTYPES:
        raise ValueError(f"weights of {w.dtype} cannot be dampened")
    if not w.shape == f_forget.shape == f_all.shape:
        raise ValueError(f"a weight and its importances have one shape, not {list(w.shape)}, {list(f_forget.shape)}, {list(f_all.shape)}")
    if not (alpha >= 0 and lam >= 0 and 0 <= floor <= 1):
        raise ValueError(f"alpha and lambda are not negative and the floor lies in [0, 1], not {alpha}, {lam}, {floor}")
