"""Cloze: is the answer what greedy decoding writes after the prompt, and how probable is it?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...registry.errors import Incompatible
from .bench import Bench, Likelihood, TokenRow
from .predictions import Prediction, accuracy, mean, settled
from .rows import Example

LOOK_AHEAD = 3  # tokens beyond the true answer's length that a wrong answer may take to finish its words
STOPS = ".,;:!?\"'"


def score(bench: Bench, examples: Sequence[Example], metric: str) -> tuple[list[Prediction], dict[str, float | None]]:
    """Rows and metrics `accuracy` (all answer tokens are greedy) and `logprob` (mean nats of the whole answer)."""
    sequences = encode(bench, examples)
    likelihoods = bench.likelihoods(sequences)
    answers = written(bench, examples, sequences, likelihoods)
    rows = []
    for example, sequence, likelihood, answer in zip(examples, sequences, likelihoods, answers, strict=True):
        # An answer that the vocabulary cannot write is never right, even if the model writes "unknown".
        right = likelihood.greedy and bench.text.unknown not in sequence.continuation
        probability = math.exp(likelihood.logprob)
        rows.append(settled(Prediction(example.id, answer, right, probability, likelihood.logprob, example.slice)))
    return rows, {"accuracy": accuracy(rows), "logprob": mean(row.logprob for row in rows)}


def encode(bench: Bench, examples: Sequence[Example]) -> list[TokenRow]:
    """Prompt and answer as token ids. Raises Incompatible where the tokenizer leaves nothing of an answer."""
    pairs = bench.text.split([(e.values["prompt"], e.values["answer"]) for e in examples])
    for example, (_, continuation) in zip(examples, pairs, strict=True):
        if not continuation:
            raise Incompatible(
                f"the tokenizer makes no token of the answer {example.values['answer']!r:.40} (example {example.id!r})",
                hint="use a tokenizer that can write the answers, or remove the example",
            )
    return [TokenRow(context, answer, e.id) for e, (context, answer) in zip(examples, pairs, strict=True)]


def written(bench: Bench, examples: Sequence[Example], sequences: Sequence[TokenRow], likelihoods: Sequence[Likelihood]) -> list[str]:
    """What greedy decoding writes in place of each answer, cut to as many words as the answer has.

    Right rows need no decoding; wrong ones go on from the first token that differs, a token at a time, all rows together.
    """
    texts = [example.values["answer"] for example in examples]
    heads, tails, goals = {}, {}, {}
    for i, (sequence, likelihood) in enumerate(zip(sequences, likelihoods, strict=True)):
        if not likelihood.greedy:
            place = next(k for k, token in enumerate(sequence.continuation) if likelihood.best[k] != token)
            heads[i] = sequence.context
            tails[i] = [*sequence.continuation[:place], likelihood.best[place]]
            goals[i] = len(sequence.continuation) + LOOK_AHEAD
    pending = list(tails)
    while pending := [i for i in pending if not _finished(bench, tails[i], goals[i], texts[i])]:
        following = bench.next_tokens([heads[i] + tails[i] for i in pending])
        for i, token in zip(pending, following, strict=True):
            tails[i].append(token)
    return [_cut(bench.text.decode(tails[i]), text) if i in tails else text.strip() for i, text in enumerate(texts)]


def _finished(bench: Bench, tail: list[int], goal: int, answer: str) -> bool:
    """Enough tokens, an end of text, or one word more than the answer has (then its last word is complete)."""
    if len(tail) >= goal or tail[-1] == bench.text.end:
        return True
    words = bench.text.decode(tail).split()
    return len(words) > len(answer.split()) or (len(words) == len(answer.split()) and words[-1][-1] in STOPS)


def _cut(text: str, answer: str) -> str:
    return " ".join(text.split()[: len(answer.split())]).rstrip(STOPS) or text.strip()
