"""Target vectors: what the hidden state behind the subject should be, so that the model gives the new answers.

All subjects of a batch at once, each with a change d of its own, its own Adam moments, its own clamp and its own end; rows of different
subjects never meet, so the numbers are those of one subject at a time. Blocks up to the edited layer run once: their output is a constant;
so are, in the blocks behind it, the tokens before the subject's last.
Loss per subject (MEMIT, eq. 16, with ROME's constraint): mean NLL of the answers + kl / sqrt(facts) KL(now || before) on other questions
about the subject + weight_decay |d|^2 / |h|^2. A subject with several facts is moved further, hence the root in the clamp; and as the mean
divides each answer's weight by their number, what is kept must not weigh as much as before.

Most subjects need no longer change than FIRST of the clamp; those with one fact whose answer is still far
when half of the steps are made get the rest. (Where several are asked, it was measured to cost the subject's other answers.)

One vector behind the subject cannot carry several answers that never went together: the blocks that look them up read it at different
depths. Such a subject may have a second change at the output of the next block (`beyond`), found together with the first.

A sum over a padded batch is rounded otherwise than over one row. Where a search does not come to rest, forty steps make a ten-millionth
of difference a tenth: in fp32 a few targets do depend on their neighbours. In fp64 what is left is 1e-14, at twice the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .front import Front, cut
from .prompts import Batch, Group, Row, collate
from .site import Editable, first_of

RATE = 0.35  # first step's length relative to |h|, by which the default rate is set
DONE = 0.05  # a loss below which a subject needs no further step
BETAS, EPSILON = (0.9, 0.999), 1e-8
FIRST = 2 / 3  # share of the clamp that every subject may use
FAR = 0.5  # a loss above which a subject of one fact may use all of it, once half of the steps are made
SEVERAL = 2  # facts about a subject from which on it has a second change
PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64}
WASTE = 1.3  # padded size over real size above which rows go through in two parts


@dataclass(frozen=True, slots=True)
class Settings:
    """How targets are optimised; `lr` None derives it from the mean |h|."""

    steps: int = 40
    lr: float | None = None
    clamp: float = 1.5
    kl: float = 1.0
    weight_decay: float = 0.05
    batch: int = 16
    precision: str = "fp32"


@dataclass(frozen=True, slots=True)
class Targets:
    """Per subject: clean hidden state h and change d, float32 [u, d1] each (z = h + d), last loss and steps taken."""

    hidden: Tensor
    change: Tensor
    losses: tuple[float, ...]
    steps: tuple[int, ...]
    lr: float
    beyond: Tensor | None = None  # changes at the next block [u, d1]: zero for a subject with one fact
    beyond_hidden: Tensor | None = None  # clean hidden states there [u, d1]

    @property
    def z(self) -> Tensor:
        """h + d."""
        return self.hidden + self.change


def find_targets(
    model: Editable,
    layer: int,
    groups: Sequence[Group],
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
    *,
    beyond: bool = False,
) -> Targets:
    """Targets at the output of block `layer` for every group, in order; with `beyond` also at the next where a subject has several."""
    with model.computing(PRECISIONS[settings.precision]):
        return _find(model, layer, groups, settings, progress, beyond)


def _find(
    model: Editable, layer: int, groups: Sequence[Group], settings: Settings, progress: Callable[[int, int], None] | None, beyond: bool
) -> Targets:
    layers = (layer, layer + 1) if beyond and any(map(second, groups)) else (layer,)
    hidden = torch.stack([hidden_at(model, n, groups) for n in layers], 1)
    rate = settings.lr if settings.lr is not None else default_rate(hidden[:, 0].norm(dim=1).mean().item(), hidden.shape[2])
    changes, losses, steps = [], [], []
    for start in range(0, len(groups), settings.batch):
        part = slice(start, start + settings.batch)
        search = _Search(model, layer, groups[part], hidden[part], settings, rate)
        search.run()
        changes.append(search.change)
        losses += search.losses
        steps += search.steps
        if progress is not None:
            progress(min(start + settings.batch, len(groups)), len(groups))
    found, hidden = torch.cat(changes).float(), hidden.float()
    more = (found[:, 1].contiguous(), hidden[:, 1].contiguous()) if len(layers) > 1 else (None, None)
    return Targets(hidden[:, 0].contiguous(), found[:, 0].contiguous(), tuple(losses), tuple(steps), rate, *more)


def second(group: Group) -> bool:
    """Whether a subject has a second change, at the next block."""
    return len(group.facts) >= SEVERAL


@contextmanager
def moving(model: Editable, layer: int, change: Tensor | None, part: Part) -> Iterator[None]:
    """Block `layer` gives more by `change` [u, d1] behind each row's subject; None changes nothing."""
    if change is None:
        yield
        return
    rows, added = torch.arange(len(part.owner), device=change.device), change[part.owner]

    def add(_: Any, __: Any, output: Any) -> Any:
        states = first_of(output).index_put((rows, part.batch.at), added, accumulate=True)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = model.blocks[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def default_rate(scale: float, width: int) -> float:
    """The rate at which Adam's first step (rate in each of `width` coordinates) is RATE of the hidden state's length."""
    return RATE * scale / width**0.5


def hidden_at(model: Editable, layer: int, groups: Sequence[Group]) -> Tensor:
    """Output of block `layer` behind each subject, mean over its bare prompts, [groups, d1] in the model's `dtype`."""
    rows = [row for group in groups for row in group.bare]
    owner = torch.tensor([i for i, group in enumerate(groups) for _ in group.bare], device=model.device)
    seen = observe(model, rows, hidden=(layer,)).hidden[layer]
    sums = seen.new_zeros(len(groups), seen.shape[1]).index_add_(0, owner, seen)
    return sums / torch.bincount(owner, minlength=len(groups))[:, None]


def observe(model: Editable, rows: Sequence[Row], *, keys: Sequence[int] = (), hidden: Sequence[int] = (), together: int = 512):  # type: ignore[no-untyped-def]
    """`Editable.observe` over any number of rows."""
    parts = [model.observe(collate(rows[i : i + together]), keys=keys, hidden=hidden) for i in range(0, len(rows), together)]
    return type(parts[0])(
        {layer: torch.cat([p.keys[layer] for p in parts]) for layer in keys},
        {layer: torch.cat([p.hidden[layer] for p in parts]) for layer in hidden},
    )


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of similar length that go through the model together."""

    batch: Batch
    states: Tensor  # output of the edited block [n, width, d1]
    owner: Tensor  # [n] subject of each row
    weight: Tensor  # [places] weight of each scored place in its subject's loss
    before: Tensor | None  # log-probabilities before the edit [places, vocabulary]; None for rows that learn the answer
    front: Front | None = None  # what stands before the rows, where they are cut

    def of(self, live: Tensor) -> Part | None:
        """The rows whose subjects are live; None without any."""
        keep = live[self.owner]
        if bool(keep.all()):
            return self
        if not bool(keep.any()):
            return None
        places = keep[self.batch.rows]
        number = keep.cumsum(0) - 1
        batch = Batch(
            self.batch.ids[keep],
            self.batch.first[keep],
            self.batch.at[keep],
            number[self.batch.rows[places]],
            self.batch.places[places],
            self.batch.targets[places],
        )
        before = None if self.before is None else self.before[places]
        front = None if self.front is None else self.front.of(keep)
        return Part(batch, self.states[keep], self.owner[keep], self.weight[places], before, front)


def parts_of(
    model: Editable, layer: int, groups: Sequence[Group], kl: float, before: Sequence[Tensor | None] | None = None, *, tails: bool = False
) -> list[Part]:
    """All rows of the groups in parts of similar length: those that learn the answer, then those that keep theirs.

    before: of the same call on another version of the model, whose answers are the ones to keep; None for the model as it is. tails: rows
    are cut before the subject's last token, for changes that reach nothing before it.
    """
    asked = [(row, weight, i) for i, g in enumerate(groups) for row, weight in g.asked]
    kept = [(row, kl / len(g.facts) ** 0.5 / len(g.kept), i) for i, g in enumerate(groups) for row in g.kept] if kl else []
    size = _tail if tails else _length
    parts = [_part(model, layer, rows, keep, tails) for many, keep in ((asked, False), (kept, True)) for rows in _alike(many, size)]
    return parts if before is None else [replace(part, before=was) for part, was in zip(parts, before, strict=True)]


def _part(model: Editable, layer: int, rows: list[tuple[Row, float, int]], keep: bool, tails: bool) -> Part:
    where = model.device
    batch = collate([row for row, _, _ in rows])
    batch = Batch(*(t.to(where) for t in (batch.ids, batch.first, batch.at, batch.rows, batch.places, batch.targets)))
    states, front = model.entering(batch, layer), None
    if tails:
        batch, states, front = cut(model, layer, batch, states)
    weight = torch.tensor([w / len(row.places) for row, w, _ in rows for _ in row.places], device=where, dtype=states.dtype)
    before = None
    if keep:
        with torch.no_grad():
            before = model.logits(batch, hidden=states, layer=layer, front=front).log_softmax(-1)
    return Part(batch, states, torch.tensor([i for _, _, i in rows], device=where), weight, before, front)


def lost(model: Editable, layer: int, part: Part, states: Tensor) -> Tensor:
    """Weighted loss of every scored place [places] when the edited block gives `states` [n, width, d1]."""
    logprobs = model.logits(part.batch, hidden=states, layer=layer, front=part.front).log_softmax(-1)
    if part.before is None:
        return part.weight * -logprobs.gather(1, part.batch.targets[:, None])[:, 0]
    return part.weight * (logprobs.exp() * (logprobs - part.before)).sum(1)


class _Search:
    """Adam on the changes of one batch of subjects; hidden [u, 1 or 2, d1]: one block, or also the next."""

    def __init__(self, model: Editable, layer: int, groups: Sequence[Group], hidden: Tensor, s: Settings, rate: float) -> None:
        self.model, self.layer, self.s = model, layer, s
        size = hidden.norm(dim=2).clamp_min(1e-12)
        self.square = size.square()
        self.radius = torch.stack([radii(hidden[:, n], groups, s.clamp) for n in range(hidden.shape[1])], 1)
        self.several = torch.tensor([second(group) for group in groups], device=hidden.device)
        self.radius[:, 1:] *= self.several[:, None]
        self.room = torch.full_like(size, FIRST)
        self.change = torch.zeros_like(hidden)
        # Each block's rate follows its own hidden state, relative to the subject's: a subject's numbers are its own.
        self.adam = Adam(rate, hidden)
        self.pace = torch.ones_like(size)
        self.pace[:, 1:] = size[:, 1:] / size[:, :1]
        self.losses, self.steps = [0.0] * len(groups), [0] * len(groups)
        self.parts = parts_of(model, layer, groups, s.kl, tails=True)

    def run(self) -> None:
        """Optimise until every subject is done or the steps are used up; the last step only measures."""
        live = torch.ones(len(self.change), dtype=torch.bool, device=self.change.device)
        parts = self.parts
        for step in range(1, self.s.steps + 1):
            losses, gradient = self._measure(parts, live)
            for i in torch.nonzero(live).flatten().tolist():
                self.losses[i], self.steps[i] = losses[i], step
            still = live & torch.tensor([loss >= DONE for loss in losses], device=live.device)
            if step == self.s.steps or not bool(still.any()):
                return
            if bool((still != live).any()):
                live = still
                parts = [p for p in (part.of(live) for part in self.parts) if p is not None]
            if step == self.s.steps // 2:
                self.room[(torch.tensor(losses, device=live.device) > FAR) & ~self.several] = 1.0
            self._step(step, gradient, live)

    def _measure(self, parts: list[Part], live: Tensor) -> tuple[list[float], Tensor]:
        """Loss and gradient per subject; zero for those that are done."""
        change = self.change.clone().requires_grad_(True)
        ratio = (change.square().sum(2) / self.square).sum(1)
        losses = torch.where(live, self.s.weight_decay * ratio, 0.0)
        losses.sum().backward()
        total = losses.detach()
        for part in parts:
            rows = torch.arange(len(part.owner), device=change.device)
            states = part.states.index_put((rows, part.batch.at), change[part.owner, 0], accumulate=True)
            with moving(self.model, self.layer + 1, change[:, 1] if change.shape[1] > 1 else None, part):
                losses = lost(self.model, self.layer, part, states)
            losses.sum().backward()
            total = total.index_add(0, part.owner[part.batch.rows], losses.detach())
        assert change.grad is not None
        return total.tolist(), change.grad

    def _step(self, step: int, gradient: Tensor, live: Tensor) -> None:
        change = self.change - self.pace[:, :, None] * self.adam.move(step, gradient)
        change = clamped(change.flatten(0, 1), (self.room * self.radius).flatten()).view_as(change)
        self.change = torch.where(live[:, None, None], change, self.change)


def radii(hidden: Tensor, groups: Sequence[Group], clamp: float) -> Tensor:
    """Longest change per subject [u]: clamp |h| sqrt(facts), the length that so many orthogonal changes would have together."""
    room = torch.tensor([len(group.facts) ** 0.5 for group in groups], device=hidden.device)
    return clamp * hidden.norm(dim=1) * room


class Adam:
    """Moments of Adam; plain, so that a subject's numbers do not depend on who else is in the batch."""

    def __init__(self, rate: float, like: Tensor) -> None:
        self.rate, self.mean, self.square = rate, torch.zeros_like(like), torch.zeros_like(like)

    def move(self, step: int, gradient: Tensor) -> Tensor:
        """What is to be subtracted in step 1, 2, ..."""
        first, second = BETAS
        self.mean = first * self.mean + (1 - first) * gradient
        self.square = second * self.square + (1 - second) * gradient.square()
        return self.rate * (self.mean / (1 - first**step)) / ((self.square / (1 - second**step)).sqrt() + EPSILON)


def clamped(change: Tensor, radius: Tensor) -> Tensor:
    """Each row of change [u, d1] shortened to its radius [u] where it is longer."""
    return change * (radius / change.norm(dim=1).clamp_min(1e-30)).clamp_max(1.0)[:, None]


def _length(row: Row) -> int:
    return len(row.ids)


def _tail(row: Row) -> int:
    return len(row.ids) - min(row.at, *row.places)


def _alike(rows: list[tuple[Row, float, int]], size: Callable[[Row], int]) -> list[list[tuple[Row, float, int]]]:
    """The rows in parts that are padded little: split where the padding of one part would cost more than WASTE."""
    if not rows:
        return []
    ordered = sorted(rows, key=lambda r: size(r[0]))
    real = sum(size(r[0]) for r in ordered)
    if len(ordered) < 8 or len(ordered) * size(ordered[-1][0]) <= WASTE * real:
        return [ordered]
    middle = len(ordered) // 2
    return [ordered[:middle], ordered[middle:]]
