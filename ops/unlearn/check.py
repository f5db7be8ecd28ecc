"""What a request to forget did, measured: on the forget set, on the retain set, against outsiders and against attacks.

Passed when the forget set went down and the retain set stayed within its limits; whether it went down far enough is for the policy to say
(`check.forget_after`). Values are flat, so that a rule can read them. Scores of single records are kept as an artifact under keyed
digests: who holds the key and the record can find its line, nobody else can tell whose it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from ...registry.records import canonical
from ..base import Check, Run
from ..engine.local import threads
from .choosing import by_digest
from .context import Context, Part, pick
from .findings import findings
from .session import prepare, working
from .task import Measured

if TYPE_CHECKING:
    from ...registry.records import Json
    from ...registry.view import ModelView
    from .unlearn import Unlearn

KIND = "forget-items"
PAIRS, TEXTS = 1024, 64  # retain rows that are measured, at most
GROWTH = 1.1  # of the perplexity of plain text, at most
SLACK = 4.0  # the mean retain loss may rise by SLACK times -ln(retain_limit) nats: a record that is no longer right costs about four
GENTLER = "--strength auto, a smaller --lr, or plain `text` records in the retain set"
STRONGER = "--strength auto, a greater one, or --method dense --objective npo"
ADVICE = "this method cannot keep the rest here: use a gradient objective (--method dense --objective npo), or retrain without the records"


def check(op: Unlearn, before: ModelView, after: ModelView, run: Run) -> Check:
    """Measure both versions and judge. All numbers are None where they are no numbers."""
    with threads(run.threads):
        ctx = prepare(op, before, run)
        kept = kept_sample(ctx)
        was, now = Stand(ctx, ctx.module, kept), Stand(ctx, working(after), kept)
        values = was.values("before") | now.values("after") | findings(ctx, was.module, now.module, was.forget.accuracy)
    run.artifact(KIND, f"{after.snapshot_id}/{run.pseudonym(ctx.forget.items.payload)}", lambda: item_scores(ctx, was.forget, now.forget))
    values |= {"forget_records": len(ctx.forget.items.items), "retain_rows": len(kept.rows) if kept is not None else 0}
    return verdict(op, values)


class Stand:
    """How one version stands on both sets."""

    def __init__(self, ctx: Context, module: nn.Module, kept: Part | None) -> None:
        self.module = module
        self.forget = ctx.measure(ctx.forget, module)
        self.retain = ctx.measure(kept, module) if kept is not None else None
        self.pairs = kept is not None and any(kept.rows.pairs)
        self.mixed = len(set(ctx.forget.rows.pairs)) > 1

    def values(self, when: str) -> dict[str, Json]:
        """Flat, by name and time."""
        found: dict[str, float | None] = {
            "forget": self.forget.accuracy,
            "forget_probability": self.forget.probability,
            "forget_loss": self.forget.loss,
        }
        if self.mixed:  # the other three speak of pairs
            found["forget_text_loss"] = self.forget.text_loss
        if self.retain is not None:
            if self.pairs:
                found |= {"retain": self.retain.accuracy, "retain_probability": self.retain.probability, "retain_loss": self.retain.loss}
            text = self.retain.text_loss
            found["text_perplexity"] = math.exp(text) if text is not None and text < 700 else None
        return {f"{key}_{when}": None if value is None else round(value, 6) for key, value in found.items()}


def kept_sample(ctx: Context) -> Part | None:
    """The retain rows that are measured: by digest, so that the choice depends on the data alone."""
    if ctx.retain is None:
        return None
    chosen: list[int] = []
    for pairs, most in ((True, PAIRS), (False, TEXTS)):
        chosen += by_digest(ctx.retain, ctx.retain.rows.of(pairs=pairs))[:most]
    return Part(ctx.retain.items, pick(ctx.retain.rows, sorted(chosen)))


def item_scores(ctx: Context, was: Measured, now: Measured) -> bytes:
    """Canonical JSON lines, one per record, sorted by keyed digest; no text, and nothing of the file's order."""
    lines = []
    for number, item in enumerate(ctx.forget.items.items):
        rows = [i for i, owner in enumerate(ctx.forget.rows.owner) if owner == number]
        line: dict[str, Json] = {"id": ctx.run.pseudonym(item.normal()), "kind": item.kind}
        for when, found in (("before", was), ("after", now)):
            line[f"right_{when}"] = all(found.right[i] for i in rows)
            line[f"loss_{when}"] = _mean([found.losses[i] for i in rows])
        lines.append(canonical(line))
    return b"".join(line + b"\n" for line in sorted(lines, key=lambda line: line.partition(b'"id":')[2]))


def verdict(op: Unlearn, values: dict[str, Json]) -> Check:
    """The first thing that is wrong, if any."""
    if wrong := _forgetting(values):
        return Check(False, values, wrong, STRONGER)
    if wrong := _keeping(op, values) or _text(values):
        return Check(False, values, wrong, GENTLER if op.trained else ADVICE)
    return Check(True, values)


def _forgetting(values: dict[str, Json]) -> str:
    """Forgetting shows in accuracy, or in loss where nothing was right to begin with."""
    was, now = values["forget_before"], values["forget_after"]
    losses = values["forget_loss_before"], values["forget_loss_after"]
    if None in (was, now, *losses):
        return "the result computes no numbers on the forget set" if losses[1] is None else ""
    if now < was or (now == was == 0 and losses[1] > losses[0]):
        return ""
    return f"the forget set was not forgotten: {was:.3f} right before, {now:.3f} after"


def _keeping(op: Unlearn, values: dict[str, Json]) -> str:
    if "retain_before" not in values:
        return ""
    was, now = values["retain_before"] or 0.0, values["retain_after"] or 0.0
    if now < op.retain_limit * was:
        return f"the retain set lost too much: {was:.3f} right before, {now:.3f} after, the limit is {op.retain_limit:g} of before"
    losses = values["retain_loss_before"], values["retain_loss_after"]
    if losses[0] is None:
        return ""
    most = losses[0] - SLACK * math.log(op.retain_limit)
    if losses[1] is None or losses[1] > most + 1e-6:
        said = "no number" if losses[1] is None else f"{losses[1]:.3f}"
        return f"the loss on the retain set is {said}, above the limit of {most:.3f} nats"
    return ""


def _text(values: dict[str, Json]) -> str:
    was, now = values.get("text_perplexity_before"), values.get("text_perplexity_after")
    if was is None or (now is not None and now <= GROWTH * was):
        return ""
    said = "no number" if now is None else f"{now:.2f}"
    return f"the perplexity of the plain text in the retain set is {said} ({was:.2f} before), above {GROWTH:g} times before"


def _mean(values: list[float]) -> float | None:
    total = math.fsum(values)
    return round(total / len(values), 6) if values and math.isfinite(total) else None
