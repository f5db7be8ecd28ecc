"""`retract`: the new blocks of an update go, and what it grew from stands again, to the byte.

An update that adds blocks and trains only them leaves every old tensor as it was; so the version without them is the parent itself. That
is proven by digest, tensor by tensor, through the origin table, before anything moves. Where later commits changed old tensors, those
changes stay; where they changed the new blocks, or how many there are, the reason is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from ..ops.arch import blocks_of, family_of
from ..ops.base import Change, Plan, SetFile, SetTensor
from ..ops.update.layout import expanded_names, regrown
from ..registry.errors import BadParameter, HashMismatch, Incompatible
from ..registry.formats import directory
from ..registry.formats.names import shown
from ..registry.ids import CommitId, short
from ..registry.records import Json, OperationRecord, Snapshot
from .candidate import Candidate, enter, op_record, refused, settle
from .court import Court
from .measure import Gathered
from .outcome import How, Outcome, Request
from .takeback import SHOWN, Digests, must_be_behind, pointers, prove
from .targets import Target, aim

if TYPE_CHECKING:
    from ..registry.repository import Repository

NAME = "retract"
CONFIG = "config.json"


def retract(repo: Repository, rev: str, **how: Unpack[How]) -> Outcome:
    """Take the new blocks of the update `rev` out, by a new commit on its branch; on HEAD's where `rev` is an id or expression behind it.

    A tag needs `branch`, which starts at `rev`. The parent's content was accepted before, so it is not judged again; with later changes
    kept the result is new and is. Raises BadParameter when `rev` added no blocks, Incompatible where it also trained old ones or later
    commits are in the way, HashMismatch when the proof fails.
    """
    request = Request.of(repo, **how)
    grown = repo.resolve(rev)
    blocks = _new_blocks(repo, grown)
    target = _target(repo, rev, grown, request)
    sides = _sides(repo, grown, target, blocks)
    if sides.now.id == sides.before.id:
        here = repo.commit(target.start)
        said = f"nothing of {short(grown)} is left on {target.branch}: nothing was recorded"
        return Outcome(here, target.start, target.branch, False, here.verdict, here.check, (), (said,))
    _require_free(sides)
    if request.dry_run:
        return Outcome(branch=target.branch, plan=_plan(sides, blocks))
    proof = _proof(repo, sides, request)
    record = op_record(NAME, {"rev": grown, "parent": sides.parent, "blocks": list(blocks)})
    return _carried(repo, request, sides, record, proof) if sides.later() else _returned(repo, request, sides, record, proof)


def _new_blocks(repo: Repository, grown: CommitId) -> tuple[int, ...]:
    """Numbers of the blocks that a commit added. Raises BadParameter when it added none."""
    commit = repo.commit(grown)
    added = commit.check.get("insertion")
    places = added.get("positions") if isinstance(added, dict) else None
    if commit.op.name != "update" or not isinstance(places, list) or not places or not commit.parents:
        raise BadParameter(f"{short(grown)} added no blocks: it was made by {commit.op.name}", hint="mlc log --op update lists updates")
    return tuple(int(place) for place in places if isinstance(place, int))


def _target(repo: Repository, rev: str, grown: CommitId, request: Request) -> Target:
    """Where the result goes: the branch that `rev` is, else HEAD's when it is behind that; a name that stands still needs `--branch`."""
    fixed = rev in repo.tags() or rev.startswith("@")
    if request.branch is not None or repo.resolve_branch(rev) is not None or fixed:
        return aim(repo, rev, request.branch)
    target = aim(repo, None, None)
    must_be_behind(repo, grown, target)
    return target


@dataclass(frozen=True, slots=True)
class _Sides:
    """The versions before the blocks came, with them, and now; and which tensor of the grown model is which of the parent's."""

    parent: CommitId
    grown: CommitId
    target: Target
    before: Snapshot
    after: Snapshot
    now: Snapshot
    old: dict[str, str]  # name in the grown model -> name in the parent
    new: frozenset[str]  # names that lie in new blocks
    tuned: tuple[int, ...]  # old blocks that were trained as well

    def later(self) -> tuple[str, ...]:
        """Old tensors (by their names in the grown model) that commits since then changed, and files."""
        after, now = _tensors(self.after), _tensors(self.now)
        was, files = _files(self.after), _files(self.now)
        paths = sorted(path for path in was.keys() | files.keys() if was.get(path) != files.get(path))
        return (*(name for name in sorted(self.old) if now.get(name) != after[name]), *paths)


def _sides(repo: Repository, grown: CommitId, target: Target, blocks: tuple[int, ...]) -> _Sides:
    commit = repo.commit(grown)
    parent = commit.parents[0]
    before, after, now = (repo.snapshot(repo.commit(c).snapshot) for c in (parent, grown, target.start))
    names = [entry.name for entry in before.tensors]
    family = family_of(repo.view(parent).config)
    if family is None:
        raise Incompatible(f"the blocks of {short(parent)} cannot be told apart: its config.json names no known family")
    origin = expanded_names(family, names, regrown(blocks_of(family, names), blocks))
    table = commit.check.get("blocks")
    rows = [row for row in table if isinstance(row, dict)] if isinstance(table, list) else []
    return _Sides(
        parent=parent,
        grown=grown,
        target=target,
        before=before,
        after=after,
        now=now,
        old={name: source for name, (source, new) in origin.items() if not new},
        new=frozenset(name for name, (_, new) in origin.items() if new),
        tuned=tuple(int(str(row["from"])) for row in rows if row.get("plan") == "tuned"),
    )


def _require_free(sides: _Sides) -> None:
    """Raise Incompatible when the new blocks cannot be taken out alone, with the reason."""
    own = short(sides.grown)
    if sides.tuned:
        listed = ", ".join(map(str, sides.tuned))
        said = f"{own} trained old blocks as well ({listed}): without the new ones it is not what it was before"
        raise Incompatible(said, hint=f"mlc revert {own} takes the whole change back")
    beside = f"mlc retract {own} --branch NAME takes them out beside the later commits"
    if sides.now.kind != sides.after.kind:
        raise Incompatible(f"{sides.target.branch} is an adapter now: blocks are taken out of whole models", hint=beside)
    after, now = _tensors(sides.after), _tensors(sides.now)
    touched = [CONFIG] if _files(sides.now).get(CONFIG) != _files(sides.after).get(CONFIG) else []
    touched += sorted(name for name in sides.new | (after.keys() ^ now.keys()) if now.get(name) != after.get(name))
    if touched:
        listed = ", ".join(map(shown, touched[:SHOWN])) + (f" and {len(touched) - SHOWN} more" if len(touched) > SHOWN else "")
        raise Incompatible(
            f"the new blocks of {own} cannot be taken out alone: later commits changed {listed}", hint=beside, touched=touched
        )


def _proof(repo: Repository, sides: _Sides, request: Request) -> dict[str, Json]:
    """Every old tensor of the grown model is the parent's to the bit, and the parent is all there. Raises HashMismatch."""
    before, after = _tensors(sides.before), _tensors(sides.after)
    for name, source in sides.old.items():
        if after.get(name) != before[source]:
            raise HashMismatch(f"{shown(name)} of {short(sides.grown)} is not {shown(source)} of {short(sides.parent)}", hint="mlc fsck")
    verified = prove(repo, sides.before, repo.commit(sides.parent), request)
    return {"old_tensors_equal": len(sides.old), "new_tensors_removed": len(sides.new), "tensors_verified": verified}


def _returned(repo: Repository, request: Request, sides: _Sides, record: OperationRecord, proof: dict[str, Json]) -> Outcome:
    """Nothing came after: the parent's own snapshot, with the numbers that were measured on it."""
    source = repo.commit(sides.parent)
    with repo.ingest() as tx:
        candidate = Candidate(sides.target, record, sides.before, (sides.target.start,), pointers(sides.now, sides.before))
        candidate.check = {"snapshot": sides.before.id, "equal_to": sides.parent, "proved": True, **proof}
        candidate.means = "exact bytes"
        return enter(repo, tx, request, candidate, Gathered(metrics=source.metrics, evaluations=source.evaluations))


def _carried(repo: Repository, request: Request, sides: _Sides, record: OperationRecord, proof: dict[str, Json]) -> Outcome:
    """The parent with what later commits changed of it: new content, judged."""
    court = Court.open(repo, request)
    with repo.ingest() as tx:
        snapshot, deltas = directory.rebuild(tx, sides.before, _changes(repo, sides))
        tx.seal()
        stored = {delta.target: delta for delta in deltas}
        moved = [stored.get(delta.target, delta) for delta in pointers(sides.now, snapshot)]
        candidate = Candidate(sides.target, record, snapshot, (sides.target.start,), moved)
        candidate.check = {"snapshot": snapshot.id, "equal_to": None, "proved": False, **proof, "carried": len(sides.later())}
        candidate.warnings = [f"{len(sides.later())} tensors and files hold changes that were made since, and keep them"]
        outcome = settle(court, tx, candidate)
    if not outcome.ref_moved:
        raise refused(outcome)
    return outcome


def _changes(repo: Repository, sides: _Sides) -> Iterator[Change]:
    """From the parent to the parent with the later changes, one tensor at a time."""
    from ..registry.view import ModelView

    view = ModelView(repo.objects, sides.now)
    for key in sides.later():
        yield SetTensor(sides.old[key], view.tensor(key)) if key in sides.old else SetFile(key, view.file(key))


def _plan(sides: _Sides, blocks: tuple[int, ...]) -> Plan:
    """What would change: the tensors that stand under another name, or go."""
    after, before = _tensors(sides.now), _tensors(sides.before)
    touched = tuple(sorted(name for name in after.keys() | before.keys() if after.get(name) != before.get(name)))
    what = f"{len(blocks)} new block{'s' if len(blocks) > 1 else ''}"
    later = f"; {len(sides.later())} later changes stay" if sides.later() else ", to the byte"
    said = f"take {what} of {short(sides.grown)} out of {sides.target.branch}{later}"
    return Plan(said, touched, details={"blocks_removed": list(blocks)})


def _tensors(snapshot: Snapshot) -> Digests:
    return {entry.name: entry.digest for entry in snapshot.tensors}


def _files(snapshot: Snapshot) -> Digests:
    return {file.path: file.digest for file in snapshot.files if file.kind == "blob"}
