"""Robustness patches laid over a version and taken off again, and which of them lie there.

That is read from history alone: the nearest `patch` commit with the same content says all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Unpack

from ..ops.patch.patch import Patch, checked_strength
from ..registry.errors import BadParameter, Incompatible
from ..registry.ids import CommitId, short
from ..registry.lineage import ancestors, parents_in
from ..registry.records import Commit, Json
from . import lifecycle
from .outcome import How, Outcome
from .signatures import Named, describe, extract, find, forget, origins, require_free, signatures
from .targets import aim
from .traces import UNTRAINED

if TYPE_CHECKING:
    from ..registry.repository import Repository


@dataclass(frozen=True, slots=True)
class Laid:
    """One patch in force."""

    name: str
    signature: str
    strength: float


@dataclass(frozen=True, slots=True)
class Overlay:
    """What lies over a version: the clean version below, the patches in force, and those that training has since grown upon."""

    clean: CommitId
    patches: tuple[Laid, ...] = ()
    combine: str | None = None  # what several of them come to; None when nothing lies there
    grown: dict[str, tuple[str, CommitId]] = field(default_factory=dict)  # signature -> (name, the commit that applied it)


def check_form(bits: str, density: float | None, strength: float) -> None:
    """Raise BadParameter for a signature that cannot be made, before there is anything to make it of."""
    from ..ops.patch.extract import kind_of

    kind_of(bits, density, "all", strength)


# --- what lies over a version ----------------------------------------------------------------------------


def overlay(repo: Repository, commit_id: CommitId) -> Overlay:
    """What lies over a version, by walking back through the content it was made from.

    The first `patch` commit with the same snapshot is the one in force. One behind it with another snapshot was changed since: its
    patches are part of the weights now. A rollback leads to where it returned to; a revert takes what it names out of the walk.
    """
    start = repo.commit(commit_id)
    own: tuple[CommitId, tuple[Laid, ...], str | None] | None = None
    grown: dict[str, tuple[str, CommitId]] = {}
    reverted: set[CommitId] = set()
    at: CommitId | None = commit_id
    while at is not None:
        commit = repo.commit(at)
        if commit.op.name != Patch.name or at in reverted:
            at = _content_before(repo, commit, reverted)
            continue
        at_clean, laid = _recorded(commit)
        if own is None and commit.snapshot == start.snapshot:
            own = at_clean, laid, commit.op.params.get("combine", "sum") if laid else None
        else:
            for patch in laid:
                grown.setdefault(patch.signature, (patch.name, at))
        at = at_clean
    clean, laid, combine = own or (commit_id, (), None)
    return Overlay(clean, laid, combine, {digest: found for digest, found in grown.items() if digest not in {p.signature for p in laid}})


def _content_before(repo: Repository, commit: Commit, reverted: set[CommitId]) -> CommitId | None:
    """The commit whose content this one started from, or returned to."""
    params = commit.op.params
    if commit.op.name == "rollback":
        return CommitId(params["to"])
    if commit.op.name in ("revert", "retract"):
        if repo.commit(params["parent"]).snapshot == commit.snapshot:
            return CommitId(params["parent"])
        reverted.add(CommitId(params["rev"]))
    return commit.parents[0] if commit.parents else None


def _recorded(commit: Commit) -> tuple[CommitId, tuple[Laid, ...]]:
    params = commit.op.params
    laid = (Laid(*told) for told in zip(params["names"], params["signatures"], params["strengths"], strict=True))
    return CommitId(params["clean"] or commit.parents[0]), tuple(laid)


# --- changes ---------------------------------------------------------------------------------------------


def apply(
    repo: Repository,
    names: Sequence[str],
    *,
    strengths: Sequence[float] = (),
    combine: str | None = None,
    ref: str | None = None,
    **how: Unpack[How],
) -> Outcome:
    """Lay the named patches over the version of `ref` (HEAD), each at its strength (one for all, or the one it was made for).

    `combine` says what several come to, those that lie there included (`ops.patch.overlay.joint`); else as it is, or `norm`.
    Raises NotFound for an unknown name, ShapeMismatch for another architecture, BadParameter for one that lies there already,
    Incompatible for one that has become part of the weights.
    """
    if len(strengths) not in (0, 1, len(names)):
        raise BadParameter(
            f"{len(strengths)} strengths are given for {len(names)} {'patch' if len(names) == 1 else 'patches'}",
            hint="--strength X, or one for each: --strength X,Y",
        )
    found = [find(repo, name) for name in names]
    start, state = _state(repo, ref, how)
    for number, named in enumerate(found):
        _check_free(repo, named, state, found[:number], start)
    given = [checked_strength(s) for s in (strengths or [named.strength for named in found])]
    given = given * len(found) if len(given) == 1 else given
    fresh = [Laid(named.name, named.signature, strength) for named, strength in zip(found, given, strict=True)]
    return _changed(repo, start, replace(state, combine=combine or state.combine or "norm"), (*state.patches, *fresh), (), ref, how)


def remove(repo: Repository, names: Sequence[str], *, ref: str | None = None, **how: Unpack[How]) -> Outcome:
    """Take the named patches off: the result is the clean version with the others, to the byte.

    Raises NotFound for an unknown name, BadParameter for one that does not lie there, Incompatible for one that has become part of the
    weights.
    """
    start, state = _state(repo, ref, how)
    here = {patch.name: patch for patch in state.patches}
    for number, name in enumerate(names):
        if name in names[:number]:
            raise BadParameter(f"{name} is named twice", hint="mlc patch list")
        if name not in here:
            _refuse_removal(repo, name, state)
    gone = tuple(here[name].signature for name in names)
    return _changed(repo, start, state, tuple(p for p in state.patches if p.name not in names), gone, ref, how)


def _state(repo: Repository, ref: str | None, how: How) -> tuple[CommitId, Overlay]:
    start = aim(repo, ref, how.get("branch")).start
    if repo.snapshot(repo.commit(start).snapshot).kind == "adapter":
        said = f"{short(start)} is an adapter: a patch lies over whole weights"
        raise Incompatible(said, hint="patch the version that the adapter sits on")
    return start, overlay(repo, start)


def _changed(
    repo: Repository, start: CommitId, state: Overlay, laid: Sequence[Laid], gone: tuple[str, ...], ref: str | None, how: How
) -> Outcome:
    laid = sorted(laid, key=lambda patch: patch.signature)
    known = origins(repo)
    sources = tuple(sorted({known[p.signature] for p in laid if p.signature in known}))
    op = Patch(
        names=tuple(p.name for p in laid),
        signatures=tuple(p.signature for p in laid),
        strengths=tuple(p.strength for p in laid),
        removed=gone,
        clean=state.clean,
        onto=repo.commit(start).snapshot,
        combine=state.combine or "sum",
        sources=sources,
    )
    data = _data_behind(repo, sources, state.clean)
    return lifecycle.run(repo, op, ref=ref, told={"data": data} if data else None, **how)


def _data_behind(repo: Repository, sources: Sequence[CommitId], clean: CommitId) -> list[Json]:
    """What the robust versions learned from and the clean one did not: name and digest of every data set on the way."""
    parents = parents_in(repo)
    own = set(ancestors([clean], parents))
    read = [i for c in ancestors(sources, parents) if c not in own for i in repo.commit(c).inputs if i.role not in UNTRAINED]
    return [{"name": name, "digest": digest} for digest, name in sorted({i.digest: i.name for i in read if i.role != "patch"}.items())]


def _check_free(repo: Repository, named: Named, state: Overlay, earlier: Sequence[Named], start: CommitId) -> None:
    if any(other.signature == named.signature for other in earlier):
        raise BadParameter(f"{named.name} is the same signature as one named before it", hint="mlc patch list")
    for patch in state.patches:
        if patch.signature == named.signature or patch.name == named.name:
            again = f"for another strength: mlc patch remove {patch.name}, then mlc patch apply {named.name} --strength X"
            raise BadParameter(f"{patch.name} lies over {short(start)} already, at strength {patch.strength:g}", hint=again)
    if named.signature in state.grown:
        name, by = state.grown[named.signature]
        raise Incompatible(
            f"{name} was applied by {short(by)} and the weights were changed since: it is part of them", hint=_way(repo, by, name)
        )


def _refuse_removal(repo: Repository, name: str, state: Overlay) -> None:
    for known, by in state.grown.values():
        if known == name:
            said = f"{name} was applied by {short(by)} and the weights were changed since: what grew on it cannot be told apart"
            raise Incompatible(said, hint=_way(repo, by, name))
    find(repo, name)
    here = ", ".join(patch.name for patch in state.patches) or "no patch at all"
    raise BadParameter(f"{name} does not lie over this version; {here} {'do' if len(state.patches) > 1 else 'does'}", hint="mlc patch list")


def _way(repo: Repository, by: CommitId, name: str) -> str:
    clean = _recorded(repo.commit(by))[0]
    return f"change the clean version {short(clean)} in the same way (--branch NAME), then: mlc patch apply {name} --onto NAME"


__all__ = [
    "Laid", "Named", "Overlay", "apply", "check_form", "describe", "extract", "find", "forget", "overlay", "remove", "require_free",
    "signatures",
]  # fmt: skip
