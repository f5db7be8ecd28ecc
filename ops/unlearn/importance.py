"""How much each weight matters to a set of samples: the diagonal Fisher information, exact per sample, whatever the order or the batches.

Importance of a weight is the mean over samples of the squared gradient of the sample's own score (LFSSD: of its magnitude). It is *not* the
square of a batch's mean gradient, which depends on how the data is ordered and batched; that is `reference_batch_importance`, kept for
reproducing Foster et al., AAAI 2024 (arXiv 2308.07707). Reads a module and a scoring function; leaves both as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from ...registry.errors import CheckFailed
from .capture import Capture

Scores = Callable[[list[int]], Tensor]
How = Literal["square", "absolute"]
AGREE = 1e-3  # of a tensor's greatest element: hooks that miss a use are off by far more, rounding by far less
NOISE = 1e-6  # of the model's greatest gradient: where a gradient is zero but for rounding (biases of keys), nothing need agree


def importance(
    module: nn.Module,
    scores: Scores,
    batches: Iterable[list[int]],
    *,
    how: How = "square",
    names: Collection[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Mean over samples of g^2 (`square`) or |g| (`absolute`), g the gradient of one sample's score.

    Args: `scores(chosen)` runs the module on the samples `chosen` and returns one differentiable score for each, `[B]`; samples must not
    influence each other, and lie along the first axis. `names` limits the parameters (as in `named_parameters`; a tied one has one
    name). `progress` is told how many samples are done. Returns name -> float32 tensor of the parameter's shape.
    The module runs in evaluation mode; modes, flags and gradients are as before afterwards. The first batch's ends are also computed
    one by one, and parameters on which that differs (used in a way that hooks cannot see) take the slow road throughout.
    Raises CheckFailed naming the first parameter whose importance is not finite.
    """
    plan, wanted = [list(b) for b in batches if len(b)], _wanted(module, names)
    total = sum(map(len, plan))
    if not wanted or not total:
        return {name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in wanted.items()}
    absolute, done = _absolute(how), 0
    with _quiet(module):
        slow = _unfit(module, scores, sorted({plan[0][0], plan[0][-1]}), wanted, absolute)
        capture = Capture(module, {name: p for name, p in wanted.items() if name not in slow}, absolute)
        with capture.hooked():
            for chosen in plan:
                capture.batch(scores, chosen)
                done += len(chosen)
                if progress is not None:
                    progress(done)
        sums = {name: account.total for name, account in capture.accounts.items()}
        slow |= capture.unfit
        if slow:
            sums |= _one_by_one(
                module, scores, [i for chosen in plan for i in chosen], {n: wanted[n] for n in wanted if n in slow}, absolute
            )
    return _checked({name: sums[name].div_(total) for name in wanted})


def reference_batch_importance(
    module: nn.Module,
    scores: Scores,
    batches: Iterable[list[int]],
    *,
    how: How = "square",
    names: Collection[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """The papers' code: the square (or magnitude) of each batch's mean gradient, averaged over batches in the order given.

    A short last batch weighs as much as the others, and the result depends on the order: for reproducing published numbers only.
    Arguments and result as for `importance`.
    """
    absolute, wanted, done, count = _absolute(how), _wanted(module, names), 0, 0
    sums = {name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in wanted.items()}
    with _quiet(module):
        for chosen in batches:
            for name, gradient in _gradients(lambda rows=list(chosen): scores(rows).mean(), wanted):
                _book(sums[name], gradient, absolute)
            done, count = done + len(chosen), count + 1
            if progress is not None:
                progress(done)
    return _checked({name: value.div_(max(1, count)) for name, value in sums.items()})


def mean_gradient(
    module: nn.Module,
    scores: Scores,
    batches: Iterable[list[int]],
    names: Collection[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """The mean over samples of the gradient itself, float32 (WAGLE, SLUG). Arguments and errors as for `importance`."""
    wanted, done = _wanted(module, names), 0
    sums = {name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in wanted.items()}
    with _quiet(module):
        for chosen in batches:
            for name, gradient in _gradients(lambda rows=list(chosen): scores(rows).sum(), wanted):
                sums[name] += gradient
            done += len(chosen)
            if progress is not None:
                progress(done)
    return _checked({name: value.div_(max(1, done)) for name, value in sums.items()})


def pack(importance: dict[str, Tensor]) -> bytes:
    """The bytes of an importance (safetensors), the same for the same values: what an artifact keeps."""
    return safetensors.torch.save({name: importance[name].contiguous() for name in sorted(importance)})


def unpack(data: bytes) -> dict[str, Tensor]:
    """The inverse of `pack`."""
    return safetensors.torch.load(data)


def _one_by_one(module: nn.Module, scores: Scores, samples: list[int], wanted: dict[str, Tensor], absolute: bool) -> dict[str, Tensor]:
    """Sums by one backward pass per sample: slow, and right for every module."""
    sums = {name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in wanted.items()}
    for sample in samples:
        for name, gradient in _gradients(lambda row=sample: scores([row]).sum(), wanted):
            _book(sums[name], gradient, absolute)
    return sums


def _unfit(module: nn.Module, scores: Scores, samples: list[int], wanted: dict[str, Tensor], absolute: bool) -> set[str]:
    """Names on which hooks and single samples disagree, and those that the hooks refused."""
    capture = Capture(module, wanted, absolute)
    with capture.hooked():
        capture.batch(scores, samples)
    known, unfit = _one_by_one(module, scores, samples, wanted, absolute), set(capture.unfit)
    greatest = {name: float(right.amax()) for name, right in known.items() if right.numel()}
    floor = max(greatest.values(), default=0.0) * (NOISE if absolute else NOISE**2)
    for name, most in greatest.items():
        if float((capture.accounts[name].total - known[name]).abs().amax()) > max(
            AGREE * most, floor
        ):  # false for NaN: reported at the end
            unfit.add(name)
    return unfit


def _gradients(score: Callable[[], Tensor], wanted: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name, gradient) of one score; parameters it does not depend on are left out."""
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            total = score()
        if not total.requires_grad:
            return
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    finally:
        for parameter in wanted.values():
            parameter.requires_grad_(False)
    yield from ((name, g.float()) for name, g in zip(wanted, found, strict=True) if g is not None)


def _book(total: Tensor, gradient: Tensor, absolute: bool) -> None:
    if absolute:
        total.add_(gradient.abs())
    else:
        total.addcmul_(gradient, gradient)


def _absolute(how: str) -> bool:
    if how not in ("square", "absolute"):
        raise ValueError(f"importance is the mean square or the mean absolute gradient, not {how!r}")
    return how == "absolute"


def _wanted(module: nn.Module, names: Collection[str] | None) -> dict[str, Tensor]:
    present: dict[str, Tensor] = dict(module.named_parameters())
    unknown = sorted(set(names or ()) - set(present))
    if unknown:
        raise ValueError(f"the module has no parameter {unknown[0]}")
    return present if names is None else {name: p for name, p in present.items() if name in set(names)}


@contextmanager
def _quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter that asks for gradients, inside the block only."""
    modes = [(m, m.training) for m in module.modules()]
    flags = [(p, p.requires_grad) for p in module.parameters()]
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _checked(found: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, value in found.items():
        if value.numel() and not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
            raise CheckFailed(
                f"the gradients of {name} are not finite numbers",
                hint="`mlc evaluate` shows whether the model itself still gives numbers",
            )
    return found
