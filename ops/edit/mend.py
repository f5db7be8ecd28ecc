"""When a fact of an edit goes, its others stay and it goes whole: residuals corrected where the closed form alone does not give that.

Facts that are written together lend each other a little, and one that is barely preferred may turn when another goes and the closed form is
solved again. A fact whose subject keeps others may linger in the target that these share now. The correction is the edit's own (see
polish.py): R moves, A stays, the model runs on from the block that is written. What is asked for is less: that a fact which held is
preferred by a margin again, and that one which goes is hardly more so than before the edit. Only subjects of facts that fail are moved,
what else is asked about them keeps the answers that the model gives without the edit, and the steps end as soon as all is well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.facts import Fact
from ..evaluate.coder import Coder
from ..models import load_tokenizer
from .measure import bench_of, preferences
from .polish import STEPS, reached, shifted
from .prompts import Batch, Group, Prompter, collate, normal
from .session import polish_slack, settings_of
from .site import Editable
from .targets import FIRST, Adam, clamped, default_rate, hidden_at, lost, parts_of, radii

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from .edit import Edit

Terms = tuple[Tensor, Tensor]  # what is written at a block: (up [d1, v], down [v, d0]) float32

# Log of the odds of both answers, in nats per token, of a fact that stays: below the first it is corrected, at the second that may stop,
# the third is what it is pulled towards. And of one that goes: share of the preference for the answer before that is to be had again.
STAYS = (0.02, 0.2, 0.25)
GOES = (0.95, 0.96, 0.97)
AS_IT_WAS = 3.0  # a fact that stays is held where it is, up to here, when its subject is moved for another's sake
PACE = 0.2  # of the targets' rate: the way is short
TOGETHER = 64  # facts asked in one pass


Asked = tuple[Fact, str]  # a fact, and the answer that it is compared with


@dataclass(frozen=True, slots=True)
class Mended:
    """What is to be written, block by block; the facts that the closed form alone did not do right by, and what it took."""

    terms: dict[int, Terms]
    facts: tuple[str, ...] = ()
    subjects: int = 0  # that were moved
    steps: int = 0
    moved: float = 0.0  # length of what was added to R, relative to R


@dataclass(frozen=True, slots=True)
class Scene:
    """The model that the facts stay in: W of the written blocks without the edit ([d1, d0] float32), all else as it is now."""

    view: ModelView
    bare: Mapping[int, Tensor]
    levels: tuple[int, ...]  # blocks that may be corrected, ascending: where the targets stand


def mended(
    scene: Scene, now: dict[int, Terms], groups: Sequence[Group], stay: Sequence[Asked], go: Sequence[Asked], op: Edit, run: Run
) -> Mended:
    """`now` corrected, as far as that can be had: every fact of `stay` that holds in the scene's view holds, those of `go` are gone.

    groups: subjects of the columns of `now`, in their order.
    """
    model, coder = Editable(scene.view), Coder(load_tokenizer(scene.view))

    def preferred(asked: Sequence[Asked], phase: str) -> list[float]:
        return preferences(asked, bench_of(model.module, coder, phase, run.progress))

    held = [pair for pair, p in zip(stay, preferred(stay, "measure the edit"), strict=True) if p > 0.5]
    _put(model, scene.bare, {})
    free = preferred(go, "measure without it")
    _put(model, scene.bare, now)
    found = preferred([*held, *go], "measure what stays")
    # What a later edit wrote again cannot go with this one, and is not to.
    gone = [(pair, a, b) for pair, a, b in zip(go, free, found[len(held) :], strict=True) if a <= 0.5]
    short = [f.id for (f, _), p in zip(held, found[: len(held)], strict=True) if p <= 0.5]
    short += [f.id for (f, _), a, b in gone if restored(a, b) < GOES[0]]
    if not short:
        return Mended(now)
    wishes = [_Wish(pair, 1.0, *STAYS) for pair in held] + [_Wish(pair, -1.0, *(-_odds(a, share) for share in GOES)) for pair, a, _ in gone]
    # A rival of special signs alone leaves no token to be asked for.
    wishes = [w for w in wishes if coder.split([(w.asked[0].question, w.asked[1])])[0][1]]
    prompter, given, subjects, steps = Prompter(coder, None), now, set[int](), 0
    for layer in scene.levels:
        work = _Correction(model, scene, layer, now, _keeping(groups, go, prompter), wishes, prompter, op)
        done = work.run(run)
        now = {**now, layer: (work.best.T.cpu().contiguous(), now[layer][1])}
        subjects |= set(work.moving.nonzero().flatten().tolist())
        steps += work.steps
        if done:
            break
    size = sum(given[n][0].square().sum().item() for n in scene.levels) ** 0.5
    added = sum((now[n][0] - given[n][0]).square().sum().item() for n in scene.levels) ** 0.5
    return Mended(now, tuple(short), len(subjects), steps, added / max(size, 1e-30))


def restored(first: float, preferred: float) -> float:
    """Preference for the other answer relative to what it was when the new one was preferred by `first`, at most 1."""
    return min(1.0, (1 - preferred) / max(1 - first, 1e-12))


def _odds(first: float, share: float) -> float:
    """Log of the odds of the new answer at which `share` is restored; for share * (1 - first) under 1."""
    return math.log(1 / max(share * (1 - first), 1e-12) - 1)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is to become of a fact: `sign` times the log of its odds at least `floor`; corrected, at least `enough`, better `aim`."""

    asked: Asked
    sign: float
    floor: float
    enough: float
    aim: float


def _keeping(groups: Sequence[Group], go: Sequence[Asked], prompter: Prompter) -> list[Group]:
    """The groups with nothing but what is to stay; behind them one more, which has no column: the questions that were taken back."""
    facts = tuple(f for f, _ in go)
    return [*(replace(g, asked=()) for g in groups), Group("", facts, (), (), tuple(prompter.row(f.prompt, f.subject) for f in facts))]


def _put(model: Editable, bare: Mapping[int, Tensor], terms: Mapping[int, Terms]) -> None:
    """Write the terms into the module's blocks; a block without terms is as without the edit."""
    for layer, weight in bare.items():
        up, down = terms.get(layer, (weight[:, :0], weight[:0]))
        model.weight(layer).copy_((weight.double() + up.double() @ down.double()).float())


class _Correction:
    """Steps on the residuals of one block; `best` [v, d1], `moving` [v] and `steps` say what came of them."""

    def __init__(
        self, model: Editable, scene: Scene, layer: int, now: dict[int, Terms], groups: list[Group], wishes: Sequence[_Wish],
        prompter: Prompter, op: Edit,
    ) -> None:  # fmt: skip
        self.model, self.layer, settings, where = model, layer, settings_of(op), model.device
        up, down = now[layer]
        written, self.best = down.T.double(), up.T.contiguous().to(where)
        _put(model, scene.bare, {})
        before = [part.before for part in parts_of(model, layer, groups, settings.kl)]
        _put(model, scene.bare, {n: terms for n, terms in now.items() if n != layer})
        self.parts = [(part, reached(model, layer, part.batch, written)) for part in parts_of(model, layer, groups, settings.kl, before)]
        asked = [w.asked for w in wishes]
        self.pairs = [_Pairs(model, layer, asked[i : i + TOGETHER], prompter, written) for i in range(0, len(asked), TOGETHER)]
        self.sign, self.floor, self.enough, self.aim = torch.tensor([[w.sign, w.floor, w.enough, w.aim] for w in wishes], device=where).T
        columns = groups[:-1]
        place = {normal(g.subject): i for i, g in enumerate(columns)}
        own = torch.tensor([place.get(normal(f.subject), -1) for f, _ in asked], device=where)
        # A subject that is gone has no column of its own: if its fact lingers, it is by the one that writes most at its key.
        self.owner = torch.where(own < 0, torch.cat([pairs.nearest(self.best) for pairs in self.pairs]), own)
        self.moving = torch.zeros(len(columns), dtype=torch.bool, device=where)
        hidden, length = hidden_at(model, layer, columns), self.best.norm(dim=1)
        self.rate = settings.lr if settings.lr is not None else default_rate(hidden.norm(dim=1).mean().item(), hidden.shape[1])
        room = torch.maximum(polish_slack(op.share) * FIRST * radii(hidden, columns, settings.clamp), length)
        self.radius = room * (length > 0)  # no second change for a subject that has none
        self.steps = 0

    def run(self, run: Run) -> bool:
        """Move until all is well; whether it is. Else the best place is kept: fewest facts on the wrong side, then fewest short."""
        change, adam, least = self.best, Adam(PACE * self.rate, self.best), (len(self.owner) + 1, 0, 0.0)
        for step in range(STEPS + 1):
            odds, gradient = self._measure(change)
            if not step:
                self.aim = torch.where(self.sign > 0, torch.maximum(self.aim, odds.clamp_max(AS_IT_WAS)), self.aim)
            self.moving = self._moved(odds)
            short = odds <= torch.where(self.moving[self.owner], self.enough, self.floor)
            done = not bool(short.any())
            score = (int((odds <= 0).sum()), int(short.sum()), (self.aim - odds).clamp_min(0).sum().item())
            if done or score < least:
                self.best, least = change, score
            if not bool((short & (self.radius[self.owner] > 0)).any()) or step == STEPS:
                run.progress("correct", self.steps, self.steps)
                return done
            self.steps = step + 1
            run.progress("correct", self.steps, STEPS)
            change = clamped(change - adam.move(step + 1, gradient * self.moving[:, None]) * self.moving[:, None], self.radius)
        return False

    def _moved(self, odds: Tensor) -> Tensor:
        """Subjects that are moved [v]: once moved, always."""
        return self.moving.index_fill(0, self.owner[odds <= self.floor], True)

    def _measure(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """How far each fact is on its side, in nats per token [facts], and the gradient [v, d1] of what is missing."""
        moved, found, at = change.clone().requires_grad_(True), [], 0
        for pairs in self.pairs:
            here = slice(at, at + pairs.count)
            odds = self.sign[here] * pairs.odds(change, moved)
            (self.aim[here] - odds).clamp_min(0).sum().backward()
            found.append(odds.detach())
            at += pairs.count
        odds = torch.cat(found)
        live = torch.cat([self._moved(odds), self.moving.new_ones(1)])  # what is asked about those that are gone stays in any case
        for whole, reach in self.parts:
            part = whole.of(live)
            if part is not None:
                states = shifted(part.states, part.batch, reach[live[whole.owner]], change, moved)
                lost(self.model, self.layer, part, states).sum().backward()
        assert moved.grad is not None
        return odds, moved.grad


class _Pairs:
    """Facts with both answers, ready to be asked with any residuals."""

    def __init__(self, model: Editable, layer: int, asked: Sequence[Asked], prompter: Prompter, written: Tensor) -> None:
        self.model, self.layer, self.count, where = model, layer, len(asked), model.device
        ours = [prompter.row(f.prompt, f.subject, f.target_new) for f, _ in asked]
        rows = [*ours, *(prompter.row(f.prompt, f.subject, rival) for f, rival in asked)]
        batch = collate(rows)
        self.batch = Batch(*(t.to(where) for t in (batch.ids, batch.first, batch.at, batch.rows, batch.places, batch.targets)))
        self.sizes = torch.tensor([len(row.places) for row in rows], device=where)
        self.states = model.entering(self.batch, layer)
        self.reach = reached(model, layer, self.batch, written)

    def nearest(self, change: Tensor) -> Tensor:
        """Number of the column that writes most behind each subject [facts]."""
        rows = torch.arange(self.count, device=change.device)
        return (self.reach[rows, self.batch.at[rows]].abs() * change.norm(dim=1)).argmax(1)

    def odds(self, change: Tensor, moved: Tensor) -> Tensor:
        """Log of the odds: mean log-likelihood per token of the new answers less that of their rivals [facts]."""
        states = shifted(self.states, self.batch, self.reach, change, moved)
        logprobs = self.model.logits(self.batch, hidden=states, layer=self.layer).log_softmax(-1)
        said = logprobs.gather(1, self.batch.targets[:, None])[:, 0]
        ours, theirs = (said.new_zeros(len(self.sizes)).index_add(0, self.batch.rows, said) / self.sizes).chunk(2)
        return ours - theirs
