"""What rides along with an update: averages of its weights, the way back to where it began, and embeddings that are drawn again."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from .train import Update

SLOW = 0.01  # of the new weights, where the dynamic rule gives no share of its own


class Ema:
    """An exponential mean of the trained weights, which takes their place at the end: theta* <- theta* + w (theta - theta*).

    rule: a fixed w, or `dynamic`, per tensor and step (Qiao et al., 2410.10868, as in the authors' code)
        w = 2 (1 + |g_t|_1) / (|theta_t - theta*|_1 |g_t - g_t-1|_1)   where that lies in (0, 1), else SLOW,
    or `paper`, the formula of the text, whose beta, half of that, weighs the old mean: w = 1 - beta.
    """

    def __init__(self, module: nn.Module, rule: str | float) -> None:
        self.rule = rule
        self.mean = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
        self.last: dict[str, Tensor] = {}
        self.found, self.fell_back = 0, 0

    @torch.no_grad()
    def after_step(self, module: nn.Module, done: int) -> None:
        """Move every mean towards its parameter."""
        for name, parameter in module.named_parameters():
            if name in self.mean:
                self.mean[name].lerp_(parameter.detach(), self.share(name, parameter))
                if parameter.grad is not None and not isinstance(self.rule, float):
                    self.last[name] = parameter.grad.detach().clone()

    def share(self, name: str, parameter: nn.Parameter) -> float:
        """w in [0, 1]."""
        if isinstance(self.rule, float):
            return self.rule
        self.found += 1
        if parameter.grad is not None and name in self.last:
            gap = (parameter.detach() - self.mean[name]).abs().sum().item()
            bend = (parameter.grad - self.last[name]).abs().sum().item()
            steep = parameter.grad.abs().sum().item()
            if gap > 0 and bend > 0:
                share = 2 * (1 + steep) / (gap * bend) if self.rule == "dynamic" else 1 - (1 + steep) / (gap * bend)
                if 0 < share < 1:
                    return share
        self.fell_back += 1
        return SLOW

    def state(self) -> dict[str, Tensor]:
        counts = torch.tensor([self.found, self.fell_back])
        return {"counts": counts, **{f"mean.{n}": v for n, v in self.mean.items()}, **{f"last.{n}": v for n, v in self.last.items()}}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.found, self.fell_back = (int(n) for n in tensors["counts"])
        for name, tensor in tensors.items():
            kind, _, own = name.partition(".")
            if kind == "mean":
                self.mean[own].copy_(tensor)
            elif kind == "last":
                self.last[own] = tensor.to(self.mean[own].device, copy=True)

    @torch.no_grad()
    def finish(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if name in self.mean:
                parameter.copy_(self.mean[name])

    def facts(self) -> dict[str, Any]:
        """How often the rule gave no share of its own."""
        return {"rule": self.rule, "fallback": round(self.fell_back / self.found, 6)} if self.found else {"rule": self.rule}


class Blend:
    """At the end, part of the way only: theta <- start + share (theta - start), in fp32; an element that did not move keeps its bits."""

    at_end: ClassVar[bool] = True  # it has its say once, when everything is trained

    def __init__(self, module: nn.Module, share: float) -> None:
        self.amount = share
        self.start = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    def after_step(self, module: nn.Module, done: int) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        return {}  # the start is the parent: a resumed run loads it again

    def load(self, tensors: dict[str, Tensor]) -> None:
        pass

    @torch.no_grad()
    def finish(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if name in self.start:
                parameter.copy_(blended(self.start[name], parameter, self.amount))


def blended(start: Tensor, trained: Tensor, share: float) -> Tensor:
    """start + share (trained - start): one subtraction, one product and one sum per element, each rounded in the tensors' type."""
    return start + (trained - start) * share


class Renewal:
    """Active forgetting (Chen et al., 2307.01163): the token embedding is drawn anew every `every` steps, and its moments start again.

    Also before the first step; not within the last `every` steps, or the result would have an embedding that nobody trained.
    N(0, spread), a pad row of zeros; draws are a function of (seed, step). With tied embeddings the head is drawn anew with them.
    """

    def __init__(self, module: Any, every: int, steps: int, seed: int) -> None:
        self.every, self.steps, self.seed = every, steps, seed
        self.weight: nn.Parameter = module.get_input_embeddings().weight
        self.spread = float(getattr(module.config, "initializer_range", None) or 0.02)
        self.pad = getattr(module.config, "pad_token_id", None)
        self.name = next(n for n, p in module.named_parameters() if p is self.weight)
        self._draw(0)

    def after_step(self, module: nn.Module, done: int) -> Collection[str]:
        if done % self.every or done + self.every > self.steps:
            return ()
        self._draw(done)
        return (self.name,)

    @torch.no_grad()
    def _draw(self, done: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + done)
        drawn = torch.randn(self.weight.shape, generator=generator) * self.spread
        if isinstance(self.pad, int) and 0 <= self.pad < len(drawn):
            drawn[self.pad] = 0
        self.weight.copy_(drawn)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        pass

    def finish(self, module: nn.Module) -> None:
        """Nothing."""


def riders(op: Update, module: nn.Module, seed: int) -> tuple[Ema | Blend | Renewal, ...]:
    """What `op` asks for, in the order in which it has its say at the end: the mean first, then the way back to the start."""
    makers: list[tuple[bool, Callable[[], Ema | Blend | Renewal]]] = [
        (op.renew_embeddings > 0, lambda: Renewal(module, op.renew_embeddings, op.steps, seed)),
        (op.ema != "none", lambda: Ema(module, op.averaging)),
        (op.blend != 1, lambda: Blend(module, op.blend)),
    ]
    return tuple(make() for wanted, make in makers if wanted)
