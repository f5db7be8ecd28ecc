"""Views and signatures for tests of patches: random weights, so that nothing has to be trained."""

from __future__ import annotations

import torch

from mlc.ops.patch.extract import extract, kind_of
from mlc.tests.ops.fakes import MemoryView

SHAPES = {"conv.weight": (6, 3, 3, 3), "conv.bias": (6,), "norm.weight": (6,), "norm.running_mean": (6,), "norm.running_var": (6,)}
SHAPES |= {"head.weight": (10, 6), "head.bias": (10,), "scalar": ()}


def small(seed: int = 0, dtype: torch.dtype = torch.float32) -> MemoryView:
    """A little convolutional network with batch normalisation, as tensors alone."""
    g = torch.Generator().manual_seed(seed)
    tensors = {name: 0.05 * torch.randn(shape, generator=g) for name, shape in SHAPES.items()}
    tensors["norm.running_var"] = tensors["norm.running_var"].abs() + 0.5
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    tensors["norm.num_batches_tracked"] = torch.tensor(7 + seed)
    return MemoryView(tensors, {"config.json": b"{}"})


def moved(view: MemoryView, seed: int, size: float = 0.01) -> MemoryView:
    """The same network, every float tensor moved a little; the counter counts on."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in view.names():
        tensor = view.tensor(name)
        step = size * torch.randn(tensor.shape, generator=g)
        tensors[name] = (tensor.float() + step).to(tensor.dtype) if tensor.is_floating_point() else tensor + seed
    return MemoryView(tensors, {f.path: view.file(f.path) for f in view.files()})


def signature(clean: MemoryView, seed: int, bits: str = "ternary", *, origin: MemoryView | None = None, strength: float = 1.0) -> bytes:
    """The signature of a version that is moved by a random step."""
    return extract(moved(clean, seed), clean, origin or clean, kind_of(bits, None, "all", strength))
