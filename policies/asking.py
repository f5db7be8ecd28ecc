"""Questions that record nothing but measurements: how does a version score, and what would the gate say of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ..ops.evaluate.suite import Suite, load_suite
from ..registry.errors import BadParameter, InputNotFound
from ..registry.ids import CommitId, Digest, short
from ..registry.records import TensorDelta, Verdict
from .court import Case, Court
from .measure import Bench, Measured
from .outcome import How, Request

if TYPE_CHECKING:
    from ..registry.repository import Repository


def evaluate_rev(repo: Repository, rev: str | None, suite: Suite | Path | str, *, limit: int | None = None, **how: Unpack[How]) -> Measured:
    """Measure a version (HEAD) on a suite: loaded, a file, or the name of a configured one. Cached by snapshot and suite.

    Raises Incompatible when the model cannot answer the suite, InputNotFound for a suite that is not there.
    """
    request = Request.of(repo, **how)
    commit_id = repo.resolve(rev)
    found = suite if isinstance(suite, Suite) else find_suite(request, suite)
    return Bench(repo, request).measure(repo.commit(commit_id).snapshot, found, limit=limit)


def find_suite(request: Request, word: Path | str) -> Suite:
    """A suite by file, else by name among the configured ones."""
    if Path(word).is_file():
        return load_suite(Path(word))
    configured = [load_suite(path) for path in request.config.suite_files()]
    for suite in configured:
        if suite.name == str(word):
            return suite
    names = ", ".join(suite.name for suite in configured)
    raise InputNotFound(f"there is no suite {word}", hint=f"configured: {names}" if names else "mlc eval --suite FILE.toml")


def gate_rev(repo: Repository, rev: str | None, *, against: str | None = None, **how: Unpack[How]) -> Verdict:
    """What the rules in force say of `rev` (HEAD) as the successor of `against` (its first parent). Moves nothing."""
    court = Court.open(repo, Request.of(repo, **how))
    commit_id = repo.resolve(rev)
    commit = repo.commit(commit_id)
    if against is None and not commit.parents:
        raise BadParameter(f"{short(commit_id)} has no parent to be judged against", hint="--against REV")
    before = repo.resolve(against) if against is not None else commit.parents[0]
    deltas = _recorded(repo, commit_id) if before in commit.parents[:1] else ()
    case = Case(
        commit.op.name,
        repo.snapshot(commit.snapshot),
        before,
        branch=repo.resolve_branch(rev),
        params=commit.op.params,
        check=commit.check,
        deltas=tuple(deltas),
        made_on=commit.parents[0] if commit.parents else None,
    )
    return court.hear(case).verdict


def _recorded(repo: Repository, commit_id: CommitId) -> Iterator[TensorDelta]:
    """The delta records of a commit, as the catalog has them."""
    from ..registry.catalog.queries import commit_deltas

    for row in commit_deltas(repo, commit_id):
        base = Digest(row.base) if row.base else None
        sizes = row.bytes_logical, row.bytes
        yield TensorDelta(row.tensor, base, Digest(row.target), row.codec, *sizes, row.rank, row.nnz, row.l2, row.rel_l2, row.max_abs)
