"""Runs in a process of its own with TRITON_INTERPRET=1, set before Triton is imported: the twin of logit_flips and of its gradient.

Prints one JSON object: kernel -> list of the cases in which twin and reference part.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from mlc.kernels.dispatch import use_kernels
from mlc.kernels.logit_flips import Flips, kl_gradient, logit_flips

TYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((1, 1), (3, 2), (5, 63), (4, 1024), (3, 1025), (2, 2500), (0, 7))
BENDS = (0, 1, 2, 3)  # what is bent in a case: nothing, ties, holes of -inf, a great offset with far tails


def logits(rows: int, width: int, dtype: torch.dtype, bend: int, generator: torch.Generator) -> torch.Tensor:
    z = torch.randn(rows, width, generator=generator) * 4
    if bend == 1:
        z = z.round()
    if bend == 2:
        z[torch.rand(rows, width, generator=generator) < 0.3] = -math.inf
        z[:1] = -math.inf
    if bend == 3:
        z = z * 20 + 500
        z[:, ::3] = -math.inf if rows == 2 else -3000.0
    return z.to(dtype)


def parted(twin: Flips, right: Flips) -> list[str]:
    """Names of the columns that part: choices to the bit, numbers within 1e-5 of the value, or absolutely where that is smaller."""
    found = [name for name in ("best_old", "best_new") if not getattr(twin, name).equal(getattr(right, name))]
    for name in Flips._fields[2:]:
        a, b = getattr(twin, name), getattr(right, name)
        if a.dtype != torch.float32 or not torch.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True):
            found.append(name)
    return found


def cases() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"logit_flips": [], "kl_gradient": []}
    generator = torch.Generator().manual_seed(0)
    for (rows, width), kind, bend, tau in itertools.product(SHAPES, TYPES, BENDS, (1.0, 7.5)):
        old, new = logits(rows, width, kind, bend, generator), logits(rows, width, torch.float32, bend, generator)
        if bend == 0:
            old = old.t().contiguous().t()  # not contiguous
        targets = torch.randint(0, width, (rows,), generator=generator)
        with use_kernels("triton"):
            twin = logit_flips(old, new, targets, tau)
        right = logit_flips.reference(old, new, targets, tau)
        name = f"{rows},{width} {kind} {bend} {tau}"
        if wrong := parted(twin, right):
            found["logit_flips"].append(f"{name}: {wrong}")
        if bend == 2:
            continue  # where KL is infinite or no number, so is its gradient
        scale = torch.randn(rows, generator=generator)
        for of_old in (False, True):
            with use_kernels("triton"):
                gradient = kl_gradient(old, new, right.kl, scale, tau, of_old)
            wanted = kl_gradient.reference(old, new, right.kl, scale, tau, of_old)
            close = 1e-5 if wanted.dtype is torch.float32 else 1e-2
            if gradient.dtype != wanted.dtype or not torch.allclose(
                gradient.float(), wanted.float(), rtol=close, atol=close, equal_nan=True
            ):
                found["kl_gradient"].append(f"{name} {of_old}")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump(cases(), sys.stdout)
