"""Going back: rollback returns a branch to an accepted version's content, revert takes one change out and keeps the rest.

Both restore bytes that are stored; nothing is recomputed. A rollback proves that by digest, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from ..ops.base import Change, DropTensor, Plan, SetFile, SetTensor
from ..registry.errors import BadParameter, HashMismatch, Incompatible
from ..registry.formats import directory
from ..registry.formats.names import shown
from ..registry.ids import CommitId, Digest, short
from ..registry.records import Commit, Snapshot, TensorDelta
from .candidate import Candidate, enter, op_record, refused, settle
from .court import Court
from .measure import Gathered
from .outcome import How, Outcome, Request
from .standing import require_accepted
from .targets import Target, aim

if TYPE_CHECKING:
    from ..registry.repository import Repository
    from ..registry.transaction import Transaction

Digests = dict[str, Digest]
SHOWN = 4  # names listed in a complaint


def rollback(repo: Repository, rev: str, *, ref: str | None = None, **how: Unpack[How]) -> Outcome:
    """Give the branch of `ref` (HEAD) the content of `rev`, by a new commit. Ungated: that content was accepted before.

    Every tensor and file of it is read and verified first. Raises GateRefused when `rev` was refused and never accepted.
    """
    request = Request.of(repo, **how)
    target = aim(repo, ref, request.branch)
    wanted = repo.resolve(rev)
    require_accepted(repo, wanted, f"{target.branch} cannot return to it")
    source, here = repo.commit(wanted), repo.commit(target.start)
    if source.snapshot == here.snapshot and target.old is not None:
        said = f"{target.branch} holds exactly the content of {short(wanted)} already: nothing was recorded"
        return Outcome(here, target.start, target.branch, False, here.verdict, here.check, (), (said,))
    snapshot = repo.snapshot(source.snapshot)
    if request.dry_run:
        return Outcome(branch=target.branch, plan=_plan(repo, target, snapshot, f"return {target.branch} to {short(wanted)}"))
    tensors = prove(repo, snapshot, source, request)
    with repo.ingest() as tx:
        candidate = Candidate(target, op_record("rollback", {"to": wanted}), snapshot, (target.start,))
        candidate.check = {"snapshot": snapshot.id, "equal_to": wanted, "tensors_verified": tensors, "files_verified": len(snapshot.files)}
        candidate.deltas = pointers(repo.snapshot(here.snapshot), snapshot)
        candidate.means = "exact bytes"
        return enter(repo, tx, request, candidate, Gathered(metrics=source.metrics, evaluations=source.evaluations))


def prove(repo: Repository, snapshot: Snapshot, commit: Commit, request: Request) -> int:
    """Read everything a snapshot names and verify it; returns the number of tensors. Raises HashMismatch, MissingObject."""
    if snapshot.id != commit.snapshot:
        raise HashMismatch(f"the record of snapshot {short(commit.snapshot)} does not hold the bytes of its name", hint="mlc fsck")
    for file in snapshot.files:
        repo.objects.blob(file.digest)
    for done, entry in enumerate(snapshot.tensors, 1):
        repo.objects.tensor_bytes(entry.digest)
        request.report("verify", done, len(snapshot.tensors))
    return len(snapshot.tensors)


def pointers(before: Snapshot, after: Snapshot) -> list[TensorDelta]:
    """Delta records of a change that stores nothing: every changed tensor is one that is stored already."""
    old = {entry.name: entry.digest for entry in before.tensors}
    return [TensorDelta(e.name, None, e.digest, "ref", 0, 0) for e in after.tensors if old.get(e.name) != e.digest]


# --- revert ----------------------------------------------------------------------------------------------


def revert(repo: Repository, rev: str, *, parent: int | None = None, ref: str | None = None, **how: Unpack[How]) -> Outcome:
    """Take the change of `rev` back on the branch of `ref` (HEAD). Judged like every change.

    When `rev` is the tip, its parent's exact bytes return. Otherwise the tensors and files that `rev` changed are
    restored where nothing has changed them since; where something has, Incompatible names them.
    """
    request = Request.of(repo, **how)
    court = Court.open(repo, request)
    target = aim(repo, ref, request.branch)
    undone = repo.resolve(rev)
    before = _parent_of(repo, undone, parent)
    must_be_behind(repo, undone, target)
    sides = _Sides(*(repo.snapshot(repo.commit(c).snapshot) for c in (before, undone, target.start)))
    if request.dry_run:
        return Outcome(branch=target.branch, plan=_plan(repo, target, sides.before, f"take {short(undone)} back on {target.branch}"))
    with repo.ingest() as tx:
        snapshot, deltas, means = _restored(repo, tx, sides, undone)
        if snapshot.id == sides.now.id:
            return _nothing(repo, target, undone)
        tx.seal()
        params = {"rev": undone, "parent": before}
        candidate = Candidate(target, op_record("revert", params), snapshot, (target.start,), deltas, check={"means": means}, means=means)
        outcome = settle(court, tx, candidate)
    if not outcome.ref_moved:
        raise refused(outcome)
    return outcome


@dataclass(frozen=True, slots=True)
class _Sides:
    """The three snapshots of a revert: before the change, after it, and now."""

    before: Snapshot
    after: Snapshot
    now: Snapshot

    def tensors(self) -> tuple[Digests, Digests, Digests]:
        """name -> digest on each side."""
        before, after, now = ({e.name: e.digest for e in side.tensors} for side in (self.before, self.after, self.now))
        return before, after, now

    def files(self) -> tuple[Digests, Digests, Digests]:
        """path -> digest of the opaque files on each side."""
        before, after, now = ({f.path: f.digest for f in side.files if f.kind == "blob"} for side in (self.before, self.after, self.now))
        return before, after, now


def _restored(repo: Repository, tx: Transaction, sides: _Sides, undone: CommitId) -> tuple[Snapshot, list[TensorDelta], str]:
    if sides.now.id == sides.after.id:
        return sides.before, pointers(sides.now, sides.before), "exact bytes of the parent"
    kinds = {(side.kind, side.base) for side in (sides.before, sides.after, sides.now)}
    if len(kinds) > 1:
        said = f"{short(undone)} turned a model into an adapter, or back: only the tip of a branch can be taken back so"
        raise Incompatible(said, hint="mlc rollback REV")
    touched = [key for before, after, now in (sides.tensors(), sides.files()) for key in _clashes(before, after, now)]
    if touched:
        listed = ", ".join(map(shown, touched[:SHOWN])) + (f" and {len(touched) - SHOWN} more" if len(touched) > SHOWN else "")
        raise Incompatible(
            f"{short(undone)} cannot be taken back alone: later commits changed {listed} again",
            hint=f"take the later ones back first, or return to the version before: mlc rollback {short(undone)}~1",
            touched=touched,
        )
    snapshot, deltas = directory.rebuild(tx, sides.now, _back(repo, sides))
    return snapshot, deltas, "exact bytes of the tensors that it changed"


def _clashes(before: Digests, after: Digests, now: Digests) -> list[str]:
    """Keys that the change touched and that are no longer as it left them (nor already as they were)."""
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [key for key in changed if now.get(key) not in (after.get(key), before.get(key))]


def _back(repo: Repository, sides: _Sides) -> Iterator[Change]:
    """The changes that lead from now to a state without the change, one tensor at a time."""
    from ..registry.view import ModelView

    view = ModelView(repo.objects, sides.before)
    before, after, now = sides.tensors()
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name) and now.get(name) != before.get(name):
            yield SetTensor(name, view.tensor(name)) if name in before else DropTensor(name)
    before, after, now = sides.files()
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path) and now.get(path) != before.get(path):
            yield SetFile(path, view.file(path))


def _parent_of(repo: Repository, commit_id: CommitId, number: int | None) -> CommitId:
    parents = repo.commit(commit_id).parents
    if not parents:
        raise BadParameter(f"{short(commit_id)} is a root: there is nothing before it", hint="mlc log")
    if len(parents) > 1 and number is None:
        raise BadParameter(f"{short(commit_id)} has {len(parents)} parents", hint="say which side to return to: --parent 1")
    if number is not None and not 1 <= number <= len(parents):
        raise BadParameter(f"{short(commit_id)} has no parent {number}", hint=f"--parent is from 1 to {len(parents)}")
    return parents[(number or 1) - 1]


def must_be_behind(repo: Repository, commit_id: CommitId, target: Target) -> None:
    """Raise BadParameter unless the commit is the start of `target`, or behind it."""
    from ..registry.lineage import is_ancestor, parents_in

    if commit_id != target.start and not is_ancestor(commit_id, target.start, parents_in(repo)):
        raise BadParameter(f"{short(commit_id)} is not part of the history of {target.branch}", hint=f"mlc log {target.branch}")


def _nothing(repo: Repository, target: Target, undone: CommitId) -> Outcome:
    here = repo.commit(target.start)
    said = f"nothing of {short(undone)} is left on {target.branch}: nothing was recorded"
    return Outcome(here, target.start, target.branch, False, here.verdict, here.check, (), (said,))


def _plan(repo: Repository, target: Target, goal: Snapshot, summary: str) -> Plan:
    here = {e.name: e.digest for e in repo.snapshot(repo.commit(target.start).snapshot).tensors}
    touched = tuple(e.name for e in goal.tensors if here.get(e.name) != e.digest)
    return Plan(f"{summary}: {len(touched)} tensors change, all of them stored already.", touched)
