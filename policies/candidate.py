"""The last steps of every change: judge the candidate, write the commit, move the ref or keep it without one.

Everything that creates content passes through `settle`; only roots and returns to accepted content pass through `enter`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..registry.errors import GateRefused
from ..registry.ids import CommitId, short
from ..registry.journal import utc_now
from ..registry.records import ArtifactRecord, Commit, InputRecord, Json, OperationRecord, Snapshot, TensorDelta, Verdict
from .court import Case, Court
from .environment import environment
from .facts import PARENT, Comparison
from .gate import failures, summary
from .measure import Gathered
from .outcome import Outcome, Request
from .targets import Target

if TYPE_CHECKING:
    from ..registry.repository import Repository
    from ..registry.transaction import Transaction


@dataclass
class Candidate:
    """A sealed snapshot on its way into history."""

    target: Target
    op: OperationRecord
    snapshot: Snapshot
    parents: tuple[CommitId, ...]
    deltas: list[TensorDelta] = field(default_factory=list)
    check: dict[str, Json] = field(default_factory=dict)
    expects: dict[str, Json] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    inputs: list[InputRecord] = field(default_factory=list)
    artifacts: list[ArtifactRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    forward: bool = False  # a model was run to make it
    means: str | None = None
    engine: dict[str, Json] = field(default_factory=dict)  # what trained, where that was not this process


def settle(court: Court, tx: Transaction, candidate: Candidate) -> Outcome:
    """Judge and record. An accepted candidate moves its branch; a refused one is kept without a ref.

    Raises RefMoved when the branch has moved meanwhile. The caller raises the refusal (`refused`) after the transaction.
    """
    target = candidate.target
    candidate.deltas = tx.with_statistics(candidate.deltas)
    case = Case(
        candidate.op.name,
        candidate.snapshot,
        target.start,
        target.branch,
        candidate.op.params,
        candidate.expects,
        candidate.check,
        tuple(candidate.deltas),
        beside=candidate.parents[1:],
    )
    ruling = court.hear(case)
    if case.beside:
        candidate.check = {**candidate.check, "parents": _against_parents(ruling.gathered, candidate.parents)}
    candidate.warnings += ruling.gathered.warnings
    candidate.warnings += [f"{o.rule}: {o.sentence}" for o in ruling.verdict.rules if o.outcome == "warn"]
    candidate.inputs += [record for record in court.records if record not in candidate.inputs]
    return _record(court.repo, tx, court.request, candidate, ruling.verdict, ruling.gathered, court.unmoved)


def enter(repo: Repository, tx: Transaction, request: Request, candidate: Candidate, measured: Gathered | None = None) -> Outcome:
    """Record without a gate: roots, and content that was accepted before."""
    return _record(repo, tx, request, candidate, Verdict("ungated"), measured or Gathered())


def refused(outcome: Outcome) -> GateRefused:
    """The error that says why nothing moved, and what to do about it."""
    assert outcome.verdict is not None
    assert outcome.commit_id is not None
    rules = list(dict.fromkeys(o.rule for o in failures(outcome.verdict)))
    waive = " ".join(f"--waive {rule}" for rule in rules)
    return GateRefused(
        f"refused by {summary(outcome.verdict)}; {outcome.branch} did not move, the candidate is kept as {short(outcome.commit_id)}",
        hint=f"mlc accept {short(outcome.commit_id)} {waive} --reason TEXT",
        outcome=outcome,
        verdict=outcome.verdict.to_json(),
        commit=outcome.commit_id,
    )


def _record(
    repo: Repository,
    tx: Transaction,
    request: Request,
    candidate: Candidate,
    verdict: Verdict,
    measured: Gathered,
    guard: Callable[[], None] | None = None,
) -> Outcome:
    target, kept = candidate.target, verdict.outcome == "refused"
    commit = Commit(
        parents=candidate.parents,
        snapshot=candidate.snapshot.id,
        op=candidate.op,
        author=request.author,
        time=utc_now(),
        message=request.message,
        seeds=candidate.seeds,
        inputs=tuple(_sorted(candidate.inputs)),
        environment={**environment(forward=candidate.forward), **candidate.engine},
        artifacts=tuple(candidate.artifacts),
        metrics=measured.metrics,
        evaluations=measured.evaluations,
        check=candidate.check,
        verdict=verdict,
    )
    first = not repo.branches()
    refs = [] if kept else [target.update(commit.id)]
    meant = {"branch": target.branch, "old": target.old}  # a refused candidate has no ref that would say it
    commit_id = tx.commit(commit, refs=refs, reason=candidate.op.name, deltas=candidate.deltas, guard=guard, meant_for=meant)
    if first and not kept and repo.head() != target.branch:
        repo.set_head(target.branch)
    return Outcome(
        commit=commit,
        commit_id=commit_id,
        branch=target.branch,
        ref_moved=not kept,
        verdict=verdict,
        check=candidate.check,
        deltas=tuple(candidate.deltas),
        warnings=tuple(dict.fromkeys(candidate.warnings)),
        means=candidate.means,
    )


def _against_parents(measured: Gathered, parents: tuple[CommitId, ...]) -> dict[str, Json]:
    """What became of each parent's answers and numbers, by parent and suite: the first was judged, the others are told."""
    found: dict[str, Json] = {}
    for label, parent in zip((PARENT, *parents[1:]), parents, strict=True):
        found[parent] = told = {}
        for suite in measured.suites:
            other = suite.against.get(label)
            if other is not None:
                told[suite.name] = {**_flips(other), "before": dict(other.before), "after": dict(suite.after)}
    return found


def _flips(other: Comparison) -> dict[str, Json]:
    """The counts that people ask for first; none for a suite without right and wrong."""
    words = ("n", "negative_flips", "positive_flips", "nfr", "nfr_upper95")
    return {} if other.flips is None else {word: getattr(other.flips, word) for word in words}


def _sorted(inputs: Iterable[InputRecord]) -> list[InputRecord]:
    return sorted(set(inputs), key=lambda record: (record.role, record.name, record.digest))


def op_record(name: str, params: dict[str, Json], version: int = 1) -> OperationRecord:
    """The record of something that the conductor itself does (import, commit, rollback, revert)."""
    return OperationRecord(name, version, params)
