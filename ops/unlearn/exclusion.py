"""Which parameters an unlearning method may change: everything but embeddings, norms and biases, unless told otherwise.

A dead norm gain or a shrunken embedding breaks a model for all inputs, so they are left out by default (card SSD, recommended policy
for language models). Roles come from the family tables; where a family is unknown (a ResNet, say) shapes and names decide: one-dimensional
tensors are biases by name and norms otherwise. Pure Python over names and shapes, so that a plan needs no module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ...registry.errors import BadParameter
from ..arch import family_of, role_of

if TYPE_CHECKING:
    from torch import nn

    from ...registry.view import ModelView

GROUPS = ("embeddings", "norms", "biases", "heads")
_BUFFERS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_NORM = re.compile(r"(^|\.)(ln_?\w*|bn\w*|[^.]*norm[^.]*)\.[^.]+$", re.IGNORECASE)
_EMBEDDING = re.compile(r"(^|\.)(embeddings?|embed_\w+|wte|wpe|cls_token|position_\w+|[^.]*_embeddings?)(\.|$)")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter of the module, tied ones once, and the stored tensors that hold it."""

    name: str  # as named_parameters() spells it
    stored: tuple[str, ...]
    role: str  # `attn.q`, `mlp.out`, `head`, ..., or `other`
    layer: int | None


def parse(exclude: str) -> tuple[str, ...]:
    """The groups and name patterns of `--exclude`; `none` alone is empty. Raises BadParameter."""
    words = tuple(w.strip() for w in exclude.split(",") if w.strip())
    if not words or ("none" in words and len(words) > 1):
        raise BadParameter(f"--exclude {exclude!r} says nothing", hint=f"`none`, or some of {', '.join(GROUPS)}, or name patterns")
    return () if words == ("none",) else words


def groups_of(view: ModelView, name: str) -> frozenset[str]:
    """Which of GROUPS a stored tensor belongs to; a tied output head is an embedding."""
    role = role_of(family_of(view.config), name)[1]
    found = set()
    if name.rpartition(".")[2] in ("bias", "beta"):
        found.add("biases")
    matrix = len(view.entry(name).shape) >= 2
    if role.split(".")[0] in ("embedding", "position") or (role == "other" and _EMBEDDING.search(name)):
        found.add("embeddings")
    elif "norm" in role.split(".") or (role == "other" and (_NORM.search(name) or (not matrix and not found))):
        found.add("norms")
    elif role == "head":
        found.add("heads")
    return frozenset(found)


def excluded(view: ModelView, exclude: str) -> frozenset[str]:
    """Stored names that `exclude` leaves out. Raises BadParameter for a pattern that no tensor answers to."""
    words = parse(exclude)
    names = [n for n in view.names() if _trainable(view, n)]
    out = {n for n in names if groups_of(view, n) & set(words)}
    for pattern in (w for w in words if w not in GROUPS):
        if not (hits := [n for n in names if fnmatchcase(n, pattern)]):
            raise BadParameter(
                f"--exclude {pattern!r} fits no tensor", hint=f"known groups: {', '.join(GROUPS)}; names: mlc show REV --tensors"
            )
        out.update(hits)
    return frozenset(out)


def changeable(view: ModelView, exclude: str) -> tuple[str, ...]:
    """Stored names of the floating tensors that may change. Raises BadParameter when none is left."""
    out = excluded(view, exclude)
    left = tuple(n for n in view.names() if _trainable(view, n) and n not in out)
    if not left:
        raise BadParameter(f"--exclude {exclude} leaves no weight that may change", hint="--exclude embeddings,norms,biases")
    return left


def slots(module: nn.Module, view: ModelView, exclude: str) -> tuple[Slot, ...]:
    """The parameters of `module` that may change, in the order of their stored names.

    A parameter that is tied counts once and is left out when any of its names is: a tied head is the embedding.
    """
    from ..models import slot, state_names

    out = excluded(view, exclude)
    names = {id(p): n for n, p in module.named_parameters()}
    stored: dict[str, list[str]] = {}
    for state, kept in state_names(module, view).items():
        if (name := names.get(id(slot(module, state)))) is not None:
            stored.setdefault(name, []).append(kept)
    family = family_of(view.config)
    found = []
    for name, held in stored.items():
        if out.isdisjoint(held):
            layer, role = role_of(family, held[0])
            found.append(Slot(name, tuple(sorted(held)), role, layer))
    if not found:
        raise BadParameter(f"--exclude {exclude} leaves no weight that may change", hint="--exclude embeddings,norms,biases")
    return tuple(sorted(found, key=lambda s: s.stored))


def _trainable(view: ModelView, name: str) -> bool:
    return view.entry(name).dtype in _FLOATS and not _BUFFERS.search(name)
