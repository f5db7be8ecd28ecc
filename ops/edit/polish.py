"""The last layer's residuals, corrected on what the write really does: cross-talk between facts, contexts whose keys differ, other tokens.

A closed form writes each target at the subject's mean key; what a prompt then sees is R A^T k at every token. For one block that is linear
in R, so the edited model can be run from that block on without writing anything: its output is what it was plus R (A^T k). A few more
steps of the targets' own optimiser on R, with A as it is, mend what the closed form could not know. The solution stays of rank u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .prompts import Group
from .site import Editable
from .targets import DONE, Adam, Part, Settings, clamped, lost, moving, parts_of

STEPS = 60
PACE = 1.0  # of the targets' rate


@dataclass(frozen=True, slots=True)
class Polished:
    """R [d1, u] float64 after the correction, and the mean loss before and after."""

    residual: Tensor
    before: float
    after: float


def polish(
    model: Editable,
    layer: int,
    groups: Sequence[Group],
    residual: Tensor,
    written: Tensor,
    radius: Tensor,
    rate: float,
    settings: Settings,
    drift: tuple[Tensor, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    before: Sequence[Tensor | None] | None = None,
    beyond: Tensor | None = None,
) -> Polished:
    """Residuals R [d1, u] corrected for A = `written` [d0, u], both float64; the model is as it was before this layer's write.

    radius: longest R allowed per subject [u]. drift: A^T C A [u, u] and a weight, which keep what ordinary text sees small.
    before: what the model said before any write, by part. beyond: what the next block will add behind each subject [u, d1].
    """
    parts = [(part, _reach(model, layer, part, written)) for part in parts_of(model, layer, groups, settings.kl, before)]
    change = residual.T.float().contiguous().to(model.device)
    radius = radius.float().to(model.device)
    adam, best, least, first = Adam(PACE * rate, change), change, float("inf"), 0.0
    for step in range(1, STEPS + 1):
        losses, gradient = _measure(model, layer, parts, change, drift, beyond)
        mean = losses.mean().item()
        first = mean if step == 1 else first
        if mean < least:
            best, least = change, mean
        if progress is not None:
            progress(step, STEPS)
        if step == STEPS or bool((losses < DONE).all()):
            break
        change = clamped(change - adam.move(step, gradient), radius)
    return Polished(best.T.double(), first, least)


def _reach(model: Editable, layer: int, part: Part, written: Tensor) -> Tensor:
    """A^T k at every token of the part, float32 [n, width, u]."""
    ids = part.batch.ids
    keys = model.keys_everywhere(ids, layer)
    return (keys @ written.float().to(keys.device)).view(*ids.shape, -1)


def _measure(
    model: Editable,
    layer: int,
    parts: list[tuple[Part, Tensor]],
    change: Tensor,
    drift: tuple[Tensor, float] | None,
    beyond: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Loss per subject [u] and gradient [u, d1]."""
    moved = change.clone().requires_grad_(True)
    total = torch.zeros(len(change), device=change.device)
    if drift is not None:
        gram, weight = drift
        cost = weight * ((gram.float().to(moved.device) @ moved) * moved).sum()
        cost.backward()
        total = total + cost.detach() / len(change)
    for part, reach in parts:
        # Every token sees the write, but only the subject's tokens may ask for more of it: else the last block learns to answer at
        # the prompt's end, which is no fact about a subject and costs ten times the drift.
        place = torch.arange(reach.shape[1], device=change.device)[None]
        inside = ((place >= part.batch.first[:, None]) & (place <= part.batch.at[:, None]))[:, :, None]
        states = part.states + reach @ change + (reach * inside) @ (moved - change)
        with moving(model, layer + 1, beyond, part):
            losses = lost(model, layer, part, states)
        losses.sum().backward()
        total = total.index_add(0, part.owner[part.batch.rows], losses.detach())
    assert moved.grad is not None
    return total, moved.grad
