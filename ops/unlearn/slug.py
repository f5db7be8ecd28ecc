"""Method `slug`: one gradient step on one tensor (Cai, Tan, Asif, ICML 2025, 2407.11867).

One pass over each set gives the mean gradients; the tensors that combine a large relative forget gradient with a small alignment to the
retain gradient form a Pareto front; each is tried with a step up its forget loss, theta' = theta + r |theta| / |g_f| g_f, and the shortest
step that forgets enough is searched. The tensor that keeps most is chosen; among equals the shorter relative step r, then the name. A
relative step is recorded because r does not depend on how gradients are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...registry.errors import CheckFailed
from .exclusion import slots
from .front import Place, candidates, front, place
from .goal import goal_of
from .importance import mean_gradient
from .search import Found, Trial, step
from .task import batches
from .trial import Probe, require_reached

if TYPE_CHECKING:
    from .context import Context, Part

START = 0.1  # relative step of the first try (card SLUG, r_0)
EVALUATIONS = 10  # per tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """One tensor with the outcome of its search."""

    place: Place
    found: Found

    @property
    def rank(self) -> tuple:
        """Smallest first: reached before not, most kept, shortest step, name."""
        best = self.found.best
        return (*self.found.rank, -best.retain, best.strength, self.place.slot.stored)


def apply(ctx: Context) -> dict[str, Tensor]:
    """The one changed parameter. Raises CheckFailed when the forget loss reaches no candidate."""
    forget, places = measured(ctx)
    best = front(places)
    names = {p.slot.name for p in best}
    ordered = sorted(places, key=lambda p: p.slot.stored)
    ctx.facts["pareto"] = [p.told(p.slot.name in names) for p in ordered]
    if not best:
        raise CheckFailed("the forget loss has no gradient in any tensor that may change", hint="a smaller --exclude, or --method dense")
    if ctx.op.amount is not None:
        chosen, strength = best[0], ctx.op.amount
    else:
        chosen, strength = searched(ctx, best, forget)
    gradient = forget[chosen.slot.name]
    ctx.facts.update(
        strength=strength,
        tensor=chosen.slot.stored[0],
        gradient=ctx.run.pseudonym(gradient.cpu().numpy().tobytes()),
        selected=gradient.numel(),
        weights=sum(p.numel() for p in ctx.parameters.values()),
    )
    return {chosen.slot.name: stepped(ctx.parameters[chosen.slot.name].detach(), gradient, strength)}


def measured(ctx: Context) -> tuple[dict[str, Tensor], list[Place]]:
    """The forget gradients, and importance and alignment of every candidate."""
    assert ctx.retain is not None  # the operation asks for it
    parameters = ctx.parameters
    pool = candidates(slots(ctx.module, ctx.view, ctx.op.exclude), {n: p.shape for n, p in parameters.items()})
    names = {s.name for s in pool}
    forget, retain = gradient_of(ctx, ctx.forget, names), gradient_of(ctx, ctx.retain, names)
    return forget, [place(s, parameters[s.name], forget[s.name], retain[s.name]) for s in pool]


def gradient_of(ctx: Context, part: Part, names: set[str]) -> dict[str, Tensor]:
    """Mean gradient of the per-row mean loss over one set, fp32."""
    total = len(part.rows)
    return mean_gradient(
        ctx.module,
        lambda chosen: ctx.task.losses(ctx.module, part.rows, chosen),
        batches(part.rows, part.everything),
        names=names,
        progress=lambda done: ctx.run.progress(f"gradient of the {part.items.role} set", done, total),
    )


def searched(ctx: Context, best: tuple[Place, ...], forget: dict[str, Tensor]) -> tuple[Place, float]:
    """The tensor and step of `--strength auto`; books the log."""
    probe, choices = Probe(ctx, goal_of(ctx)), []
    for number, candidate in enumerate(best):
        choices.append(Choice(candidate, tried(ctx, candidate, forget[candidate.slot.name], probe)))
        ctx.run.progress("search", number + 1, len(best))
    won = min(choices, key=lambda c: c.rank)
    log = [{"tensor": c.place.slot.stored[0], "monotone": c.found.monotone, "log": [t.told() for t in c.found.log]} for c in choices]
    ctx.facts["search"] = {"reached": won.found.reached, "tensors": log}
    require_reached(ctx, won.found)
    return won.place, won.found.best.strength


def tried(ctx: Context, candidate: Place, gradient: Tensor, probe: Probe) -> Found:
    """Search the step on one tensor; the module has its original weights before and after."""
    parameter = ctx.parameters[candidate.slot.name]
    original = parameter.detach().clone()

    def measure(strength: float) -> Trial:
        with torch.no_grad():
            parameter.copy_(stepped(original, gradient, strength))
        return probe(strength)

    found = step(START, measure, evaluations=EVALUATIONS)
    with torch.no_grad():
        parameter.copy_(original)
    return found


def stepped(weight: Tensor, gradient: Tensor, strength: float) -> Tensor:
    """theta + r |theta| / |g| g: a step of relative length r up the gradient, fp32; theta itself for r = 0."""
    scale = strength * weight.double().norm().item() / gradient.double().norm().item()
    return weight + scale * gradient
