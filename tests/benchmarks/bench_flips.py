"""`logit_flips` against the plain computation: time, memory over the two logit tensors, and the greatest difference.

    python -m mlc.tests.benchmarks.bench_flips

The plain computation holds both softmaxes whole, as one would write it. Memory is the peak of torch's allocations (the profiler's records)
during the work plus the two logit tensors, over the two logit tensors; `backward` counts the gradient, which has the size of one. On a GPU
the share of the copy bandwidth is measured as well: bytes of both tensors over the time, over what a copy of them reaches.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlc.kernels.logit_flips import Flips, divergence, logit_flips

SHAPES = ((512, 2048), (256, 32_000), (64, 150_001))
ROUNDS = 5


def plain(old: Tensor, new: Tensor, targets: Tensor) -> Flips:
    """Both softmaxes whole."""
    x, y = old.float(), new.float()
    p, q = x.log_softmax(-1), y.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    own = [z.gather(1, targets[:, None])[:, 0] for z in (x, y)]
    others = [z.scatter(1, targets[:, None], -torch.inf).amax(-1) for z in (x, y)]
    surely = [z.gather(1, targets[:, None])[:, 0] for z in (p, q)]
    return Flips(x.argmax(-1), y.argmax(-1), kl, *surely, *(a - b for a, b in zip(own, others, strict=True)))


def peak(work: Callable[[], Any]) -> int:
    """Bytes that torch holds at most during `work` beyond what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    held = most = 0
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]  # it has run
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def seconds(work: Callable[[], Any], where: str) -> float:
    """Median over rounds; processor seconds, or the card's time."""
    taken = []
    for _ in range(ROUNDS):
        if where == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter() if where == "cuda" else time.process_time()
        work()
        if where == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() if where == "cuda" else time.process_time()) - start)
    return statistics.median(taken)


def row(rows: int, width: int, dtype: torch.dtype, where: str) -> dict[str, Any]:
    """All figures of one shape."""
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(rows, width, generator=generator).mul(4).to(dtype).to(where) for _ in range(2))
    targets = torch.randint(0, width, (rows,), generator=generator).to(where)
    both = 2 * old.numel() * old.element_size()

    def backward() -> None:
        leaf = new.detach().requires_grad_()
        divergence(old, leaf).sum().backward()

    found, right = logit_flips(old, new, targets), plain(old, new, targets)
    far = max(float(((a - b).abs() / b.abs().clamp_min(1)).amax()) for a, b in zip(found[2:], right[2:], strict=True))
    ours, theirs = seconds(lambda: logit_flips(old, new, targets), where), seconds(lambda: plain(old, new, targets), where)
    said: dict[str, Any] = {
        "rows": rows,
        "vocabulary": width,
        "dtype": str(dtype).removeprefix("torch."),
        "difference": float(f"{far:.1e}"),
        "same_choices": bool(found.best_old.equal(right.best_old) and found.best_new.equal(right.best_new)),
        "ms": round(1e3 * ours, 2),
        "plain_over_ours": round(theirs / ours, 2),
    }
    if where == "cuda":
        copied = torch.empty_like(old)
        copying = 2 * seconds(lambda: copied.copy_(old), where)  # reads and writes one tensor: twice that for two, read once each
        return {**said, "share_of_copy_bandwidth": round(copying / 2 / ours, 2)}
    return {
        **said,
        "memory": round(1 + peak(lambda: logit_flips(old, new, targets)) / both, 3),
        "memory_plain": round(1 + peak(lambda: plain(old, new, targets)) / both, 3),
        "memory_backward": round(1 + peak(backward) / both, 3),
    }


def main() -> dict[str, Any]:
    """One row for each shape and type."""
    torch.set_num_threads(1)
    where = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": where, "rows": [row(*shape, dtype, where) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
