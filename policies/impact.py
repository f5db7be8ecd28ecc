"""Who still carries a data set: the commits that read it, all that follows from them, and what an unlearning claims to have removed.

Pure reading of the record, one pass from the oldest commit to the newest. Each commit has the set of records it still carries: what its
parents carry, with what it read itself, without what it made forgotten and the gate accepted. Content equal to an older version's
(a rollback) carries what that one carries. What was unlearned is a claim with numbers, never a proof; so the word is `unlearned`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..registry.ids import CommitId, SnapshotId, short
from ..registry.lineage import ancestors
from ..registry.records import Commit, Json
from .traces import NOTHING, Records, Sought, Traces, commits

if TYPE_CHECKING:
    from ..registry.repository import Repository

State = Literal["carries", "unknown origin", "unlearned"]


@dataclass(frozen=True, slots=True)
class Mark:
    """What one commit has to do with the data. `left`: the records it still carries; `believed`: nobody recorded how they came in."""

    left: Records
    why: str
    believed: bool = False

    @property
    def state(self) -> State:
        """In a word."""
        if not self.left:
            return "unlearned"
        return "unknown origin" if self.believed else "carries"


@dataclass(frozen=True, slots=True)
class Affected:
    """One commit that is affected."""

    id: CommitId
    op: str
    outcome: str  # accepted, refused, ungated: as it is now
    mark: Mark
    refs: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        """One entry of the document."""
        mark = self.mark
        return {
            "id": self.id, "short": short(self.id), "op": self.op, "outcome": self.outcome, "state": mark.state, "records": len(mark.left),
            "why": mark.why, "refs": list(self.refs),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Impact:
    """The whole answer; commits in the order they were recorded."""

    wanted: Sought
    commits: tuple[Affected, ...]

    @property
    def carriers(self) -> int:
        """How many versions still hold some of it."""
        return sum(bool(found.mark.left) for found in self.commits)

    def to_json(self) -> dict[str, Json]:
        """The document of `mlc impact --json`."""
        refs: dict[str, dict[str, Json]] = {"branches": {}, "tags": {}, "aliases": {}}
        for found in self.commits:
            for name in found.refs:
                kind, _, own = name.partition("/")
                refs[_KINDS[kind]][own] = {"commit": found.id, "state": found.mark.state}
        data = {"name": self.wanted.name, "digest": self.wanted.digest, "records": len(self.wanted.records)}
        return {"data": data, "commits": [found.to_json() for found in self.commits], "refs": refs, "carriers": self.carriers}


_KINDS = {"heads": "branches", "tags": "tags", "aliases": "aliases"}


def impact(repo: Repository, wanted: Sought) -> Impact:
    """Everything that carries `wanted`, or is said to have forgotten it. Reads records only: no model is run."""
    history = dict(commits(repo))
    traces = Traces(repo, wanted)
    learned = {c: traces.trained(commit) for c, commit in history.items()}
    claims = {c: gone for c, commit in history.items() if (gone := traces.forgotten(commit))}
    outcomes = _outcomes(repo, history)
    behind = _behind(repo, history)
    believed = _believed(behind, {c: found for c, (found, _) in learned.items()}, claims)
    marks: dict[CommitId, Mark] = {}
    same: dict[SnapshotId, CommitId] = {}
    for c, commit in history.items():
        gone = claims.get(c, NOTHING) if outcomes[c] != "refused" else NOTHING
        before = [marks[p] for p in behind[c] if p in marks]
        mark = _mark(commit, learned[c], gone, believed.get(c, NOTHING), before)
        if not learned[c][0] and not gone and (twin := same.get(commit.snapshot)) is not None:
            mark = Mark(marks[twin].left, f"same content as {short(twin)}", marks[twin].believed) if twin in marks else None
        elif commit.op.name == "revert" and (lost := _brought_back(commit, claims, marks)):
            mark = Mark((mark.left if mark else NOTHING) | lost, f"takes the unlearning {short(commit.op.params['rev'])} back")
        elif c in claims and outcomes[c] == "refused" and mark is not None:
            mark = Mark(mark.left, "an unlearning that the gate refused", mark.believed)
        same.setdefault(commit.snapshot, c)
        if mark is not None:
            marks[c] = mark
    names = _names(repo)
    found = (Affected(c, history[c].op.name, outcomes[c], mark, tuple(names.get(c, ()))) for c, mark in marks.items())
    return Impact(wanted, tuple(found))


def _mark(commit: Commit, learned: tuple[Records, str], gone: Records, believed: Records, before: list[Mark]) -> Mark | None:
    """One commit's mark from its own record and its parents' marks; None when it never had anything to do with the data."""
    inherited = frozenset().union(*(mark.left for mark in before)) if before else NOTHING
    left = (inherited | learned[0] | believed) - gone
    if gone:
        after = commit.check.get("forget_after")
        told = f", forget recall {after:.3g} measured" if isinstance(after, int | float) else ""
        rest = "" if not left else f"; {len(left)} more records were not in its forget set"
        return Mark(left, f"unlearned, as it claims{told}{rest}")
    if learned[0]:
        return Mark(left, learned[1])
    if believed:
        return Mark(left, "unknown origin: a version that follows was made to forget it", believed=True)
    if not before:
        return None
    return Mark(left, "follows from a version that carries it" if left else "follows from a version that forgot it")


def _brought_back(commit: Commit, claims: dict[CommitId, Records], marks: dict[CommitId, Mark]) -> Records:
    """What a revert of an unlearning returns."""
    undone, before = commit.op.params.get("rev"), CommitId(commit.op.params.get("parent") or "")
    return marks[before].left if undone in claims and before in marks else NOTHING


def _believed(
    behind: dict[CommitId, tuple[CommitId, ...]], learned: dict[CommitId, Records], claims: dict[CommitId, Records]
) -> dict[CommitId, Records]:
    """For each root: what somebody had to make a descendant forget although no commit in between read it."""
    found: dict[CommitId, Records] = {}
    for c, gone in claims.items():
        line = list(ancestors(behind[c], lambda a: behind.get(a, ())))
        unexplained = gone.difference(*(learned.get(a, NOTHING) for a in line))
        for root in (a for a in line if unexplained and not behind.get(a)):
            found[root] = found.get(root, NOTHING) | unexplained
    return found


def _behind(repo: Repository, history: dict[CommitId, Commit]) -> dict[CommitId, tuple[CommitId, ...]]:
    """Parents; for an adapter that was imported, the first commit with the content it sits on."""
    first: dict[SnapshotId, CommitId] = {}
    found: dict[CommitId, tuple[CommitId, ...]] = {}
    for c, commit in history.items():
        left = commit.op.params.get("ingredients") if commit.op.name == "unmerge" else None  # what was taken out is not carried on
        if commit.op.name == "patch" and (sources := commit.op.params.get("sources")) is not None:  # the clean version and the signatures
            left = [commit.op.params["clean"] or commit.parents[0], *sources]
        found[c] = commit.parents if left is None else tuple(map(CommitId, left))
        if not commit.parents and (base := repo.snapshot(commit.snapshot).base) in first:
            found[c] = (first[base],)  # type: ignore[index]
        first.setdefault(commit.snapshot, c)
    return found


def _outcomes(repo: Repository, history: dict[CommitId, Commit]) -> dict[CommitId, str]:
    outcomes = {c: commit.verdict.outcome for c, commit in history.items()}
    if "refused" in outcomes.values():
        for record in repo.journal.records():
            if record.body["kind"] == "accept":
                outcomes[record.body["commit"]] = record.body["verdict"]["outcome"]
    return outcomes  # type: ignore[return-value]


def _names(repo: Repository) -> dict[CommitId, list[str]]:
    names: dict[CommitId, list[str]] = {}
    for name, commit in sorted(repo.refs.all().items()):
        names.setdefault(commit, []).append(name)
    return names


__all__ = ["Affected", "Impact", "Mark", "impact"]
