"""Questions about history: log, one commit, its deltas, refs and reflog, storage.

Every function takes the repository and asks once; nothing keeps a connection. Rows come as named tuples in the order of the
columns asked for, so that ten thousand of them cost little Python.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .. import lineage
from ..errors import BadParameter, RefNotFound
from ..records import Json


class LogRow(NamedTuple):
    """One line of the log. `seq` names the commit within the catalog; it is smaller than the seq of every child."""

    seq: int
    commit: str
    parent_seqs: list[int]
    op: str
    author: str
    time: str
    message: str
    branch: str | None
    outcome: str  # accepted, refused, ungated: as it is now
    tensors_changed: int
    tensors_total: int
    bytes_logical: int
    bytes_stored: int
    snapshot: str
    metrics: list[float | None]  # in the order they were asked for


class CommitDetail(NamedTuple):
    """All that the catalog knows of one commit. `record` is the canonical commit; `verdict` the one that holds now."""

    seq: int
    branch: str | None
    record: dict[str, Json]
    verdict: dict[str, Json]
    tensors_changed: int
    tensors_total: int
    bytes_logical: int
    bytes_stored: int
    codecs: dict[str, int]


class DeltaRow(NamedTuple):
    """How one tensor of a commit was stored and how far it moved. Sizes in bytes; the norms are those of the difference."""

    tensor: str
    base: str | None
    target: str
    codec: str
    bytes: int
    bytes_logical: int
    rank: int | None
    nnz: int | None
    l2: float | None
    rel_l2: float | None
    max_abs: float | None


class ReflogRow(NamedTuple):
    """One move of one ref."""

    seq: int
    name: str
    old: str | None
    new: str | None
    time: str
    author: str
    reason: str


class StorageRow(NamedTuple):
    """What one codec, operation or branch costs."""

    key: str
    objects: int
    bytes_logical: int
    bytes_stored: int


_LOG = """
    select c.seq, c.commit, c.parent_seqs, c.op, c.author, c.time, c.message, c.branch, coalesce(a.outcome, c.outcome),
           c.tensors_changed, c.tensors_total, c.bytes_logical, c.bytes_stored, c.snapshot, [{metrics}]::double[], {shown}
    from commits c
    left join (select commit, arg_max(outcome, seq) as outcome from acceptances group by commit) a using (commit)
    {join}
    where c.seq <= $top order by c.seq desc"""

_MEASURED = """
    left join (
        select e.snapshot, {columns}
        from (select distinct snapshot, suite, metric, value, evaluation from evaluations) e group by e.snapshot
    ) m on m.snapshot = c.snapshot"""


def log(
    repo: Any,
    start: Sequence[str] | None,
    n: int | None = None,
    *,
    op: str | None = None,
    since: str | None = None,
    metrics: Sequence[str] = (),
) -> list[LogRow]:
    """Commits reachable from `start` (full ids; None: every recorded commit), newest first, at most `n`.

    `op` is an operation's name or its first part (`unlearn` finds `unlearn.ssd`); `since` a beginning of ISO 8601 in UTC;
    `metrics` are `suite.metric` names, answered as the commit's own record has them, else as last measured on its snapshot.
    A parent is recorded before its child, so the journal's order read backwards is newest first and never shows a parent above
    its child: reachability is one pass over sorted integers, not a recursion. With a filter, `parent_seqs` are the nearest commits
    behind that it shows. Raises BadParameter for a metric without a dot.
    """
    values: dict[str, Any] = {}
    query = _LOG.format(shown=_filter(op, since, values), **_metrics(metrics, values))

    def ask(connection: Any) -> list[LogRow]:
        starts = None if start is None else _seqs(connection, start)
        values["top"] = 2**62 if starts is None else max(starts, default=0)
        cursor = connection.execute(query, values)
        if op is None and since is None:
            reachable = _reachable(cursor.fetchall() if n is None else _stream(cursor), starts)
            return [LogRow._make(row[:-1]) for row in itertools.islice(reachable, n)]
        return _thinned(list(_reachable(cursor.fetchall(), starts)))[:n]

    return repo.catalog.read(repo, ask)


def _reachable(rows: Iterable[tuple[Any, ...]], starts: set[int] | None) -> Iterator[tuple[Any, ...]]:
    if starts is None:
        yield from rows
        return
    for row in rows:
        if row[0] in starts:
            starts.update(row[2])
            yield row


def _thinned(rows: list[tuple[Any, ...]]) -> list[LogRow]:
    """Only the rows that the filter shows; each follows the nearest shown ones, so that a graph of them hangs together."""
    behind = dict(lineage.thinned([(row[0], row[2]) for row in rows], {row[0] for row in rows if row[-1]}))
    return [LogRow._make((*row[:2], behind[row[0]], *row[3:-1])) for row in rows if row[-1]]


def _stream(cursor: Any) -> Iterator[tuple[Any, ...]]:
    while rows := cursor.fetchmany(512):
        yield from rows


def _seqs(connection: Any, commits: Sequence[str]) -> set[int]:
    query = "select seq from commits where commit in (select unnest($commits::varchar[]))"
    return {seq for (seq,) in connection.execute(query, {"commits": list(commits)}).fetchall()}


def _filter(op: str | None, since: str | None, values: dict[str, Any]) -> str:
    conditions = ["true"]
    if op is not None:
        conditions.append("(c.op = $op or starts_with(c.op, $op || '.'))")
        values["op"] = op
    if since is not None:
        conditions.append("c.time >= $since")
        values["since"] = since
    return " and ".join(conditions)


def _metrics(names: Sequence[str], values: dict[str, Any]) -> dict[str, str]:
    """The SQL of the asked metrics: a column each, and the join that finds those that were measured afterwards."""
    if not names:
        return {"metrics": "", "join": ""}
    own, columns = [], []
    for i, name in enumerate(names):
        suite, dot, metric = name.rpartition(".")
        if not dot or '"' in name:
            raise BadParameter(f"{name!r} does not name a metric", hint="suite.metric, for example --metrics facts.accuracy")
        values |= {f"path{i}": f'$.metrics."{suite}"."{metric}"', f"suite{i}": suite, f"metric{i}": metric}
        own.append(f"coalesce(json_extract_string(c.record, $path{i})::double, m.m{i})")
        columns.append(f"arg_max(e.value, e.evaluation) filter (where e.suite = $suite{i} and e.metric = $metric{i}) as m{i}")
    return {"metrics": ", ".join(own), "join": _MEASURED.format(columns=", ".join(columns))}


def details(repo: Any, commits: Sequence[str]) -> dict[str, CommitDetail]:
    """Everything about some commits, by id; what is not recorded is left out."""
    query = """
        select c.commit, c.seq, c.branch, c.record, a.verdict, c.tensors_changed, c.tensors_total, c.bytes_logical, c.bytes_stored, c.codecs
        from commits c left join (select commit, arg_max(verdict, seq) as verdict from acceptances group by commit) a using (commit)
        where c.commit in (select unnest(?::varchar[]))"""
    return {row[0]: _detail(*row[1:]) for row in repo.catalog.query(repo, query, [list(commits)]).rows}


def _detail(seq: int, branch: str | None, record: str, verdict: str | None, *counts: Any) -> CommitDetail:
    commit = json.loads(record)
    judged = json.loads(verdict) if verdict else commit["verdict"]
    return CommitDetail._make((seq, branch, commit, judged, *counts[:-1], json.loads(counts[-1])))


def commit_detail(repo: Any, commit: str) -> CommitDetail:
    """Everything about one commit. Raises RefNotFound when the journal never recorded it."""
    found = details(repo, [commit])
    if commit not in found:
        raise RefNotFound(f"no commit {commit} is recorded", hint="mlc log")
    return found[commit]


def commit_deltas(repo: Any, commit: str) -> list[DeltaRow]:
    """One row per tensor that differs from the first parent's, by name."""
    query = """
        select tensor, base, target, codec, bytes, bytes_logical, rank, nnz, l2, rel_l2, max_abs from deltas
        where commit = ? order by tensor"""
    return [DeltaRow._make(row) for row in repo.catalog.query(repo, query, [commit]).rows]


def siblings(repo: Any, parent: str, op: str) -> list[tuple[str, str, dict[str, Json]]]:
    """(commit, snapshot, parameters) of every commit that an operation of this name made from `parent`, the latest first."""
    query = """
        select c.commit, c.snapshot, c.params from commits c join parents p using (commit)
        where p.ordinal = 0 and p.parent = ? and c.op = ? order by c.seq desc"""
    return [(commit, snapshot, json.loads(params)) for commit, snapshot, params in repo.catalog.query(repo, query, [parent, op]).rows]


def refs(repo: Any) -> dict[str, str]:
    """Full ref name -> commit, as projected (the ref files say the same, without a database)."""
    return dict(repo.catalog.query(repo, "select name, commit from refs order by name").rows)


def reflog(repo: Any, name: str | None = None, n: int | None = None) -> list[ReflogRow]:
    """Moves of one ref (full name) or of all, newest first."""
    query = """
        select seq, name, old, new, time, author, reason from reflog where $name is null or name = $name
        order by seq desc, ordinal limit $n"""
    rows = repo.catalog.read(repo, lambda connection: connection.execute(query, {"name": name, "n": n}).fetchall())
    return [ReflogRow._make(row) for row in rows]


_STORAGE = {
    "codec": "select codec, objects, bytes_logical, bytes_stored from storage",
    "op": "select op, sum(tensors_changed)::bigint, sum(bytes_logical)::bigint, sum(bytes_stored)::bigint from commits group by op",
    "branch": """select coalesce(branch, '(no branch)'), sum(tensors_changed)::bigint, sum(bytes_logical)::bigint, sum(bytes_stored)::bigint
                 from commits group by branch""",
}


def storage(repo: Any, by: str) -> list[StorageRow]:
    """What is stored, by `codec` (all objects), or by `op` or `branch` (the tensors that commits changed); the largest first."""
    if by not in _STORAGE:
        raise BadParameter(f"storage is not counted by {by!r}", hint=f"one of: {', '.join(_STORAGE)}")
    rows = repo.catalog.query(repo, _STORAGE[by] + " order by 4 desc, 1").rows
    return [StorageRow._make(row) for row in rows]


def logical_bytes(repo: Any) -> int:
    """What a full copy of the directory of every recorded commit would take."""
    query = "select coalesce(sum(s.file_bytes), 0)::bigint from commits c join snapshots s using (snapshot)"
    return repo.catalog.query(repo, query).rows[0][0]
