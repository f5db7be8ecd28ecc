"""Method `lfssd`: dampening without labels (Foster et al., "Loss-Free Machine Unlearning", 2402.19308).

As `ssd`, with the importance of a weight taken as the mean over samples of |d ||f(x)||^2 / d theta|, f the logits: nothing is scored, so no
answer and no label is read. The bound on the ratio and the meaning of the strength are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .ssd import dampened

if TYPE_CHECKING:
    from .context import Context


def apply(ctx: Context) -> dict[str, Tensor]:
    """The dampened parameters. Raises CheckFailed when nothing or everything is selected."""
    return dampened(ctx, ctx.task.output_norms, "absolute")
