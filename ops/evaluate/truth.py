"""Truth: how probable is the right answer beside wrong ones? The measures of TOFU (Maini et al., 2024, arXiv 2401.06121).

All probabilities are per token: P(a|q)^(1/|a|) = exp(-NLL/|a|), |a| in tokens of the answer. The truth ratio of a question,
R = exp(NLL(paraphrase)/|paraphrase| - mean_j NLL(wrong_j)/|wrong_j|), is the geometric mean of the wrong answers' probabilities
over that of the right answer in other words: near 0 for a model that knows, near 1 for one that never saw the fact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...registry.errors import Incompatible
from .bench import Bench, TokenRow
from .decode import Limits, write
from .overlap import overlap
from .predictions import Prediction, accuracy, mean
from .rows import Example

FAR = 700.0  # nats: e to this power is still a float


@dataclass(frozen=True, slots=True)
class Answered:
    """Nats per token of one question's answers: the right one, its paraphrase, the wrong ones; `logprob` is the right one's total."""

    answer: float
    paraphrase: float
    wrong: tuple[float, ...]
    logprob: float

    @property
    def finite(self) -> bool:
        """No number is missing."""
        return all(map(math.isfinite, (self.answer, self.paraphrase, *self.wrong)))


def probability(answered: Answered, *, options: bool) -> float | None:
    """The right answer's probability per token; with `options`, its share of the sum over all answers. None when a number is missing."""
    if not answered.finite:
        return None
    if not options:
        return math.exp(answered.answer)
    top = max(answered.answer, *answered.wrong)
    return math.exp(answered.answer - top) / math.fsum(math.exp(x - top) for x in (answered.answer, *answered.wrong))


def truth_ratio(answered: Answered) -> float | None:
    """R; None without wrong answers or when a number is missing. Beyond e^700 it is cut there: the order is what counts."""
    if not answered.wrong or not answered.finite:
        return None
    exponent = math.fsum(answered.wrong) / len(answered.wrong) - answered.paraphrase
    return math.exp(max(-FAR, min(FAR, exponent)))


def ratio_metrics(ratios: Sequence[float | None]) -> dict[str, float | None]:
    """`truth_ratio`: mean max(0, 1 - R), higher is better where facts are kept; `truth_ratio_forget`: mean min(R, 1/R), 1 is forgotten."""
    return {
        "truth_ratio": mean(None if r is None else max(0.0, 1.0 - r) for r in ratios),
        "truth_ratio_forget": mean(None if r is None else min(r, 1.0 / r) for r in ratios),
    }


def score(
    bench: Bench, examples: Sequence[Example], *, options: bool, rouge: bool, limits: Limits
) -> tuple[list[Prediction], dict[str, float | None]]:
    """Rows (right: no wrong answer is as probable per token; score: R; answer: the most probable one) and the metrics.

    A metric is None when one row has no number for it. Rows without wrong answers are neither right nor wrong.
    """
    answered = list(_answered(bench, examples))
    ratios = [truth_ratio(a) for a in answered]
    rows = [_row(e, a, r) for e, a, r in zip(examples, answered, ratios, strict=True)]
    metrics = {
        "accuracy": accuracy(rows) if all(row.correct is not None for row in rows) else None,
        "probability": mean(probability(a, options=options) for a in answered),
        **ratio_metrics(ratios),
    }
    if rouge:
        texts = write(bench, [e.values["prompt"] for e in examples], limits)
        metrics["rouge_l"] = mean(overlap(text, e.values["answer"]).rouge_l for e, text in zip(examples, texts, strict=True))
    return rows, metrics


def _row(example: Example, answered: Answered, ratio: float | None) -> Prediction:
    texts = [example.values["answer"], *example.values["perturbed_answer"]]
    values = [answered.answer, *answered.wrong]
    right = None
    if answered.wrong:
        right = answered.finite and answered.answer > max(answered.wrong)  # a tie knows nothing
    best = max(range(len(values)), key=lambda i: (values[i], i)) if answered.finite else 0
    logprob = answered.logprob if math.isfinite(answered.logprob) else None
    return Prediction(example.id, texts[best].strip(), right, ratio, logprob, example.slice)


def _answered(bench: Bench, examples: Sequence[Example]) -> Iterator[Answered]:
    """One entry per example, each different answer scored once."""
    texts = [_answers(e) for e in examples]
    pairs = [(e.values["prompt"], answer) for e, answers in zip(examples, texts, strict=True) for answer in answers]
    owners = [e.id for e, answers in zip(examples, texts, strict=True) for _ in answers]
    sequences = [TokenRow(context, ids, owner) for (context, ids), owner in zip(bench.text.split(pairs), owners, strict=True)]
    if empty := next((s.example for s in sequences if not s.continuation), None):
        hint = "use a tokenizer that can write the answers"
        raise Incompatible(f"the tokenizer makes no token of an answer (example {empty!r})", hint=hint)
    found = bench.likelihoods(sequences)
    scored = iter([(likelihood.logprob, len(s.continuation)) for likelihood, s in zip(found, sequences, strict=True)])
    for example, answers in zip(examples, texts, strict=True):
        nats = {answer: next(scored) for answer in answers}
        per_token = {answer: total / tokens for answer, (total, tokens) in nats.items()}
        values = example.values
        yield Answered(
            per_token[values["answer"]],
            per_token[values["paraphrased_answer"]],
            tuple(per_token[wrong] for wrong in values["perturbed_answer"]),
            nats[values["answer"]][0],
        )


def _answers(example: Example) -> list[str]:
    values = example.values
    return list(dict.fromkeys([values["answer"], values["paraphrased_answer"], *values["perturbed_answer"]]))
