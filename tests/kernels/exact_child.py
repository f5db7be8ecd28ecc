"""Runs in a process of its own, because torch chooses the capability when it starts: prints a digest of all that exact.py computes."""

from __future__ import annotations

import hashlib

import torch

from mlc.kernels import exact


def numbers(*shape: int, seed: int) -> torch.Tensor:
    """float32 with random bits, from integers: torch's normal deviates themselves differ between capabilities."""
    return torch.randint(-(1 << 31), 1 << 31, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int32).view(torch.float32)


def modest(*shape: int, seed: int) -> torch.Tensor:
    """Numbers like weights, with all mantissa bits in use."""
    return torch.randint(-(1 << 24), 1 << 24, shape, generator=torch.Generator().manual_seed(seed)).to(torch.float32) * 2.0**-27


def digest() -> str:
    """SHA-256 over every function, on ragged sizes, tiny and huge numbers, infinities and NaN."""
    found = hashlib.sha256()
    a, b = numbers(1009, seed=1), numbers(1009, seed=2)
    results = [exact.round_to(f(a, b), torch.float32) for f in (exact.add, exact.sub, exact.mul, exact.div)]
    results += [exact.round_to(f(a.double(), b.double()), torch.float64) for f in (exact.add, exact.sub, exact.mul, exact.div)]
    results += [exact.round_to(exact.scale(a, 0.1), kind) for kind in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)]
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        w, up, down = modest(301, 203, seed=3).to(kind), modest(301, 7, seed=4), modest(7, 203, seed=5)
        w[0, 0], w[1, 1], w[2, :9] = float("nan"), float("inf"), 1e-41
        results += [exact.add_rank1_terms(w, up, down, 0.3), exact.add_rank1_terms(w[:0], up[:0], down)]
        b, x = w.flip(0), modest(301, 203, seed=6).to(kind)
        results += [
            exact.elect_sum(b, (w, x), (0.3, share), ((2.0**-7, 30_000), (-1.0, -1)), 0.7, kind, normalize)
            for share, normalize in ((0.6, True), (-0.2, True), (0.6, False))
        ]
        results += [exact.weighted_sum((w, b, x), (0.3, -0.7, 0.4), kind, 0.9), exact.task_sum(b, (w, x), (0.3, 0.6), 0.7, kind, 1.1)]
    for result in results:
        found.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(torch.backends.cpu.get_cpu_capability(), digest())
