"""Runs in a process of its own with TRITON_INTERPRET=1, set before Triton is imported: the twins of fisher, dampen and select.

Prints one JSON object: kernel -> list of the cases in which twin and reference part.
"""

from __future__ import annotations

import itertools
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from mlc.kernels import dampen, fisher, select
from mlc.kernels.dispatch import use_kernels

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((1, 1, 1, 1), (3, 1, 5, 7), (2, 17, 65, 3), (5, 7, 20, 66), (0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5))  # B, T, in, out


def fisher_cases() -> list[str]:
    """Sums run in another order: 1e-5 of the greatest element is what the docstring promises."""
    found, generator = [], torch.Generator().manual_seed(0)
    for (b, t, ins, outs), dtype, absolute in itertools.product(SHAPES, TYPES, (False, True)):
        x = torch.randn(b, ins, t, generator=generator).to(dtype).transpose(1, 2)  # not contiguous
        delta = torch.randn(b, t, outs, generator=generator).to(dtype)
        with use_kernels("triton"):
            twin = fisher.fisher_diag(x, delta, absolute)
        right = fisher.fisher_diag.reference(x, delta, absolute)
        most = float(right.abs().amax()) if right.numel() else 0.0
        same = twin.shape == right.shape and twin.dtype == right.dtype == torch.float32
        if not same or (right.numel() and float((twin - right).abs().amax()) > 1e-5 * most):
            found.append(f"{b},{t},{ins},{outs} {dtype} {absolute}")
    return found


def dampen_cases() -> list[str]:
    """To the bit, the count included."""
    found, generator = [], torch.Generator().manual_seed(1)
    for n, dtype, (alpha, lam, floor) in itertools.product((0, 1, 1023, 2500), TYPES, ((1.0, 1.0, 0.0), (0.1, 0.7, 0.25), (0.0, 3.0, 0.0))):
        w = torch.randn(n, generator=generator).to(dtype)
        few, every = (torch.rand(n, generator=generator) * torch.randint(0, 2, (n,), generator=generator) for _ in range(2))
        few[:1], every[-1:] = float("nan"), float("inf")
        with use_kernels("triton"):
            twin, count = dampen.dampen(w, few, every, alpha, lam, floor)
        right, expected = dampen.dampen.reference(w, few, every, alpha, lam, floor)
        if count != expected or twin.dtype != dtype or not twin.view(torch.uint8).equal(right.view(torch.uint8)):
            found.append(f"{n} {dtype} {alpha}")
    return found


def select_cases() -> list[str]:
    """Counts are whole numbers: equal."""
    found, generator = [], torch.Generator().manual_seed(2)
    for n in (0, 1, 2047, 40_000):
        bits = torch.randint(0, 2**31 - 1, (n,), generator=generator).to(torch.int32)
        for shift, depth in zip(select.SHIFTS, (0, 1, 2), strict=True):
            prefix = int(bits[0]) >> (shift + select.DIGIT) if n and depth else 0
            with use_kernels("triton"):
                twin = select.digit_histogram(bits, prefix, shift)
            right = select.digit_histogram.reference(bits, prefix, shift)
            if not twin.equal(right) or (n and not right.sum()):
                found.append(f"{n} at {shift}")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({"fisher": fisher_cases(), "dampen": dampen_cases(), "select": select_cases()}, sys.stdout)
