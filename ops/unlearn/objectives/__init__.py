"""What is minimised: a term that pushes the forget rows away plus a term that holds the retain rows, one file per objective.

Total loss of a step: L = L_forget + w L_retain. L_retain takes the token-mean NLL over the retain pairs and the token-mean NLL over the
rows of plain text, and weighs the two by their numbers of rows: one mean over all tokens would let a few long rows of text drown the
short answers. Plain text is what keeps the perplexity: without it, NPO on a small model raised it by 12 %, with it not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ..draws import Draw
from ..task import Rows, Task

if TYPE_CHECKING:
    from ..context import Context

OBJECTIVES = {"graddiff": "GradDiff", "npo": "NPO", "simnpo": "SimNPO", "po": "PO", "rmu": "RMU"}  # file -> class


class Forget(Protocol):
    """The forget term. Made from a context, at the start weights."""

    def __init__(self, ctx: Context) -> None: ...

    def forget(self, module: nn.Module, chosen: Sequence[int]) -> Tensor:
        """The scalar to minimise over rows `chosen` of the forget set, differentiable."""
        ...

    def retain(self, module: nn.Module, draw: Draw) -> Tensor:
        """The scalar to minimise over the retain rows of a step, differentiable."""
        ...


class Objective:
    """The whole loss of a step, as an engine calls it."""

    def __init__(self, ctx: Context) -> None:
        self.weight = ctx.op.retain_weight if ctx.retain is not None else 0.0
        self.term: Forget = getattr(import_module(f".{ctx.op.objective}", __package__), OBJECTIVES[ctx.op.objective])(ctx)

    def __call__(self, module: nn.Module, batch: Draw) -> Tensor:
        """L_forget + w L_retain."""
        loss = self.term.forget(module, batch.forget)
        return loss + self.weight * self.term.retain(module, batch) if self.weight else loss


class Likelihood:
    """What all objectives but RMU share: rows, task, and the retain term on likelihoods."""

    def __init__(self, ctx: Context) -> None:
        self.task, self.rows = ctx.task, ctx.forget.rows
        self.kept = ctx.retain.rows if ctx.retain is not None else None

    def retain(self, module: nn.Module, draw: Draw) -> Tensor:
        """Token-mean NLL over pairs and over plain text, weighed by rows."""
        assert self.kept is not None
        return by_rows([(token_mean(self.task, module, self.kept, part), len(part)) for part in (draw.retain, draw.text) if part])


def token_mean(task: Task, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Tensor:
    """NLL summed over all scored tokens of the rows, by their number; nats."""
    sums, counts = task.token_sums(module, rows, chosen)
    return sums.sum() / counts.sum()


def by_rows(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    """The mean of scalars, each weighed by its number of rows."""
    if len(parts) == 1:
        return parts[0][0]
    return torch.stack([value * count for value, count in parts]).sum() / sum(count for _, count in parts)
