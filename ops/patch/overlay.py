"""The one function behind every patch: clean weights plus signatures, summed in a fixed order. Nothing is ever subtracted.

In floating point (W + R) - R is not W: about one element in eight would differ. Hence a patched tensor is made from the clean one each
time, whatever is there at the moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.exact import add, round_to, scale, widen
from ...registry.errors import ShapeMismatch
from .patch import WIDTHS
from .signature import Signature, architecture_of

if TYPE_CHECKING:
    from ...registry.view import ModelView

LEAST = 0.1  # of the clean variance: several patches could bring it below zero
Layer = tuple[Signature, float]  # a signature and its strength


def ordered(layers: Iterable[Layer]) -> list[Layer]:
    """The order of summation: by the signatures' digests."""
    return sorted(layers, key=lambda layer: layer[0].digest)


def materialise(name: str, clean: Tensor, layers: Iterable[Layer], combine: str = "sum") -> Tensor:
    """Tensor `name` under these layers, in the clean tensor's type.

    `y = clean` in float32 (float64 stays); for each layer, by digest, `y = y + f * strength * R`, every product and sum rounded by itself;
    rounded to the clean type at last. f is 1 for a single layer; for several it is what `combine` says (`joint`). Running statistics are
    moved by what sets the robust model's apart, at a strength of at most 1: what a forward pass measured is not the better for being
    exaggerated; a variance keeps at least a tenth of the clean one. Layers that do not have the tensor, or of strength zero, leave it as
    it is, to the bit.
    """
    here = [(signature, strength) for signature, strength in ordered(layers) if strength]
    adding = [(signature.tensor(name), strength) for signature, strength in here if name in signature.tensors]
    measured = [(signature.statistics[name], min(strength, 1.0)) for signature, strength in here if name in signature.statistics]
    if not adding and not measured:
        return clean
    y = widen(clean)
    for terms, factor in ((adding, joint([s for _, s in adding], combine)), (measured, _mean([s for _, s in measured], combine))):
        for term, strength in terms:
            y = add(y, scale(term.to(y.dtype), factor * strength))
    if name.endswith("running_var"):
        y = torch.maximum(y, scale(widen(clean), LEAST))
    return round_to(y, clean.dtype)


def joint(strengths: Sequence[float], combine: str) -> float:
    """The factor of every strength where several signatures meet in one tensor, in float64.

    `norm`: max(s) / sqrt(sum s^2), so that signatures without a common direction together move a tensor as far as the strongest would
    alone: 1 / sqrt(n) for n equal ones. `sum`: 1.
    """
    if combine == "sum" or len(strengths) < 2:
        return 1.0
    return max(strengths) / math.sqrt(math.fsum(s * s for s in strengths))


def _mean(strengths: Sequence[float], combine: str) -> float:
    """The same for running statistics: `norm` takes the mean over the robust models, as 2302.12480 does."""
    return 1.0 if combine == "sum" else 1.0 / max(1.0, math.fsum(strengths))


def touched(layers: Iterable[Signature]) -> tuple[str, ...]:
    """Names of all tensors that any of these signatures changes, sorted."""
    return tuple(sorted({name for signature in layers for name in signature.names()}))


def check_fits(signature: Signature, view: ModelView, what: str) -> None:
    """Raise ShapeMismatch unless the view has the architecture that the signature was taken from; the first mismatch is named."""
    expected = {**signature.tensors, **{name: tuple(values.shape) for name, values in signature.statistics.items()}}
    hint = "a patch fits versions of the architecture it was extracted from; `mlc patch show NAME` describes it"
    for name, shape in expected.items():
        if not view.has(name):
            raise ShapeMismatch(f"{what} changes {name}, which this model does not have: it is for another architecture", hint=hint)
        entry = view.entry(name)
        if tuple(entry.shape) != tuple(shape) or entry.dtype not in WIDTHS:
            said = f"{name} is {list(shape)} in {what} and {entry.dtype} {list(entry.shape)} in this model"
            raise ShapeMismatch(f"{said}: it is for another architecture", hint=hint)
    if architecture_of((name, view.entry(name).shape) for name in view.names()) != signature.architecture:
        said = f"{what} was made for a model of {signature.total} tensors, this one has {len(view.names())}, or others among them"
        raise ShapeMismatch(f"{said}: it is for another architecture", hint=hint)
