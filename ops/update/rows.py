"""The rows of an update: new text, replayed old text, and the parts of both that are measured and never trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...registry.errors import BadInputFile
from ...registry.records import InputRecord
from ..data import Corpus, Marks, Mixture, Source, pack, read_corpus
from ..data.duplicates import read_thinned
from ..data.mixing import Turning
from ..engine.documents import reads_apart
from ..models import load_core_tokenizer, special_tokens
from .limits import row_length
from .mixes import domains, shares
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
    tokens: int  # of all corpora that are learned
    parts: dict[str, Tensor] = field(default_factory=dict)  # digest of each corpus that is learned -> its held-out rows
    places: tuple[int, ...] = (0,)  # their numbers among the sources
    corpora: dict[str, str] = field(default_factory=dict)  # name of a source -> digest of the file it was read from
    # Name of a source, or "old " and a label, or "part " and a digest -> the id that begins each document there (`Packed.begin`)
    begins: dict[str, int | None] = field(default_factory=dict)

    def beginnings(self) -> dict[int, int]:
        """`begins` by the number of a source."""
        found = ((number, self.begins.get(source.name)) for number, source in enumerate(self.mixture.sources))
        return {number: begin for number, begin in found if begin is not None}


def prepare(op: Update, view: ModelView, run: Run) -> Prepared:
    """Read, tokenise and pack everything that `op` names. Raises BadInputFile, BadParameter, VocabularyMismatch."""
    length = row_length(op, view)
    core = load_core_tokenizer(view)
    special = special_tokens(view, core)
    marks = Marks(*(core.token_to_id(special[k]) if k in special else None for k in ("bos_token", "eos_token")))
    named = domains(op)
    read = [read_thinned(domain.path, op.dedup) for domain in named]
    _differ(read)
    packs = [pack(corpus, core, marks, length, holdout=op.holdout, least=op.batch) for corpus in read]
    replayed = sum(r.share for r in op.replays)
    fractions = [share * (1 - replayed) for share in shares(op, [len(part.train) for part in packs])]
    inputs = [corpus.record for corpus in read]
    sources = [Source("data", packs[0].train, fractions[0])]
    if op.select_for is not None:
        from .selecting import selected

        aim = read_corpus(op.select_for, role="select")
        inputs.append(aim.record)
        picked, origin = selected(op, view, run, packs[0], pack(aim, core, marks, length))
        sources = [Source("data", picked, fractions[0], origin)]
    corpora = {"data": inputs[0].digest}
    begins: dict[str, int | None] = {"data": packs[0].begin}
    old: dict[str, Tensor] = {}
    for number, replay in enumerate(op.replays):
        if replay.path is None:
            rows, spare = sampled_rows(view, run, count=rows_needed(op, replay), length=length, first=marks.first)
        else:
            text = read_corpus(replay.path, role="replay")
            parts = pack(text, core, marks, length, holdout=op.holdout or 0.05)
            inputs.append(text.record)
            corpora[f"replay{number}"] = text.record.digest
            rows, spare = parts.train, parts.held if len(parts.held) else parts.train
            begins[f"replay{number}"] = begins[f"old {text.record.name}"] = parts.begin
        sources.append(Source(f"replay{number}", rows, replay.share))
        old[replay.label if replay.path is None else inputs[-1].name] = evenly(spare)
    for number, (part, corpus, share) in enumerate(zip(packs[1:], read[1:], fractions[1:], strict=True)):
        sources.append(Source(f"mix{number}", part.train, share))  # behind replay, whose numbers stay
        corpora[f"mix{number}"] = corpus.record.digest
        begins[f"mix{number}"] = part.begin
    begins |= {f"part {corpus.record.digest}": part.begin for corpus, part in zip(read, packs, strict=True)}
    held = {c.record.digest: evenly(part.held if len(part.held) else part.train) for part, c in zip(packs, read, strict=True)}
    made = Turning if op.mix_policy == "skillit" else Mixture
    return Prepared(
        made(sources, batch=op.batch, seed=run.seed),
        held[corpora["data"]],
        all(len(part.held) > 0 for part in packs),
        old,
        tuple(inputs),
        sum(part.tokens for part in packs),
        held,
        (0, *range(1 + len(op.replays), len(sources))),
        corpora,
        begins,
    )


def read_apart(rows: Prepared, module: nn.Module, run: Run | None = None) -> Prepared:
    """The rows with their documents apart, or without where one stands beside another and the model cannot but read on."""
    begin = next((begin for begin in rows.begins.values() if begin is not None), None)
    if begin is None or reads_apart(module, begin):
        return rows
    if run is not None:
        run.note("this architecture reads the documents of one row as one text: short ones are learned worse than they could be")
    return replace(rows, begins={})


def _differ(read: list[Corpus]) -> None:
    seen: dict[str, str] = {}
    for record in (corpus.record for corpus in read):
        if record.digest in seen:
            raise BadInputFile(f"{record.name} holds the same as {seen[record.digest]}", hint="name every corpus once", path=record.name)
        seen[record.digest] = record.name


def old_rows(rows: Prepared, view: ModelView, run: Run, count: int) -> tuple[Tensor, int | None]:
    """(old text, int64 [n, seq_len], what begins its documents): the first replay source, else `count` rows that the model wrote."""
    if rows.old:
        source = rows.mixture.sources[1]
        return source.rows, rows.begins.get(source.name)
    core = load_core_tokenizer(view)
    special = special_tokens(view, core)
    first = Marks(*(core.token_to_id(special[k]) if k in special else None for k in ("bos_token", "eos_token"))).first
    return sampled_rows(view, run, count=count, length=rows.mixture.seq_len, first=first)[0], None


def rows_needed(op: Update, replay: Replay) -> int:
    """How many rows of a replay source the run reads."""
    return math.ceil(op.steps * op.batch * op.grad_accum * replay.share)


def evenly(rows: Tensor, most: int = MEASURED) -> Tensor:
    """At most `most` rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]
