"""The last layer's residuals, corrected on what the write really does: cross-talk between facts, contexts whose keys differ, other tokens.

A closed form writes each target at the subject's mean key; what a prompt then sees is R A^T k at every token. For one block that is linear
in R, so the edited model can be run from that block on without writing anything: its output is what it was plus R (A^T k). A few more
steps of the targets' own optimiser on R, with A as it is, mend what the closed form could not know. The solution stays of rank u.

How much drift a fact is worth differs from model to model, and an expectation over keys does not tell. So it is looked at: while facts are
still far when the steps are made and a sample of ordinary text hardly notices the write, drift counts for less and some more steps follow;
where these do not bring fewer facts to be far, or text notices too much of them, they are not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .prompts import Batch, Group
from .site import Editable
from .targets import DONE, Adam, Part, Settings, clamped, lost, moving, parts_of

STEPS = 60
PACE = 1.0  # of the targets' rate
TURNS, MORE = 1, 40  # how often drift may count for less, and the steps that follow each time
EASE = 3.0  # by how much less
FAR = 0.5  # loss of a subject's own answers above which more is tried
NOTICED = 0.14  # nats per token that the answers of ordinary text may be away from those before any write, for more to be tried and taken
ROWS = 64  # of the sample of ordinary text: what a write does to it lies in few tokens, so many are asked
LOGITS = 1 << 22  # of the sample, held at once


@dataclass(frozen=True, slots=True)
class Polished:
    """R [d1, u] float64 after the correction, and how often drift was made to count for less."""

    residual: Tensor
    turns: int


@dataclass(frozen=True, slots=True)
class Ordinary:
    """A sample of ordinary text: ids int64 [n, length], and what the last block gave before any write [n, length, d1]."""

    ids: Tensor
    before: Tensor


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
    ordinary: Ordinary | None = None,
) -> Polished:
    """Residuals R [d1, u] corrected for A = `written` [d0, u], both float64; the model is as it was before this layer's write.

    radius: longest R allowed per subject [u]. drift: A^T C A [u, u] and a weight, which keep what ordinary text sees small.
    before: what the model said before any write, by part. beyond: what the next block will add behind each subject [u, d1].
    ordinary: a sample of text (see `sample`), by which drift may count for less; without it the weight stays as it is.
    """
    parts = [(part, reached(model, layer, part.batch, written)) for part in parts_of(model, layer, groups, settings.kl, before)]
    change = residual.T.float().contiguous().to(model.device)
    radius = radius.float().to(model.device)
    adam, best, least, far, turns = Adam(PACE * rate, change), change, float("inf"), 0, 0
    firm: tuple[Tensor, int] | None = None  # what there was before drift counted for less
    for step in range(1, STEPS + TURNS * MORE + 1):
        losses, asked, gradient = _measure(model, layer, parts, change, drift, beyond)
        mean = losses.mean().item()
        if mean < least:
            best, least, far = change, mean, int((asked > FAR).sum())
        end = STEPS + turns * MORE
        if progress is not None:
            progress(step, end)
        if bool((losses < DONE).all()):
            break
        if step == end:
            if turns == TURNS or not far or drift is None or ordinary is None:
                break
            if noticed(model, layer, ordinary, written, best) > NOTICED:
                break
            # The search goes on where it is, with its moments: begun again at its best it would first be thrown far off.
            firm, drift, least, turns = (best, far), (drift[0], drift[1] / EASE), float("inf"), turns + 1
        change = clamped(change - adam.move(step, gradient), radius)
    if firm is not None and ordinary is not None and (far >= firm[1] or noticed(model, layer, ordinary, written, best) > NOTICED):
        best, turns = firm[0], turns - 1
    return Polished(best.T.double(), turns)


def sample(model: Editable, rows: Tensor) -> Ordinary:
    """ROWS of the text int64 [n, length], on a model that nothing was written into."""
    ids = rows[torch.linspace(0, len(rows) - 1, min(len(rows), ROWS)).round().long()].to(model.device)
    return Ordinary(ids, torch.cat([model.entering(_all_of(part), model.count - 1) for part in ids.split(16)]))


@torch.no_grad()
def noticed(model: Editable, layer: int, text: Ordinary, written: Tensor, change: Tensor) -> float:
    """Mean KL(now || before) in nats per token of the text, with R^T = `change` [u, d1] on A = `written` [d0, u] written at `layer`."""
    total = 0.0
    together = max(1, LOGITS // (text.ids.shape[1] * model.head.weight.shape[0]))
    for ids, before in zip(text.ids.split(together), text.before.split(together), strict=True):
        batch = _all_of(ids)
        states = model.entering(batch, layer) + reached(model, layer, batch, written) @ change
        now = model.logits(batch, hidden=states, layer=layer).log_softmax(-1)
        then = model.logits(batch, hidden=before, layer=model.count - 1).log_softmax(-1)
        total += (now.exp() * (now - then)).sum().item()
    return total / text.ids.numel()


def _all_of(ids: Tensor) -> Batch:
    """Every token of ids int64 [n, length] is asked."""
    rows, length = ids.shape
    none = torch.zeros(rows, dtype=torch.int64, device=ids.device)
    place = torch.arange(length, device=ids.device).repeat(rows)
    row = torch.arange(rows, device=ids.device).repeat_interleave(length)
    return Batch(ids, none, none, row, place, torch.zeros_like(row))


def reached(model: Editable, layer: int, batch: Batch, written: Tensor) -> Tensor:
    """A^T k at every token of the batch, float32 [n, width, u]."""
    keys = model.keys_everywhere(batch.ids, layer)
    return (keys @ written.float().to(keys.device)).view(*batch.ids.shape, -1)


def shifted(states: Tensor, batch: Batch, reach: Tensor, change: Tensor, moved: Tensor) -> Tensor:
    """`states` [n, width, d1] with R^T = `change` [u, d1] written; `moved` is the same, with gradient.

    Every token sees the write, but only the subject's tokens may ask for more of it: else the last block learns to answer at the prompt's
    end, which is no fact about a subject and costs ten times the drift.
    """
    place = torch.arange(reach.shape[1], device=change.device)[None]
    inside = ((place >= batch.first[:, None]) & (place <= batch.at[:, None]))[:, :, None]
    return states + reach @ change + (reach * inside) @ (moved - change)


def _measure(
    model: Editable,
    layer: int,
    parts: list[tuple[Part, Tensor]],
    change: Tensor,
    drift: tuple[Tensor, float] | None,
    beyond: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per subject [u]: loss, and its part that the new answers have in it; and the gradient [u, d1]."""
    moved = change.clone().requires_grad_(True)
    total, asked = torch.zeros(2, len(change), device=change.device)
    if drift is not None:
        gram, weight = drift
        cost = weight * ((gram.float().to(moved.device) @ moved) * moved).sum()
        cost.backward()
        total = total + cost.detach() / len(change)
    for part, reach in parts:
        states = shifted(part.states, part.batch, reach, change, moved)
        with moving(model, layer + 1, beyond, part):
            losses = lost(model, layer, part, states)
        losses.sum().backward()
        total = total.index_add(0, part.owner[part.batch.rows], losses.detach())
        if part.before is None:
            asked = asked.index_add(0, part.owner[part.batch.rows], losses.detach())
    assert moved.grad is not None
    return total, asked, moved.grad
