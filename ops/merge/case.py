"""One tensor of a merge: what goes into a formula. And where random masks come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from ...kernels.exact import widen

Draw = Callable[[Tensor], Tensor]  # probabilities -> mask of zeros and ones of their type
Threshold = tuple[float, int]  # smallest magnitude that is kept, and the flat index of the last one kept among its equals


@dataclass(frozen=True, slots=True)
class Case:
    """The same tensor of every ingredient, with the parameters that hold for it.

    native: compute in the tensors' own type, as mergekit does, instead of float32. parity: also take its order among equals and its fused
    sums. draws: one source of masks per ingredient. thresholds: given when the trim is decided over whole models.
    """

    base: Tensor | None
    tensors: tuple[Tensor, ...]
    shared: Mapping[str, Any]
    each: tuple[Mapping[str, Any], ...]
    draws: tuple[Draw, ...] = ()
    native: bool = False
    parity: bool = False
    thresholds: tuple[Threshold, ...] | None = None

    def wide(self) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Base and ingredients in the type of the computation."""
        if self.native:
            return self.base, self.tensors
        return None if self.base is None else widen(self.base), tuple(map(widen, self.tensors))

    def anchor(self) -> Tensor:
        """The base, which this formula has."""
        if self.base is None:
            raise ValueError("this formula needs a base")
        return self.base

    def values(self, name: str) -> list[Any]:
        """A parameter's value for each ingredient."""
        return [parameters[name] for parameters in self.each]


def keyed_draw(seed: int, name: str, digest: str) -> Draw:
    """Masks that depend on the seed, the tensor's name and the ingredient's digest alone: no order, no other tensor matters."""
    key = blake3(f"mlc.merge.draw.v1\n{seed}\n{name}\n{digest}".encode()).digest(8)
    return sequence_draw(torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1))


def sequence_draw(generator: torch.Generator) -> Draw:
    """Masks from one running generator: what comes out depends on everything that was drawn before."""

    def draw(probabilities: Tensor) -> Tensor:
        return torch.bernoulli(probabilities, generator=generator)

    return draw


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor `[n, 1, ...]` in like's type, to be multiplied with stacked tensors `[n, ...]`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.dim() - 1))
