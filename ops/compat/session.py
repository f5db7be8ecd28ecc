"""One alignment from beginning to end: anchors, teachers, training, changes; and the check that it brought the versions together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ..base import Change, Check, Run
from ..data import Marks, Mixture, Source, pack, read_corpus
from ..engine import LocalEngine, TrainSettings
from ..engine.documents import reads_apart
from ..engine.local import language_loss
from ..models import load_core_tokenizer, special_tokens
from ..update.full import Full
from ..update.limits import USUAL_ROW, default_rate
from ..update.lora import Lora
from ..update.objective import UpdateLoss
from ..update.precision import choose_precision
from .answers import Held, hold, leave_documents, require_tokenizer
from .measure import beside
from .objective import Compatible
from .rows import kept_out, with_anchors

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .align import Align

ROOM = 0.005  # accuracy that an alignment may cost on the anchors, as a share


def apply(op: Align, view: ModelView, run: Run) -> Iterator[Change]:
    """Train and yield the changes."""
    held = _held(op, view, run)
    leave_documents(op.data, run)
    run.record("compat_teacher", held.old.facts())
    trained, _ = kept_out(held.anchors, op.holdout)
    text, begins = _text(op, view, run) if op.texts else (None, {})
    share = 1 - sum(t.share for t in op.texts)
    rows = with_anchors(text, held.anchors, trained, share, batch=op.batch, seed=run.seed)
    method = Lora(op.lora, view, run.seed) if op.lora is not None else Full(view)
    settings = resolve(op, view, run, held)
    apart = bool(begins) and reads_apart(method.module, next(iter(begins.values())))
    plain = UpdateLoss(begins=begins) if apart else language_loss
    objective = Compatible(held.settings, held.anchors, held.old, held.new, len(rows.sources) - 1, plain)
    outcome = LocalEngine().train(method.module, rows, settings, run, objective=objective)
    facts = {"method": op.method, "lr": settings.lr, "anchors": len(trained), "precision": settings.precision, "threads": settings.threads}
    run.record("training", {**facts, "curve": [list(point) for point in outcome.curve]})
    yield from method.changes()


def _held(op: Align, view: ModelView, run: Run) -> Held:
    new = view if op.settings.muscle else None
    return hold(op.settings, op.data, view, op.to, new, run, new_name="the version that is trained")


def _text(op: Align, view: ModelView, run: Run) -> tuple[Mixture, dict[int, int]]:
    """Rows of text to go on with, each file by its share of all text; by number of a source the id that begins its documents."""
    require_tokenizer(view)
    core = load_core_tokenizer(view)
    special = special_tokens(view, core)
    marks = Marks(*(core.token_to_id(special[k]) if k in special else None for k in ("bos_token", "eos_token")))
    limit = (view.config or {}).get("max_position_embeddings")
    length = min(USUAL_ROW, limit) if isinstance(limit, int) else USUAL_ROW
    total = sum(t.share for t in op.texts)
    sources, begins = [], {}
    for number, source in enumerate(op.texts):
        corpus = read_corpus(source.path or "", role="text")
        run.input(corpus.record)
        leave_documents(source.path or "", run)
        packed = pack(corpus, core, marks, length)
        sources.append(Source(f"text{number}", packed.train, source.share / total))
        if packed.begin is not None:
            begins[number] = packed.begin
    return Mixture(sources, batch=op.batch, seed=run.seed), begins


def resolve(op: Align, view: ModelView, run: Run, held: Held) -> TrainSettings:
    """The settings after defaults. A classifier is trained as it is measured, so that nothing but its rows is random in a step."""
    parameters = sum(math.prod(view.entry(n).shape) for n in view.names())
    return TrainSettings(
        steps=op.steps,
        lr=op.lr if op.lr is not None else default_rate(parameters, "lora" if op.lora is not None else "full"),
        warmup=math.ceil(op.steps * op.warmup),
        weight_decay=op.weight_decay,
        clip=op.clip,
        precision=choose_precision("auto", view.config or {}),
        save_every=op.save_every,
        seed=run.seed,
        threads=run.threads,
        dropout=held.anchors.kind == "language",
    )


def check(op: Align, before: ModelView, after: ModelView, run: Run) -> Check:
    """Passed when no more of the older version's right answers are lost than before, and accuracy is at most ROOM below."""
    held = _held(op, before, run)
    trained, spared = kept_out(held.anchors, op.holdout)
    with torch.inference_mode():
        values = beside(before, after, held.anchors, spared, held.old)
    values["measured_on"] = "held-out anchors" if spared != trained else "anchors that were trained on"
    lost, kept = values["nfr_after"] - values["nfr_before"], values["accuracy_after"] - values["accuracy_before"]
    if lost <= 0 and kept >= -ROOM:
        return Check(True, values)
    if lost > 0:
        reason = (
            f"{values['nfr_after']:.2%} of the {values['measured_on']} that were right are lost, {values['nfr_before']:.2%} were before"
        )
    else:
        reason = f"accuracy on the {values['measured_on']} fell from {values['accuracy_before']:.2%} to {values['accuracy_after']:.2%}"
    return Check(False, values, reason, "try a smaller --lr, more --steps, or another --method")
