"""Inputs moved a little, and how a model answers to them: the adversary of adversarial training and the scores that it is measured by.

Pixels are moved themselves; of texts the embeddings are moved, since tokens cannot be. Both by hooks, so that a model is called as it
always is. Nothing here changes a parameter or collects its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..unlearn.classes import ClassTask
from ..unlearn.task import Rows, Task, batches

if TYPE_CHECKING:
    from ..unlearn.language import LanguageTask

START = 0.001  # standard deviation of the noise that the adversary starts from, for images: the paper's
RATIO = 0.007 / 0.031  # of a step to epsilon: the paper's
TOKENS = 2048  # of one batch that is measured


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model says at every scored place: logits fp32 [N, C], the batch row of each int64 [N], what is true int64 [N]."""

    logits: Tensor
    owners: Tensor
    truths: Tensor
    count: int  # rows

    def mean(self, values: Tensor) -> Tensor:
        """The mean over rows of the mean over each row's places, of values [N]."""
        places = torch.bincount(self.owners, minlength=self.count).clamp(min=1)
        return (values / places[self.owners]).sum() / self.count

    def loss(self) -> Tensor:
        """Cross-entropy, mean over rows."""
        return self.mean(nn.functional.cross_entropy(self.logits, self.truths, reduction="none"))

    def right(self) -> list[bool]:
        """Per row whether every place is right."""
        wrong = torch.zeros(self.count, dtype=torch.int64, device=self.owners.device)
        wrong.index_add_(0, self.owners, (self.logits.argmax(-1) != self.truths).long())
        return [not w for w in wrong.tolist()]


def answers(task: Task, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Answers:
    """How the module answers to these rows. Differentiable."""
    if isinstance(task, ClassTask):
        logits = task.logits(module, rows, chosen)
        truths = torch.tensor([rows.inputs[i][1] for i in chosen], device=logits.device)
        return Answers(logits, torch.arange(len(chosen), device=logits.device), truths, len(chosen))
    language: LanguageTask = task  # type: ignore[assignment]  # the only other one
    logits, owners, truths = language.scored_logits(module, rows, chosen)
    return Answers(logits, owners, truths, len(chosen))


def divergence(of: Answers, to: Answers) -> Tensor:
    """KL(of || to), mean over rows."""
    p, q = of.logits.log_softmax(-1), to.logits.log_softmax(-1)
    return of.mean((p.exp() * (p - q)).sum(-1))


class Adversary:
    """Moves inputs by at most `epsilon` per number, to where the answers differ most from those to the inputs as they are.

    Iterated sign steps on KL(p(x) || p(x')) from a little noise (CURE, step 1 of a batch; TRADES). Pixels stay between the least and the
    greatest of `rows`; embeddings have no bounds.
    """

    def __init__(self, task: Task, rows: Rows, epsilon: float, steps: int) -> None:
        self.task, self.rows, self.epsilon, self.steps = task, rows, epsilon, steps
        self.pixels = isinstance(task, ClassTask) and task.images
        self.bounds = _bounds(rows) if self.pixels else (-float("inf"), float("inf"))

    def moved(self, module: nn.Module, chosen: Sequence[int], noise: torch.Generator) -> Tensor:
        """What is added to the inputs of these rows: fp32, of their shape. `noise`: a generator of the CPU."""
        clean = self.inputs(module, chosen)
        step = self.epsilon * RATIO
        with torch.no_grad():
            start = answers(self.task, module, self.rows, chosen)
        spread = START if self.pixels else START * self.epsilon
        delta = self._within(clean, spread * torch.randn(clean.shape, generator=noise).to(clean.device))
        for _ in range(self.steps):
            delta = delta.detach().requires_grad_()
            with shifted(module, delta, pixels=self.pixels):
                apart = divergence(start, answers(self.task, module, self.rows, chosen))
            (gradient,) = torch.autograd.grad(apart, delta)
            delta = self._within(clean, delta.detach() + step * gradient.sign())
        return delta.detach()

    def answers(self, module: nn.Module, chosen: Sequence[int], delta: Tensor) -> Answers:
        """How the module answers to the moved inputs. Differentiable in the parameters."""
        with shifted(module, delta, pixels=self.pixels):
            return answers(self.task, module, self.rows, chosen)

    @torch.no_grad()
    def inputs(self, module: nn.Module, chosen: Sequence[int]) -> Tensor:
        """The numbers that are moved: pixels [B, C, H, W] or embeddings [B, T, width]."""
        where = next(module.parameters()).device
        fed, _ = self.task.inputs(self.rows, chosen, where)
        return fed["pixel_values"] if self.pixels else module.get_input_embeddings()(fed["input_ids"])  # type: ignore[operator]

    def _within(self, clean: Tensor, delta: Tensor) -> Tensor:
        low, high = self.bounds
        return (clean + delta.clamp(-self.epsilon, self.epsilon)).clamp(low, high) - clean


@contextmanager
def shifted(module: nn.Module, delta: Tensor, *, pixels: bool) -> Iterator[None]:
    """While it lasts the module sees its inputs moved by `delta`."""
    if pixels:

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**kwargs, "pixel_values": kwargs["pixel_values"] + delta}

        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        table: nn.Module = module.get_input_embeddings()  # type: ignore[operator]
        handle = table.register_forward_hook(lambda _module, _args, out: out + delta)
    try:
        yield
    finally:
        handle.remove()


def scale_of(module: nn.Module) -> float:
    """The root mean square of a model's embeddings: the unit of epsilon where embeddings are moved."""
    table: nn.Module = module.get_input_embeddings()  # type: ignore[operator]
    return float(table.weight.detach().double().square().mean().sqrt())  # type: ignore[union-attr]


def accuracies(adversary: Adversary, module: nn.Module, chosen: Sequence[int], seed: int) -> tuple[float, float]:
    """Share of rows that are right as they are, and when moved against this very module."""
    clean, robust = 0, 0
    noise = torch.Generator().manual_seed(seed)
    for part in batches(adversary.rows, chosen, 256 if adversary.pixels else TOKENS):
        with torch.no_grad():
            clean += sum(answers(adversary.task, module, adversary.rows, part).right())
        delta = adversary.moved(module, part, noise)
        with torch.no_grad():
            robust += sum(adversary.answers(module, part, delta).right())
    return clean / len(chosen), robust / len(chosen)


def _bounds(rows: Rows) -> tuple[float, float]:
    read = [pixels for pixels, _ in rows.inputs]
    return min(float(p.min()) for p in read), max(float(p.max()) for p in read)
