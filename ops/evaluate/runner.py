"""Measure one model on one suite: metrics, and a row per example. Reads the model and the suite, writes nothing.

The same model and suite give the same numbers whatever the batch size, up to the rounding of a matrix product; answers and
right or wrong are the same except at exact near-ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ...registry.errors import Incompatible
from ...registry.ids import Digest, SnapshotId
from ...registry.records import Evaluation, Json
from . import utility
from .predictions import Prediction, to_arrow
from .suite import Suite

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from ...registry.view import ModelView
    from .bench import Bench, Progress

SCORER = "builtin:1"  # raise the number when a scorer's meaning changes: old rows must not be compared with new ones

LANGUAGE_HEADS = ("ForCausalLM", "LMHeadModel")
CLASS_HEADS = ("ForSequenceClassification", "ForImageClassification")


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What was measured. `rows` are Arrow IPC bytes (see predictions.py); `n` is their number."""

    suite: str
    suite_digest: str
    kind: str
    metrics: dict[str, float | None]
    n: int
    rows: bytes = field(repr=False)
    limit: int | None = None

    def record(self, snapshot: SnapshotId, predictions: Digest, environment: dict[str, Json] | None = None) -> Evaluation:
        """The registry's record of this measurement, once the rows are stored under `predictions`."""
        return Evaluation(
            snapshot=snapshot,
            suite=self.suite,
            suite_digest=self.suite_digest,
            kind=self.kind,
            metrics=self.metrics,
            n=self.n,
            predictions=predictions,
            scorer=SCORER,
            limit=self.limit,
            environment=environment or {},
        )


def evaluate(
    view: ModelView | None,
    suite: Suite,
    *,
    limit: int | None = None,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> EvaluationResult:
    """Score `suite` on the model of `view`.

    limit: only the first rows (documents, for perplexity). batch_tokens: padded tokens per forward pass. model, tokenizer: used
    instead of the view's own when given (a caller with several suites loads once). Raises Incompatible when the model has not the
    head that the suite's kind needs, BadInputFile for a bad row of the data.
    """
    import torch

    examples = suite.examples(None if suite.kind == "retrieval" else limit)  # a gallery that is cut short makes every search look good
    model = model if model is not None else load(view)
    check_head(suite, model)
    if suite.parts:
        tokenizer = tokenizer if tokenizer is not None else _tokenizer(view)
        with_model = partial(evaluate, view, limit=limit, batch_tokens=batch_tokens, progress=progress, model=model, tokenizer=tokenizer)
        rows, metrics = utility.summed_up({part.name: with_model(part).metrics for part in suite.parts})
        return EvaluationResult(suite.name, suite.digest, suite.kind, metrics, len(rows), to_arrow(rows), limit)
    from .bench import Bench
    from .coder import Coder

    images = suite.kind == "classify" and "image" in examples[0].values
    if tokenizer is None and not images:
        tokenizer = _tokenizer(view)
    if suite.kind == "retrieval":
        from ..embed.search import score

        with torch.inference_mode(), _still(model), _discreet(suite):
            rows, metrics = score(view, model, tokenizer, examples, limit, batch_tokens, progress)
        return EvaluationResult(suite.name, suite.digest, suite.kind, metrics, len(rows), to_arrow(rows), limit)
    bench = Bench(model, None if tokenizer is None else Coder(tokenizer), batch_tokens, f"eval {suite.name}", progress)
    with torch.inference_mode(), _still(model), _discreet(suite):
        rows, metrics = _score(bench, suite, examples)
    return EvaluationResult(suite.name, suite.digest, suite.kind, metrics, len(rows), to_arrow(rows), limit)


def load(view: ModelView | None) -> PreTrainedModel:
    """The view's model in float32: half precision makes near-ties, and then answers depend on the batch they were asked in."""
    import torch

    from ..models import load_model

    if view is None:
        raise TypeError("evaluate needs a view or a model")
    return load_model(view, dtype=torch.float32)


def check_head(suite: Suite, model: PreTrainedModel) -> None:
    """Raise Incompatible when the model's class cannot answer this kind of suite."""
    name = type(model).__name__
    if suite.kind == "retrieval":
        if name.endswith((*LANGUAGE_HEADS, *CLASS_HEADS)):
            raise Incompatible(
                f"suite {suite.name!r} is of kind retrieval, which {name} cannot answer", hint="it needs an encoder such as BertModel"
            )
        return
    heads = LANGUAGE_HEADS if suite.traits.language else CLASS_HEADS
    if not name.endswith(heads):
        raise Incompatible(
            f"suite {suite.name!r} is of kind {suite.kind}, which {name} cannot answer",
            hint=f"a {suite.kind} suite needs a model of class *{' or *'.join(heads)}",
        )


def _tokenizer(view: ModelView | None) -> PreTrainedTokenizerFast:
    from ..models import load_tokenizer

    if view is None:
        raise TypeError("evaluate needs a view or a tokenizer")
    return load_tokenizer(view)


def _score(bench: Bench, suite: Suite, examples: list) -> tuple[list[Prediction], dict[str, float | None]]:
    """The scorer of the suite's kind. Modules that need torch are loaded here and not before."""
    from . import choice, classify, cloze, generate, membership, pairs, perplexity, truth
    from .decode import Limits

    limits = Limits(suite.max_tokens, suite.stop)
    if suite.kind == "perplexity":
        return perplexity.score(bench, examples, suite.seq_len)
    if suite.kind == "generate":
        return generate.score(bench, examples, limits)
    if suite.kind == "truth":
        return truth.score(bench, examples, options=suite.options, rouge=suite.rouge, limits=limits)
    scorers = {"cloze": cloze, "choice": choice, "pairs": pairs, "classify": classify, "membership": membership}
    return scorers[suite.kind].score(bench, examples, suite.metric)


@contextmanager
def _discreet(suite: Suite) -> Iterator[None]:
    """A private suite's complaints quote nothing: scorers name examples and answers, which may be what is to be kept secret."""
    try:
        yield
    except Incompatible:
        if not suite.private:
            raise
        raise Incompatible(
            f"a row of the private suite {suite.name!r} cannot be scored by this model",
            hint="measure a copy with private = false in a scratch registry to see which row and why",
        ) from None


@contextmanager
def _still(model: PreTrainedModel) -> Iterator[None]:
    """The model in eval mode, and back to how it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
