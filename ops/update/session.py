"""One update from beginning to end: rows, method, settings, engine, changes; and the check that it did its job."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ...registry.errors import Incompatible
from ...registry.ids import blob_digest
from ..base import Change, Check, Diverged, Run
from ..compat.answers import compared, compatible
from ..data.corpus import read_corpus
from ..data.identity import KIND, documents, identities
from ..data.mixing import Mixture
from ..data.reweight import row_weights
from ..data.stream import KIND as STREAM
from ..data.stream import read_stream, write_stream
from ..engine import Attached, Feed, LocalEngine, Objective, Outcome, State, TrainSettings
from ..engine.local import language_loss, mean_loss, placed, threads
from ..models import load_model, read_config
from .auto import decided
from .expand import Expand, check_old_tensors, growth_of
from .full import Full
from .limits import default_rate
from .lora import Lora
from .objective import SelfTaught, UpdateLoss
from .picture import count_duplicates
from .precision import choose_precision
from .protect import Anchored, protection
from .riders import Ema, riders
from .rows import Prepared, prepare, read_apart
from .skillit import Mixer, mixers
from .stable import begun, kept

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from .train import Update


class Method(Protocol):
    """What is trained and what becomes of it."""

    @property
    def module(self) -> nn.Module:
        """The module whose parameters with gradients are trained."""
        ...

    def changes(self) -> Iterator[Change]:
        """The trained tensors as changes, one at a time."""
        ...


def apply(op: Update, view: ModelView, run: Run) -> Iterator[Change]:
    """Train and yield the changes."""
    require_language_model(view)
    op = decided(op, view, run, aloud=True)
    rows = prepare(op, view, run)
    for record in rows.inputs:
        run.input(record)
    _leave_documents(op, run)
    count_duplicates(op, run)
    if not rows.spared and op.holdout:
        run.note("the data is too small to hold a part out: the check measures rows that were trained on")
    method = method_of(op, view, run, rows)
    placed(method.module)  # what is measured and kept of the parent lies where it is trained
    rows = read_apart(rows, method.module, run)
    start = begun(view, run) if op.begin == "stable" else None
    settings = resolve(op, view, run, start)
    mixture, objective = rows.mixture, objective_of(op, view, run, rows)
    if op.compat_with is not None:
        mixture, objective = compatible(op, view, run, mixture, objective)
    guard = protection(op, view, run, rows, method.module, settings.lr)
    if guard.pulls:
        objective = Anchored(objective, method.module, guard.pulls)
    along, turning = riders(op, method.module, run.seed), mixers(op, rows)
    attached = (*along, *turning)
    outcome = _trained(method.module, mixture, settings, run, objective=objective, masks=guard.masks, attached=attached, start=start)
    run.record("training", _facts(op, settings, rows, outcome, method.module))
    _leave_stream(op, rows, mixture, outcome, start, turning, run)
    if controls := _controls(guard.facts, along):
        run.record("controls", controls)
    yield from kept(method.changes(), outcome.stable, view, run)


def _trained(module: nn.Module, feed: Feed, settings: TrainSettings, run: Run, **how: Any) -> Outcome:
    """Train; when the numbers break off, say how to go on from the state that was saved."""
    try:
        return (run.engine or LocalEngine()).train(module, feed, settings, run, **how)
    except Diverged as fault:
        if (kept := fault.details.get("saved")) is None:
            raise
        again = f"mlc update --resume {run.id} --slow {kept + 1}:0.25, or begin anew with --lr {settings.lr / 4:.2g}"
        sentence = f"{fault.message}; the state after step {kept} is kept, and nothing was committed"
        raise Diverged(sentence, hint=again, **fault.details) from None


def _leave_documents(op: Update, run: Run) -> None:
    """Keep which documents were trained on, as keyed digests: `mlc impact` finds this commit by any one of them."""
    for path in (*(domain.path for domain in op.domains), *(replay.path for replay in op.replays)):
        if path is not None:
            corpus = read_corpus(path)
            run.artifact(KIND, corpus.record.digest, partial(documents, identities(corpus), partial(run.pseudonym, scope="registry")))


def _leave_stream(
    op: Update, rows: Prepared, mixture: Mixture, outcome: Outcome, start: State | None, turning: Sequence[Mixer], run: Run
) -> None:
    """Keep what was read, row by row, and say what the mixture came to."""
    first = start.meta["batches"] if start is not None and start.meta["rows"] == mixture.digest() else 0
    data = write_stream(mixture, outcome.steps, first=first, grad_accum=op.grad_accum, corpora=rows.corpora)
    run.artifact(STREAM, blob_digest(data), lambda: data)
    facts: dict[str, Any] = {"digest": blob_digest(data), "windows": list(read_stream(data).windows)}
    run.record("stream", {**facts, "policy": op.mix_policy, **({"skillit": turning[0].facts()} if turning else {})})


def method_of(op: Update, view: ModelView, run: Run, rows: Prepared) -> Method:
    """What is trained, on the module of `view`."""
    if op.lora is not None:
        return Lora(op.lora, view, run.seed)
    return Full(view) if op.method == "full" else Expand(op, view, run, rows.held)


def objective_of(op: Update, view: ModelView, run: Run, rows: Prepared) -> Objective:
    """The loss on a batch without the pulls on the weights, which wrap it; `objective.py` says what lies over what."""
    own = next((n for n, r in enumerate(op.replays, start=1) if r.distilled), None)
    weigh = partial(row_weights, strategy=op.reweight, r=op.reweight_r) if op.reweight != "none" else None
    begins = rows.beginnings()
    if own is None:
        return language_loss if weigh is None and not begins else UpdateLoss(weigh=weigh, begins=begins)
    taught = SelfTaught(placed(load_model(view, dtype=torch.float32)), own)
    return UpdateLoss(taught=taught, weigh=weigh, begins=begins)


def _controls(protected: dict[str, Any], along: Sequence[Attached]) -> dict[str, Any]:
    means = [rider.facts() for rider in along if isinstance(rider, Ema)]
    return {**protected, "ema": means[0]} if means else dict(protected)


def require_language_model(view: ModelView) -> None:
    """Raise Incompatible when the view is not a causal language model that transformers can run."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = read_config(view).model_type
    named = next(iter((view.config or {}).get("architectures") or ()), CAUSAL.get(kind))
    if kind not in CAUSAL or named != CAUSAL[kind]:
        raise Incompatible(f"`update` trains language models that predict the next token; this is a {named or kind}")


def resolve(op: Update, view: ModelView, run: Run, start: State | None = None) -> TrainSettings:
    """The settings after defaults. From a stable state the rate goes on as it was: no warming up, and no cooling down to it again."""
    parameters = sum(math.prod(view.entry(n).shape) for n in view.names())
    usual = start.meta["rate"] if start is not None else default_rate(parameters, "few" if "spu" in op.protections else op.method)
    return TrainSettings(
        steps=op.steps,
        lr=op.lr if op.lr is not None else usual,
        warmup=math.ceil(op.steps * op.warmup) if start is None else 0,
        decay="wsd" if start is not None and op.decay == "infinite" else op.decay,  # type: ignore[arg-type]  # one of DECAYS
        weight_decay=op.weight_decay,
        grad_accum=op.grad_accum,
        clip=op.clip,
        precision=choose_precision(op.precision, view.config or {}),
        save_every=op.save_every,
        seed=run.seed,
        threads=run.threads,
        keep_stable=op.method == "full",
        slow=op.slower,
    )


def _facts(op: Update, s: TrainSettings, rows: Prepared, outcome: Any, module: nn.Module) -> dict[str, Any]:
    return {
        "method": op.method,
        "seq_len": rows.mixture.seq_len,
        "lr": s.lr,
        "warmup_steps": s.warmup,
        "precision": s.precision,
        "threads": s.threads,
        "tokens": outcome.tokens,
        "corpus_tokens": rows.tokens,
        "trained_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "curve": [list(point) for point in outcome.curve],
    }


def check(op: Update, before: ModelView, after: ModelView, run: Run) -> Check:
    """Passed when the loss on the held-out part fell. Values: losses in nats and perplexities, before and after; None if no number."""
    op = decided(op, before, run)
    rows = prepare(op, before, run)
    with threads(run.threads):
        was, now = _losses(before, rows), _losses(after, rows)
    values: dict[str, Any] = {
        "measured_on": "held-out rows" if rows.spared else "training rows",
        "rows": len(rows.held),
        "loss_before": was["data"],
        "loss_after": now["data"],
        "perplexity_before": _perplexity(was["data"]),
        "perplexity_after": _perplexity(now["data"]),
    }
    if rows.old:
        values["replay"] = {k: {"loss_before": was[f"old {k}"], "loss_after": now[f"old {k}"]} for k in rows.old}
    if op.mix:
        values["domains"] = _domains(op, rows, was, now)
    if op.compat_with is not None:
        values["compat"] = compared(op, before, after, run)
    if op.method in ("expand", "tune"):
        values["expansion"] = check_old_tensors(before, after, growth_of(op, before, run))
    if _fell(op, rows, was, now):
        return Check(True, values)
    reason = f"the loss on the {values['measured_on']} did not fall ({_said(was['data'])} before, {_said(now['data'])} after)"
    return Check(False, values, reason, "try a smaller --lr or fewer --steps; `--holdout 0` measures what was trained on")


def _domains(op: Update, rows: Prepared, was: dict[str, float | None], now: dict[str, float | None]) -> list[dict[str, Any]]:
    """Name, digest, share (None where it turned on the way) and held-out losses of every corpus that was learned."""
    total = sum(rows.mixture.sources[place].share for place in rows.places)
    found = []
    for domain, corpus, place in zip(op.domains, rows.parts, rows.places, strict=True):
        share = rows.mixture.sources[place].share / total if op.mix_policy != "skillit" else None
        losses = {"loss_before": was[f"part {corpus}"], "loss_after": now[f"part {corpus}"]}
        found.append({"name": domain.name, "corpus": corpus, "share": share, **losses})
    return found


def _fell(op: Update, rows: Prepared, was: dict[str, float | None], now: dict[str, float | None]) -> bool:
    """Whether the held-out loss fell; of several corpora their mean, weighed by their first shares."""
    names = [f"part {corpus}" for corpus in rows.parts] if op.mix else ["data"]
    pairs = [(was[name], now[name], rows.mixture.sources[place].share) for name, place in zip(names, rows.places, strict=True)]
    known = [(before, after, share) for before, after, share in pairs if before is not None and after is not None]
    return len(known) == len(pairs) and sum((after - before) * share for before, after, share in known) < 0


def _losses(view: ModelView, rows: Prepared) -> dict[str, float | None]:
    module = placed(load_model(view, dtype=torch.float32))
    begins = read_apart(rows, module).begins
    parts: dict[str, Tensor] = {"data": rows.held, **{f"old {k}": v for k, v in rows.old.items()}}
    if len(rows.parts) > 1:
        parts |= {f"part {corpus}": held for corpus, held in rows.parts.items()}
    return {name: _number(mean_loss(module, part, begin=begins.get(name))) for name, part in parts.items()}


def _said(loss: float | None) -> str:
    return "not a number" if loss is None else f"{loss:.3f}"


def _number(loss: float) -> float | None:
    return round(loss, 6) if math.isfinite(loss) else None


def _perplexity(loss: float | None) -> float | None:
    return math.exp(loss) if loss is not None and loss < 700 else None  # beyond that e^loss is no double
