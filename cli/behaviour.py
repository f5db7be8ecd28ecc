"""A lineage's behaviour from stored rows: how answers drifted from version to version, and the matrix of what was learned and kept."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..ops.evaluate.drift import Drift, drift
from ..ops.evaluate.exact_tests import holm
from ..ops.evaluate.matrix import summarise
from ..ops.evaluate.predictions import Prediction
from ..registry.errors import BadParameter, InputNotFound

if TYPE_CHECKING:
    from ..registry.ids import CommitId
    from ..registry.repository import Repository
    from .context import Session


# --- drift -----------------------------------------------------------------------------------------------


def line_behind(repo: Repository, tip: CommitId) -> list[CommitId]:
    """First parents from the root to `tip`."""
    line = [tip]
    while parents := repo.commit(line[-1]).parents:
        line.append(parents[0])
    return line[::-1]


def steps(session: Session, line: Sequence[CommitId], only: list[str] | None, *, measure: bool) -> list[dict[str, Any]]:
    """One entry per pair of versions that follow each other in `line`: every suite measured on both, Holm's p over the suites.

    A suite whose examples were changed between the two pairs by example id; ids on one side alone are counted.
    """
    found = []
    for a, b in itertools.pairwise(line):
        if session.repo.commit(a).snapshot == session.repo.commit(b).snapshot:
            continue
        suites = {name: _drift(session.repo, x, y) for name, x, y in _pairs(session, a, b, only, measure=measure)}
        adjusted = holm({name: value.p for name, value in suites.items()})
        shown = {name: {**_plain(value), "p": adjusted[name]} for name, value in suites.items()}
        found.append({"a": a, "b": b, "op": session.repo.commit(b).op.name, "suites": shown})
    return found


def _pairs(session: Session, a: CommitId, b: CommitId, only: list[str] | None, *, measure: bool) -> list[tuple[str, Any, Any]]:
    """Suites stored on both sides; where `only` names none of them the pair has none to show."""
    from .measuring import pairs

    try:
        return list(pairs(session, a, b, only=only, measure=measure))
    except InputNotFound:
        if measure:
            raise
        return []


def _drift(repo: Repository, a: Any, b: Any) -> Drift:
    return drift(_rows(repo, a.evaluation), _rows(repo, b.evaluation))


def _rows(repo: Repository, evaluation: int) -> list[Prediction]:
    from ..registry.catalog.behaviour import predictions

    return [Prediction(example, answer or "", *rest) for example, answer, *rest in predictions(repo, evaluation)]


def _plain(value: Drift) -> dict[str, Any]:
    return {**dataclasses.asdict(value), "forms": [dataclasses.asdict(form) for form in value.forms]}


# --- the matrix ------------------------------------------------------------------------------------------


def matrix(repo: Repository, tip: CommitId, learned: Sequence[str]) -> dict[str, Any]:
    """Scores of every version behind `tip` on every suite that is stored for one of them, and what follows from them.

    learned: `SUITE=REV` words: the version that was to learn a suite. Raises BadParameter for a suite or version that is not in the matrix.
    """
    line = line_behind(repo, tip)
    measured = [_scores(repo, commit) for commit in line]
    suites = sorted({name for row in measured for name in row})
    rows = [(commit, row) for commit, row in zip(line, measured, strict=True) if row]
    cells = [[row[name][1] if name in row else None for name in suites] for _, row in rows]
    places = {commit: at for at, (commit, _) in enumerate(rows)}
    tasks = _tasks(repo, learned, suites, places)
    kinds = {name: row[name][0] for row in measured for name in row}
    chance = {name: 0.5 if kind == "pairs" else 0.0 for name, kind in kinds.items()}
    return {
        "suites": suites,
        "scores": {name: "accuracy" if kind != "perplexity" else "-ln perplexity" for name, kind in kinds.items()},
        "versions": [{"commit": c, "op": repo.commit(c).op.name, "message": repo.commit(c).message} for c, _ in rows],
        "matrix": cells,
        "learned": {name: rows[at][0] for name, at in tasks.items()},
        "summary": dataclasses.asdict(summarise(cells, suites, tasks, chance)),
    }


def _scores(repo: Repository, commit: CommitId) -> dict[str, tuple[str, float | None]]:
    """Suite -> (kind, score) of one version: the latest whole measurement of each name."""
    from ..registry.catalog.behaviour import evaluations

    rows = [row for row in evaluations(repo, repo.commit(commit).snapshot) if row.limit is None]
    return {row.suite: (row.kind, score(row.metrics)) for row in reversed(rows)}


def score(metrics: dict[str, float | None]) -> float | None:
    """More is better: accuracy, else exact match, else minus the log of a perplexity; None when there is none of them."""
    for name in ("accuracy", "exact_match", "map"):
        if name in metrics:
            return metrics[name]
    perplexity = metrics.get("perplexity")
    return -math.log(perplexity) if perplexity is not None and perplexity > 0 else None


def _tasks(repo: Repository, words: Sequence[str], suites: Sequence[str], places: dict[CommitId, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        name, equals, rev = word.partition("=")
        if not equals or name not in suites:
            raise BadParameter(f"--learned {word} names no suite of the matrix", hint=f"--learned {suites[0] if suites else 'SUITE'}=REV")
        commit = repo.resolve(rev)
        if commit not in places:
            raise BadParameter(f"--learned {word}: {rev} is not among the measured versions of this line", hint="mlc log --matrix")
        found[name] = places[commit]
    return found
