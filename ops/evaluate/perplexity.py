"""Perplexity: text cut into windows that each begin with BOS; every token of the text is scored once.

Documents (JSONL rows) are cut one by one, so a document's numbers do not depend on its neighbours. The last, shorter window
counts too. Perplexity is exp of the mean over tokens; bits per byte let models with different tokenizers be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .bench import Bench, TokenRow
from .predictions import Prediction, settled
from .rows import Example


def score(bench: Bench, examples: Sequence[Example], seq_len: int) -> tuple[list[Prediction], dict[str, float | None]]:
    """One row per window (score: mean nats per token) and metrics `perplexity`, `nll`, `tokens`, `bits_per_byte`."""
    windows, owners = cut(bench, examples, seq_len)
    rows = []
    for window, owner, likelihood in zip(windows, owners, bench.likelihoods(windows), strict=True):
        nll = -likelihood.logprob / len(window.continuation)
        rows.append(settled(Prediction(window.example, "", None, nll, likelihood.logprob, owner.slice)))
    tokens = sum(len(window.continuation) for window in windows)
    size = sum(len(example.values["text"].encode()) for example in examples)
    return rows, totals([row.logprob for row in rows], tokens, size)


def cut(bench: Bench, examples: Sequence[Example], seq_len: int) -> tuple[list[TokenRow], list[Example]]:
    """Windows of at most `seq_len` tokens with what begins them, and the document each was cut from; ids are `document#number`."""
    start = bench.text.start
    span = max(1, min(seq_len, bench.window or seq_len) - len(start))
    windows, owners = [], []
    for example, ids in zip(examples, bench.text.encode([e.values["text"] for e in examples]), strict=True):
        for number, at in enumerate(range(0, len(ids), span)):
            windows.append(TokenRow(start, ids[at : at + span], f"{example.id}#{number}"))
            owners.append(example)
    return windows, owners


def totals(logprobs: Sequence[float | None], tokens: int, size: int) -> dict[str, float | None]:
    """Metrics of all windows together; None throughout when one window has no finite log-probability."""
    known = [value for value in logprobs if value is not None]
    if not tokens or len(known) < len(logprobs):
        return {"perplexity": None, "nll": None, "tokens": float(tokens), "bits_per_byte": None}
    total = -math.fsum(known)
    nll = total / tokens
    perplexity = math.exp(nll) if nll < 700 else None  # beyond lies no float
    return {"perplexity": perplexity, "nll": nll, "tokens": float(tokens), "bits_per_byte": total / math.log(2) / size}
