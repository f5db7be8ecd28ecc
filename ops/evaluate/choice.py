"""Choice: which of several continuations is most probable? Scored as lm-eval does, plainly and per character."""

from __future__ import annotations

from collections.abc import Sequence

from ...registry.errors import Incompatible
from .bench import Bench, TokenRow
from .predictions import Prediction, accuracy, mean, settled
from .rows import Example


def score(bench: Bench, examples: Sequence[Example], metric: str) -> tuple[list[Prediction], dict[str, float | None]]:
    """Rows and metrics `accuracy`, `accuracy_norm` (log-likelihood per character of the choice) and `logprob` of the right one.

    Rows follow the suite's main metric: with `accuracy_norm` the answer is the normalised winner.
    """
    pairs = [(e.values["prompt"], choice) for e in examples for choice in e.values["choices"]]
    owners = [e.id for e in examples for _ in e.values["choices"]]
    sequences = [TokenRow(c, a, i) for (c, a), i in zip(bench.text.split(pairs), owners, strict=True)]
    if empty := next((s.example for s in sequences if not s.continuation), None):
        raise Incompatible(
            f"the tokenizer makes no token of a choice (example {empty!r})", hint="use a tokenizer that can write the choices"
        )
    logprobs = iter([likelihood.logprob for likelihood in bench.likelihoods(sequences)])
    scored = [[next(logprobs) for _ in e.values["choices"]] for e in examples]
    plain = [_row(e, values, per_character=False) for e, values in zip(examples, scored, strict=True)]
    normed = [_row(e, values, per_character=True) for e, values in zip(examples, scored, strict=True)]
    metrics = {"accuracy": accuracy(plain), "accuracy_norm": accuracy(normed), "logprob": mean(row.logprob for row in plain)}
    return (normed if metric == "accuracy_norm" else plain), metrics


def _row(example: Example, logprobs: list[float], *, per_character: bool) -> Prediction:
    choices, index = example.values["choices"], example.values["index"]
    values = [v / len(c) for v, c in zip(logprobs, choices, strict=True)] if per_character else logprobs
    best = max(range(len(values)), key=lambda i: (values[i], -i))  # of equals the first, as an argmax has it
    margin = values[index] - max(v for i, v in enumerate(values) if i != index)
    # margin - margin is zero for finite numbers only: one broken choice spoils the comparison
    broken = any(v - v != 0.0 for v in values)
    row = Prediction(example.id, choices[best].strip(), best == index, float("nan") if broken else margin, logprobs[index], example.slice)
    return settled(row)
