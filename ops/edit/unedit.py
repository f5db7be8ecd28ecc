"""Taking single facts of an edit back: the closed form again from stored keys and targets, without them. The others stay.

Needs no forward pass, unless a subject keeps some of its facts: these share one target, which is then found anew on the edit's parent. A
matrix that nothing has changed since is written again from the parent's, to the bit; one that was changed later gets the difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry.errors import BadParameter, CheckFailed
from ...registry.ids import blob_digest
from ..base import Change, Run, SetTensor
from ..data.facts import Fact
from . import derivation, keep, solve
from .covariance import KIND as COVARIANCE
from .covariance import unpack_moment
from .edit import Edit
from .site import editable, stored_name

if TYPE_CHECKING:
    from ...registry.view import ModelView


@dataclass(frozen=True, slots=True)
class Kept:
    """What the commit of an edit keeps (artifacts `edit-factors` and `edit-keys`), and the two versions around it."""

    factors: bytes
    keys: bytes
    parent: ModelView
    edited: ModelView


def unwrite(view: ModelView, kept: Kept, ids: Collection[str], run: Run) -> Iterator[Change]:
    """The changes that take the facts `ids` out of `view`, a version that descends from the edit.

    Raises BadParameter for an id that the edit did not write, CheckFailed when the second moments are gone.
    """
    tensors, about = keep.unpack(kept.keys)
    factors, _ = keep.unpack(kept.factors)
    op = Edit.from_params({k: tuple(v) if isinstance(v, list) else v for k, v in about["params"].items()})
    gone, shared = affected(about["ids"], ids)
    family, _ = editable(view)
    fresh = _again(op, kept.parent, about, shared, set(ids), run) if shared else {}
    memory = {}
    for layer in about["layers"]:
        moment = unpack_moment(run.artifact(COVARIANCE, about["moments"][str(layer)], _absent), tensors[f"layer.{layer}.keys"].shape[0])
        metric = solve.memit_metric(moment.matrix) if op.method == "memit" else solve.alphaedit_metric(moment.matrix, op.threshold)
        residual = factors[f"layer.{layer}.up"].double()
        for i, change in fresh.items():
            residual[:, i] = change.double() / len(about["layers"])
        keys, owner = tensors[f"layer.{layer}.keys"], tensors["owner"]
        beside = tensors[f"layer.{layer}.spread"].double()[:, ~gone[owner]]
        if f"layer.{layer}.earlier" in tensors:
            beside = torch.cat([beside, tensors[f"layer.{layer}.earlier"].double()], 1)
        up, down = solve.resolve_without(metric, keys, residual, about["numbers"][str(layer)]["weight"], gone, beside)
        memory[layer] = keys[:, ~gone]
        old = factors[f"layer.{layer}.up"], factors[f"layer.{layer}.down"]
        yield _rewritten(
            view, kept, stored_name(family, view, layer), up.float(), down.T.float().contiguous(), old, layer in _turned(view, about)
        )
    gone_subjects = [s for s, out in zip(about["subjects"], gone.tolist(), strict=True) if out]
    data = keep.shrunk(run.inherited(keep.MEMORY), gone_subjects)
    if data is not None:
        run.artifact(keep.MEMORY, blob_digest(data), lambda: data)


def affected(groups: Sequence[Sequence[str]], ids: Collection[str]) -> tuple[Tensor, list[int]]:
    """(bool [u]: subjects of which nothing stays, numbers of the subjects that keep some of their facts). Raises BadParameter."""
    known = {i for members in groups for i in members}
    if unknown := sorted(set(ids) - known):
        raise BadParameter(f"the edit wrote no fact {unknown[0]!r}", hint=f"it wrote {', '.join(sorted(known)[:8])}")
    gone = torch.tensor([set(members) <= set(ids) for members in groups])
    shared = [i for i, members in enumerate(groups) if set(members) & set(ids) and not set(members) <= set(ids)]
    return gone, shared


def _again(op: Edit, parent: ModelView, about: dict[str, Any], shared: list[int], ids: set[str], run: Run) -> dict[int, Tensor]:
    """New targets' changes [d1] of the subjects that keep some facts, found on the edit's parent."""
    from ..engine.local import threads
    from ..evaluate.coder import Coder
    from ..models import load_tokenizer
    from .prompts import Prompter, groups_of, normal
    from .session import settings_of
    from .site import Editable
    from .targets import find_targets

    with threads(run.threads):
        model = Editable(parent)
        facts = [Fact(**{k: _tuples(v) for k, v in row.items()}) for row in about["facts"]]
        prompter = Prompter(Coder(load_tokenizer(parent)), None)
        groups = {normal(g.subject): g for g in groups_of([f for f in facts if f.id not in ids], prompter, about["prefixes"])}
        chosen = [groups[normal(about["subjects"][i])] for i in shared]
        found = find_targets(model, about["layers"][-1], chosen, settings_of(op))
    return {i: found.change[n].cpu() for n, i in enumerate(shared)}


def _rewritten(view: ModelView, kept: Kept, name: str, up: Tensor, down: Tensor, old: tuple[Tensor, Tensor], turned: bool) -> SetTensor:
    if view.entry(name).digest == kept.edited.entry(name).digest:
        data, left, right = derivation.edited(kept.parent.tensor(name), up, down, turned)
        return derivation.change(kept.parent, name, data, left, right)
    # Changed since: the difference of the two writes goes on top of what is there now.
    up, down = torch.cat([up, -old[0]], 1), torch.cat([down, old[1]], 0)
    data, left, right = derivation.edited(view.tensor(name), up, down, turned)
    return derivation.change(view, name, data, left, right)


def _turned(view: ModelView, about: dict[str, Any]) -> set[int]:
    """Layers whose matrix is stored [d0, d1]."""
    family, _ = editable(view)
    return set(about["layers"]) if family.module("mlp.out") in family.transposed else set()


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _absent() -> bytes:
    raise CheckFailed("the second moments that this edit was solved with are gone", hint="mlc revert REV takes the whole edit back")
