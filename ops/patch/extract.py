"""From a clean and a robust model to a signature: what robustness changed, less what lies along the way to the clean model.

Per tensor, with v = robust - origin and a = clean - origin: R = v - a <a, v> / <a, a>, dot products in float64 (2302.12480, section 3).
Where a is zero, as when the robust model was trained from the clean one, R = v. N x N matrices, as in the reference, are never formed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...registry.errors import BadParameter, Incompatible, ShapeMismatch
from ..arch import blocks_of, family_of, role_of
from .patch import WIDTHS, checked_strength
from .quantise import BITS, TERNARY, quantise
from .signature import Kind, Part, architecture_of, encode

if TYPE_CHECKING:
    from ...registry.view import ModelView

STATISTICS = ("running_mean", "running_var")  # of batch normalisation: a forward pass measured them: no direction is projected out
SHALLOW = re.compile(r"shallow:([1-9][0-9]{0,3})")
NOTHING = 1e-7  # share of |v| below which what is left of it is rounding
TERNARY_DENSITY = 0.4


def kind_of(bits: str, density: float | None, layers: str, strength: float) -> Kind:
    """How a signature shall be made. Raises BadParameter for what cannot be."""
    if bits not in (TERNARY, *BITS):
        raise BadParameter(f"--bits is 8, 4 or ternary, not {bits!r}", hint="for example: --bits ternary")
    share = (TERNARY_DENSITY if bits == TERNARY else 1.0) if density is None else density
    if not 0 < share <= 1:
        raise BadParameter(f"--density {share:g} lies outside (0, 1]", hint="for example: --density 0.4")
    if layers != "all" and not SHALLOW.fullmatch(layers):
        raise BadParameter(f"--layers is all or shallow:K, not {layers!r}", hint="for example: --layers shallow:2")
    return Kind(bits, float(share), layers, checked_strength(strength))


def project(robust: Tensor, clean: Tensor, origin: Tensor) -> Tensor:
    """The part of robust - origin that is orthogonal to clean - origin, float32; zeros where only rounding is left.

    Args: three tensors of one shape, any floating types. Raises ValueError for values that are not finite.
    """
    begin = origin.double()
    v, a = robust.double() - begin, clean.double() - begin
    length, along = float((a * a).sum()), float((a * v).sum())
    rest = v - a * (along / length) if length > 0 else v
    if not bool(torch.isfinite(rest).all()):
        raise ValueError("not every number is finite")
    if float(rest.norm()) <= NOTHING * float(v.norm()):
        rest = torch.zeros_like(rest)
    return rest.to(torch.float32)


def extract(robust: ModelView, clean: ModelView, origin: ModelView, kind: Kind, report: Callable[[int, int], None] | None = None) -> bytes:
    """The signature of `robust` against `clean`, one tensor at a time; `report` is told how many of how many were looked at.

    Raises ShapeMismatch (first mismatch) for models that differ in names or shapes, Incompatible when a tensor that is no float differs
    or weights are not finite, BadParameter when nothing at all is left.
    """
    for other, what in ((robust, "the robust model"), (origin, "their origin")):
        check_same(clean, other, what)
    chosen = _chosen(clean, kind.layers)
    statistics: dict[str, Tensor] = {}
    for name in clean.names():
        if is_statistic(name) and robust.entry(name).digest != clean.entry(name).digest:
            step = (robust.tensor(name).double() - clean.tensor(name).double()).to(torch.float32)
            if not bool(torch.isfinite(step).all()):
                raise Incompatible(
                    f"no signature can be taken of {name}: not every number is finite", hint="mlc diff ROBUST CLEAN --weights"
                )
            statistics[name] = step
    parts = list(_parts(robust, clean, origin, kind, chosen, report))
    if not parts and not statistics:
        said = "nothing sets the robust model apart from the clean one: there is no signature"
        raise BadParameter(said, hint="mlc diff ROBUST CLEAN --weights")
    shapes = ((name, clean.entry(name).shape) for name in clean.names())
    return encode(kind, architecture_of(shapes), len(clean.names()), parts, statistics)


def _parts(
    robust: ModelView, clean: ModelView, origin: ModelView, kind: Kind, chosen: frozenset[str], report: Callable[[int, int], None] | None
) -> Iterator[Part]:
    for done, name in enumerate(clean.names(), 1):
        if report is not None:
            report(done, len(clean.names()))
        entry = clean.entry(name)
        same = robust.entry(name).digest == entry.digest
        if entry.dtype not in WIDTHS:
            if not same and not name.endswith("num_batches_tracked"):  # a counter of training steps: left as the target has it
                said = f"{name} ({entry.dtype}) differs between the two models, and only floats can be patched"
                raise Incompatible(said, hint="mlc diff ROBUST CLEAN --weights")
            continue
        if is_statistic(name) or name not in chosen or (same and origin.entry(name).digest == entry.digest):
            continue
        try:
            rest = project(robust.tensor(name), clean.tensor(name), origin.tensor(name))
        except ValueError as fault:
            raise Incompatible(f"no signature can be taken of {name}: {fault}", hint="mlc diff ROBUST CLEAN --weights") from fault
        if bool(rest.any()):
            yield Part(name, tuple(entry.shape), quantise(rest, kind.bits, kind.density))


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic of batch normalisation."""
    return name.rpartition(".")[2] in STATISTICS


def check_same(clean: ModelView, other: ModelView, what: str) -> None:
    """Raise ShapeMismatch for the first tensor in which `other` differs from the clean model by name or shape; types may differ."""
    hint = "all of them must be versions of one architecture; `mlc show REV --tensors` lists it"
    for name in sorted({*clean.names(), *other.names()}):
        if not (clean.has(name) and other.has(name)):
            has, lacks = ("the clean model", what) if clean.has(name) else (what, "the clean model")
            raise ShapeMismatch(f"{has} has a tensor {name}, {lacks} has none", hint=hint)
        mine, theirs = clean.entry(name), other.entry(name)
        if tuple(mine.shape) != tuple(theirs.shape):
            raise ShapeMismatch(f"{name} is {list(mine.shape)} in the clean model and {list(theirs.shape)} in {what}", hint=hint)


def _chosen(view: ModelView, layers: str) -> frozenset[str]:
    """Names of the tensors that a signature may hold.

    shallow:K: embeddings and the first K blocks; in a convolutional network the first K convolutions, by natural order of names, with what
    stands beside them (bias, normalisation). Raises BadParameter when K is more than there are, Incompatible where layers are not known.
    """
    names = view.names()
    if layers == "all":
        return frozenset(names)
    count = int(layers.partition(":")[2])
    family = family_of(view.config)
    if family is not None:
        _check_depth(count, blocks_of(family, names), "block")
        roles = {name: role_of(family, name) for name in names}
        return frozenset(n for n, (layer, role) in roles.items() if (layer is not None and layer < count) or _embeds(n, layer, role))
    convolutions = sorted((n for n in names if len(view.entry(n).shape) == 4 and n.endswith(".weight")), key=_natural)
    if not convolutions:
        raise Incompatible("which of its layers are shallow is not known for this architecture", hint="--layers all")
    _check_depth(count, len(convolutions), "convolution")
    units = tuple(_beside(name) for name in convolutions[:count])
    return frozenset(name for name in names if name.startswith(units))


def _check_depth(count: int, there: int, what: str) -> None:
    if count > there:
        said = f"--layers asks for the first {count} {what}s; the model has {there}"
        raise BadParameter(said, hint=f"--layers shallow:{there}, or --layers all" if there else "--layers all")


def _embeds(name: str, layer: int | None, role: str) -> bool:
    return layer is None and (role in ("embedding", "position") or "embeddings." in name)


def _beside(name: str) -> str:
    """The prefix of what belongs to a convolution: its parent module where that has one of its own, else itself."""
    own = name.removesuffix("weight")
    parent, _, last = own[:-1].rpartition(".")
    return f"{parent}." if parent and last in ("convolution", "conv") else own


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in re.split(r"(\d+)", name)]
