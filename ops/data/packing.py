"""From text to rows of equal length. A row starts with BOS and holds `seq_len` tokens; nothing is padded, nothing is masked.

Running text is cut as it comes. Documents are laid end to end with EOS and BOS between them, so that a row may hold several and a
document may go on in the next row; `Packed.begin` says where one begins, for a model to read each as if it stood alone. What is held
out is chosen by content, not by seed: the tail of a running text (neighbouring rows share their story), else the documents with the
smallest digests, so that two runs are measured on the same part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadInputFile
from ...registry.ids import blob_digest
from .corpus import Corpus

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 4 << 20  # characters of running text tokenised at a time: bounds memory, splits at a line end


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids that begin a row and part documents; None where the tokenizer has no such token."""

    bos: int | None
    eos: int | None

    @property
    def first(self) -> int | None:
        """What every row starts with: BOS, else EOS (GPT-2 knows only that one), else nothing."""
        return self.bos if self.bos is not None else self.eos

    @property
    def between(self) -> tuple[int, ...]:
        """What stands between two documents."""
        return tuple(dict.fromkeys(i for i in (self.eos, self.bos) if i is not None))


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows to train on and rows to measure on, int64 [n, seq_len] each; `tokens` counts the corpus.

    begin: the id that begins every document and stands nowhere else. None for running text, and where a document holds that id itself
    (a conversation, say, whose turns end with it): such documents cannot be told apart by their tokens.
    """

    train: Tensor
    held: Tensor
    tokens: int
    begin: int | None = None


def encode(core: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text by a `tokenizers.Tokenizer`, no special tokens added."""
    return [e.ids for e in core.encode_batch(list(texts), add_special_tokens=False)]


def pack(corpus: Corpus, core: Any, marks: Marks, seq_len: int, *, holdout: float = 0.0, least: int = 1) -> Packed:
    """Rows of `corpus`, split into train and held-out parts.

    Raises BadInputFile when fewer than `least` rows remain to train on. `held` is empty when `holdout` is 0, or when the corpus is too
    small to spare a row.
    """
    if corpus.running:
        stream = [i for piece in _pieces(corpus.documents[0]) for i in encode(core, [piece])[0]]
        rows = cut(stream, seq_len, marks.first)
        spare = min(math.ceil(len(rows) * holdout), len(rows) - least) if holdout else 0
        train, held = rows[: len(rows) - max(spare, 0)], rows[len(rows) - max(spare, 0) :]
        total, begin = len(stream), None
    else:
        ids = encode(core, corpus.documents)
        total = sum(map(len, ids))
        begin = None if any(marks.first in document for document in ids) else marks.first
        kept, spared = _split_documents(corpus.documents, ids, seq_len, holdout)
        train, held = cut(_lay(kept, marks), seq_len, marks.first), cut(_lay(spared, marks), seq_len, marks.first)
        if len(train) < least:  # too small to spare anything
            train, held = cut(_lay(ids, marks), seq_len, marks.first), held[:0]
    if len(train) < least:
        raise BadInputFile(
            f"{corpus.record.name} holds {total:,} tokens, fewer than one {f'batch of {least} rows' if least > 1 else 'row'} of {seq_len}",
            hint="add text, or lower --batch or --seq-len" if least > 1 else "add text to it",
            path=corpus.record.name,
        )
    return Packed(train, held, total, begin)


def cut(stream: Sequence[int], seq_len: int, first: int | None) -> Tensor:
    """int64 [n, seq_len]: the stream in whole rows, each behind `first`; what does not fill a row is left out."""
    import torch

    span = seq_len - (first is not None)
    n = len(stream) // span
    body = torch.tensor(stream[: n * span], dtype=torch.int64).reshape(n, span)
    return body if first is None else torch.cat([torch.full((n, 1), first, dtype=torch.int64), body], dim=1)


def _lay(documents: Sequence[Sequence[int]], marks: Marks) -> list[int]:
    return [i for ids in documents for i in (*ids, *marks.between)]


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _split_documents(texts: Sequence[str], ids: list[list[int]], seq_len: int, holdout: float) -> tuple[list[list[int]], list[list[int]]]:
    """(kept, held out) in file order: the share `holdout` with the smallest digests, but enough of them to fill one row."""
    if not holdout:
        return ids, []
    order = sorted(range(len(texts)), key=lambda i: blob_digest(texts[i].encode()))
    spared: set[int] = set()
    tokens = 0
    for index in order:
        if len(spared) >= holdout * len(texts) and tokens >= seq_len:
            break
        spared.add(index)
        tokens += len(ids[index])
    if len(spared) > len(texts) // 2:
        return ids, []
    return [x for i, x in enumerate(ids) if i not in spared], [x for i, x in enumerate(ids) if i in spared]
