"""Sums of low-rank terms: stacked side by side, cut down to a rank, written into a base, or saved as PEFT saves an adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...kernels.exact import add_rank1_terms, scale
from ...registry.delta.derived import FLOATS, RANK1, Derived
from ...registry.errors import CheckFailed, ShapeMismatch
from ..base import Change, SetFile, SetTensor
from ..engine.local import threads
from .rmm import aligned

if TYPE_CHECKING:
    from ...registry.formats.peft import LowRank
    from ...registry.view import EffectiveView
    from ..base import Run
    from .adapters import MergeAdapters

CONFIG, PREFIX = "adapter_config.json", "base_model.model."
Factors = tuple[Tensor, Tensor]  # up [out, r], down [r, in]: what follows a convolution's channels counts as columns


def factors(view: EffectiveView, term: LowRank) -> Factors:
    """The two factors as matrices, in their stored type; a scale is not in them."""
    up, down = view.own.tensor(term.up), view.own.tensor(term.down)
    return up.reshape(len(up), -1), down.reshape(len(down), -1)


def stacked(parts: Sequence[tuple[Factors, float]], *, transposed: bool = False) -> Factors:
    """Factors of sum c_i up_i down_i, float32 `[out, R]` and `[R, in]` with R the sum of the ranks.

    c_i goes into the factor that rank-one terms scale when they are added, so that one adapter alone is added to the same bits.
    """
    ups = [scale(up.float(), c) if transposed else up.float() for (up, _), c in parts]
    downs = [down.float() if transposed else scale(down.float(), c) for (_, down), c in parts]
    return torch.cat(ups, dim=1), torch.cat(downs, dim=0)


def cut(up: Tensor, down: Tensor, rank: int) -> tuple[Factors, float, float]:
    """(the best factors of this rank, float32; squared norm of what is lost; squared norm of the whole), by the SVD of up @ down."""
    left, right = aligned(up, down)  # column k and row k carry the root of the k-th singular value each
    energy = (left.square().sum(dim=0) * right.square().sum(dim=1)).double()
    kept = left[:, :rank].float().contiguous(), right[:rank].float().contiguous()
    return kept, float(energy[rank:].sum()), float(energy.sum())


def product_norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of up @ down, float64, from the triangles of both: small differences keep their digits."""
    ra, rb = torch.linalg.qr(up.double(), mode="r")[1], torch.linalg.qr(down.double().t(), mode="r")[1]
    return float((ra @ rb.t()).norm())


# --- a merge of adapters ---------------------------------------------------------------------------------


def merged(op: MergeAdapters, views: Mapping[str, EffectiveView], run: Run) -> Iterator[Change]:
    """The changes of `op`: tensors of an adapter with its config, or tensors of the base. Records what a cut loses."""
    base, ranks = next(iter(views.values())).base, dict[str, int]()
    lost = whole = 0.0
    targets = sorted({target for view in views.values() for target in view.plan.added})
    with threads(1):  # a decomposition by several threads may end in other bits
        for done, target in enumerate(targets, 1):
            found = [(view, view.plan.added[target], c) for view, c in zip(views.values(), op.shares(), strict=True) if has(view, target)]
            view, term, _ = found[0]
            up, down = stacked([(factors(v, t), c * t.scale) for v, t, c in found], transposed=term.transposed)
            if op.rank is not None and op.rank < up.shape[1]:
                (up, down), gone, all_of_it = cut(up, down, op.rank)
                lost, whole = lost + gone, whole + all_of_it
            if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
                raise CheckFailed(f"the factors of {target} became infinite or no number", hint="smaller weights")
            ranks[module_of(term)] = up.shape[1]
            if op.into == "base":
                yield _written(base, target, up, down, term.transposed)
            else:
                yield from _kept(view, term, up, down)
            run.progress("merge", done, len(targets))
    error = math.sqrt(lost / whole) if whole else 0.0
    run.record("adapters", {"modules": len(targets), "rank": max(ranks.values(), default=0), "error": error})
    if op.into == "adapter":
        yield SetFile(CONFIG, config_of(configs(views.values()), ranks))


def has(view: EffectiveView, target: str) -> bool:
    """Whether an adapter changes this tensor of its base."""
    return target in view.plan.added


def _kept(view: EffectiveView, term: LowRank, up: Tensor, down: Tensor) -> Iterator[SetTensor]:
    """Two tensors of an adapter; those of a convolution have its sides again."""
    shapes = [view.own.entry(name).shape for name in (term.up, term.down)]
    yield SetTensor(term.up, up.reshape(len(up), -1, *shapes[0][2:]).contiguous())
    yield SetTensor(term.down, down.reshape(len(down), *shapes[1][1:]).contiguous())


def _written(base: Any, target: str, up: Tensor, down: Tensor, transposed: bool) -> SetTensor:
    """The base's tensor with the sum in it: what an adapter with these factors would make of it, to the bit."""
    entry = base.entry(target)
    if entry.dtype not in FLOATS:
        raise ShapeMismatch(f"tensor {target} is of type {entry.dtype}, to which an adapter cannot be added")
    if transposed:
        up, down = down.T.contiguous(), up.T.contiguous()
    weight = base.tensor(target)
    data = add_rank1_terms(weight.reshape(len(up), -1), up, down).reshape(weight.shape)
    stored = None if base.adapter else Derived(RANK1, (entry.digest,), (1.0,), (up, down))
    return SetTensor(target, data, derived=stored)


# --- PEFT's config ---------------------------------------------------------------------------------------


def module_of(term: LowRank) -> str:
    """The module that PEFT would name."""
    return term.up.removeprefix(PREFIX).rpartition(".lora_")[0]


def configs(views: Iterable[EffectiveView]) -> list[dict[str, Any]]:
    """The config of each adapter, as it is stored."""
    return [json.loads(view.own.file(CONFIG) or b"{}") for view in views]


def config_of(given: Sequence[Mapping[str, Any]], ranks: Mapping[str, int]) -> bytes:
    """adapter_config.json for factors that carry their scale: alpha equals the rank of every module."""
    rank = max(ranks.values(), default=1)
    other = {module: own for module, own in sorted(ranks.items()) if own != rank}
    config: dict[str, Any] = {
        "base_model_name_or_path": given[0].get("base_model_name_or_path"),
        "bias": "none",
        "fan_in_fan_out": bool(given[0].get("fan_in_fan_out")),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "task_type": given[0].get("task_type"),
        "use_rslora": False,
    }
    return (json.dumps(config, indent=2) + "\n").encode()
