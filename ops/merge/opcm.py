"""Orthogonal-projection continual merging: fold one fine-tuned model after another into a running merge, at constant memory.

Tang et al., 2501.09522. What a new task vector would disturb in the running one is projected away from matrices; all else is added; the sum
is scaled so that the merge always lies as far from the base as a fine-tune does on average. What cannot be read off the weights (the scale,
the number and the norms of the task vectors) is the state, which belongs into the commit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHA = 0.1  # the authors take 0.5; forks that share much lose by that (measured on forks other than those that are reported)
STILL = 1e-12  # a running task vector of no greater norm disturbs nothing


@dataclass(frozen=True, slots=True)
class State:
    """What a chain remembers: the scale lambda, how many models it holds, the sum of the norms of their task vectors; alpha and shared."""

    scale: float = 1.0
    count: int = 0
    norms: float = 0.0
    alpha: float = ALPHA
    shared: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:  # the authors' code takes 1 for 0: no share of the mass is greater than 1
            raise ValueError(f"alpha lies in [0, 1), not at {self.alpha}")

    @property
    def mean_norm(self) -> float:
        """The average distance of the absorbed models from the base: where the merge lies."""
        return self.norms / self.count if self.count else 0.0


def dominant(singular: Tensor, alpha: float) -> int:
    """How many leading singular values hold at most the share `alpha` of their sum (values, not squares)."""
    mass = singular.cumsum(0) / singular.sum()
    over = (mass > alpha).nonzero()
    return int(over[0]) if len(over) else 0


def projected(running: Tensor, task: Tensor, alpha: float = ALPHA, shared: bool = False) -> Tensor:
    """The task vector without what meets the running one: in the singular basis of `running`, without the diagonal and without the block
    of the dominant directions. Orthogonal to `running`; never longer than `task`.

    Args: both `[m, n]`, computed in float32 (float64 stays). The thin form: with d = diag(U^T D V), result = D - U d V^T - U_r B V_r^T
    where B is the dominant block of U^T D V with its diagonal set to zero. A running vector of zero takes nothing away.
    shared: what goes the way of a singular direction of the running vector stays (d <= 0 alone is taken away), as models that learnt the
    same would have it; the result is then not orthogonal to the running vector, but never against it.
    """
    wide = torch.float64 if task.dtype == torch.float64 else torch.float32
    t, d = running.to(wide), task.to(wide)
    if float(torch.linalg.vector_norm(t)) <= STILL:
        return d
    u, s, vh = torch.linalg.svd(t, full_matrices=False)
    across = u.t() @ d  # [k, n]
    diagonal = (across * vh).sum(dim=1)
    diagonal = diagonal.clamp(max=0) if shared else diagonal
    result = d - (u * diagonal) @ vh
    r = dominant(s, alpha)
    if r:
        block = across[:r] @ vh[:r].t()
        block.fill_diagonal_(0)
        result = result - u[:, :r] @ block @ vh[:r]
    return result


def absorbed(state: State, task_norm: float, sum_norm: float) -> State:
    """The state after one more model: `task_norm` of its task vector, `sum_norm` of lambda T + D~, both over all tensors."""
    count, norms = state.count + 1, state.norms + task_norm
    mean = norms / count
    scale = sum_norm / mean if mean > 0 else 1.0
    return State(scale if scale > 0 else 1.0, count, norms, state.alpha, state.shared)


Read = Callable[[str], Tensor]
Store = Callable[[str, Tensor], None]


def absorb(
    names: Iterable[str],
    base: Read,
    merged: Read,
    task: Read,
    matrix: Callable[[str], bool],
    state: State,
    keep: Store,
    kept: Read,
    adds: Store | None = None,
    known: Callable[[str], Tensor | None] | None = None,
) -> Iterator[tuple[str, Tensor] | State]:
    """Fold one model in, streaming: yields (name, tensor of the new merge, float32), and at last the new state.

    Args: base, merged, task: read one tensor; matrix: whether a tensor is the weight of a linear map, and so is projected; keep and kept:
    put away and fetch the unscaled sum lambda T + D~ of a tensor (float32), since the scale is known only when all were seen; adds: told
    the projected task vector D~ of each tensor before its sum is put away; known: sums that were put away before this call, or None.
    For the first model the merge is that model. Holds a handful of copies of one tensor.
    Raises ValueError when a name is given twice.
    """
    names = tuple(names)
    if len(set(names)) != len(names):
        raise ValueError("a tensor is absorbed once: tied names must be given once")
    tasks = sums = 0.0
    for name in names:
        ground = base(name).float()
        delta = task(name).float() - ground
        tasks += float(delta.double().square().sum())
        total = known(name) if known is not None else None
        if total is None:
            running = merged(name).float() - ground if state.count else torch.zeros_like(delta)
            added = projected(running, delta, state.alpha, state.shared) if matrix(name) and delta.dim() == 2 else delta
            total = state.scale * running + added if state.count else delta
            if adds is not None:
                adds(name, added)
            keep(name, total)
        sums += float(total.double().square().sum())
    after = absorbed(state, math.sqrt(tasks), math.sqrt(sums))
    for name in names:
        yield name, (base(name).float() + kept(name) / after.scale) if state.count else task(name).float()
    yield after


def without_last(merged: Tensor, base: Tensor, last: Tensor, before: State, after: State) -> Tensor:
    """The running task vector as it was before the last model was folded in: (lambda_t T_t - D~_t) / lambda_(t-1), to rounding.

    last: the projected task vector D~ of that model, which the commit keeps. The exact bytes are those of the parent commit.
    """
    return (after.scale * (merged.float() - base.float()) - last.float()) / before.scale
