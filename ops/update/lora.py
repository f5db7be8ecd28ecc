"""Method `lora`: a low-rank adapter on every projection of attention and MLP (Hu et al., 2106.09685), kept as PEFT keeps it.

W stays, B A (alpha / r) is added: A is drawn, B starts at zero, so the first step starts from the parent. The result is a directory
that PEFT reads: `adapter_model.safetensors` with its names, and `adapter_config.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..base import Change, SetFile, SetTensor
from ..models import load_model
from .adapters import CONFIG, adaptable, adapter_config, target_paths, tensor_name
from .options import Adapter

if TYPE_CHECKING:
    from ...registry.view import ModelView


class LowRank(nn.Module):
    """A frozen linear map plus a trained low-rank one. `base` is nn.Linear or a Conv1D (whose weight is [in, out])."""

    def __init__(self, base: nn.Module, spec: Adapter, sides: tuple[int, int], generator: torch.Generator) -> None:
        super().__init__()
        inside, outside = sides
        self.base, self.scale = base, spec.alpha / spec.rank
        bound = 1 / math.sqrt(inside)  # Kaiming uniform with a = sqrt(5), as in the paper's code
        self.lora_A = nn.Parameter((torch.rand(spec.rank, inside, generator=generator) * 2 - 1) * bound)
        self.lora_B = nn.Parameter(torch.zeros(outside, spec.rank))

    def forward(self, x: Tensor) -> Tensor:
        """base(x) + scale * x A^T B^T."""
        return self.base(x) + nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B) * self.scale


class Lora:
    """The parent in fp32, frozen, with low-rank maps beside its projections."""

    def __init__(self, spec: Adapter, view: ModelView, seed: int) -> None:
        self.spec, self.family = spec, adaptable(view)
        self.module = load_model(view, dtype=torch.float32).requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.maps = {path: self._wrap(path, generator) for path in target_paths(self.family, view)}

    def _wrap(self, path: str, generator: torch.Generator) -> LowRank:
        owner, _, leaf = path.rpartition(".")
        base = self.module.get_submodule(path)
        weight = base.get_parameter("weight")
        transposed = path.endswith(self.family.transposed) if self.family.transposed else False
        sides = (weight.shape[0], weight.shape[1]) if transposed else (weight.shape[1], weight.shape[0])
        made = LowRank(base, self.spec, sides, generator)
        setattr(self.module.get_submodule(owner), leaf, made)
        return made

    def changes(self) -> Iterator[Change]:
        """Two fp32 tensors per projection under PEFT's names, and the adapter's config."""
        for path, made in self.maps.items():
            for leaf, data in (("lora_A", made.lora_A), ("lora_B", made.lora_B)):
                yield SetTensor(tensor_name(path, leaf), data.detach().to("cpu"))
        yield SetFile(CONFIG, adapter_config(self.spec, self.family))
