"""What a new block holds before it is trained: the ways of LLaMA Pro (2401.02415) and DLO (2407.11030).

`zeros`: a copy whose output projections are zero; the only one that leaves the model's function as it was. `copy`: the block once more.
`random`: as a fresh model begins. `merge-linear`, `merge-slerp`: halfway between the block and the one before it (the first block has none
before it, and is copied).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...registry.ids import blob_digest
from ..arch import Family, layer_of, role_of, with_layer
from .layout import is_output

if TYPE_CHECKING:
    from ...registry.view import ModelView

STRAIGHT = 0.9995  # cosines beyond this are interpolated on the line
SPREAD = 0.02  # standard deviation of fresh weights where the config says none


def initial(parent: ModelView, family: Family, source: str, name: str, init: str, seed: int) -> Tensor:
    """The tensor `name` of a new block that comes from the parent's `source`, in its shape and dtype."""
    tensor = parent.tensor(source)
    if init == "zeros":
        return torch.zeros_like(tensor) if is_output(family, source) else tensor
    if init == "random":
        return _fresh(parent, family, source, tensor, blob_digest(f"{seed}/{name}".encode()))
    if init.startswith("merge-"):
        return _halfway(parent, family, source, tensor, init)
    return tensor


def _halfway(parent: ModelView, family: Family, source: str, tensor: Tensor, init: str) -> Tensor:
    place = layer_of(family, source)
    assert place is not None
    if place[0] == 0 or not tensor.is_floating_point():
        return tensor
    before = parent.tensor(with_layer(family, source, place[0] - 1))
    return (slerp(tensor, before) if init == "merge-slerp" else 0.5 * (tensor.float() + before.float())).to(tensor.dtype)


def slerp(a: Tensor, b: Tensor) -> Tensor:
    """Halfway on the arc from a to b, each as one vector, in fp32; on the line where their directions nearly coincide."""
    x, y = a.float(), b.float()
    lengths = x.norm() * y.norm()
    cosine = ((x * y).sum() / lengths).clamp(-1, 1) if lengths > 0 else torch.tensor(1.0)
    if cosine.abs() > STRAIGHT:
        return 0.5 * (x + y)
    angle = cosine.arccos()
    return (x + y) * (torch.sin(angle / 2) / torch.sin(angle))


def _fresh(parent: ModelView, family: Family, source: str, tensor: Tensor, salt: str) -> Tensor:
    """As a fresh model begins: matrices N(0, initializer_range), biases zero, gains of norms one. The same for the same salt."""
    if "norm" in role_of(family, source)[1]:
        return torch.ones_like(tensor) if source.endswith(".weight") else torch.zeros_like(tensor)
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return torch.zeros_like(tensor) if tensor.is_floating_point() else tensor
    spread = (parent.config or {}).get("initializer_range")
    generator = torch.Generator().manual_seed(int(salt[:15], 16))
    drawn = torch.randn(tensor.shape, generator=generator) * (spread if isinstance(spread, int | float) and spread > 0 else SPREAD)
    return drawn.to(tensor.dtype)
