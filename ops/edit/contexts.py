"""Keys of subjects: the mean over the contexts in which each is asked about, and how its contexts differ from that mean.

The mean is what MEMIT writes at. The differences go into the equations as directions to be spared: a write that leans on one of them would
be strong behind one beginning and weak behind another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .prompts import Group
from .site import Editable
from .targets import observe


@dataclass(frozen=True, slots=True)
class Contexts:
    """keys K [d0, u]; spread [d0, n]: (k - mean) times the root of the context's weight; owner [n]: whose context. float64, CPU."""

    keys: Tensor
    spread: Tensor
    owner: Tensor


def contexts_of(model: Editable, layer: int, groups: Sequence[Group]) -> Contexts:
    """Keys of every group at `layer`, on the model as it is now."""
    rows = [row for group in groups for row, _ in group.keys]
    owner = torch.tensor([i for i, group in enumerate(groups) for _ in group.keys])
    weight = torch.tensor([w for group in groups for _, w in group.keys], dtype=torch.float64)
    seen = observe(model, rows, keys=(layer,)).keys[layer].double().cpu()
    mean = torch.zeros(len(groups), seen.shape[1], dtype=torch.float64).index_add_(0, owner, seen * weight[:, None])
    spread = (seen - mean[owner]) * weight.sqrt()[:, None]
    return Contexts(mean.T.contiguous(), spread.T.contiguous(), owner)
