"""The conductor: plan -> apply -> seal -> check -> evaluate -> gate -> commit -> move the ref.

`run` takes any operation through these steps; the rooms beside this one do the same for content that comes from outside
(imports.py) or from history (takeback.py), and decide about what was refused (promote.py). All of them are to be called
from here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Unpack

from ..ops.base import Change, Check, Diverged, Operation, Plan, SetFile, SetTensor
from ..registry.errors import BadParameter, CheckFailed, Incompatible, Interrupted, NotFound, RefMoved, StalePlan, UsageError
from ..registry.formats import directory
from ..registry.ids import CommitId, short
from ..registry.records import Json, OperationRecord, Snapshot, TensorDelta, canonical
from .adapters import merged_first
from .asking import evaluate_rev, gate_rev
from .candidate import Candidate, refused, settle
from .court import Court
from .engines import chosen, engaged
from .imports import commit_directory, import_model
from .naming import remove_name, set_name
from .outcome import How, Outcome, Request
from .past import Past
from .promote import accept
from .rehearsal import rehearsed
from .runs import ActiveRun, RunInfo, Runs
from .standing import require_accepted
from .takeback import revert, rollback
from .targets import Target, aim

if TYPE_CHECKING:
    from ..registry.repository import Repository
    from ..registry.transaction import Transaction
    from ..registry.view import ModelView

LATEST = "latest"  # instead of a run's id
SEED = "run"  # the one seed that an operation derives everything random from


def run(
    repo: Repository,
    op: Operation | None,
    *,
    ref: str | None = None,
    resume: str | None = None,
    told: Mapping[str, Json] | None = None,
    **how: Unpack[How],
) -> Outcome:
    """Carry out `op` on `ref` (HEAD) and make history of the result.

    An accepted result moves the branch. A refused one is kept without a ref and GateRefused is raised, with the outcome
    in its details. CheckFailed when the operation is not satisfied with itself: nothing is committed. Interrupted when
    the user stops it. `resume` (a run's id, or `latest`) goes on from the last saved state with the options that the run
    was started with, and reaches the same snapshot; `op` may then be None, and StalePlan is raised when it is another.
    `told` is kept in the commit's check: how the operation came about.
    """
    request = Request.of(repo, **how)
    court = Court.open(repo, request)
    if resume is not None:
        return _resumed(court, op, Runs(repo).find(None if resume == LATEST else resume, op.name if op else None))
    if op is None:
        raise BadParameter("no operation was named", hint="mlc runs lists what can be resumed")
    target = aim(repo, ref, request.branch)
    op = op.foresee(Past(repo, target.start))
    chosen(request.engine, op)
    plan = op.plan(repo.view(target.start))
    if request.dry_run:
        return rehearsed(repo, op, plan, target, request)
    with Runs(repo).begin(**_asked(op, target, request)) as active:
        active.facts.update(told or {})
        return _carried_out(court, op, target, plan, active)


def replay(repo: Repository, rev: str, **how: Unpack[How]) -> tuple[Outcome, bool]:
    """Run the operation of a commit again on its parent and compare snapshots; records nothing.

    Returns the commit as an outcome, and whether the same snapshot was reached.
    """
    from ..ops.catalog import load

    request = Request.of(repo, **how)
    commit_id = repo.resolve(rev)
    commit = repo.commit(commit_id)
    if not commit.parents:
        raise BadParameter(f"{short(commit_id)} is a root: it was imported, not made", hint="mlc log")
    op = load(commit.op.name).from_params(commit.op.params)
    here = Target(commit.parents[0], repo.head(), None)
    request = dataclasses.replace(request, seed=commit.seeds.get(SEED, 0))
    with Runs(repo).begin(**_asked(op, here, request)) as active:
        active.listener = request.progress
        try:
            with repo.ingest() as tx:
                snapshot, _ = applied(repo, tx, op, repo.view(commit.parents[0]), None, active)
        finally:
            active.finish()
    return Outcome(commit, commit_id, check=commit.check, warnings=tuple(active.notes)), snapshot.id == commit.snapshot


def undo(repo: Repository, author: str) -> list[Any]:
    """Take the last move of refs back. See Repository.undo."""
    return repo.undo(author)


def redo(repo: Repository, author: str) -> list[Any]:
    """Make the move again that was taken back last. See Repository.redo."""
    return repo.redo(author)


# --- the steps -------------------------------------------------------------------------------------------


def _verb(op: Operation) -> str:
    """What is typed for an operation: the first part of its name, but for sub-verbs that train."""
    return "patch train" if op.name == "patch.train" else op.name.partition(".")[0]


def _resumed(court: Court, op: Operation | None, info: RunInfo) -> Outcome:
    from ..ops.catalog import load

    repo = court.repo
    if op is None:
        op = load(info.op).from_params(info.params)
    elif _only_retuned(op, info):
        info = Runs(repo).amended(info, _fields(op))
    elif info.params != _fields(op):
        verb = _verb(op)
        raise StalePlan(f"run {info.id} was started with other options", hint=f"mlc {verb} --resume {info.id}, without other options")
    chosen(court.request.engine or info.engine, op)
    target = Target(info.start, info.branch, info.old)
    if (branch := court.request.branch) is not None:
        target = aim(repo, info.start, branch)
    court = court.asked_by(author=info.author, message=info.message, seed=info.seed, branch=target.branch)
    with Runs(repo).begin(info) as active:
        return _carried_out(court, op, target, op.plan(repo.view(info.start)), active)


def _carried_out(court: Court, op: Operation, target: Target, plan: Plan, active: ActiveRun) -> Outcome:
    active.listener = court.request.progress
    again = f"mlc {_verb(op)} --resume {active.id}"
    try:
        outcome = _attempt(court, op, target, plan, active)
    except KeyboardInterrupt:
        step = Runs(court.repo).info(active.id).step
        kept = f"the state after step {step} is kept" if step else "no state was saved yet"
        raise Interrupted(f"stopped; {kept}", hint=again, run=active.id) from None
    except RefMoved as fault:
        own = " --branch NAME keeps the result on a branch of its own" if "ref" in fault.details else " tries the last steps again"
        raise RefMoved(fault.message, hint=again + own, **fault.details) from fault
    except (CheckFailed, UsageError, NotFound, Incompatible) as fault:
        if isinstance(fault, Diverged) and op.retunable and Runs(court.repo).info(active.id).step:
            raise  # with more of what may be changed it can go on from the state before
        active.finish()  # the same attempt again would end the same
        raise
    active.finish(committed=True)
    active.store.release(active.artifacts)
    if not outcome.ref_moved:
        raise refused(outcome)
    return outcome


def _attempt(court: Court, op: Operation, target: Target, plan: Plan, active: ActiveRun) -> Outcome:
    repo = court.repo
    before = repo.view(target.start)
    choice = chosen(court.request.engine or active.info.engine, op)
    active.engine = engaged(choice, repo, op, _fields(op), target, active, court.request.config.engine)
    with repo.ingest(active.info.txid, estimate=plan.bytes_touched) as tx:
        if tx.recorded is not None and tx.recorded.body.get("commit"):
            return _told_again(repo, CommitId(tx.recorded.body["commit"]), target, active)
        snapshot, deltas = applied(repo, tx, op, before, plan, active)
        after = repo.view(snapshot.id)
        check = op.check(before, after, active)
        values = {**active.facts, **check.values}
        if not check.passed:
            raise _failed(check, values)
        active.store.carry(tx, active.artifacts)
        candidate = Candidate(
            target=target,
            op=OperationRecord(op.name, op.version, op.params()),
            snapshot=snapshot,
            parents=_parents(repo, op, target),
            deltas=deltas,
            check=values,
            expects={"may_forget": op.expects().may_forget, "lossless": op.expects().lossless},
            seeds={SEED: active.seed},
            inputs=list(active.inputs),
            artifacts=list(active.artifacts),
            warnings=list(active.notes),
            forward=op.needs_forward,
            engine=choice.facts(),
        )
        outcome = settle(court, tx, candidate)
    return outcome


def applied(
    repo: Repository, tx: Transaction, op: Operation, before: ModelView, plan: Plan | None, active: ActiveRun
) -> tuple[Snapshot, list[TensorDelta]]:
    """Let the operation speak and store what it says; sealed, so that the result can be read."""
    changes = _within(op, plan, op.apply(before, active)) if plan is not None else op.apply(before, active)
    if op.output_kind() == "adapter":
        deltas: list[TensorDelta] = []
        told = list(changes)
        tensors = {change.name: change.data for change in told if isinstance(change, SetTensor)}
        files = {change.path: change.data for change in told if isinstance(change, SetFile) and change.data is not None}
        snapshot = directory.build_adapter(tx, op.sits_on(before).snapshot_id, tensors, files, deltas=deltas)
    else:
        base, changes = merged_first(before, changes)
        snapshot, deltas = directory.rebuild(tx, base, changes)
    tx.seal()
    return snapshot, deltas


def _parents(repo: Repository, op: Operation, target: Target) -> tuple[CommitId, ...]:
    """The version that was changed, and what the operation joined to it: a refused one is no ingredient (GateRefused)."""
    joined = [repo.resolve(rev) for rev in op.joins()]
    for commit_id in joined:
        require_accepted(repo, commit_id, "it cannot be merged")
    return tuple(dict.fromkeys((target.start, *joined)))


def _asked(op: Operation, target: Target, request: Request) -> dict[str, Json]:
    where = {"start": target.start, "branch": target.branch, "old": target.old}
    who = {"seed": request.seed, "author": request.author, "message": request.message}
    return {"op": op.name, "params": _fields(op), "engine": request.engine or "local", **who, **where}


def _within(op: Operation, plan: Plan, changes: Iterable[Change]) -> Iterator[Change]:
    """Pass changes on; one that the plan did not announce is a fault of the operation, and nothing is recorded."""
    names = frozenset(plan.touches)  # mostly a list of names: then there is no pattern to be tried on each
    for change in changes:
        if not isinstance(change, SetFile) and change.name not in names and not any(fnmatchcase(change.name, p) for p in plan.touches):
            raise CheckFailed(f"{op.name} changed {change.name}, which its plan did not name", hint="report this: nothing was recorded")
        yield change


def _failed(check: Check, values: dict[str, Json]) -> CheckFailed:
    reason = check.reason or "the operation's own check failed"
    return CheckFailed(f"{reason}; nothing was committed", hint=check.hint, check=values)


def _only_retuned(op: Operation, info: RunInfo) -> bool:
    """Whether nothing but fields that may be added to while a run lasts differs from what the run was started with."""
    asked = _fields(op)
    other = {name for name in asked.keys() | info.params.keys() if asked.get(name) != info.params.get(name)}
    return bool(other) and other <= set(op.retunable)


def _told_again(repo: Repository, commit_id: CommitId, target: Target, active: ActiveRun) -> Outcome:
    """The result of an attempt that was recorded, but died before it could say so."""
    commit = repo.commit(commit_id)
    moved = commit.verdict.outcome != "refused"
    return Outcome(commit, commit_id, target.branch, moved, commit.verdict, commit.check, (), tuple(active.notes), run=active.id)


def _fields(op: Operation) -> dict[str, Json]:
    """The operation's fields as JSON gives them back: what a run is resumed with."""
    return json.loads(canonical(asdict(op)))


__all__ = [
    "How", "Outcome", "accept", "commit_directory", "evaluate_rev", "gate_rev", "import_model", "redo", "remove_name", "replay",
    "revert", "rollback", "run", "set_name", "undo",
]  # fmt: skip
