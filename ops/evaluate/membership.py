"""Membership: can texts that a model was trained on be told from texts that it never saw? Scored by AUC, see leakage.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ...registry.errors import Incompatible
from .bench import Bench, TokenRow
from .leakage import ATTACKS, TokenStats, auc, membership_scores
from .predictions import Prediction, settled
from .rows import Example


def score(bench: Bench, examples: Sequence[Example], metric: str) -> tuple[list[Prediction], dict[str, float | None]]:
    """Rows (score: what `metric` ranks by, higher is more like a member; never right or wrong) and one AUC for each attack.

    1 means that members are clearly recognised, 0.5 is the ideal. None when one text has no finite score.
    """
    stats = read(bench, examples)
    scores = [membership_scores(found, e.values["text"]) for found, e in zip(stats, examples, strict=True)]
    labels = [e.values["member"] for e in examples]
    ranked_by = metric.removeprefix("auc_")
    rows = [
        settled(Prediction(e.id, "member" if label else "stranger", None, values[ranked_by], math.fsum(found.logprobs), e.slice))
        for e, label, values, found in zip(examples, labels, scores, stats, strict=True)
    ]
    return rows, {f"auc_{attack}": auc([values[attack] for values in scores], labels) for attack in ATTACKS}


def read(bench: Bench, examples: Sequence[Example]) -> list[TokenStats]:
    """The scored tokens of each text, or of each answer after its prompt; texts longer than the window are read in pieces."""
    rows, owners = [], []
    for number, row in _rows(bench, examples):
        rows.append(row)
        owners.append(number)
    found: list[TokenStats | None] = [None] * len(examples)
    for owner, stats in zip(owners, bench.token_stats(rows), strict=True):
        before = found[owner]
        found[owner] = stats if before is None else before + stats
    if empty := next((e.id for e, stats in zip(examples, found, strict=True) if stats is None), None):
        raise Incompatible(f"the tokenizer makes no token of a text (example {empty!r})", hint="use a tokenizer that can write the texts")
    return [stats for stats in found if stats is not None]


def _rows(bench: Bench, examples: Sequence[Example]) -> Iterator[tuple[int, TokenRow]]:
    """(number of the example, tokens to score): one row for an answer, one for each window of a running text."""
    plain = [i for i, e in enumerate(examples) if e.values["prompt"] is None]
    asked = [i for i, e in enumerate(examples) if e.values["prompt"] is not None]
    pairs = bench.text.split([(examples[i].values["prompt"], examples[i].values["text"]) for i in asked])
    for i, (context, answer) in zip(asked, pairs, strict=True):
        if answer:
            yield i, TokenRow(context, answer, examples[i].id)
    for i, ids in zip(plain, bench.text.encode([examples[i].values["text"] for i in plain]), strict=True):
        start = bench.text.start
        span = max(1, bench.window - len(start)) if bench.window else len(ids)
        for at in range(0, len(ids), max(1, span)):
            yield i, TokenRow(start, ids[at : at + span], examples[i].id)
