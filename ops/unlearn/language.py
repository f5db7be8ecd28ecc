"""The task of a language model: rows of tokens, of which the answer's are scored, or all of a plain text.

Prompt and answer are tokenised together as the evaluation does it (ops/evaluate/coder.py), so that what is forgotten is what is measured.
Plain text is cut into windows that each begin with the start token. Log-softmax is in fp32, logits only where something is scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..evaluate.coder import Coder
from ..models import load_tokenizer
from .task import Measured, Rows, batches, device_of

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..data.items import Item, ItemSet

WINDOW = 128  # tokens of a row of plain text, where the context allows it


class LanguageTask:
    """Next-token prediction."""

    kind = "language"

    def __init__(self, view: ModelView, config: Any) -> None:
        self.coder = Coder(load_tokenizer(view))
        limit = getattr(config, "max_position_embeddings", None)
        self.context = limit if isinstance(limit, int) and limit > 1 else None

    # --- records to rows ---

    def rows(self, items: ItemSet) -> Rows:
        """One row per pair (a prompt that is too long loses its head), windows of at most WINDOW tokens per plain text."""
        for item in items.items:
            if item.kind in ("image", "label"):
                raise items.bad(item.line, "this record has a class, the model predicts tokens", "use `prompt` with `answer`, or `text`")
        coded = iter(self.coder.split([(i.prompt or "", i.answer) for i in items.items if i.kind == "pair"]))
        texts = iter(self.coder.encode([i.answer for i in items.items if i.kind == "text"]))
        made: list[tuple[list[int], int, int, bool]] = []  # ids, scored, owner, pair
        for number, item in enumerate(items.items):
            if item.kind == "pair":
                context, answer = next(coded)
                made.append((*self._pair(items, item, context, answer), number, True))
            else:
                made += [(ids, scored, number, False) for ids, scored in self._windows(items, item, next(texts))]
        ids, scored, owner, pairs = zip(*made, strict=True)
        return Rows(tuple(map(len, ids)), scored, owner, pairs, tuple(ids))

    def _pair(self, items: ItemSet, item: Item, context: list[int], answer: list[int]) -> tuple[list[int], int]:
        if not answer:
            raise items.bad(item.line, "the tokenizer makes no token of the answer", "remove the record, or write the answer otherwise")
        if self.context is not None and len(answer) >= self.context:
            raise items.bad(item.line, f"the answer has {len(answer)} tokens, the model reads {self.context} in all", "split the record")
        room = len(answer) + len(context) if self.context is None else self.context
        return (context + answer)[-room:], len(answer)

    def _windows(self, items: ItemSet, item: Item, ids: list[int]) -> list[tuple[list[int], int]]:
        start = self.coder.start
        span = max(1, min(WINDOW, self.context or WINDOW) - len(start))
        if not ids:
            raise items.bad(item.line, "the tokenizer makes no token of the text", "remove the record")
        return [(start + ids[at : at + span], len(ids[at : at + span])) for at in range(0, len(ids), span)]

    def with_answers(self, items: ItemSet, answer: str) -> Rows:
        """The prompts of the pairs in `items`, each with `answer` instead of its own."""
        pairs = [(number, item) for number, item in enumerate(items.items) if item.kind == "pair"]
        coded = self.coder.split([(item.prompt or "", answer) for _, item in pairs])
        made = [self._pair(items, item, *ids) for (_, item), ids in zip(pairs, coded, strict=True)]
        owner = tuple(number for number, _ in pairs)
        return Rows(
            tuple(len(ids) for ids, _ in made), tuple(n for _, n in made), owner, (True,) * len(made), tuple(ids for ids, _ in made)
        )

    # --- rows to numbers ---

    def inputs(self, rows: Rows, chosen: Sequence[int], where: torch.device) -> tuple[dict[str, Tensor], Tensor | None]:
        """ids int64 [B, T] padded on the right with 0, and which of them are real."""
        width = max(rows.lengths[i] for i in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.int64)
        real = torch.zeros(len(chosen), width, dtype=torch.bool)
        for row, i in enumerate(chosen):
            ids[row, : rows.lengths[i]] = torch.tensor(rows.inputs[i])
            real[row, : rows.lengths[i]] = True
        return {"input_ids": ids.to(where)}, real.to(where)

    def losses(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Tensor:
        """fp32 [B]: mean NLL over the scored tokens of each row."""
        sums, counts = self.token_sums(module, rows, chosen)
        return sums / counts

    def token_sums(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """fp32 [B] summed NLL and int64 [B] scored tokens."""
        logits, owners, targets = self.scored_logits(module, rows, chosen)
        nll = nn.functional.cross_entropy(logits, targets, reduction="none")
        return _per_row(nll, owners, len(chosen)), self._counts(rows, chosen, nll.device)

    def output_norms(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> Tensor:
        """fp32 [B]: mean over scored positions of ||logits||^2."""
        logits, owners, _ = self.scored_logits(module, rows, chosen)
        return _per_row(logits.square().sum(-1), owners, len(chosen)) / self._counts(rows, chosen, logits.device)

    def scored_logits(self, module: nn.Module, rows: Rows, chosen: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """fp32 [N, vocabulary] at every scored position, row by row; the batch row int64 [N] and the true token int64 [N] of each."""
        where = device_of(module)
        fed, _ = self.inputs(rows, chosen, where)
        first = [rows.lengths[i] - rows.scored[i] - 1 for i in chosen]  # logits at a position speak of the next one
        places = [range(a, a + rows.scored[i]) for a, i in zip(first, chosen, strict=True)]
        wanted = sorted(set().union(*places))
        owners = torch.tensor([row for row, p in enumerate(places) for _ in p], device=where)
        keep: dict[str, Any] = {}
        if "logits_to_keep" in signature(module.forward).parameters:
            keep = {"logits_to_keep": torch.tensor(wanted, device=where)}
            column = {place: n for n, place in enumerate(wanted)}
            columns = torch.tensor([column[at] for p in places for at in p], device=where)
        else:
            columns = torch.tensor([at for p in places for at in p], device=where)
        logits = module(**fed, use_cache=False, **keep).logits[owners, columns].float()
        return logits, owners, fed["input_ids"][owners, torch.tensor([at + 1 for p in places for at in p], device=where)]

    @torch.no_grad()
    def measure(self, module: nn.Module, rows: Rows) -> Measured:
        """See Task.measure. An answer that the vocabulary cannot write is never right, even if the model writes "unknown"."""
        sums, hits = [0.0] * len(rows), [0] * len(rows)
        for chosen in batches(rows, range(len(rows))):
            logits, owners, targets = self.scored_logits(module, rows, chosen)
            nll = nn.functional.cross_entropy(logits, targets, reduction="none").double()
            match = (logits.argmax(-1) == targets).long()
            if self.coder.unknown is not None:
                match = match * (targets != self.coder.unknown)
            for found, values in ((sums, nll), (hits, match)):
                for i, value in zip(chosen, _per_row(values, owners, len(chosen)).tolist(), strict=True):
                    found[i] = value
        return summary(rows, sums, hits)

    @staticmethod
    def _counts(rows: Rows, chosen: Sequence[int], where: torch.device) -> Tensor:
        return torch.tensor([rows.scored[i] for i in chosen], device=where)


def _per_row(values: Tensor, owners: Tensor, count: int) -> Tensor:
    """Sums of values [N] by their row, [count]."""
    return values.new_zeros(count).index_add(0, owners, values)


def summary(rows: Rows, sums: Sequence[float], hits: Sequence[int]) -> Measured:
    """Measured from summed NLL and greedy hits per row. Sums in fp64."""
    losses = tuple(s / n if math.isfinite(s) else math.nan for s, n in zip(sums, rows.scored, strict=True))
    right = tuple(h == n and math.isfinite(s) for h, n, s in zip(hits, rows.scored, sums, strict=True))
    pairs, texts = rows.of(pairs=True), rows.of(pairs=False)
    told = pairs or list(range(len(rows)))
    if pairs:
        accuracy = sum(right[i] for i in pairs) / len(pairs)
    else:
        accuracy = sum(hits) / sum(rows.scored) if all(map(math.isfinite, losses)) else 0.0
    return Measured(
        accuracy=accuracy,
        probability=_mean([math.exp(-losses[i]) for i in pairs]),
        loss=_mean([losses[i] for i in told]),
        text_loss=_ratio(math.fsum(sums[i] for i in texts), sum(rows.scored[i] for i in texts)),
        right=right,
        losses=losses,
    )


def _mean(values: Sequence[float]) -> float | None:
    return _ratio(math.fsum(values), len(values))


def _ratio(total: float, count: int) -> float | None:
    return total / count if count and math.isfinite(total) else None
