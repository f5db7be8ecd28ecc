"""What an update would touch and cost, from names, shapes and files; no tensor is read and nothing is imported that computes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..arch import family_of, layer_of
from ..base import Plan
from ..compat.options import parse_anchors
from ..compat.planning import records
from ..data.corpus import read_corpus
from .growth import fits_ranking, rankable
from .layout import Layout, expandable, expanded_names, known_blocks, lay_out, layout_for
from .limits import default_rate, row_length
from .mixes import graph_of

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .train import Update

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
MASTER = 4  # bytes of an fp32 weight, gradient or moment
# Measured on two CPU cores: small models are bound by the number of operations, large ones by arithmetic.
SECONDS_PER_STEP = 0.03
FLOPS_PER_SECOND = 4e10


def plan(op: Update, view: ModelView) -> Plan:
    """The plan of `op` on `view`. Raises what `apply` would raise for missing files, bad data and models that cannot be updated so."""
    length = row_length(op, view)
    corpus = read_corpus(op.data)
    for replay in op.replays:
        if replay.path is not None:
            read_corpus(replay.path, role="replay")
    for domain in op.domains[1:]:
        read_corpus(domain.path)
    graph_of(op)
    if op.select_for is not None:
        read_corpus(op.select_for, role="select")
    anchors = records(parse_anchors(op.compat_data).path) if op.compat_data else 0
    elements = _count(view, view.names())
    touches, trainable, bytes_touched, what = _reach(op, view)
    tokens = op.steps * op.batch * op.grad_accum * length
    taught = sum(r.distilled for r in op.replays)  # the parent stays in memory as a teacher
    passes = 4 if op.method != "full" else 6  # per parameter and token: without weight gradients of frozen tensors one third is saved
    return Plan(
        summary=f"train {what} ({trainable:,} of {elements:,} parameters) for {op.steps} steps on {corpus.record.name}",
        touches=touches,
        bytes_touched=bytes_touched,
        trainable=trainable,
        steps=op.steps,
        seconds=round(op.steps * op.grad_accum * SECONDS_PER_STEP + passes * elements * tokens / FLOPS_PER_SECOND, 1),
        memory=MASTER * (elements * (1 + taught) + 3 * trainable) + _activations(op.batch * length, view),
        details={
            "method": op.method,
            "tokens": tokens,
            "seq_len": length,
            "data_bytes": corpus.record.bytes,
            "lr": op.lr if op.lr is not None else default_rate(elements, "few" if "spu" in op.protections else op.method),
            "replay": {r.label: r.share for r in op.replays},
            **({"compat": op.compat, "compat_with": op.compat_with, "anchors": anchors} if op.compat_with else {}),
            **({"mix": {d.path: d.weight for d in op.domains}} if op.mix else {}),
        },
    )


def _reach(op: Update, view: ModelView) -> tuple[tuple[str, ...], int, int, str]:
    """(names that may change, trained elements, bytes written, what is trained in words)."""
    if op.auto:  # what will be chosen is not known before the trials: anything may change
        return ("*",), _count(view, view.names()), _bytes(view, view.names()), "what the trials of --auto choose"
    if op.lora is not None:
        return _adapter_reach(op, view)
    if op.method in ("expand", "tune"):
        return _grown_reach(op, view)
    names = tuple(n for n in view.names() if view.entry(n).dtype in FLOATS)
    if "spu" in op.protections:
        return names, _chosen(op, view), _bytes(view, names), f"{op.protect_rate:.0%} of the first MLP matrices"
    return names, _count(view, names), _bytes(view, names), "every tensor"


def _chosen(op: Update, view: ModelView) -> int:
    """How many elements `--protect spu` lets move: its share of each first matrix, and the biases beside them."""
    family = family_of(view.config)
    parts = tuple(module for module, role in family.roles if role in ("mlp.in", "mlp.gate")) if family else ()
    held = [n for n in view.names() if family and layer_of(family, n) is not None]
    weights = [n for n in held if n.endswith(tuple(f"{part}.weight" for part in parts))]
    biases = [n for n in held if n.endswith(tuple(f"{part}.bias" for part in parts))]
    return sum(int(op.protect_rate * math.prod(view.entry(n).shape)) for n in weights) + _count(view, biases)


def _grown_reach(op: Update, view: ModelView) -> tuple[tuple[str, ...], int, int, str]:
    """New blocks and tuned ones. What importance will choose is not known before a forward: then any block may change or be renumbered."""
    family, blocks = expandable(view) if op.grows else known_blocks(view)
    fits_ranking(op, blocks)
    count = op.new_blocks(blocks)
    guess = layout_for("interleave" if op.where == "importance" else op.where, blocks, count) if count else lay_out(blocks, ())
    origin = expanded_names(family, view.names(), guess)
    fresh = [source for source, new in origin.values() if new]
    tuned = _tuned(op, blocks, guess)
    if op.measures_blocks or tuned:
        moved = tuple(n for n in origin if layer_of(family, n) is not None)
    else:
        moved = tuple(n for n, (source, new) in origin.items() if new or n != source)
    old = f"{(parts := len(tuned))} old block{'s' if parts > 1 else ''}" if tuned else ""
    what = " and ".join(part for part in (f"{count} new block{'s' if count > 1 else ''}" if count else "", old) if part)
    held = [n for n in view.names() if (place := layer_of(family, n)) is not None and place[0] in tuned]
    return moved, _count(view, fresh) + _count(view, held), _bytes(view, fresh) + _bytes(view, held), what


def _tuned(op: Update, blocks: int, guess: Layout) -> frozenset[int]:
    """As many old blocks as will be trained; blocks are alike, so which ones does not change what it costs."""
    sources = {source for source, new in guess.origin if new} if op.source == "tuned" else set()
    others = [i for i in rankable(blocks) if i not in sources]
    return frozenset(sources) | frozenset(others[: op.tune])


def _adapter_reach(op: Update, view: ModelView) -> tuple[tuple[str, ...], int, int, str]:
    from .adapters import adaptable, stored_name, target_paths, tensor_name

    spec = op.lora
    assert spec is not None
    family = adaptable(view)
    paths = target_paths(family, view)
    sides = sum(sum(view.entry(stored_name(family, view, path)).shape) for path in paths)
    names = tuple(tensor_name(path, leaf) for path in paths for leaf in ("lora_A", "lora_B"))
    return names, spec.rank * sides, MASTER * spec.rank * sides, f"an adapter of rank {spec.rank}"


def _activations(tokens: int, view: ModelView) -> int:
    """A rough upper estimate: 24 values of model width per token and block, and the logits with their gradient."""
    config = view.config or {}
    width = config.get("hidden_size") or config.get("n_embd") or 0
    blocks = config.get("num_hidden_layers") or config.get("n_layer") or 0
    return MASTER * tokens * (24 * width * blocks + 3 * (config.get("vocab_size") or 0))


def _count(view: ModelView, names: Iterable[str]) -> int:
    return sum(math.prod(view.entry(n).shape) for n in names)


def _bytes(view: ModelView, names: Iterable[str]) -> int:
    return sum(math.prod(view.entry(n).shape) * FLOATS.get(view.entry(n).dtype, 1) for n in names)
