"""Which tensors of which versions make each tensor of the result, with which parameters. Names and shapes only; no tensor is read.

Whole models: tensors of one name belong together. Slices: blocks are renumbered in the order in which they are stacked; what lies before
the blocks comes from the first slice, the last norm and the head from the last one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadParameter, Incompatible
from ..arch import blocks_of, family_of, layer_of, role_of, with_layer
from .checks import check_architectures, check_shapes, check_vocabularies, shown
from .recipe import Recipe, Slice, Source
from .settings import filters_of, resolve

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..arch import Family

Views = Mapping[str, "ModelView"]

# Tensors that old files carry and modules compute themselves: nothing is missed when a version has none.
COMPUTED = re.compile(r"(^|\.)((attn|attention)\.(masked_)?bias|rotary_emb\.(inv_freq|cos_cached|sin_cached)|embeddings\.position_ids)$")
TIED = ("lm_head.weight", "embed_out.weight")  # heads that files name though a tied model stores none
LAST_ROLES = ("norm.final", "head", "pooler")


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of one version."""

    model: str
    tensor: str


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the result. `also`: further names it is stored under (a tied head). `t`: place among the layers, for gradients."""

    name: str
    parts: tuple[Part, ...]
    base: Part | None
    shared: Mapping[str, Any]
    each: tuple[Mapping[str, Any], ...]
    also: tuple[str, ...] = ()


def lay_out(recipe: Recipe, views: Views) -> list[Output]:
    """The tensors of the result, sorted by name. Raises Incompatible for what is missing, BadParameter for settings that cannot work."""
    found = _whole(recipe, views) if recipe.whole else _stacked(recipe, views)
    _check_filters(recipe, found)
    return sorted(found, key=lambda output: output.name)


def lined_up(views: Views) -> list[Output]:
    """Whole versions tensor by tensor, all counting alike. Raises Incompatible unless they fit each other in every name and shape."""
    check_architectures(views)
    laid = lay_out(Recipe("linear", (Slice(tuple(Source(name, None, {"weight": 1.0}) for name in views)),)), views)
    check_shapes(laid, views, aligned=False)
    check_vocabularies(views)
    return laid


def tie_heads(outputs: Sequence[Output], views: Views) -> list[Output]:
    """Outputs in which a head that is everywhere the same tensor as the embedding is made once, and stored under both names."""
    by_role: dict[str, Output] = {}
    for output in outputs:
        if output.parts and output.name.endswith(".weight"):
            by_role.setdefault(_role(views, output), output)
    embedding, head = by_role.get("embedding"), by_role.get("head")
    if embedding is None or head is None or not all(_same(views, a, b) for a, b in _pairs(embedding, head)):
        return list(outputs)
    return [replace(o, also=(head.name,)) if o is embedding else o for o in outputs if o is not head]


def blocks_in(view: ModelView) -> int:
    """How many blocks a version has; 0 when its names show none."""
    family = family_of(view.config)
    if family is not None:
        return blocks_of(family, view.names())
    return max((layer + 1 for layer, _ in (role_of(None, name) for name in view.names()) if layer is not None), default=0)


def _whole(recipe: Recipe, views: Views) -> list[Output]:
    piece = recipe.slices[0]
    base, sources = recipe.inputs(piece)
    models = [source.model for source in sources] + ([base] if base else [])
    names = sorted({name for model in models for name in views[model].names()})
    lead = views[models[0]]
    family, layers = family_of(lead.config), blocks_in(lead)
    found = []
    for name in names:
        without = [model for model in models if not views[model].has(name)]
        if without and COMPUTED.search(name):
            continue
        if without:
            raise Incompatible(
                f"{shown(without[0])} has no tensor {name}, which {shown(next(m for m in models if m not in without))} has",
                hint="only versions of one architecture can be merged; `mlc diff A B --weights` compares their tensors",
            )
        layer, _ = role_of(family, name)
        found.append(_output(recipe, piece, name, [(s, name) for s in sources], (base, name), _place(layer, layers)))
    return found


def _place(layer: int | None, layers: int) -> float:
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0


def _output(
    recipe: Recipe, piece: Slice, name: str, inputs: Sequence[tuple[Source, str]], base: tuple[str | None, str], t: float
) -> Output:
    method = recipe.spec
    shared = resolve(method, name, t, (piece.parameters, recipe.parameters), each=False)
    each = tuple(
        resolve(method, tensor, t, (source.parameters, piece.parameters, recipe.parameters), each=True, who=shown(source.model))
        for source, tensor in inputs
    )
    _check_weights(method.vote, shared, each, name)
    parts = tuple(Part(source.model, tensor) for source, tensor in inputs)
    return Output(name, parts, None if base[0] is None else Part(base[0], base[1]), shared, each)


def _check_weights(vote: bool, shared: Mapping[str, Any], each: Sequence[Mapping[str, Any]], name: str) -> None:
    """A vote divides by what agrees, never by the sum of all weights."""
    divided = shared.get("normalize", shared.get("normalize_weights", False)) and not vote
    if divided and abs(sum(parameters["weight"] for parameters in each)) < 1e-8:
        raise BadParameter(
            f"the weights for {name} sum to zero, and normalize divides by their sum",
            hint="--set normalize=false, or `normalize: false` in a merge file",
        )
    for density, epsilon in ((p["density"], p["epsilon"]) for p in each if "epsilon" in p):
        if density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            raise BadParameter(f"density {density:g} +/- epsilon {epsilon:g} must lie between 0 and 1", hint="take a smaller epsilon")


def _check_filters(recipe: Recipe, outputs: Sequence[Output]) -> None:
    """A filter that fits no tensor is a slip of the pen: what it was meant to set would silently take the default."""
    names = {name for o in outputs for name in (o.name, *(part.tensor for part in o.parts))} | set(TIED)
    scopes = [recipe.parameters]
    scopes += [parameters for piece in recipe.slices for parameters in (piece.parameters, *(s.parameters for s in piece.sources))]
    for setting, value in ((setting, scope[setting]) for scope in scopes for setting in scope):
        for word in filters_of(value):
            if not any(word in name for name in names):
                known = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
                close = difflib.get_close_matches(word, known, 1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise BadParameter(
                    f"the filter {word!r} of {setting!r} fits no tensor of these versions",
                    hint=f"{hint}words in use: {', '.join(known[:12])}",
                )


# --- slices ----------------------------------------------------------------------------------------------


def _stacked(recipe: Recipe, views: Views) -> list[Output]:
    first = views[recipe.slices[0].sources[0].model]
    family = family_of(first.config)
    if family is None:
        raise Incompatible("slices need a known architecture: the names of this model's layers are not known", hint="merge whole models")
    for key, value, reason in family.refuses:
        if (first.config or {}).get(key) == value:
            raise Incompatible(f"layers cannot be renumbered: with {key}, {reason}")
    found, done = _outer(recipe, views, family), 0
    for piece in recipe.slices:
        base, sources = recipe.inputs(piece)
        found += _run(recipe, views, family, piece, base, sources, done)
        layers = sources[0].layers
        assert layers is not None  # the reader of slices asks for it
        done += layers[1] - layers[0]
    return found


def _outer(recipe: Recipe, views: Views, family: Family) -> list[Output]:
    """What lies in no block: of the first slice, or of the last one for the last norm and the head."""
    lead = recipe.slices[0].sources[0].model
    found = []
    for name in views[lead].names():
        if layer_of(family, name) is not None or COMPUTED.search(name):
            continue
        piece = recipe.slices[-1] if role_of(family, name)[1] in LAST_ROLES else recipe.slices[0]
        base, sources = recipe.inputs(piece)
        _demand(views, [*(s.model for s in sources), *([base] if base else [])], name)
        found.append(_output(recipe, piece, name, [(s, name) for s in sources], (base, name), 0.0))
    return found


def _run(
    recipe: Recipe, views: Views, family: Family, piece: Slice, base: str | None, sources: Sequence[Source], done: int
) -> list[Output]:
    spans = [source.layers or (0, 0) for source in sources]
    anchor = recipe.base_layers(piece) or spans[0]
    for source, span in zip(sources, spans, strict=True):
        if span[1] > (held := blocks_in(views[source.model])):
            raise BadParameter(
                f"layer_range {list(span)} goes beyond the {held} layers of {shown(source.model)}",
                hint=f"layer_range: [0, {held}] takes all of them",
            )
    count = spans[0][1] - spans[0][0]
    found = []
    for name in views[sources[0].model].names():
        place = layer_of(family, name)
        if place is None or not spans[0][0] <= place[0] < spans[0][1] or COMPUTED.search(name):
            continue
        at = place[0] - spans[0][0]
        inputs = [(s, with_layer(family, name, span[0] + at)) for s, span in zip(sources, spans, strict=True)]
        beneath = with_layer(family, name, anchor[0] + at)
        for model, tensor in [*((s.model, tensor) for s, tensor in inputs), *([(base, beneath)] if base else [])]:
            _demand(views, [model], tensor)
        output = with_layer(family, name, done + at)
        found.append(_output(recipe, piece, output, inputs, (base, beneath), _place(at, count)))
    return found


def _demand(views: Views, models: Sequence[str], name: str) -> None:
    for model in models:
        if not views[model].has(name):
            raise Incompatible(f"{shown(model)} has no tensor {name}", hint="only versions of one architecture can be merged")


# --- small questions -------------------------------------------------------------------------------------


def _role(views: Views, output: Output) -> str:
    part = output.parts[0]
    return role_of(family_of(views[part.model].config), part.tensor)[1]


def _pairs(a: Output, b: Output) -> list[tuple[Part, Part]]:
    """Parts of two outputs that stand for the same version; a pair that cannot tie when they are not made alike."""
    sides = [(*o.parts, *([o.base] if o.base else [])) for o in (a, b)]
    return list(zip(*sides, strict=False)) if len(sides[0]) == len(sides[1]) else [(a.parts[0], b.parts[0])]


def _same(views: Views, a: Part, b: Part) -> bool:
    return a.model == b.model and views[a.model].entry(a.tensor).digest == views[b.model].entry(b.tensor).digest
