"""`unmerge`: the merge as it would be without one of its ingredients, made from what is stored, to the byte.

A merge recorded its method, its parameters and its versions by id; so the rest of it can be made again. A chain (opcm) is followed from the
last link in which the ingredient had no part. Where a result without the ingredient is not defined, the reason is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

from ..ops.base import Operation, Plan
from ..ops.merge.chain import Opcm
from ..ops.merge.merge import Merge
from ..ops.merge.without import without
from ..registry.errors import BadParameter, Incompatible
from ..registry.ids import CommitId, short
from ..registry.records import Commit, Json, canonical
from .adapters import MERGES, rebuilding
from .candidate import Candidate, op_record, refused, settle
from .court import Court
from .lifecycle import SEED, applied, run
from .merging import UNMERGE, origin
from .outcome import How, Outcome, Request
from .runs import ActiveRun, RunInfo, Runs
from .takeback import pointers
from .targets import Target, aim

if TYPE_CHECKING:
    from ..registry.records import Snapshot, TensorDelta
    from ..registry.repository import Repository
    from ..registry.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left of a merge. `op` makes it from the version `start`; None: `start` holds it already. `made_by`: name and parameters."""

    ingredients: tuple[str, ...]
    start: CommitId
    op: Operation | None
    made_by: tuple[str | None, dict[str, Json]]
    seed: int
    check: dict[str, Json] = field(default_factory=dict)

    def params(self) -> dict[str, Json]:
        """The part of the record that says how the content came about."""
        name, params = self.made_by
        return {"ingredients": list(self.ingredients), "start": self.start, "op": name, "params": params}


def unmerge(repo: Repository, rev: str, *, remove: str, **how: Unpack[How]) -> Outcome:
    """Take the ingredient `remove` out of the merge that `rev` is, by a new commit on its branch (or `branch`). Judged like every change.

    Raises BadParameter when `rev` is no merge or `remove` no ingredient, Incompatible where there is no result without it.
    """
    request = Request.of(repo, **how)
    target = aim(repo, rev, request.branch)
    merged = origin(repo, target.start)
    gone = _ingredient(repo, merged, rev, remove)
    rest = rest_of(repo, merged, gone)
    if request.dry_run:
        return Outcome(branch=target.branch, plan=_plan(repo, rest, gone))
    court = Court.open(repo, request)
    params = {"rev": target.start, "removed": gone, **rest.params()}
    asked: dict[str, Json] = {"op": UNMERGE, "params": params, "seed": rest.seed, "author": request.author, "message": request.message}
    where: dict[str, Any] = {"start": target.start, "branch": target.branch, "old": target.old}
    with Runs(repo).begin(_left_off(repo, asked | where), **asked, **where) as active:
        active.listener = request.progress
        try:
            with repo.ingest() as tx:
                snapshot, deltas = _made(repo, tx, rest, target, active)
                active.store.carry(tx, active.artifacts)
                candidate = Candidate(target, op_record(UNMERGE, params), snapshot, (target.start,), deltas)
                candidate.seeds, candidate.inputs = {SEED: rest.seed}, list(active.inputs)
                candidate.artifacts, candidate.warnings = list(active.artifacts), list(active.notes)
                candidate.check = {**rest.check, **active.facts, "versions": len(rest.ingredients), "removed": gone}
                outcome = settle(court, tx, candidate)
            active.store.release(active.artifacts)
        finally:
            active.finish(committed=True)
    if not outcome.ref_moved:
        raise refused(outcome)
    return outcome


def _left_off(repo: Repository, asked: Mapping[str, Any]) -> RunInfo | None:
    """The run of the same request that was killed, if there is one: the same command again goes on with it."""
    alike = json.loads(canonical({key: asked[key] for key in ("op", "params", "start", "branch", "seed")}))
    runs = (run for run in Runs(repo).list() if not run.active)
    return next((run for run in runs if all(getattr(run, key) == value for key, value in alike.items())), None)


def rebuild(repo: Repository, rev: str, *, only: str, **how: Unpack[How]) -> Outcome:
    """Have the ingredient `only` of the merge that `rev` is back, from the basis that the merge keeps, by a new commit on its branch.

    Raises BadParameter when `rev` is no merge or `only` no ingredient, Incompatible for a merge that keeps no basis.
    """
    merged = origin(repo, repo.resolve(rev))
    model = _ingredient(repo, merged, rev, only)
    return run(repo, rebuilding(merged, _made_by(repo.commit(merged))[0], model), ref=rev, **how)


def rest_of(repo: Repository, merged: CommitId, gone: CommitId) -> Rest:
    """What is left of the merge `merged` without `gone`. Raises Incompatible."""
    commit = repo.commit(merged)
    seed = commit.seeds.get(SEED, 0)
    name, params = _made_by(commit)
    if name == Opcm.name:
        return _chain_without(repo, merged, gone, seed)
    if "soup" in commit.check:
        raise Incompatible(
            f"{short(merged)} is a soup chosen by a score: it would have to be chosen anew",
            hint="mlc merge the others, --method soup-greedy",
        )
    if "average" in commit.check:
        raise Incompatible(
            f"the coefficients of {short(merged)} belong to all of its versions together",
            hint="mlc merge the others anew by the same method",
        )
    left = MERGES[name].from_params(params).without(gone) if name in MERGES else without(Merge.from_params(params), gone)
    if isinstance(left, str):
        return Rest((left,), CommitId(left), None, (None, {}), seed)
    from_file = isinstance(left, Merge) and left.config is not None
    ingredients = left.recipe().ingredients() if isinstance(left, Merge) and from_file else left.ingredients
    return Rest(ingredients, CommitId(ingredients[0]), left, (left.name, left.params()), seed)


# --- what a merge is made of -------------------------------------------------------------------------------


def _made_by(commit: Commit) -> tuple[str | None, dict[str, Any]]:
    """Name and parameters of the merge that made a commit's content."""
    params = commit.op.params
    return (params.get("op"), params.get("params") or {}) if commit.op.name == UNMERGE else (commit.op.name, params)


def ingredients_of(repo: Repository, merged: CommitId) -> tuple[CommitId, ...]:
    """The versions that a merge is made of, in order; of a chain all that were ever absorbed. () when the commit is no merge."""
    commit = repo.commit(merged)
    name, params = _made_by(commit)
    if name == Opcm.name:
        first, *_ = links = list(_links(repo, commit))
        begin = () if first.start == params["base"] else (first.start,)
        return tuple(dict.fromkeys((*begin, *(model for link in links for model in link.models))))
    if name in MERGES:
        return tuple(map(CommitId, params["ingredients"]))
    if name == Merge.name:
        op = Merge.from_params(params)
        named = op.recipe().ingredients() if op.config is not None else op.ingredients
        return tuple(map(CommitId, named))
    return tuple(map(CommitId, commit.op.params["ingredients"])) if commit.op.name == UNMERGE else ()


def _ingredient(repo: Repository, merged: CommitId, rev: str, remove: str) -> CommitId:
    named = ingredients_of(repo, merged)
    commit = repo.commit(merged)
    if not named:
        raise BadParameter(f"{rev} ({short(merged)}) is no merge: it was made by {commit.op.name}", hint="mlc log --op merge")
    gone = repo.resolve(remove)
    if gone not in named:
        listed = ", ".join(short(one) for one in named)
        raise BadParameter(f"{remove} ({short(gone)}) is no ingredient of {short(merged)}", hint=f"it was made from {listed}")
    if len(named) == 1:
        raise Incompatible(f"{short(gone)} is all that is left of the merge", hint="mlc rollback REV")
    return gone


# --- chains ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Link:
    """One commit of a chain: where it started, with which state, and what it absorbed."""

    start: CommitId
    state: tuple[float, ...]
    models: tuple[CommitId, ...]


def _links(repo: Repository, commit: Commit) -> Iterator[_Link]:
    """The commits of a chain, the first one first."""
    _, params = _made_by(commit)
    start, *models = map(CommitId, params["ingredients"])
    if params["state"]:
        yield from _links(repo, repo.commit(origin(repo, start)))
    yield _Link(start, tuple(params["state"]), tuple(models))


def _chain_without(repo: Repository, merged: CommitId, gone: CommitId, seed: int) -> Rest:
    """The chain from the last link before `gone`: that link's stored bytes and state, then everything but `gone` once more."""
    commit = repo.commit(merged)
    links, (_, params) = list(_links(repo, commit)), _made_by(commit)
    place = next(i for i, link in enumerate(links) if gone in link.models or (i == 0 and link.start == gone))
    later = [model for link in links[place:] for model in link.models if model != gone]
    named = tuple(model for model in ingredients_of(repo, merged) if model != gone)
    start, state = links[place].start, links[place].state
    if start == gone:
        start, *later = later  # the second model is the first one of the new chain
    if later:
        op = Opcm((start, *later), params["base"], params["alpha"], state, params["deltas"], params.get("shared", False))
        return Rest(named, start, op, (op.name, op.params()), seed)
    if not state:
        return Rest(named, start, None, (None, {}), seed)
    before = repo.commit(origin(repo, start))  # a link itself: the chain as it was
    return Rest(named, start, None, _made_by(before), before.seeds.get(SEED, 0), {"opcm": before.check["opcm"]})


def _plan(repo: Repository, rest: Rest, gone: CommitId) -> Plan:
    if rest.op is None:
        return Plan(f"take {short(gone)} out: {short(rest.start)} is what is left, and stored already", ())
    plan = rest.op.plan(repo.view(rest.start))
    return Plan(f"take {short(gone)} out: {plan.summary}", plan.touches, plan.bytes_touched, memory=plan.memory, details=plan.details)


def _made(repo: Repository, tx: Transaction, rest: Rest, target: Target, active: ActiveRun) -> tuple[Snapshot, list[TensorDelta]]:
    """The snapshot of what is left, and what differs from the version that it replaces."""
    if rest.op is None:
        snapshot = repo.snapshot(repo.commit(rest.start).snapshot)
        deltas: list[TensorDelta] = []
    else:
        snapshot, deltas = applied(repo, tx, rest.op, repo.view(rest.start), None, active)
    stored = {delta.target: delta for delta in deltas}
    here = repo.snapshot(repo.commit(target.start).snapshot)
    return snapshot, [stored.get(delta.target, delta) for delta in pointers(here, snapshot)]
