"""Runs in a process of its own with TRITON_INTERPRET=1, set before Triton is imported: compares every twin with its reference.

Prints one JSON object: dtype -> list of the cases whose bits differ.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from mlc.kernels import planes
from mlc.kernels.dispatch import use_kernels

BLOCK = 1024
SIZES = (0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 52)


def vector(dtype: torch.dtype, n: int, seed: int) -> torch.Tensor:
    """Random bits: every NaN payload, infinity, subnormal and signed zero may come up."""
    raw = torch.randint(0, 256, (n * dtype.itemsize,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (raw & 1 if dtype is torch.bool else raw).view(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in type, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8))


def differences(dtype: torch.dtype) -> list[str]:
    """Names of the cases in which a twin and its reference part."""
    found = []
    for n in SIZES:
        target, base = vector(dtype, n, 1), vector(dtype, n, 2)
        if n == 7:  # every second element of a larger vector
            target, base = vector(dtype, 2 * n, 3)[::2], vector(dtype, 2 * n, 4)[::2]
        with use_kernels("triton"):
            delta, alone = planes.delta_planes(target, base), planes.split_planes(target)
            back, joined = planes.undelta_planes(delta, base), planes.join_planes(alone, dtype)
        checks = {
            "delta_planes": same(delta, planes.delta_planes.reference(target, base)),
            "split_planes": same(alone, planes.split_planes.reference(target)),
            "undelta_planes": same(back, target.contiguous()),
            "join_planes": same(joined, target.contiguous()),
        }
        found += [f"{name} at {n}" for name, right in checks.items() if not right]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({name: differences(getattr(torch, name)) for name in sys.argv[1:]}, sys.stdout)
