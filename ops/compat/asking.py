"""Asking a teacher: how it reads the anchors of a student, and what is kept of its answers.

A teacher of the same vocabulary answers the student's own tokens. One of another is asked in its own; where both write an answer as the
same tokens its distributions are carried over token by token, what the student has no token for going to the others' mass. Where they do
not (MUSCLE's selection by sequence), the teacher's whole answer stands in: the target is held where the teacher is right, else nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...registry.errors import BadInputFile, Incompatible, VocabularyMismatch
from ..engine.local import placed, threads
from ..models import load_model
from ..unlearn.task import task_of
from .anchors import Anchors, Choices, Questions, read_anchors
from .options import TOP
from .vocabulary import Overlay, overlay

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run

TOGETHER = 64  # records asked at a time: their logits are one tensor
Kept = dict[str, Tensor]  # the columns of `teacher.Told` but the last, on the CPU; ids as int32


@dataclass(frozen=True, slots=True)
class Reading:
    """How a teacher reads a student's anchors. `partners`: row of the teacher for each of the student's, None where there is none."""

    anchors: Anchors
    same: bool  # id by id, or no vocabulary at all
    partners: tuple[int | None, ...]
    alike: tuple[bool, ...]  # both write the row's answer as the same tokens
    over: Overlay | None


def readings(view: ModelView, name: str, student: ModelView, anchors: Anchors) -> Reading:
    """See `teacher.ask` for what is raised."""
    own = tuple(range(len(anchors)))
    try:
        task = task_of(view)
        if anchors.kind == "classes":
            _check_classes(name, view, student)
            unlabelled = replace(anchors.items, items=tuple(replace(item, label=0) for item in anchors.items.items))
            return Reading(_kind(Questions(task, unlabelled), anchors, name), True, own, (True,) * len(own), None)  # type: ignore[arg-type]
        if anchors.kind == "choice":
            return Reading(_kind(read_anchors(anchors.items.path, view), anchors, name), True, own, (True,) * len(own), None)
        if task.kind != anchors.kind:
            raise _another(name)
        over = overlay(view, student, name)
        if over.same and _room(view) >= max(_lengths(anchors)):
            return Reading(anchors, True, own, (True,) * len(own), over)
        theirs = read_anchors(anchors.items.path, view)
    except BadInputFile as fault:  # the student can be asked, the teacher cannot
        raise Incompatible(f"{name} cannot be asked what {anchors.items.name} holds: {fault.message}", hint=fault.hint) from fault
    return _otherwise(name, anchors, theirs, over)


def _otherwise(name: str, anchors: Anchors, theirs: Anchors, over: Overlay) -> Reading:
    assert isinstance(anchors, Questions)
    assert isinstance(theirs, Questions)
    by_owner = {owner: row for row, owner in enumerate(theirs.rows.owner) if theirs.rows.pairs[row]}
    partners = tuple(by_owner.get(owner) if pair else None for owner, pair in zip(anchors.rows.owner, anchors.rows.pairs, strict=True))
    alike = tuple(
        j is not None and _written(theirs, j, over.texts[0]) == _written(anchors, i, over.texts[1]) for i, j in enumerate(partners)
    )
    if not any(alike):
        raise VocabularyMismatch(
            f"{name} has another vocabulary: it shares {over.common} of this version's {over.student} tokens and writes no answer of "
            f"{anchors.items.name} as this version does",
            hint="name a version with the same tokenizer",
        )
    return Reading(theirs, False, partners, alike, over)


def _written(anchors: Questions, row: int, texts: dict[int, str]) -> list[str]:
    rows = anchors.rows
    return [texts.get(i, "") for i in rows.inputs[row][rows.lengths[row] - rows.scored[row] :]]


def _kind(theirs: Anchors, ours: Anchors, name: str) -> Anchors:
    if theirs.kind != ours.kind:
        raise _another(name)
    return theirs


def _another(name: str) -> Incompatible:
    return Incompatible(f"{name} is a model of another kind: its answers are none for this one", hint="name a version of the same kind")


def _check_classes(name: str, teacher: ModelView, student: ModelView) -> None:
    """A student may have learned further classes; those of the teacher must be the first of its own."""
    theirs, ours = ((view.config or {}).get("id2label") or {} for view in (teacher, student))
    apart = [label for label, text in theirs.items() if ours and ours.get(label) != text]
    if apart:
        raise Incompatible(f"class {apart[0]} of {name} is not class {apart[0]} of this version", hint="name a version of the same classes")


def _room(view: ModelView) -> float:
    limit = (view.config or {}).get("max_position_embeddings")
    return limit if isinstance(limit, int) else math.inf


def _lengths(anchors: Anchors) -> tuple[int, ...]:
    return anchors.rows.lengths if isinstance(anchors, Questions | Choices) else (0,)


# --- asking ------------------------------------------------------------------------------------------------


@torch.no_grad()
def asked(view: ModelView, reading: Reading, anchors: Anchors, run: Run, tau: float) -> Kept:
    """All answers, row by row."""
    with threads(run.threads):
        module = placed(load_model(view, dtype=torch.float32)).eval()
        parts: list[Kept] = []
        for start in range(0, len(anchors), TOGETHER):
            rows = range(start, min(start + TOGETHER, len(anchors)))
            parts.append(_some(module, reading, anchors, rows, tau))
            run.progress("teacher", rows[-1] + 1, len(anchors))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _some(module: torch.nn.Module, reading: Reading, anchors: Anchors, rows: Sequence[int], tau: float) -> Kept:
    """What is kept of some rows, in their order."""
    targets = _targets(anchors, rows)
    asking = [j for i in rows if (j := reading.partners[i]) is not None]
    pieces: dict[int, Kept] = {}
    for chosen in reading.anchors.parts(asking):
        logits, owners, own = reading.anchors.answers(module, chosen)
        found = kept(logits, own if reading.over is not None else None, reading.over, tau)
        for place, j in enumerate(chosen):
            pieces[j] = {name: tensor[(owners == place).cpu()] for name, tensor in found.items()}
    result = []
    width = next(iter(pieces.values()))["ids"].shape[1] if pieces else _cells(reading)
    for i, wanted in zip(rows, targets, strict=True):
        j = reading.partners[i]
        piece = pieces.get(j) if j is not None else None
        if piece is not None and reading.over is None:
            piece = {**piece, "hit": piece["hit"] == wanted, "known": wanted < piece["ids"].shape[1]}
        elif piece is None or not reading.alike[i]:
            piece = whole_answer(wanted, width, piece is not None and bool(piece["hit"].all()))
        result.append(piece)
    return {name: torch.cat([piece[name] for piece in result]) for name in result[0]}


def kept(logits: Tensor, targets: Tensor | None, over: Overlay | None, tau: float) -> Kept:
    """The cells of a teacher's logits [N, V]. Without targets `hit` holds the choice (int64), to be compared later."""
    best = logits.argmax(-1)
    total = (logits / tau).logsumexp(-1)
    if over is None:
        ids = torch.arange(logits.shape[1]).expand(len(logits), -1)
        top, rest = logits, torch.full_like(total, -math.inf)
    else:
        places = over.to_student[: logits.shape[1]].to(logits.device)
        top, at = logits.masked_fill(places < 0, -math.inf).topk(min(TOP, over.common))
        ids, rest = places[at], (logits.scatter(1, at, -math.inf) / tau).logsumexp(-1) - total
    yes = torch.ones_like(best, dtype=torch.bool)
    hit = best if targets is None else best == targets
    columns = {"ids": ids.int(), "logits": top, "total": total, "rest": rest, "hit": hit, "known": yes, "spelled": yes.clone()}
    return {name: tensor.cpu() for name, tensor in columns.items()}


def whole_answer(targets: Tensor, width: int, right: bool) -> Kept:
    """All that is known is whether the answer is right: then the targets are told with certainty, else nothing is."""
    n = len(targets)
    others = torch.arange(width - 1).expand(n, -1)
    ids = torch.cat([targets[:, None], others + (others >= targets[:, None])], dim=1)
    logits = torch.full((n, width), -math.inf)
    logits[:, 0] = 0.0
    said, no = torch.full((n,), right), torch.zeros(n, dtype=torch.bool)
    rest = torch.full((n,), -math.inf)
    return {"ids": ids.int(), "logits": logits, "total": torch.zeros(n), "rest": rest, "hit": said, "known": said.clone(), "spelled": no}


def _cells(reading: Reading) -> int:
    return min(TOP, reading.over.common) if reading.over is not None else 1


def _targets(anchors: Anchors, rows: Sequence[int]) -> list[Tensor]:
    """The student's targets of some rows, without asking a model."""
    if isinstance(anchors, Choices):
        return [torch.tensor([anchors.indices[i]]) for i in rows]
    assert isinstance(anchors, Questions)
    if anchors.kind == "classes":
        return [torch.tensor([anchors.rows.inputs[i][1]]) for i in rows]
    return [torch.tensor(anchors.rows.inputs[i][anchors.rows.lengths[i] - anchors.rows.scored[i] :]) for i in rows]
