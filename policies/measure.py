"""Measuring versions on suites, each once: what the catalog knows is not run again. Gathers the numbers that rules ask for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ..ops.evaluate.drift import drift
from ..ops.evaluate.flips import Outcome as Answer
from ..ops.evaluate.flips import compare, compare_slices
from ..ops.evaluate.ks import ks_test
from ..ops.evaluate.suite import Suite, load_suite
from ..registry.errors import BadRecipe, Incompatible
from ..registry.ids import Digest, SnapshotId
from .environment import environment
from .facts import Comparison, SuiteFacts
from .outcome import Request

if TYPE_CHECKING:
    from pathlib import Path

    from ..ops.evaluate.predictions import Prediction
    from ..registry.repository import Repository


@dataclass(frozen=True, slots=True)
class Measured:
    """One suite on one snapshot. `id` is the evaluation's, as commits name it; `cached` when nothing was run for it."""

    id: Digest
    metrics: dict[str, float | None]
    n: int
    predictions: Digest
    cached: bool


@dataclass
class Gathered:
    """Everything measured for one candidate."""

    suites: tuple[SuiteFacts, ...] = ()
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    evaluations: dict[str, Digest] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def load_suites(paths: Sequence[Path]) -> list[Suite]:
    """Load and check suites, data included, so that nothing is trained before a broken suite is known.

    Raises InputNotFound, BadRecipe (two of one name, too), BadInputFile.
    """
    suites: dict[str, Suite] = {}
    for path in paths:
        suite = load_suite(path)
        if suite.name in suites:
            raise BadRecipe(f"two suites are called {suite.name!r}: {suites[suite.name].path.name} and {path.name}", hint="rename one")
        suite.examples()
        suites[suite.name] = suite
    return list(suites.values())


class Bench:
    """Measures snapshots of one repository. A model is loaded when the first suite needs it, and one is held at a time."""

    def __init__(self, repo: Repository, request: Request) -> None:
        self.repo, self.request = repo, request
        self._held: tuple[SnapshotId, Any] | None = None

    def measure(self, snapshot: SnapshotId, suite: Suite, *, limit: int | None = None) -> Measured:
        """The suite on the snapshot: from the catalog, else run and recorded in a transaction of its own.

        Raises Incompatible when the model cannot answer the suite.
        """
        from ..ops.evaluate.runner import SCORER
        from ..registry.catalog.behaviour import find_evaluation

        row = find_evaluation(self.repo, snapshot, suite.digest, limit, SCORER)
        if row is not None:
            return Measured(Digest(row.id), row.metrics, row.n, Digest(row.predictions), True)
        return self._run(snapshot, suite, limit)

    def answers(self, measured: Measured) -> list[Answer]:
        """The recorded answers, one per example."""
        from ..ops.evaluate.predictions import outcomes

        return outcomes(self.rows(measured))

    def rows(self, measured: Measured) -> list[Prediction]:
        """The recorded rows, scores and all."""
        from ..ops.evaluate.predictions import from_arrow

        return from_arrow(self.repo.blob(measured.predictions))

    def _run(self, snapshot: SnapshotId, suite: Suite, limit: int | None) -> Measured:
        from ..ops.evaluate.runner import evaluate

        loaded = self._loaded(snapshot)
        result = evaluate(
            loaded.view,
            suite,
            limit=limit,
            batch_tokens=self.request.config.batch_tokens,
            progress=self.request.report,
            model=loaded.model,
            tokenizer=loaded.tokenizer if _reads_text(suite) else None,
        )
        rows = self._veiled(suite, result.rows) if suite.private else result.rows
        with self.repo.ingest(author=self.request.author, estimate=len(rows)) as tx:
            evaluation = result.record(snapshot, tx.put_blob(rows), environment(forward=True))
            tx.record_evaluation(evaluation)
        return Measured(evaluation.id, result.metrics, result.n, evaluation.predictions, False)

    def _veiled(self, suite: Suite, rows: bytes) -> bytes:
        """The rows of a private suite as they may be stored: under a key of its own, which can be destroyed."""
        from ..ops.evaluate.predictions import from_arrow, to_arrow, veiled

        return to_arrow(veiled(from_arrow(rows), partial(self.repo.keys.pseudonym, key_scope(suite))))

    def _loaded(self, snapshot: SnapshotId) -> _Loaded:
        if self._held is None or self._held[0] != snapshot:
            self._held = None  # let go of the other model before this one takes memory
            self._held = (snapshot, _Loaded(self.repo.view(snapshot)))
        return self._held[1]


class _Loaded:
    """A version's model and tokenizer, loaded when asked for."""

    def __init__(self, view: Any) -> None:
        self.view = view

    @cached_property
    def model(self) -> Any:
        from ..ops.evaluate.runner import load

        return load(self.view)

    @cached_property
    def tokenizer(self) -> Any:
        from ..ops.models import load_tokenizer

        return load_tokenizer(self.view)


def key_scope(suite: Suite) -> str:
    """The scope of the key that stands between a private suite's texts and their digests: one per suite name."""
    return f"suite-{suite.name}"


def _reads_text(suite: Suite) -> bool:
    return suite.traits.language  # a classifier of images has no tokenizer; the runner looks for one when it needs it


# --- gathering -------------------------------------------------------------------------------------------


def gather(bench: Bench, suites: Sequence[Suite], candidate: SnapshotId, others: Mapping[str, SnapshotId]) -> Gathered:
    """The candidate on every suite, beside the other versions by label.

    A suite that no version can answer is left out with a warning. One that another version answers and the candidate
    does not counts as answered without a finite number, which fails every rule that asks for it.
    """
    found = Gathered()
    facts: list[SuiteFacts] = []
    theirs: dict[str, dict[str, Measured]] = {suite.name: {} for suite in suites}
    for label, snapshot in others.items():  # one version after the other: each model is loaded once
        for suite in suites:
            with contextlib.suppress(Incompatible):
                theirs[suite.name][label] = bench.measure(snapshot, suite)
    for suite in suites:
        before = theirs[suite.name]
        try:
            measured = bench.measure(candidate, suite)
        except Incompatible as reason:
            found.warnings.append(f"{suite.name} was not measured: {reason.message}")
            if before:
                facts.append(_unanswered(suite, before))
            continue
        found.metrics[suite.name], found.evaluations[suite.name] = measured.metrics, measured.id
        against = {label: _compared(bench, suite, other, measured) for label, other in before.items()}
        facts.append(SuiteFacts(suite.name, suite.kind, measured.n, measured.metrics, chance(suite), against))
    found.suites = tuple(facts)
    return found


def _compared(bench: Bench, suite: Suite, before: Measured, after: Measured) -> Comparison:
    if not suite.traits.judged:
        return Comparison(before.metrics)
    old, new = bench.answers(before), bench.answers(after)
    flips = compare(old, new)
    if suite.kind == "truth":
        ratios = [[row.score for row in bench.rows(side) if row.score is not None] for side in (before, after)]
        found = ks_test(*ratios) if all(ratios) else None
        flips = replace(flips, ks=found.statistic, ks_p=found.p) if found else flips
    return Comparison(before.metrics, flips, compare_slices(old, new) if suite.slices else {})


def drifted(bench: Bench, suites: Sequence[Suite], before: SnapshotId, after: SnapshotId) -> dict[str, Any]:
    """What rules call drift.*: the largest of each number over all suites, and the numbers of each suite under its name.

    mismatch, mismatch_lower95: shares of answers that differ. lengthened: |ln| of the ratio of lengths. silenced: share of answers that
    became empty. Suites that a version cannot answer are left out.
    """
    found: dict[str, Any] = {}
    for suite in suites:
        with contextlib.suppress(Incompatible):
            seen = drift(*(bench.rows(bench.measure(side, suite)) for side in (before, after)))
            found[suite.name] = {
                "mismatch": seen.mismatch,
                "mismatch_lower95": seen.mismatch_lower95,
                "lengthened": abs(math.log(seen.length_ratio)) if seen.length_ratio else None,
                "silenced": None if seen.answered_a is None or seen.answered_b is None else seen.answered_a - seen.answered_b,
            }
    keys = {key for numbers in found.values() for key in numbers}
    worst = {key: max((n[key] for n in found.values() if n[key] is not None), default=None) for key in keys}
    return {**worst, **found}


def _unanswered(suite: Suite, before: Mapping[str, Measured]) -> SuiteFacts:
    metrics: dict[str, float | None] = {name: None for measured in before.values() for name in measured.metrics}
    against = {label: Comparison(measured.metrics) for label, measured in before.items()}
    return SuiteFacts(suite.name, suite.kind, 0, metrics, chance(suite), against)


def chance(suite: Suite) -> float:
    """The accuracy that guessing gives: 1/2 for pairs, the mean of 1/choices, the commonest label's share, 0 for free answers.

    In a truth suite the right answer is one choice and every wrong one another; rows without wrong answers are not judged.
    """
    if suite.kind == "pairs":
        return 0.5
    if suite.kind == "choice":
        shares = [1 / len(example.values["choices"]) for example in suite.examples()]
        return sum(shares) / len(shares)
    if suite.kind == "truth":
        shares = [1 / (1 + len(wrong)) for example in suite.examples() if (wrong := example.values["perturbed_answer"])]
        return sum(shares) / len(shares) if shares else 0.0
    if suite.kind == "classify":
        labels = [example.values["label"] for example in suite.examples()]
        return max(labels.count(label) for label in set(labels)) / len(labels)
    return 0.0
