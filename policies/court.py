"""What a candidate is judged by, and the judging: rules and suites loaded up front, facts gathered, the gate asked.

Loaded before anything is computed: a broken rule or suite must not be found out after an hour of training.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ..ops.evaluate.suite import Suite
from ..registry.errors import BadRecipe, Incompatible, NotFound, RefMoved
from ..registry.ids import CommitId, SnapshotId
from ..registry.records import InputRecord, Json, Snapshot, TensorDelta, Verdict
from .facts import NO_TWIN, PARENT, TWIN, Facts, QueryResult
from .gate import judge
from .measure import Bench, Gathered, drifted, gather, load_suites
from .outcome import Request
from .rules.load import load_policy
from .rules.rule import Rule
from .weights import delta_facts, with_distances

if TYPE_CHECKING:
    from ..registry.repository import Repository
    from ..registry.view import ModelView


@dataclass(frozen=True, slots=True)
class Case:
    """One candidate beside what it may replace. `before` is the commit it is compared with as `parent`."""

    op: str
    snapshot: Snapshot
    before: CommitId
    branch: str | None = None
    params: dict[str, Json] = field(default_factory=dict)
    expects: dict[str, Json] = field(default_factory=dict)
    check: dict[str, Json] = field(default_factory=dict)
    deltas: tuple[TensorDelta, ...] = ()
    made_on: CommitId | None = None  # its first parent, where that is not `before`
    beside: tuple[CommitId, ...] = ()  # further parents: measured and compared under their ids, judged by no rule of `parent`


@dataclass(frozen=True, slots=True)
class Ruling:
    """The verdict and what it rests on."""

    verdict: Verdict
    facts: Facts
    gathered: Gathered


@dataclass(frozen=True)
class Court:
    """The rules and suites in force, and the other versions that rules compare with."""

    repo: Repository
    request: Request
    rules: tuple[Rule, ...]
    suites: tuple[Suite, ...]
    records: tuple[InputRecord, ...]  # of the policy files and suites
    others: dict[str, CommitId]  # by label, `parent` left out
    missing: dict[str, str]

    @classmethod
    def open(cls, repo: Repository, request: Request) -> Self:
        """Load policy and suites. Raises BadRecipe, BadInputFile, InputNotFound, RefNotFound."""
        rules, policies = load_policy(request.config)
        suites = load_suites(request.config.suite_files())
        others, missing = _others(repo, rules)
        records = (*policies, *(suite.record() for suite in suites))
        return cls(repo, request, tuple(rules), tuple(suites), records, others, missing)

    def asked_by(self, **changes: Any) -> Self:
        """The same court for a request that differs in some answers."""
        return dataclasses.replace(self, request=dataclasses.replace(self.request, **changes))

    def hear(self, case: Case, *, bench: Bench | None = None) -> Ruling:
        """Measure what is not measured yet, and judge."""
        versions = {PARENT: case.before} | {str(other): other for other in case.beside} | self.others
        missing = dict(self.missing)
        if any(rule.floor for rule in self.rules):
            twin = self._twin(case)
            versions |= {TWIN: twin} if twin else {}
            missing |= {} if twin else {TWIN: NO_TWIN}
        snapshots = {label: self.repo.commit(commit).snapshot for label, commit in versions.items()}
        bench = bench or Bench(self.repo, self.request)
        gathered = gather(bench, self.suites, case.snapshot.id, snapshots)
        moved = any(rule.room == "drift" for rule in self.rules)
        facts = Facts(
            op=case.op,
            branch=case.branch,
            params=case.params,
            expects=case.expects,
            check=case.check,
            delta=self._moved(snapshots[PARENT], case),
            drift=drifted(bench, self.suites, snapshots[PARENT], case.snapshot.id) if moved else {},
            suites=gathered.suites,
            missing=missing,
        )
        queries = self._queries(case, snapshots[PARENT])
        facts = dataclasses.replace(facts, queries=queries)
        if not self.rules:
            gathered.warnings.append("no rule is in force: nothing was judged")
        elif not self.suites:
            gathered.warnings.append("no suite is configured: behaviour was not judged ([eval] suites in mlc.toml)")
        return Ruling(judge(self.rules, facts, against=case.before), facts, gathered)

    def _twin(self, case: Case) -> CommitId | None:
        """The latest commit that the same recipe made from the same version with another result: another seed of it."""
        from ..registry.catalog.queries import siblings

        for commit, snapshot, params in siblings(self.repo, case.made_on or case.before, case.op):
            if snapshot != case.snapshot.id and params == case.params:
                return CommitId(commit)
        return None

    def unmoved(self) -> None:
        """Asked at the moment of the commit: what rules compared with must still be what it was. Raises RefMoved."""
        for label, commit_id in self.others.items():
            if self.repo.resolve(label) != commit_id:
                raise RefMoved(f"{label} moved while the candidate was judged against it", hint="try again: what was measured is kept")

    def baseline(self, snapshot: SnapshotId) -> Gathered:
        """Measure one version that has nothing to be compared with."""
        return gather(Bench(self.repo, self.request), self.suites, snapshot, {})

    def _moved(self, before: SnapshotId, case: Case) -> dict[str, float | None]:
        """How far the weights moved; read from them only when a rule asks and nothing recorded answers."""
        old, new = (_view(self.repo, snapshot) for snapshot in (before, case.snapshot.id))
        facts = delta_facts(old, new, case.deltas)
        if all(rule.key in facts for rule in self.rules if rule.room == "delta"):
            return facts
        return delta_facts(old, new, with_distances(old, new, case.deltas))

    def _queries(self, case: Case, before: SnapshotId) -> dict[str, QueryResult]:
        from ..registry.catalog.console import console

        names = {"snapshot": case.snapshot.id, "parent": case.before, "parent_snapshot": before, "branch": case.branch or ""}
        found: dict[str, QueryResult] = {}
        for rule in self.rules:
            if rule.sql:
                rows = console(self.repo, filled(rule.sql, names)).rows
                found[rule.id] = QueryResult(len(rows), repr(rows[0]) if rows else None)
        return found


def filled(sql: str, names: Mapping[str, str]) -> str:
    """A rule's query with $snapshot, $parent, $parent_snapshot and $branch as text; ids and branch names need no escaping."""
    return re.sub(r"\$(\w+)", lambda found: f"'{names[found[1]]}'" if found[1] in names else found[0], sql)


def _view(repo: Repository, snapshot: SnapshotId) -> ModelView:
    """A version as it acts: an adapter merged into its base, or by itself where it cannot be merged."""
    from ..registry.view import ModelView

    try:
        return repo.view(snapshot)
    except Incompatible:
        return ModelView(repo.objects, repo.snapshot(snapshot), snapshot)


def _others(repo: Repository, rules: list[Rule]) -> tuple[dict[str, CommitId], dict[str, str]]:
    """The commits that rules compare with by name. An alias that nobody has set yet is no fault; another unknown rev is."""
    found: dict[str, CommitId] = {}
    missing: dict[str, str] = {}
    for rule in rules:
        if rule.against == PARENT or rule.against in found:
            continue
        try:
            found[rule.against] = repo.resolve(rule.against)
        except NotFound as fault:
            if not rule.against.startswith("@"):
                raise BadRecipe(f"rule {rule.id!r} compares with {rule.against!r}: {fault.message}", hint=fault.hint) from None
            missing[rule.against] = f"{rule.against} does not exist yet"
    return found, missing
