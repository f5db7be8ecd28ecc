"""Taking single facts of an edit back: the closed form again from what is kept, with nothing to write at their keys. The others stay.

A subject that keeps some of its facts has one target for them, which is found anew on the edit's parent. Facts of the others that would
turn are held up (see mend.py). What is written then is kept, and the next fact that goes is taken from that. A matrix that nothing has
changed since is written again from the parent's, to the bit; one that was changed later gets the difference.
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
from ..engine.local import placed, threads
from ..evaluate.coder import Coder
from ..models import load_model, load_tokenizer
from . import derivation, keep, solve
from .conflicts import fact_of
from .covariance import KIND as COVARIANCE
from .covariance import unpack_moment
from .edit import Edit
from .measure import bench_of, rivals
from .mend import Scene, Terms, mended
from .prompts import Group, Prompter, groups_of, normal
from .session import settings_of
from .site import Editable, editable, stored_name
from .targets import find_targets

if TYPE_CHECKING:
    from ...registry.view import ModelView


@dataclass(frozen=True, slots=True)
class Kept:
    """What the commit of an edit keeps (artifacts `edit-factors` and `edit-keys`), and the two versions around it.

    rest: what the commit keeps that took facts out of it last (`edit-rest`), None when nothing is out.
    """

    factors: bytes
    keys: bytes
    parent: ModelView
    edited: ModelView
    rest: bytes | None = None
    rev: str = ""  # commit id of the edit


@dataclass(frozen=True, slots=True)
class _Left:
    """What the edit writes without the facts `out`, block by block: a column for every subject of which something stays."""

    out: frozenset[str]
    terms: dict[int, Terms]


def unwrite(view: ModelView, kept: Kept, ids: Collection[str], run: Run, lost: Collection[str] = ()) -> Iterator[Change]:
    """The changes that take the facts `ids` out of `view`, a version that descends from the edit; `lost` were taken out before.

    Raises BadParameter for an id that the edit did not write, CheckFailed when the second moments are gone.
    """
    edit = _Edit(kept, run)
    about = edit.about
    affected(about["ids"], ids)
    whole = _Left(frozenset(), _terms(keep.unpack(kept.factors)[0], about["layers"]))
    held = frozenset(lost)
    before = edit.without(whole, held) if kept.rest is None else _Left(held, _terms(keep.unpack(kept.rest)[0], about["layers"]))
    places = {layer: _Place.of(view, kept, about, layer, before) for layer in about["layers"]}
    after = edit.mended(edit.without(before, held | set(ids)), before, places, view)
    _keep(after, kept, about, run)
    for layer, place in places.items():
        yield _rewritten(view, kept, place, after.terms[layer], before.terms[layer])


def _keep(after: _Left, kept: Kept, about: dict[str, Any], run: Run) -> None:
    """What is written now, and the memory of keys without what went."""
    tensors = {f"layer.{n}.{side}": t for n, terms in after.terms.items() for side, t in zip(("up", "down"), terms, strict=True)}
    rest = keep.pack(tensors, rev=kept.rev, out=sorted(after.out), layers=about["layers"])
    run.artifact(keep.REST, blob_digest(rest), lambda: rest)
    gone = affected(about["ids"], after.out)[0].tolist()
    facts = [fact_of(row) for row in about["facts"] if row["id"] in after.out]
    data = keep.shrunk(run.inherited(keep.MEMORY), [s for s, out in zip(about["subjects"], gone, strict=True) if out], facts)
    if data is not None:
        run.artifact(keep.MEMORY, blob_digest(data), lambda: data)


def _terms(tensors: dict[str, Tensor], layers: Sequence[int]) -> dict[int, Terms]:
    return {n: (tensors[f"layer.{n}.up"], tensors[f"layer.{n}.down"]) for n in layers}


class _Edit:
    """An edit as its commit keeps it: what it writes with some of its facts left out."""

    def __init__(self, kept: Kept, run: Run) -> None:
        self.kept, self.run = kept, run
        self.tensors, self.about = keep.unpack(kept.keys)
        self.op = Edit.from_params(self.about["params"])
        self.facts = [fact_of(row) for row in self.about["facts"]]
        beyond = self.about.get("beyond")
        self.first = [n for n in self.about["layers"] if n != beyond]

    def without(self, before: _Left, out: frozenset[str]) -> _Left:
        """`before` with more facts left out, by the closed form alone."""
        if out == before.out:
            return before
        ids = self.about["ids"]
        fewer = out - before.out
        shared = [i for i in affected(ids, out)[1] if fewer & set(ids[i])]
        fresh = _again(self.op, self.kept.parent, self.about, shared, out, self.run) if shared else {}
        return _Left(out, {layer: self._solved(layer, before, out, fresh) for layer in self.about["layers"]})

    def _solved(self, layer: int, before: _Left, out: frozenset[str], fresh: dict[int, tuple[Tensor, Tensor]]) -> Terms:
        """(up [d1, v], down [v, d0]) float32 of one layer."""
        keys, had, gone = (
            self.tensors[f"layer.{layer}.keys"], affected(self.about["ids"], before.out)[0], affected(self.about["ids"], out)[0],
        )  # fmt: skip
        key = self.about["moments"][str(layer)]
        moment = unpack_moment(self.run.artifact(COVARIANCE, key, _absent), keys.shape[0], key)
        memit = self.op.method == "memit"
        metric = solve.memit_metric(moment.matrix) if memit else solve.alphaedit_metric(moment.matrix, self.op.threshold)
        up = before.terms[layer][0].double()
        residual = up.new_zeros(len(up), keys.shape[1])
        residual[:, ~had] = up
        for i, (change, beyond) in fresh.items():
            residual[:, i] = change.double() / len(self.first) if layer in self.first else beyond.double()
        # What goes is spared from now on: the others write nothing at its key, and the equations stay as the others were tuned for.
        beside = torch.cat([self.tensors[f"layer.{layer}.spread"].double(), keys[:, gone]], 1)
        if f"layer.{layer}.earlier" in self.tensors:
            beside = torch.cat([beside, self.tensors[f"layer.{layer}.earlier"].double()], 1)
        weight = self.about["numbers"][str(layer)]["weight"]
        up, written = solve.resolve_without(metric, keys, residual, weight, gone, beside)
        return up.float(), written.T.float().contiguous()

    def mended(self, after: _Left, before: _Left, places: dict[int, _Place], view: ModelView) -> _Left:
        """`after`, corrected where another fact of the edit would turn; which, and how, goes into the record."""
        rest = [f for f in self.facts if f.id not in after.out]
        if not rest:
            return after
        run = self.run
        with threads(run.threads):
            coder = Coder(load_tokenizer(view))
            asked = list(zip(self.facts, self._rivals(coder), strict=True))
            stay, go = ([(f, rival) for f, rival in asked if (f.id in after.out) == out] for out in (False, True))
            bare = {layer: place.bare(view, self.kept, before.terms[layer]) for layer, place in places.items()}
            scene = Scene(view, bare, tuple(self.about["layers"][len(self.first) - 1 :]))
            groups = groups_of(rest, Prompter(coder, None), self.about["prefixes"])
            found = mended(scene, after.terms, groups, stay, go, self.op, run)
        run.record("corrected", list(found.facts))
        if found.facts:
            run.record("correction", {"subjects": found.subjects, "steps": found.steps, "moved": round(found.moved, 6)})
        return _Left(after.out, found.terms)

    def _rivals(self, coder: Coder) -> Sequence[str]:
        """What each fact is compared with: the answer that the file names, else what the edit's parent says."""
        if all(f.target_true is not None for f in self.facts):
            return [f.target_true or "" for f in self.facts]
        module = placed(load_model(self.kept.parent, dtype=torch.float32))
        return rivals(self.facts, bench_of(module, coder, "measure the edit's parent", self.run.progress))


def affected(groups: Sequence[Sequence[str]], ids: Collection[str]) -> tuple[Tensor, list[int]]:
    """(bool [u]: subjects of which nothing stays, numbers of the subjects that keep some of their facts). Raises BadParameter."""
    known = {i for members in groups for i in members}
    if unknown := sorted(set(ids) - known):
        raise BadParameter(f"the edit wrote no fact {unknown[0]!r}", hint=f"it wrote {', '.join(sorted(known)[:8])}")
    gone = torch.tensor([set(members) <= set(ids) for members in groups])
    shared = [i for i, members in enumerate(groups) if set(members) & set(ids) and not set(members) <= set(ids)]
    return gone, shared


def _again(
    op: Edit, parent: ModelView, about: dict[str, Any], shared: list[int], ids: Collection[str], run: Run
) -> dict[int, tuple[Tensor, Tensor]]:
    """New targets' changes [d1], here and at the block beyond, of the subjects that keep some facts; found on the edit's parent."""
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


@dataclass(frozen=True, slots=True)
class _Place:
    """A matrix that the edit wrote: its stored name, whether it lies [d0, d1], and whether it is still as the edit left it."""

    name: str
    turned: bool
    same: bool

    @classmethod
    def of(cls, view: ModelView, kept: Kept, about: dict[str, Any], layer: int, before: _Left) -> _Place:
        """As it is in `view`, where the edit stands without what `before` leaves out."""
        family, _ = editable(view)
        name, turned = stored_name(family, view, layer), family.module("mlp.out") in family.transposed
        wrote = kept.edited.entry(name).digest
        if before.out:
            wrote = _digest(derivation.edited(kept.parent.tensor(name), *before.terms[layer], turned)[0], view, name)
        return cls(name, turned, view.entry(name).digest == wrote)

    def bare(self, view: ModelView, kept: Kept, terms: Terms) -> Tensor:
        """W [d1, d0] float32 without the edit's terms."""
        stored = (kept.parent if self.same else view).tensor(self.name).float()
        weight = stored.T if self.turned else stored
        return weight if self.same else (weight.double() - terms[0].double() @ terms[1].double()).float()


def _rewritten(view: ModelView, kept: Kept, place: _Place, now: Terms, old: Terms) -> SetTensor:
    """The matrix with the terms `now` in place of the terms `old`."""
    name, turned = place.name, place.turned
    if place.same:
        data, left, right = derivation.edited(kept.parent.tensor(name), *now, turned)
        return derivation.change(kept.parent, name, data, left, right)
    # Changed since: the difference of the two writes goes on top of what is there now.
    up, down = torch.cat([now[0], -old[0]], 1), torch.cat([now[1], old[1]], 0)
    data, left, right = derivation.edited(view.tensor(name), up, down, turned)
    return derivation.change(view, name, data, left, right)


def _digest(data: Tensor, view: ModelView, name: str) -> str:
    entry = view.entry(name)
    raw = data.contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor_digest(entry.dtype, tuple(entry.shape), [raw.data])


def _absent() -> bytes:
    raise CheckFailed("the second moments that this edit was solved with are gone", hint="mlc revert REV takes the whole edit back")
