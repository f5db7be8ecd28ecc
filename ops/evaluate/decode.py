"""Greedy decoding of many prompts at once, with the model's own cache of keys and values.

Prompts of one batch differ in length and are not padded: all rows march in step, and a row whose prompt goes on is given its next
token where the others take the one they chose. So every row stands at its true position, no mask is needed, and its numbers do
not depend on its neighbours beyond the rounding of a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch

from ...registry.errors import Incompatible
from .bench import Bench


@dataclass(frozen=True, slots=True)
class Limits:
    """Where writing ends: after `max_tokens`, at an end-of-text token, or once one of the `stop` texts was written."""

    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass
class _Row:
    """One prompt and what was written after it."""

    index: int
    prompt: list[int]
    room: int
    written: list[int] = field(default_factory=list)
    done: bool = False


def write(bench: Bench, prompts: Sequence[str], limits: Limits) -> list[str]:
    """The greedy continuation of each prompt as text, in order; cut before a stop text, no blanks around it.

    A prompt that leaves too little of the model's window loses its head: half of the window, or `max_tokens` where that is
    less, is always free for writing.
    """
    coder = bench.text
    heads = [(coder.prefix + ids) or coder.start for ids in coder.encode([prompt.rstrip() for prompt in prompts])]
    return [cut(coder.decode(ids), limits.stop) for ids in continue_tokens(bench, heads, limits)]


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text, stripped."""
    ends = [place for mark in stop if (place := text.find(mark, len(text) - len(text.lstrip()))) >= 0]
    return text[: min(ends, default=len(text))].strip()


def continue_tokens(bench: Bench, heads: Sequence[list[int]], limits: Limits) -> list[list[int]]:
    """The token ids that greedy decoding writes after each head (at least one token long), the end-of-text token left out."""
    rows = [_fitted(i, head, limits.max_tokens, bench.window) for i, head in enumerate(heads)]
    ends = end_tokens(bench)
    lengths = [len(row.prompt) + row.room for row in rows]
    for chosen in bench.batches(lengths):
        _march(bench, [rows[i] for i in chosen], ends, limits.stop)
    return [row.written for row in rows]


def end_tokens(bench: Bench) -> set[int]:
    """Every token that ends a text, by the tokenizer, the config, and the generation config."""
    found = {bench.text.end}
    for config in (bench.model.config, getattr(bench.model, "generation_config", None)):
        named = getattr(config, "eos_token_id", None)
        found |= set(named) if isinstance(named, list | tuple) else {named}
    return {token for token in found if isinstance(token, int)}


def _fitted(index: int, head: list[int], max_tokens: int, window: int | None) -> _Row:
    if window is None:
        return _Row(index, head, max_tokens)
    prompt = head[-max(1, window - min(max_tokens, window // 2)) :]
    return _Row(index, prompt, max(1, min(max_tokens, window - len(prompt))))


def _march(bench: Bench, rows: list[_Row], ends: set[int], stop: Sequence[str]) -> None:
    """Write on all rows until each is done; rows that are done leave the batch when they are half of it."""
    step = _Cached(bench) if "past_key_values" in signature(bench.model.forward).parameters else _Whole(bench)
    fed = min(len(row.prompt) for row in rows)
    following = step([row.prompt[:fed] for row in rows])
    while True:
        for row, token in zip(rows, following, strict=True):
            if not row.done and fed >= len(row.prompt):
                _take(bench, row, token, ends, stop)
        going = [i for i, row in enumerate(rows) if not row.done]
        if not going:
            return
        if 2 * len(going) <= len(rows):
            step.keep(going)
            rows = [rows[i] for i in going]
        # what a finished row is fed does not matter: it is not read any more
        following = step([[(row.prompt + row.written)[fed] if fed < len(row.prompt) + len(row.written) else 0] for row in rows])
        fed += 1


def _take(bench: Bench, row: _Row, token: int, ends: set[int], stop: Sequence[str]) -> None:
    if token in ends:
        row.done = True
        return
    row.written.append(token)
    row.done = len(row.written) >= row.room
    if stop and not row.done:
        text = bench.text.decode(row.written).lstrip()
        row.done = any(mark in text for mark in stop)


class _Cached:
    """The next token of every row, given the tokens that are new; keys and values of the old ones are kept by the model's cache."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.cache: Any = None

    def __call__(self, new: list[list[int]]) -> list[int]:
        ids = torch.tensor(new, device=self.bench.device)
        keep = {"logits_to_keep": 1} if self.bench.keeps_some else {}
        out = self.bench.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **keep)
        self.cache = out.past_key_values
        if self.cache is None:  # going on would read new tokens without the old ones
            raise Incompatible(f"{type(self.bench.model).__name__} keeps no keys and values, so it cannot write here")
        return out.logits[:, -1].float().argmax(-1).tolist()

    def keep(self, chosen: list[int]) -> None:
        self.cache.batch_select_indices(torch.tensor(chosen, device=self.bench.device))


class _Whole:
    """The same for a model without such a cache: everything is read anew at each step."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rows: list[list[int]] = []

    def __call__(self, new: list[list[int]]) -> list[int]:
        self.rows = [row + more for row, more in zip(self.rows or [[] for _ in new], new, strict=True)]
        ids = torch.tensor(self.rows, device=self.bench.device)
        return self.bench.model(input_ids=ids).logits[:, -1].float().argmax(-1).tolist()

    def keep(self, chosen: list[int]) -> None:
        self.rows = [self.rows[i] for i in chosen]
