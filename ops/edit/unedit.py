"""Taking single facts of an edit back: the closed form again from what is kept, with nothing to write at their keys. The others stay.

Needs no forward pass, unless a subject keeps some of its facts: these share one target, which is then found anew on the edit's parent. A
matrix that nothing has changed since is written again from the parent's, to the bit; one that was changed later gets the difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...registry.errors import BadParameter, CheckFailed
from ...registry.ids import blob_digest, tensor_digest
from ..base import Change, Run, SetTensor
from ..data.facts import Fact
from . import derivation, keep, solve
from .conflicts import fact_of
from .covariance import KIND as COVARIANCE
from .covariance import unpack_moment
from .edit import Edit
from .prompts import Group, Prompter, groups_of, normal
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


def unwrite(view: ModelView, kept: Kept, ids: Collection[str], run: Run, lost: Collection[str] = ()) -> Iterator[Change]:
    """The changes that take the facts `ids` out of `view`, a version that descends from the edit; `lost` were taken out before.

    Raises BadParameter for an id that the edit did not write, CheckFailed when the second moments are gone.
    """
    tensors, about = keep.unpack(kept.keys)
    factors, _ = keep.unpack(kept.factors)
    affected(about["ids"], ids)
    gone = affected(about["ids"], {*lost, *ids})[0]
    family, _ = editable(view)
    before = _Left(kept, tensors, about, factors, set(lost), run)
    after = _Left(kept, tensors, about, factors, {*lost, *ids}, run)
    for layer in about["layers"]:
        name = stored_name(family, view, layer)
        yield _rewritten(view, kept, name, after.terms(layer), before.terms(layer), bool(lost), layer in _turned(view, about))
    gone_subjects = [s for s, out in zip(about["subjects"], gone.tolist(), strict=True) if out]
    facts = [fact_of(row) for row in about["facts"] if row["id"] in {*lost, *ids}]
    data = keep.shrunk(run.inherited(keep.MEMORY), gone_subjects, facts)
    if data is not None:
        run.artifact(keep.MEMORY, blob_digest(data), lambda: data)


class _Left:
    """What an edit writes without the facts `out`: factors of every layer, as they were stored when nothing is out."""

    def __init__(self, kept: Kept, tensors: dict[str, Tensor], about: dict[str, Any], factors: dict[str, Tensor], out: set[str], run: Run):
        self.tensors, self.about, self.factors, self.out, self.run = tensors, about, factors, out, run
        self.op = Edit.from_params(about["params"])
        self.gone, shared = affected(about["ids"], out)
        self.fresh = _again(self.op, kept.parent, about, shared, out, run) if shared else {}

    def terms(self, layer: int) -> tuple[Tensor, Tensor]:
        """(up [d1, v], down [v, d0]) float32 of one layer."""
        up, down = self.factors[f"layer.{layer}.up"], self.factors[f"layer.{layer}.down"]
        if not self.out:
            return up, down
        keys, gone = self.tensors[f"layer.{layer}.keys"], self.gone
        key = self.about["moments"][str(layer)]
        moment = unpack_moment(self.run.artifact(COVARIANCE, key, _absent), keys.shape[0], key)
        memit = self.op.method == "memit"
        metric = solve.memit_metric(moment.matrix) if memit else solve.alphaedit_metric(moment.matrix, self.op.threshold)
        residual = up.double()
        second, first = layer == self.about.get("beyond"), [n for n in self.about["layers"] if n != self.about.get("beyond")]
        for i, (change, beyond) in self.fresh.items():
            residual[:, i] = beyond.double() if second else change.double() / len(first)
        # What goes is spared from now on: the others write nothing at its key, and the equations stay as the others were tuned for.
        beside = torch.cat([self.tensors[f"layer.{layer}.spread"].double(), keys[:, gone]], 1)
        if f"layer.{layer}.earlier" in self.tensors:
            beside = torch.cat([beside, self.tensors[f"layer.{layer}.earlier"].double()], 1)
        weight = self.about["numbers"][str(layer)]["weight"]
        up, written = solve.resolve_without(metric, keys, residual, weight, gone, beside)
        return up.float(), written.T.float().contiguous()


def affected(groups: Sequence[Sequence[str]], ids: Collection[str]) -> tuple[Tensor, list[int]]:
    """(bool [u]: subjects of which nothing stays, numbers of the subjects that keep some of their facts). Raises BadParameter."""
    known = {i for members in groups for i in members}
    if unknown := sorted(set(ids) - known):
        raise BadParameter(f"the edit wrote no fact {unknown[0]!r}", hint=f"it wrote {', '.join(sorted(known)[:8])}")
    gone = torch.tensor([set(members) <= set(ids) for members in groups])
    shared = [i for i, members in enumerate(groups) if set(members) & set(ids) and not set(members) <= set(ids)]
    return gone, shared


def _again(
    op: Edit, parent: ModelView, about: dict[str, Any], shared: list[int], ids: set[str], run: Run
) -> dict[int, tuple[Tensor, Tensor]]:
    """New targets' changes [d1], here and at the block beyond, of the subjects that keep some facts; found on the edit's parent."""
    from ..engine.local import threads
    from ..evaluate.coder import Coder
    from ..models import load_tokenizer
    from .session import settings_of
    from .site import Editable
    from .targets import find_targets

    with threads(run.threads):
        model = Editable(parent)
        facts = [fact_of(row) for row in about["facts"]]
        prompter = Prompter(Coder(load_tokenizer(parent)), None)
        groups = {normal(g.subject): g for g in groups_of([f for f in facts if f.id not in ids], prompter, about["prefixes"])}
        chosen = [_keeping(groups[normal(about["subjects"][i])], [f for f in facts if f.id in ids], prompter) for i in shared]
        beyond = about.get("beyond")
        last = about["layers"][-1] if beyond is None else beyond - 1
        found = find_targets(model, last, chosen, settings_of(op), beyond=beyond is not None)
    second = found.beyond if found.beyond is not None else torch.zeros_like(found.change)
    return {i: (found.change[n].cpu(), second[n].cpu()) for n, i in enumerate(shared)}


def _keeping(group: Group, gone: Sequence[Fact], prompter: Prompter) -> Group:
    """The group with what is taken back of its subject among the questions whose answers stay as the edit's parent gives them."""
    again = [prompter.row(f.prompt, group.subject) for f in gone if normal(f.subject) == normal(group.subject)]
    return replace(group, kept=(*group.kept, *again))


def _rewritten(
    view: ModelView, kept: Kept, name: str, now: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor], partly: bool, turned: bool
) -> SetTensor:
    """The matrix with the terms `now` in place of the terms `old`; `partly`: something was taken out of the edit before."""
    stored = kept.parent.tensor(name)
    same = _digest(derivation.edited(stored, *old, turned)[0], view, name) if partly else kept.edited.entry(name).digest
    if view.entry(name).digest == same:
        data, left, right = derivation.edited(stored, *now, turned)
        return derivation.change(kept.parent, name, data, left, right)
    # Changed since: the difference of the two writes goes on top of what is there now.
    up, down = torch.cat([now[0], -old[0]], 1), torch.cat([now[1], old[1]], 0)
    data, left, right = derivation.edited(view.tensor(name), up, down, turned)
    return derivation.change(view, name, data, left, right)


def _digest(data: Tensor, view: ModelView, name: str) -> str:
    entry = view.entry(name)
    raw = data.contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor_digest(entry.dtype, tuple(entry.shape), [raw.data])


def _turned(view: ModelView, about: dict[str, Any]) -> set[int]:
    """Layers whose matrix is stored [d0, d1]."""
    family, _ = editable(view)
    return set(about["layers"]) if family.module("mlp.out") in family.transposed else set()


def _absent() -> bytes:
    raise CheckFailed("the second moments that this edit was solved with are gone", hint="mlc revert REV takes the whole edit back")
