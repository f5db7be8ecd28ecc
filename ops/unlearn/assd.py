"""Method `assd`: dampening with a threshold from the data, nothing to choose (Schoepf, Foster, Brintrup 2402.10098).

The reference is the retain set alone, so the ratio has no bound; alpha is the percentile p = 100 - ln(1 + 100 share) of all finite ratios
F_f / F_r, and lambda is 1. The percentile is taken over the weights that may change, and is one of the data's own values: exactly the share
ln(1 + 100 share) / 100 of them lies above it, where no two ratios are equal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from ...kernels.select import percentile
from .dampening import UPWARD, Dampener
from .exclusion import slots
from .ssd import kept_importance, of_part, settled

if TYPE_CHECKING:
    from .context import Context


def apply(ctx: Context) -> dict[str, Tensor]:
    """The dampened parameters. Raises CheckFailed when nothing or everything is selected."""
    places = slots(ctx.module, ctx.view, ctx.op.exclude)
    names = {place.name for place in places}
    retain, count = kept_importance(ctx, ctx.task.losses, "square", names)
    forget = of_part(ctx, ctx.forget, ctx.task.losses, "square", names)
    damper = Dampener(ctx.module, places, forget, retain, damping=ctx.op.damping)
    rows = len(ctx.forget.rows)
    share = rows / (rows + count)
    alpha = threshold(damper, share)
    ctx.facts.update(strength="by the data", alpha=alpha, percentile=level(share), share=share)
    return settled(ctx, damper, alpha, "--method ssd --strength auto searches for a threshold")


def level(share: float) -> float:
    """p = 100 - ln(1 + 100 share), in per cent (2402.10098)."""
    return 100 - math.log1p(100 * share)


def threshold(damper: Dampener, share: float) -> float:
    """The p-th percentile of the finite ratios; a hair above it, so that rounding does not select the one that it is."""
    return percentile(damper.ratios(), level(share)) * UPWARD
