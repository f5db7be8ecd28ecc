"""What an update must not damage, and how it is kept: SPU's mask, and quadratic pulls back to the parent (EWC, HLE, L2-SP).

A pull is (k_i / 2) (theta_i - theta*_i)^2, added to the loss: nothing at the parent, and without effect on the step there. Where k_i would
be 1 / lr or more, one step of gradient descent could not undo what it overshoots, and the element is held still instead: that is the
limit which the pull has for a growing weight. Sources: EWC 1612.00796, HLE 2501.13669, SPU 2308.12462; see the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...kernels.select import top_k_masks
from ...registry.errors import CheckFailed, Incompatible
from ...registry.ids import blob_digest
from ..arch import family_of, layer_of
from ..engine import Masks, Objective
from ..engine.local import read_losses
from ..unlearn.importance import importance, mean_gradient
from ..unlearn.importance import pack as pack_importance
from ..unlearn.importance import unpack as unpack_importance
from ..unlearn.mask import pack as pack_masks
from ..unlearn.mask import unpack as unpack_masks
from .options import WEIGHTS
from .pathwise import path_importance
from .rows import Prepared, evenly, old_rows

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from .train import Update

FISHER, PATHWISE, MASK = "fisher", "path-importance", "mask"
KNOWN = 128  # rows of old text that importance is measured on
TOGETHER = 8  # rows in one forward pass
SCORED = 0.25  # SPU's share of the new task's batches that choose its weights


@dataclass
class Protection:
    """What `--protect` asks of a run: which elements may move (None: all that train), pulls by parameter name, and facts to record."""

    masks: Masks | None = None
    pulls: dict[str, Tensor] = field(default_factory=dict)  # fp32, the k_i above; sums where several methods are named
    facts: dict[str, Any] = field(default_factory=dict)


def protection(op: Update, view: ModelView, run: Run, rows: Prepared, module: nn.Module, rate: float) -> Protection:
    """Measure what `op.protect` needs on the parent's weights, which `module` still holds; freezes what SPU leaves alone.

    rate: the peak learning rate, which bounds the pulls. Importance is an artifact of (snapshot, old text), masks of (snapshot, new text).
    """
    found = Protection()
    for kind in op.protections:
        if kind == "spu":
            found.masks = _chosen(op, view, run, rows, module)
            free = sum(int(m.sum()) for m in found.masks.values())
            found.facts["spu"] = {"rate": op.protect_rate, "free": free}
        else:
            weight = op.protect_weight if op.protect_weight is not None else WEIGHTS[kind]
            for name, pull in _pulls(kind, weight, view, run, rows, module).items():
                found.pulls[name] = found.pulls[name] + pull if name in found.pulls else pull
            found.facts[kind] = {"weight": weight}
    if found.pulls:
        found.masks, held = _held(found, module, rate)
        found.facts["held_still"] = held
    return found


class Anchored:
    """An objective plus the pull back to the weights that the module has now."""

    def __init__(self, inner: Objective, module: nn.Module, pulls: Mapping[str, Tensor]) -> None:
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad and n in pulls}
        self.inner = inner
        self.kept = [(n, p.detach().clone(), pulls[n].to(p.device)) for n, p in trained.items()]

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """The inner loss + sum_i (k_i / 2) (theta_i - theta*_i)^2, in nats per token and fp32."""
        now = dict(module.named_parameters())
        return self.inner(module, batch) + sum((pull * (now[n] - start).square()).sum() for n, start, pull in self.kept) / 2


# --- pulls -----------------------------------------------------------------------------------------------


def _pulls(kind: str, weight: float, view: ModelView, run: Run, rows: Prepared, module: nn.Module) -> dict[str, Tensor]:
    """k_i of every parameter: EWC lambda F, HLE 2 lambda c_layer Omega, L2-SP lambda. F and Omega have mean 1 over all elements.

    Normalised, lambda means the same for every model and every amount of data; an unnormalised Fisher at a converged optimum is all but
    zero. EWC's F is the mean over rows of old text of the squared gradient of the row's mean loss: exact per row, whatever the batch.
    """
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if kind == "l2sp":
        return {n: torch.full(p.shape, weight) for n, p in trained.items()}
    known, begin = old_rows(rows, view, run, KNOWN)
    old = evenly(known, KNOWN)
    key = f"{view.snapshot_id}/{_reading(old, begin)}"
    if kind == "ewc":
        measured = unpack_importance(run.artifact(FISHER, key, lambda: _pack(fisher(module, old, run, begin))))
        return {n: weight * measured[n].float() for n in trained}
    measured = unpack_importance(run.artifact(PATHWISE, key, lambda: _pack(path_importance(module, old, run, begin))))
    omega = {n: measured[n].float() for n in trained}
    shares = layer_coefficients(view, omega)
    return {n: 2 * weight * shares[n] * omega[n] for n in omega}


def fisher(module: nn.Module, old: Tensor, run: Run, begin: int | None = None) -> dict[str, Tensor]:
    """Empirical Fisher diagonal on rows int64 [n, seq_len], fp32. On text that the model itself sampled it is the true one.

    begin: as in `engine.local.read_losses`.
    """
    scores = _scores(module, old, begin)
    return importance(module, scores, _parts(len(old)), progress=lambda done: run.progress("fisher", done, len(old)))


def layer_coefficients(view: ModelView, omega: Mapping[str, Tensor]) -> dict[str, float]:
    """HLE's c_l for every name: |Omega_l|_2 / sum_m |Omega_m|_2 times the number of layers; what lies outside the blocks is one layer."""
    family = family_of(view.config)
    layers: dict[str, list[str]] = {}
    for name in omega:
        place = layer_of(family, name) if family else None
        layers.setdefault("outside" if place is None else str(place[0]), []).append(name)
    norms = {layer: math.sqrt(sum(omega[n].double().square().sum().item() for n in names)) for layer, names in layers.items()}
    total = sum(norms.values())
    return {n: norms[layer] / total * len(norms) if total else 1.0 for layer, names in layers.items() for n in names}


def normalised(measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same importance with mean 1 over all elements. Raises CheckFailed when there is nothing, or no number, in it."""
    elements = sum(v.numel() for v in measured.values())
    mean = sum(v.double().sum().item() for v in measured.values()) / max(1, elements)
    if not math.isfinite(mean) or mean <= 0:
        raise CheckFailed(f"no weight has any importance for the old text (mean {mean:g})", hint="another --replay FILE:RATIO, or l2sp")
    return {n: (v.double() / mean).float() for n, v in measured.items()}


def _held(found: Protection, module: nn.Module, rate: float) -> tuple[dict[str, Tensor], int]:
    """(masks that also hold still what is pulled by 1 / lr or more, how many elements those are)."""
    masks, held = dict(found.masks or {}), 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and name in found.pulls:
            loose = (found.pulls[name] < 1 / rate).to(parameter.device)
            held += int((~loose).sum())
            masks[name] = masks[name].to(loose.device) & loose if name in masks else loose
    return masks, held


# --- SPU -------------------------------------------------------------------------------------------------


def _chosen(op: Update, view: ModelView, run: Run, rows: Prepared, module: nn.Module) -> dict[str, Tensor]:
    """SPU: per first matrix of an MLP, the `protect_rate` of its weights with the greatest |sum of gradients| on new text.

    Signed gradients are summed before the magnitude is taken, so that rows which disagree cancel; no step is made meanwhile, and the
    masks stay for the whole run. Biases of those matrices move freely, everything else is frozen.
    """
    names = first_matrices(view, module)
    biases = {n.removesuffix("weight") + "bias" for n in names}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names or name in biases)
    new = rows.mixture.sources[0]
    count = math.ceil(SCORED * op.steps * op.batch * op.grad_accum * new.share)
    read = evenly(new.rows, max(1, count))
    shapes = {n: p.shape for n, p in module.named_parameters() if n in names}
    begin = rows.begins.get(new.name)
    key = f"{view.snapshot_id}/{_reading(read, begin)}/{op.protect_rate}"
    data = run.artifact(MASK, key, lambda: pack_masks(_top(module, read, begin, names, op.protect_rate, run), {}))
    masks, _ = unpack_masks(data, shapes)
    return masks


def _top(module: nn.Module, read: Tensor, begin: int | None, names: frozenset[str], rate: float, run: Run) -> dict[str, Tensor]:
    scores = _scores(module, read, begin)
    told = lambda done: run.progress("score", done, len(read))  # noqa: E731
    gradients = mean_gradient(module, scores, _parts(len(read)), names=names, progress=told)
    return {n: top_k_masks([g.abs()], int(rate * g.numel()))[0] for n, g in gradients.items()}


def first_matrices(view: ModelView, module: nn.Module) -> frozenset[str]:
    """Names of the weights that enter the MLP of each block (gate and up where there are two). Raises Incompatible without any."""
    family = family_of(view.config)
    paths = tuple(f".{m}.weight" for m, role in family.roles if role in ("mlp.in", "mlp.gate")) if family else ()
    found = frozenset(n for n, _ in module.named_parameters() if family and n.endswith(paths) and layer_of(family, n) is not None)
    if not paths or not found:
        raise Incompatible("--protect spu needs a model whose blocks have an MLP that it knows", hint="--protect ewc works on every model")
    return found


def _scores(module: nn.Module, rows: Tensor, begin: int | None) -> Callable[[list[int]], Tensor]:
    """Mean loss of each of the chosen rows, fp32 [n], read as the update reads them."""
    where = next(module.parameters()).device
    return lambda chosen: read_losses(module, rows[chosen].to(where), begin).mean(1)


def _reading(rows: Tensor, begin: int | None) -> str:
    """What names rows and how they are read in the key of an artifact: what was measured on documents side by side is another thing."""
    return blob_digest(rows.numpy().tobytes()) + ("" if begin is None else "-apart")


def _parts(count: int) -> list[list[int]]:
    return [list(range(i, min(i + TOGETHER, count))) for i in range(0, count, TOGETHER)]


def _pack(measured: dict[str, Tensor]) -> bytes:
    """As an artifact: mean 1, bf16 (seven bits of an importance are plenty, and it is stored with the commit)."""
    return pack_importance({n: v.cpu().to(torch.bfloat16) for n, v in normalised(measured).items()})
