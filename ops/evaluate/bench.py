"""The bench that all scorers work on: a model, its text coder, batches by token budget, log-likelihoods.

Rows are padded on the right and go through a causal model without a mask, so a row's numbers do not depend on its neighbours
beyond the rounding of a matrix product. Log-softmax is always in float32, whatever the weights are stored in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import TYPE_CHECKING

import torch

from ...registry.errors import Incompatible
from .leakage import TokenStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .coder import Coder

LOGITS = 1 << 26  # most logits in one batch (256 MB in float32): vocabularies of 150,000 words shrink the batch, not the machine

Progress = Callable[[str, int, int], None]  # phase, done, total: what Run.progress takes


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids to condition on (at least one) and token ids to score (at least one)."""

    context: list[int]
    continuation: list[int]
    example: str  # for complaints

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How a model takes one sequence: natural log-probability of the continuation, and its own choice at each place."""

    logprob: float
    best: list[int]  # argmax where each token of the continuation stands, given all true tokens before it
    greedy: bool  # the continuation is exactly what greedy decoding would write


@dataclass
class Bench:
    """A model set up for measuring. `coder` is None for image models."""

    model: PreTrainedModel
    coder: Coder | None
    batch_tokens: int
    phase: str
    progress: Progress | None = None

    @cached_property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @cached_property
    def window(self) -> int | None:
        """The longest sequence the model was built for, None where its config does not say."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else None

    @property
    def text(self) -> Coder:
        """The coder; raises Incompatible for a model without a tokenizer."""
        if self.coder is None:
            raise Incompatible("this suite needs a tokenizer and the model has none", hint="use a suite of images, or add tokenizer.json")
        return self.coder

    def tell(self, done: int, total: int) -> None:
        """Report progress when somebody listens."""
        if self.progress is not None:
            self.progress(self.phase, done, total)

    def batches(self, lengths: Sequence[int], width: int = 1, *, quiet: bool = False) -> Iterator[list[int]]:
        """Indices in batches whose padded size keeps to the budget, longest rows first (a memory fault then comes at once).

        width: logits per token, so that the budget also bounds what the head writes. quiet: no progress is reported.
        """
        budget = max(1, min(self.batch_tokens, LOGITS // max(1, width)))
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        done = start = 0
        while start < len(order):
            size = max(1, budget // max(1, lengths[order[start]]))
            chosen = order[start : start + size]
            yield chosen
            start += size
            done += len(chosen)
            if not quiet:
                self.tell(done, len(order))

    # --- language models ---------------------------------------------------------------------------------

    def likelihoods(self, sequences: Sequence[TokenRow]) -> list[Likelihood]:
        """Score every continuation given its context; results in the order of `sequences`. Contexts that are too long lose their head."""
        fitted = [self._fitted(s) for s in sequences]
        results: list[Likelihood | None] = [None] * len(fitted)
        for chosen in self.batches([len(s) for s in fitted], self._vocabulary):
            for i, likelihood in zip(chosen, self._score([fitted[i] for i in chosen]), strict=True):
                results[i] = likelihood
        return [r for r in results if r is not None]

    def token_stats(self, sequences: Sequence[TokenRow]) -> list[TokenStats]:
        """Every token of every continuation; results in the order of `sequences`. Contexts that are too long lose their head."""
        fitted = [self._fitted(s) for s in sequences]
        results: list[TokenStats | None] = [None] * len(fitted)
        for chosen in self.batches([len(s) for s in fitted], self._vocabulary):
            for i, found in zip(chosen, statistics(*self._picked([fitted[i] for i in chosen])), strict=True):
                results[i] = found
        return [r for r in results if r is not None]

    def next_tokens(self, prompts: Sequence[list[int]]) -> list[int]:
        """The greedy next token after each prompt."""
        prompts = [p[-self.window :] if self.window else p for p in prompts]
        results = [0] * len(prompts)
        for chosen in self.batches([len(p) for p in prompts], self._vocabulary, quiet=True):
            rows = [prompts[i] for i in chosen]
            logits, first = self._logits(rows, min(len(r) for r in rows) - 1)
            for row, i in enumerate(chosen):
                results[i] = int(logits[row, len(rows[row]) - 1 - first].float().argmax())
        return results

    @cached_property
    def _vocabulary(self) -> int:
        return int(getattr(self.model.config, "vocab_size", 1) or 1)

    @cached_property
    def keeps_some(self) -> bool:
        """The model can be asked for the logits of the last positions only."""
        return "logits_to_keep" in signature(self.model.forward).parameters

    def _fitted(self, sequence: TokenRow) -> TokenRow:
        limit = self.window
        if limit is None or len(sequence) <= limit:
            return sequence
        if len(sequence.continuation) >= limit:
            raise Incompatible(
                f"example {sequence.example!r} has an answer of {len(sequence.continuation)} tokens; the model reads {limit} in all",
                hint="shorten the answer, or measure a model with a longer window",
            )
        return TokenRow(sequence.context[len(sequence) - limit :], sequence.continuation, sequence.example)

    def _logits(self, rows: list[list[int]], needed_from: int) -> tuple[torch.Tensor, int]:
        """Logits [rows, positions, vocabulary] and the position that the first of them stands at (at most `needed_from`)."""
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        keep = {"logits_to_keep": width - needed_from} if self.keeps_some else {}
        logits = self.model(input_ids=ids.to(self.device), use_cache=False, **keep).logits
        return logits, width - logits.shape[1]

    def _picked(self, batch: list[TokenRow]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """fp32 logits [tokens, vocabulary] that speak of each scored token, int64 true tokens [tokens], and tokens per row."""
        starts = [len(s.context) - 1 for s in batch]  # logits at a position speak of the next one
        logits, first = self._logits([s.context + s.continuation for s in batch], min(starts))
        sizes = [len(s.continuation) for s in batch]
        rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(sizes))
        places = torch.cat([torch.arange(a - first, a - first + n) for a, n in zip(starts, sizes, strict=True)])
        picked = logits[rows.to(self.device), places.to(self.device)].float()
        return picked, torch.tensor([t for s in batch for t in s.continuation], device=self.device), sizes

    def _score(self, batch: list[TokenRow]) -> Iterator[Likelihood]:
        picked, targets, sizes = self._picked(batch)
        logprobs = picked.log_softmax(-1).gather(1, targets[:, None])[:, 0].double().cpu()
        best = picked.argmax(-1).cpu()
        for s, values, choice in zip(batch, logprobs.split(sizes), best.split(sizes), strict=True):
            yield Likelihood(float(values.sum()), choice.tolist(), choice.tolist() == s.continuation)


def statistics(logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> Iterator[TokenStats]:
    """Per row: logits [tokens, vocabulary] and targets [tokens], all rows' tokens one after the other; sizes: tokens per row.

    The variance is at least 1e-6, as the authors of Min-K%++ clamp it: uniform logits have none.
    """
    logprobs = logits.float().log_softmax(-1)
    weights = logprobs.exp()
    known = logprobs.masked_fill(weights == 0, 0.0)  # 0 * log 0 counts as nothing
    means = (weights * known).sum(-1)
    deviations = ((weights * known.square()).sum(-1) - means.square()).clamp_min(1e-6).sqrt()
    right = logits.argmax(-1) == targets
    columns = [logprobs.gather(1, targets[:, None])[:, 0].double(), means.double(), deviations.double(), right]
    for values in zip(*(column.cpu().split(list(sizes)) for column in columns), strict=True):
        yield TokenStats(*(value.tolist() for value in values))
