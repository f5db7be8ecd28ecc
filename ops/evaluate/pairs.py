"""Minimal pairs, as BLiMP has them: is the good sentence more probable than the bad one?"""

from __future__ import annotations

from collections.abc import Sequence

from .bench import Bench, TokenRow
from .predictions import Prediction, accuracy, mean, settled
from .rows import Example


def score(bench: Bench, examples: Sequence[Example], metric: str) -> tuple[list[Prediction], dict[str, float | None]]:
    """Rows and metrics `accuracy` (sum of log-probabilities, good over bad, ties are wrong) and `logprob` of the good sentences."""
    texts = [e.values[side] for e in examples for side in ("good", "bad")]
    owners = [e.id for e in examples for _ in range(2)]
    start = bench.text.start
    sequences = [TokenRow(start, ids, owner) for ids, owner in zip(bench.text.encode(texts), owners, strict=True)]
    values = [likelihood.logprob for likelihood in bench.likelihoods(sequences)]
    rows = []
    for i, example in enumerate(examples):
        good, bad = values[2 * i], values[2 * i + 1]
        answer = "good" if good > bad else "bad"
        rows.append(settled(Prediction(example.id, answer, good > bad, good - bad, good, example.slice)))
    return rows, {"accuracy": accuracy(rows), "logprob": mean(row.logprob for row in rows)}
