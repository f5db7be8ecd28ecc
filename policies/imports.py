"""Content from outside: a root import (nothing to compare with, so no gate), an adapter on its base, a changed directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ..ops.base import Plan
from ..registry.errors import RefMoved
from ..registry.formats import directory
from ..registry.ids import CommitId, short
from ..registry.records import Json, OperationRecord, Snapshot, TensorDelta
from .candidate import Candidate, enter, op_record, refused, settle
from .court import Court
from .outcome import How, Outcome, Request
from .targets import Target, aim, fresh_branch

if TYPE_CHECKING:
    from ..registry.formats.limits import Limits
    from ..registry.formats.source import Source
    from ..registry.repository import Repository
    from ..registry.transaction import Transaction


def import_model(
    repo: Repository,
    source: str | Path,
    *,
    adapter_of: str | None = None,
    follow_cache: Path | None = None,
    unsafe_pickle: bool = False,
    **how: Unpack[How],
) -> Outcome:
    """Bring a directory of safetensors, or one file, under version control as the root of a branch (HEAD's, or `branch`).

    Ungated, but measured on the suites in force, so that the next version has something to be compared with. A model
    that cannot be run is imported with a warning. `adapter_of` makes it an adapter on that version, its child, and
    that is gated. The same content again is not recorded twice. `unsafe_pickle` converts pickles in a locked child
    process. Raises RefMoved when the branch holds something else.
    """
    court = Court.open(repo, Request.of(repo, **how))
    limits = court.request.config.limits
    scanning = directory.scan_converted if unsafe_pickle else _plainly
    with scanning(Path(source), follow_cache=follow_cache, limits=limits) as found:
        if adapter_of is None:
            return _root(court, found, _name(source))
        return _child(court, found, aim(repo, adapter_of, court.request.branch), op_record("import", _name(source)), onto=True)


def commit_directory(
    repo: Repository, source: str | Path, *, ref: str | None = None, follow_cache: Path | None = None, **how: Unpack[How]
) -> Outcome:
    """Record a directory that any other tool changed, as a child of `ref`; judged like every change."""
    court = Court.open(repo, Request.of(repo, **how))
    target = aim(repo, ref, court.request.branch)
    found = directory.scan(Path(source), follow_cache=follow_cache, limits=court.request.config.limits)
    return _child(court, found, target, op_record("commit", _name(source)))


@contextmanager
def _plainly(source: Path, *, follow_cache: Path | None, limits: Limits) -> Iterator[Source]:
    yield directory.scan(source, follow_cache=follow_cache, limits=limits)


def _root(court: Court, found: Source, params: dict[str, Json]) -> Outcome:
    repo, request = court.repo, court.request
    branch, tip = fresh_branch(repo, request.branch)
    if request.dry_run:
        return _plan(found, f"import {params['source']} as the root of {branch}", branch)
    with repo.ingest(estimate=found.bytes) as tx:
        snapshot, deltas, warnings = _stored(tx, found, request)
        if tip is not None:
            return _again(repo, branch, tip, snapshot)
        tx.seal()
        measured = court.baseline(snapshot.id)
        candidate = Candidate(Target(CommitId(""), branch, None), op_record("import", params), snapshot, (), deltas)
        candidate.warnings = [*warnings, *measured.warnings]
        candidate.inputs = list(court.records)
        candidate.check = _converted(found)
        return enter(repo, tx, request, candidate, measured)


def _child(court: Court, found: Source, target: Target, op: OperationRecord, *, onto: bool = False) -> Outcome:
    """A child of the target's start; `onto`: an adapter that sits on it."""
    repo, request = court.repo, court.request
    if request.dry_run:
        summary = f"{op.name} {op.params['source']} as a child of {short(target.start)} on {target.branch}"
        return _plan(found, summary, target.branch)
    parent = repo.snapshot(repo.commit(target.start).snapshot)
    with repo.ingest(estimate=found.bytes) as tx:
        snapshot, deltas, warnings = _stored(tx, found, request, parent, base=parent if onto else _base(repo, found, parent))
        if snapshot.id == parent.id:
            return _same(repo, target)
        tx.seal()
        candidate = Candidate(target, op, snapshot, (target.start,), deltas, warnings=warnings, check=_converted(found))
        outcome = settle(court, tx, candidate)
    if not outcome.ref_moved:
        raise refused(outcome)
    return outcome


def _base(repo: Repository, found: Source, parent: Snapshot) -> Snapshot | None:
    """What a changed adapter directory sits on: the base of the adapter that it replaces."""
    if found.adapter_config is None or parent.kind != "adapter" or parent.base is None:
        return None
    return repo.snapshot(parent.base)


def _stored(
    tx: Transaction, found: Source, request: Request, parent: Snapshot | None = None, *, base: Snapshot | None = None
) -> tuple[Snapshot, list[TensorDelta], list[str]]:
    request.report("import", 0, found.bytes)
    stored = directory.ingest(tx, found, bases=parent, adapter_of=base)
    request.report("import", found.bytes, found.bytes)
    return stored


def _converted(found: Source) -> dict[str, Json]:
    """Which pickles stood for these weights: they are not kept, so the commit says what they were."""
    said = [{"path": one.path, "sha256": one.sha256, "result": one.result} for one in found.converted]
    return {"converted_pickles": said} if said else {}


def _again(repo: Repository, branch: str, tip: CommitId, snapshot: Snapshot) -> Outcome:
    """An import onto a branch that exists: fine when it already holds exactly this, else somebody else's work is there."""
    commit = repo.commit(tip)
    if commit.snapshot == snapshot.id:
        said = f"{branch} holds exactly this content already: nothing was recorded"
        return Outcome(commit, tip, branch, False, commit.verdict, commit.check, (), (said,))
    raise RefMoved(
        f"branch {branch} exists and holds other content ({short(tip)})",
        hint="import it beside: --branch NAME; or record it as a change: mlc commit DIR",
        branch=branch,
        commit=tip,
    )


def _same(repo: Repository, target: Target) -> Outcome:
    commit = repo.commit(target.start)
    said = f"nothing differs from {short(target.start)}: nothing was recorded"
    return Outcome(commit, target.start, target.branch, False, commit.verdict, commit.check, (), (said,))


def _plan(found: Source, summary: str, branch: str) -> Outcome:
    names = tuple(entry.name for header in found.weights.values() for entry in header.entries)
    details: dict[str, Json] = {"files": len(found.files), "tensors": found.tensors}
    return Outcome(branch=branch, plan=Plan(summary, names, found.bytes, details=details), warnings=tuple(found.warnings))


def _name(source: str | Path) -> dict[str, Json]:
    return {"source": Path(source).resolve().name}  # the name only: a path belongs to one machine
