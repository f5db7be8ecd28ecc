"""Adapters in history: a whole model made from an adapter's commit, and merges of adapters that stay adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..ops.base import Change, CopyTensor, DropTensor, Operation, SetTensor
from ..ops.merge.adapters import METHODS, MergeAdapters
from ..ops.merge.merge import Merge
from ..ops.merge.reversible import Rebuild, Rmm
from ..ops.merge.settings import read_words
from ..ops.merge.stored import Informed
from ..registry.errors import BadParameter, Incompatible
from ..registry.ids import CommitId, short

if TYPE_CHECKING:
    from ..registry.records import Snapshot
    from ..registry.repository import Repository
    from ..registry.view import ModelView

RMM = "rmm"
MERGES: dict[str, type[MergeAdapters | Rmm | Informed]] = {one.name: one for one in (MergeAdapters, Rmm, Informed)}  # beside `merge`
SHARED = ("method", "settings", "base")
OWN = {RMM: SHARED, **dict.fromkeys(METHODS, (*SHARED, "weights", "lam"))}  # options of `merge` that a merge of adapters has
WORDS: dict[str, dict[str, Any]] = {  # `--set` of each
    RMM: {"p": int, "error": float},
    **{name: {"rank": int, "into": str} for name in METHODS},
}


def merged_first(view: ModelView, changes: Iterable[Change]) -> tuple[Snapshot, Iterable[Change]]:
    """The snapshot that changes are applied to, and the changes.

    For a plain model both are its own. An adapter's commit is seen merged into its base: the base is what is rebuilt,
    with the merged tensors written first, so that what the operation leaves alone is as the operation saw it.
    """
    from ..registry.view import EffectiveView

    merged: set[str] = set()
    bottom = view
    while isinstance(bottom, EffectiveView):
        merged |= set(bottom.changed_names())
        bottom = bottom.base
    return bottom.snapshot, (_spelled_out(view, merged, changes) if merged else changes)


def _spelled_out(view: ModelView, merged: set[str], changes: Iterable[Change]) -> Iterator[Change]:
    untouched = set(merged)
    for change in changes:
        if isinstance(change, CopyTensor) and change.source in merged:
            change = SetTensor(change.name, view.tensor(change.source))
        if isinstance(change, SetTensor | CopyTensor | DropTensor):
            untouched.discard(change.name)
        yield change
    for name in sorted(untouched):
        yield SetTensor(name, view.tensor(name))


# --- merges ------------------------------------------------------------------------------------------------


def is_adapter(repo: Repository, commit_id: CommitId) -> bool:
    """Whether a version is an adapter on a base that is known."""
    snapshot = repo.snapshot(repo.commit(commit_id).snapshot)
    return snapshot.kind == "adapter" and snapshot.base is not None


def adapter_merge(repo: Repository, revs: Sequence[str], ids: tuple[CommitId, ...], values: Mapping[str, Any]) -> Operation:
    """The operation for versions that are all adapters. `values`: options of `merge`, versions among them by id.

    Raises Incompatible for adapters on different bases, and for methods that have no meaning for a stack of factors; BadParameter.
    """
    bases = [repo.snapshot(repo.commit(commit_id).snapshot).base for commit_id in ids]
    for rev, base in zip(revs, bases, strict=True):
        if base != bases[0]:
            raise Incompatible(
                f"{revs[0]} and {rev} are adapters on different bases", hint=f"name a whole model first: mlc merge BASE {' '.join(revs)}"
            )
    method = values["method"]
    if method not in OWN:
        raise Incompatible(
            f"{method} does not merge adapters as adapters: that is done by {', '.join(OWN)}",
            hint=f"as whole models: mlc merge BASE {' '.join(revs)} --base BASE --method {method}",
        )
    for field in dataclasses.fields(Merge):
        if field.name not in OWN[method] and values.get(field.name, field.default) != field.default:
            raise BadParameter(f"{method} of adapters has no {field.name}", hint=f"--set {', '.join(WORDS[method])}")
    if (base := values.get("base")) is not None and repo.commit(repo.resolve(base)).snapshot != bases[0]:
        raise BadParameter(f"{short(repo.resolve(base))} is not what these adapters sit on", hint="leave --base out")
    extra = read_words(f"{method} of adapters", values.get("settings") or (), WORDS[method])
    if method == RMM:
        return Rmm(ids, **extra)
    given = {name: values[name] for name in ("weights", "lam") if values.get(name) is not None}
    return MergeAdapters(ids, method, **given, **extra)


def rebuilding(merged: CommitId, made_by: str | None, model: CommitId) -> Rebuild:
    """The operation that has one ingredient of the merge `merged` back. Raises Incompatible for a merge that keeps no basis."""
    if made_by != Rmm.name:
        raise Incompatible(
            f"{short(merged)} keeps no basis from which one ingredient could be rebuilt",
            hint="only --method rmm keeps one; --remove takes an ingredient out",
        )
    return Rebuild(merged, model)
