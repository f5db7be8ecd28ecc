"""Runs in a process of its own with TRITON_INTERPRET=1, set before Triton is imported: the twins of the merge kernels.

Prints one JSON object: kernel -> list of the cases whose bits differ from the reference. With the word `bits`: a digest of what the
references give, to be compared under other capabilities of the processor.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from mlc.kernels import merge
from mlc.kernels.dispatch import use_kernels

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SIZES = (0, 1, 7, 1023, 1024, 1025, 2100)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in type, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8))


def models(n: int, count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random tensors with zeros of both signs among them; every second element of a larger one when n is 7."""
    generator = torch.Generator().manual_seed(n)
    found = [torch.randn(2 * n if n == 7 else n, generator=generator).to(dtype) for _ in range(count)]
    for x in found:
        x[::5], x[1::7] = 0.0, -0.0
    return [x[::2] if n == 7 else x for x in found]


def differences() -> dict[str, list[str]]:
    """Names of the cases in which a twin and its reference part."""
    found: dict[str, list[str]] = {"weighted_sum": [], "task_sum": [], "elect_sum": []}
    for n, dtype, count in itertools.product(SIZES, TYPES, (1, 2, 3)):
        base, *others = models(n, count + 1, dtype)
        weights = [0.6, -0.7, 1.3][:count]
        deltas = [x.float() - base.float() for x in others]
        trims = {"low": [0.5, merge.NEVER, float(deltas[-1].abs().max()) if n else 0.0][:count], "last": [n // 2, -1, n][:count]}
        cases = {
            "weighted_sum": [((*others,), {"weights": weights, "total": t}) for t in (None, 1.3)],
            "task_sum": [((base, *others), {"weights": weights, "factor": f, "total": t}) for f, t in ((1.0, None), (0.3, 0.9))],
            "elect_sum": [
                ((base, *(deltas if v else others)), {"weights": weights, "normalize": v, "factor": 0.8, "vectors": v, **trims})
                for v in (True, False)
            ],
        }
        for name, (args, more) in ((name, case) for name, given in cases.items() for case in given):
            kernel = getattr(merge, name)
            with use_kernels("triton"):
                twin = kernel(*args, **more)
            if not same(twin, kernel.reference(*args, **more)):
                found[name].append(f"{n} {dtype} {count} {more}")
    return found


def bits() -> str:
    """A digest of what the references give for many numbers: the same on every processor."""
    generator = torch.Generator().manual_seed(7)
    # From integers: normal numbers come out differently on other processors.
    base, x, y = (torch.randint(-(1 << 23), 1 << 23, (200_003,), generator=generator).float() / (1 << 22) for _ in range(3))
    found = hashlib.sha256()
    for dtype in TYPES[1:]:
        b, p, q = (t.to(dtype) for t in (base, x, y))
        weights, trims = [0.6, 0.7], {"low": [0.5, 0.25], "last": [1000, -1]}
        for result in (
            merge.weighted_sum(p, q, weights=weights, total=1.3),
            merge.task_sum(b, p, q, weights=weights, factor=0.8, total=1.3),
            merge.elect_sum(b, p, q, weights=weights, factor=0.8, **trims),
        ):
            found.update(result.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump(bits() if sys.argv[1:] == ["bits"] else differences(), sys.stdout)
