"""The greedy soup: which versions belong into the mean, decided by a suite. The mean itself is an ordinary merge.

A mean that is tried is stored as its recipe (a few hundred bytes), measured once, and left to the garbage collection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..ops.merge.merge import Merge
from ..ops.merge.soups import greedy_soup
from ..registry.errors import BadParameter, Incompatible
from ..registry.ids import CommitId
from ..registry.records import Json
from .asking import find_suite
from .measure import Bench, Measured
from .outcome import Request
from .runs import Runs

if TYPE_CHECKING:
    from ..ops.evaluate.suite import Suite
    from ..registry.repository import Repository

SOUP = "soup_greedy"
LESS_IS_MORE = ("perplexity",)


def choose(
    repo: Repository, revs: Sequence[str], ids: tuple[CommitId, ...], values: dict[str, Any], request: Request
) -> tuple[dict[str, Any], dict[str, Json]]:
    """(fields of the merge, what is told in its check): weight 1 for a version that is in the soup, 0 for one that is not.

    `--set suite=NAME` says which suite; with one suite configured, it is that. Raises BadParameter, InputNotFound, Incompatible.
    """
    said = dict(text.partition("=")[::2] for text in values.get("settings") or ())
    suite = find_suite(request, deciding(request, said, "soup-greedy"))
    bench, names = Bench(repo, request), dict(zip(ids, revs, strict=True))
    metric: list[str] = []

    def score(members: tuple[str, ...]) -> float:
        alone = repo.commit(CommitId(members[0])).snapshot
        measured = bench.measure(alone, suite) if len(members) == 1 else tried(bench, suite, Merge(members, "soup"))
        metric[:], value = graded(suite, measured)
        return value

    if request.dry_run:
        return _fields(values, ids, ids), {}
    members, trials = greedy_soup(ids, score)
    sign = -1 if metric[0] in LESS_IS_MORE else 1
    rows: list[Json] = [{"members": [names[CommitId(m)] for m in t.members], metric[0]: sign * t.score, "kept": t.kept} for t in trials]
    return _fields(values, ids, members), {"soup": {"suite": suite.name, "members": list(members), "tried": rows}}


def _fields(values: dict[str, Any], ids: tuple[CommitId, ...], members: Sequence[str]) -> dict[str, Any]:
    weights = tuple(float(name in members) for name in ids)
    plain = {key: value for key, value in values.items() if key not in ("method", "base", "settings")}
    if plain.pop("weights", ()):
        raise BadParameter("a greedy soup finds its weights itself", hint="leave --weights out, or merge by --method soup")
    return plain | {"ingredients": ids, "method": "soup", "weights": weights}


def deciding(request: Request, said: Mapping[str, str], method: str) -> str:
    """The suite that decides: the one that is named, or the only one that is configured."""
    if set(said) - {"suite"}:
        raise BadParameter(f"{method} has no parameter {min(set(said) - {'suite'})!r}", hint="--set suite=NAME")
    if "suite" in said:
        return said["suite"]
    configured = request.config.suite_files()
    if len(configured) != 1:
        raise BadParameter(f"{method} needs a suite that decides", hint="--set suite=NAME, or FILE.toml")
    return str(configured[0])


def graded(suite: Suite, measured: Measured) -> tuple[list[str], float]:
    """([the name of the number that decides], that number with greater as better). Raises Incompatible for a suite that has none."""
    metric = next((name for name in ("accuracy", "exact_match", "perplexity") if name in measured.metrics), "")
    value = measured.metrics.get(metric)
    if value is None:
        raise Incompatible(f"{suite.name} gives no number that a merge could be chosen by", hint="--set suite=NAME of a cloze suite")
    return [metric], -value if metric in LESS_IS_MORE else value


def tried(bench: Bench, suite: Suite, op: Merge) -> Measured:
    """The result of a merge, stored so that it can be measured, and measured."""
    from .lifecycle import applied

    repo, request = bench.repo, bench.request
    lead = CommitId(op.ingredients[0])
    asked: dict[str, Json] = {"op": op.name, "params": op.params(), "seed": request.seed, "author": request.author, "message": ""}
    for left in Runs(repo).list():  # of a search that was killed: a trial is on no branch, and nobody would take it up
        if not left.active and not left.branch:
            Runs(repo).forget(left.id)
    with Runs(repo).begin(**asked, start=lead, branch="", old=None) as active, repo.ingest(author=request.author) as tx:
        try:
            snapshot, _ = applied(repo, tx, op, repo.view(lead), None, active)
            return bench.measure(snapshot.id, suite)
        finally:
            active.finish()
