"""Questions about behaviour: what was measured, and which examples two evaluations judge differently.

Counting happens in SQL: comparing 2 x 100,000 predictions takes 40 ms, of which Python sees a handful of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class EvaluationRow(NamedTuple):
    """One measurement. `evaluation` is its number in the catalog, `id` what commits name it by, `record` the object that holds it."""

    evaluation: int
    id: str
    snapshot: str
    suite: str
    suite_digest: str
    kind: str
    n: int
    limit: int | None
    scorer: str
    predictions: str
    record: str
    metrics: dict[str, float | None]


class SliceCounts(NamedTuple):
    """Counts over the examples that both evaluations answered and judged."""

    slice: str | None
    n: int
    right_a: int
    right_b: int
    negative: int  # right in a, wrong in b
    positive: int  # wrong in a, right in b
    churn: int  # another answer, right or wrong


class Flip(NamedTuple):
    """One example that the two evaluations judge differently."""

    example: str
    answer_a: str | None
    answer_b: str | None
    slice: str | None
    kind: str  # negative or positive


class Comparison(NamedTuple):
    """What changed between two evaluations. `total` sums the slices; `only_a` and `only_b` count examples without a partner."""

    total: SliceCounts
    slices: list[SliceCounts]
    only_a: int
    only_b: int
    flips: list[Flip]


class Moved(NamedTuple):
    """How a number of each example moved between two evaluations, over the examples that have it in both."""

    n: int
    gain: float  # sum of what rose
    loss: float  # sum of what fell
    fallen: tuple[int, ...]  # examples that fell by more than each tolerance


_EVALUATIONS = """
    select m.evaluation, m.id, m.snapshot, m.suite, m.suite_digest, m.kind, m.n, m."limit", m.scorer, m.predictions, m.record,
           list(struct_pack(k := x.metric, v := x.value) order by x.metric) filter (where x.metric is not null)
    from measurements m left join metrics x using (evaluation)
    where {where} group by all order by m.evaluation desc"""


def evaluations(repo: Any, snapshot: str) -> list[EvaluationRow]:
    """All measurements of a snapshot, the latest first."""
    return _evaluations(repo, "m.snapshot = $snapshot", {"snapshot": snapshot})


def find_evaluation(repo: Any, snapshot: str, suite_digest: str, limit: int | None, scorer: str | None = None) -> EvaluationRow | None:
    """The latest measurement of a snapshot with this suite and limit (None: all examples), or None: the cache of `mlc eval`."""
    where = """m.snapshot = $snapshot and m.suite_digest = $suite and m."limit" is not distinct from $limit
               and ($scorer is null or m.scorer = $scorer)"""
    found = _evaluations(repo, where, {"snapshot": snapshot, "suite": suite_digest, "limit": limit, "scorer": scorer})
    return found[0] if found else None


def _evaluations(repo: Any, where: str, values: dict[str, Any]) -> list[EvaluationRow]:
    rows = repo.catalog.read(repo, lambda connection: connection.execute(_EVALUATIONS.format(where=where), values).fetchall())
    return [EvaluationRow._make((*row[:-1], {pair["k"]: pair["v"] for pair in row[-1] or ()})) for row in rows]


_PAIRS = """
    from (select * from predictions where evaluation = $a) p join (select * from predictions where evaluation = $b) q using (example)"""
_COUNTS = f"""
    select p.slice, count(*), count(*) filter (p.correct), count(*) filter (q.correct), count(*) filter (p.correct and not q.correct),
           count(*) filter (q.correct and not p.correct), count(*) filter (p.answer is distinct from q.answer)
    {_PAIRS} where p.correct is not null and q.correct is not null group by p.slice order by p.slice nulls first"""
_ALONE = f"""
    select (select count(*) from predictions where evaluation = $a) - count(*),
           (select count(*) from predictions where evaluation = $b) - count(*)
    {_PAIRS}"""
_FLIPS = "select example, answer_a, answer_b, slice, kind from flips($a, $b) limit $limit"


def compare(repo: Any, a: int, b: int, limit: int | None = None) -> Comparison:
    """Compare two evaluations by example. `limit` bounds the list of flips (None: all, 0: none), never the counts.

    Flips come negative ones first, then by example. Raises IntegrityError when the stored predictions cannot be read.
    """

    def ask(connection: Any) -> Comparison:
        pair = {"a": a, "b": b}
        slices = [SliceCounts._make(row) for row in connection.execute(_COUNTS, pair).fetchall()]
        [alone] = connection.execute(_ALONE, pair).fetchall()
        flips = connection.execute(_FLIPS, pair | {"limit": limit}).fetchall() if limit != 0 else []
        total = (
            SliceCounts(None, *(sum(column) for column in zip(*(s[1:] for s in slices), strict=True)))
            if slices
            else SliceCounts(None, *[0] * 6)
        )
        return Comparison(total, slices, alone[0], alone[1], [Flip._make(row) for row in flips])

    return repo.catalog.read_loaded(repo, {a, b}, ask)


def moved(repo: Any, a: int, b: int, column: str, tolerances: Sequence[float]) -> Moved:
    """How `column` (score or logprob) moved from evaluation a to b. Raises IntegrityError as `compare`."""
    if column not in ("score", "logprob"):
        raise ValueError(f"predictions have no number called {column!r}")
    fell = "".join(f", count(*) filter (p.{column} - q.{column} > {float(e)!r})" for e in tolerances)
    query = f"""
        select count(*), coalesce(sum(greatest(q.{column} - p.{column}, 0)), 0),
               coalesce(sum(greatest(p.{column} - q.{column}, 0)), 0){fell}
        {_PAIRS} where isfinite(p.{column}) and isfinite(q.{column})"""
    rows = repo.catalog.read_loaded(repo, {a, b}, lambda connection: connection.execute(query, {"a": a, "b": b}).fetchall())
    n, gain, loss, *fallen = rows[0]
    return Moved(n, gain, loss, tuple(fallen))


def predictions(repo: Any, evaluation: int) -> list[tuple[Any, ...]]:
    """(example, answer, correct, score, logprob, slice) of every example of one evaluation, by example."""
    query = "select example, answer, correct, score, logprob, slice from predictions where evaluation = ? order by example"
    return repo.catalog.read_loaded(repo, {evaluation}, lambda connection: connection.execute(query, [evaluation]).fetchall())
