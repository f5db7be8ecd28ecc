"""The rows of an update: new text, replayed old text, and the parts of both that are measured and never trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...registry.records import InputRecord
from ..data import Marks, Mixture, Source, pack, read_corpus
from ..data.duplicates import read_thinned
from ..models import load_core_tokenizer, special_tokens
from .limits import row_length
from .options import Replay
from .replay import sampled_rows

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from .train import Update

MEASURED = 256  # rows that a check reads at most, evenly spaced


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is read in training (`mixture`) and what only in the check: int64 [n, seq_len] each."""

    mixture: Mixture
    held: Tensor
    spared: bool  # False: the corpus was too small (or holdout 0), `held` are training rows
    old: dict[str, Tensor]  # label of each replay source -> its held-out rows
    inputs: tuple[InputRecord, ...]
    tokens: int  # of the corpus


def prepare(op: Update, view: ModelView, run: Run) -> Prepared:
    """Read, tokenise and pack everything that `op` names. Raises BadInputFile, BadParameter, VocabularyMismatch."""
    length = row_length(op, view)
    core = load_core_tokenizer(view)
    special = special_tokens(view, core)
    marks = Marks(*(core.token_to_id(special[k]) if k in special else None for k in ("bos_token", "eos_token")))
    corpus = read_thinned(op.data, op.dedup)
    packed = pack(corpus, core, marks, length, holdout=op.holdout, least=op.batch)
    inputs = [corpus.record]
    sources = [Source("data", packed.train, 1 - sum(r.share for r in op.replays))]
    old: dict[str, Tensor] = {}
    for number, replay in enumerate(op.replays):
        if replay.path is None:
            rows, spare = sampled_rows(view, run, count=rows_needed(op, replay), length=length, first=marks.first)
        else:
            text = read_corpus(replay.path, role="replay")
            parts = pack(text, core, marks, length, holdout=op.holdout or 0.05)
            inputs.append(text.record)
            rows, spare = parts.train, parts.held if len(parts.held) else parts.train
        sources.append(Source(f"replay{number}", rows, replay.share))
        old[replay.label if replay.path is None else inputs[-1].name] = evenly(spare)
    held = packed.held if len(packed.held) else packed.train
    mixture = Mixture(sources, batch=op.batch, seed=run.seed)
    return Prepared(mixture, evenly(held), len(packed.held) > 0, old, tuple(inputs), packed.tokens)


def old_rows(rows: Prepared, view: ModelView, run: Run, count: int) -> Tensor:
    """Old text, int64 [n, seq_len]: the rows of the first replay source, else `count` that the model itself sampled."""
    if len(rows.mixture.sources) > 1:
        return rows.mixture.sources[1].rows
    core = load_core_tokenizer(view)
    special = special_tokens(view, core)
    first = Marks(*(core.token_to_id(special[k]) if k in special else None for k in ("bos_token", "eos_token"))).first
    return sampled_rows(view, run, count=count, length=rows.mixture.seq_len, first=first)[0]


def rows_needed(op: Update, replay: Replay) -> int:
    """How many rows of a replay source the run reads."""
    return math.ceil(op.steps * op.batch * op.grad_accum * replay.share)


def evenly(rows: Tensor, most: int = MEASURED) -> Tensor:
    """At most `most` rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]
