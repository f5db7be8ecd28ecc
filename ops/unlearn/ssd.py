"""Method `ssd`: selective synaptic dampening with exact per-sample Fisher information (Foster et al., AAAI 2024, 2308.07707).

Two gradient passes, then weights that matter far more to the forget set than to all data are shrunk. Per sample, the importance of all data
is F_D = share F_f + (1 - share) F_r, so F_f / F_D never exceeds 1 / share and the strength a = alpha * share lies in (0, 1): the same a
means the same whatever the sizes of the sets. F_r is an artifact of (snapshot, retain set), so the retain data is read once; F_f is never
stored. `--fisher reference-batch` follows the published code instead: squares of the means of batches of 64, in the order of the files with
the retain set first. There the bound does not hold, and the strength is alpha itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...registry.errors import BadParameter, InputNotFound
from .dampening import Dampener, mixed
from .exclusion import Slot, parse, slots
from .goal import goal_of
from .importance import How, importance, pack, reference_batch_importance, unpack
from .search import Found, Trial, grid, weakest
from .task import Rows, batches
from .trial import Probe, require_reached

if TYPE_CHECKING:
    from .context import Context, Part

Scores = Callable[[nn.Module, Rows, Sequence[int]], Tensor]  # Task.losses or Task.output_norms
SAMPLES = "#samples"  # beside the importances: how many rows the mean was taken over
REFERENCE_BATCH = 64  # of the published code for classes and sub-classes
STRENGTHS = grid(0.9, 0.02, 24)  # of a = alpha * share, weak to strong
BEYOND = grid(200.0, 0.2, 32)  # of alpha itself, where the ratio has no bound
DAMPINGS = (1.0, 0.3, 0.1)
KIND, MASK = "fisher", "mask"


@dataclass(frozen=True, slots=True)
class Reference:
    """What the forget importance is compared with: importances, and the forget set's share of all data."""

    forget: dict[str, Tensor]
    every: dict[str, Tensor]
    share: float
    bounded: bool = True  # whether forget / every is at most 1 / share, as it is per sample

    @property
    def scale(self) -> float:
        """alpha = strength / scale: the strength is alpha * share where the ratio is bounded, else alpha itself."""
        return self.share if self.bounded else 1.0


def apply(ctx: Context) -> dict[str, Tensor]:
    """The dampened parameters. Raises CheckFailed when nothing or everything is selected."""
    return dampened(ctx, ctx.task.losses, "square")


def dampened(ctx: Context, scores: Scores, how: How) -> dict[str, Tensor]:
    """SSD with any per-sample score: what `ssd` and `lfssd` share."""
    places = slots(ctx.module, ctx.view, ctx.op.exclude)
    base = by_batch(ctx, scores, how, places) if ctx.op.fisher == "reference-batch" else by_sample(ctx, scores, how, places)
    damper = Dampener(ctx.module, places, base.forget, base.every, damping=ctx.op.damping)
    strength = ctx.op.amount if ctx.op.amount is not None else searched(ctx, damper, base)
    ctx.facts.update(strength=strength, damping=damper.damping, alpha=strength / base.scale, share=base.share)
    return settled(ctx, damper, strength / base.scale, "a smaller --strength selects more weights, a greater one fewer")


def settled(ctx: Context, damper: Dampener, alpha: float, hint: str) -> dict[str, Tensor]:
    """Book what a threshold selects (facts, mask artifact) and return the dampened parameters."""
    damper.require_some(alpha, hint)
    report = damper.report(alpha)
    ctx.facts.update({key: report.pop(key) for key in ("selected", "weights", "selected_fraction")}, selection=report)
    data, op = ctx.run.pseudonym(ctx.forget.items.payload), ctx.op
    key = "/".join((ctx.view.snapshot_id, data, op.method, op.fisher, op.exclude, f"{alpha:.9g}"))
    ctx.run.artifact(MASK, key, lambda: damper.packed_masks(alpha))
    return damper.values(alpha)


def searched(ctx: Context, damper: Dampener, base: Reference) -> float:
    """`--strength auto`: the weakest strength that forgets enough within the retain limits, by measuring a sample of both sets.

    With the usual damping of 1 a selected weight shrinks to F_D / F_f of itself, which may be too little however many are selected: then
    0.3 and 0.1 are tried too. Sets the dampener's damping and books the log; raises CheckFailed when no try is good enough.
    """
    if ctx.retain is None:
        raise BadParameter("--strength auto measures the retain records: a digest will not do", hint="--strength 0.2, or --retain-set FILE")
    probe, tries = Probe(ctx, goal_of(ctx)), 0

    def measure(strength: float) -> Trial:
        nonlocal tries
        damper.apply(strength / base.scale)
        tries += 1
        ctx.run.progress("search", tries, 0)
        return probe(strength)

    found: dict[float, Found] = {}
    for damping in DAMPINGS if ctx.op.damping == DAMPINGS[0] else (ctx.op.damping,):
        damper.damping = damping
        found[damping] = weakest(STRENGTHS if base.bounded else BEYOND, measure)
        if found[damping].grade == 0:
            break
    damper.restore()
    damper.damping = min(found, key=lambda d: found[d].rank)  # the weakest of equals
    won = found[damper.damping]
    ctx.facts["search"] = {
        "reached": won.reached,
        "tries": [{"damping": d, "monotone": f.monotone, "log": [t.told() for t in f.log]} for d, f in found.items()],
    }
    require_reached(ctx, won)
    return won.best.strength


# --- importances -----------------------------------------------------------------------------------------


def by_sample(ctx: Context, scores: Scores, how: How, places: Iterable[Slot]) -> Reference:
    """Exact per-sample importances; F_D is the mixture of both sets by their numbers of rows."""
    names = {place.name for place in places}
    retain, count = kept_importance(ctx, scores, how, names)
    forget = of_part(ctx, ctx.forget, scores, how, names)
    rows = len(ctx.forget.rows)
    share = rows / (rows + count)
    return Reference(forget, mixed(forget, retain, share), share)


def by_batch(ctx: Context, scores: Scores, how: How, places: Iterable[Slot]) -> Reference:
    """The published code's importances: batches of 64 over retain then forget as they stand in the files."""
    if ctx.retain is None:
        raise BadParameter("--fisher reference-batch reads all records: a digest will not do", hint="--retain-set FILE")
    names = {place.name for place in places}
    forget, retain = ctx.forget.rows, ctx.retain.rows
    first = len(retain)

    def all_scores(chosen: list[int]) -> Tensor:
        parts = [(retain, [i for i in chosen if i < first]), (forget, [i - first for i in chosen if i >= first])]
        return torch.cat([scores(ctx.module, rows, some) for rows, some in parts if some])

    def over(numbers: range) -> dict[str, Tensor]:
        plan = [list(numbers[i : i + REFERENCE_BATCH]) for i in range(0, len(numbers), REFERENCE_BATCH)]
        return reference_batch_importance(ctx.module, all_scores, plan, how=how, names=names)

    few, every = over(range(first, first + len(forget))), over(range(first + len(forget)))
    return Reference(few, every, len(forget) / (first + len(forget)), bounded=False)


def kept_importance(ctx: Context, scores: Scores, how: How, names: set[str]) -> tuple[dict[str, Tensor], int]:
    """The retain set's importance and its number of rows: stored, or computed and stored."""
    left_out = ",".join(sorted(parse(ctx.op.exclude))) or "none"

    def compute() -> bytes:
        if ctx.retain is None:
            raise InputNotFound("the importance of that retain set is not stored for this version", hint="--retain-set FILE computes it")
        found = of_part(ctx, ctx.retain, scores, how, names)
        return pack({**found, SAMPLES: torch.tensor([len(ctx.retain.rows)])})

    found = unpack(ctx.run.artifact(KIND, f"{ctx.view.snapshot_id}/{ctx.retain_digest}/{how}/{left_out}", compute))
    count = int(found.pop(SAMPLES))
    return {name: value.to(ctx.parameters[name].device) for name, value in found.items()}, count


def of_part(ctx: Context, part: Part, scores: Scores, how: How, names: set[str]) -> dict[str, Tensor]:
    """Exact per-sample importance of one set."""
    total = len(part.rows)
    return importance(
        ctx.module,
        lambda chosen: scores(ctx.module, part.rows, chosen),
        batches(part.rows, part.everything),
        how=how,
        names=names,
        progress=lambda done: ctx.run.progress(f"importance of the {part.items.role} set", done, total),
    )
