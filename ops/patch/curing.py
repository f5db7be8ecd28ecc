"""CURE, step by step: an adversary, a mask by prominence, a revision model (2401.14948, equations 5 and 6, algorithm 1).

The module stays in evaluation mode: batch normalisation keeps the clean model's statistics, so that a signature of the result moves
weights alone, and dropout adds no luck. All randomness is a function of (seed, step): a run that was stopped goes on with the same bits.
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...kernels.select import top_k_masks
from ...registry.errors import BadInputFile, BadParameter
from ...registry.ids import record_digest
from ...registry.records import InputRecord
from ..base import Change, Check, Plan, Run
from ..data.items import ItemSet, read_items
from ..engine import LocalEngine, TrainSettings
from ..engine.local import placed, threads
from ..models import load_model
from ..unlearn.rates import WARMUP, usual_rate
from ..unlearn.task import Rows, Task, task_of
from ..update.full import Full
from .adversary import Adversary, Answers, accuracies, answers, divergence, scale_of
from .cure import EPSILON, Cure
from .patch import WIDTHS

if TYPE_CHECKING:
    from ...registry.view import ModelView

MEMORY = 1 / 16  # share of the training that the revision model remembers
LONGEST = 0.999  # decay of the paper's runs, the longest known


# --- rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    """The records: all rows, those that are trained on, those that are only measured."""

    items: ItemSet
    task: Task
    rows: Rows
    train: tuple[int, ...]
    held: tuple[int, ...]


def prepare(op: Cure, view: ModelView, seed: int) -> Prepared:
    """Read the records and set a part aside, drawn by the seed. Raises BadInputFile, Incompatible, VocabularyMismatch."""
    items = read_items(op.data, "retain")
    task = task_of(view)
    rows = task.rows(items)
    order = list(range(len(rows)))
    random.Random(f"{seed}/patch.train").shuffle(order)
    count = max(1, round(op.holdout * len(order)))
    if len(order) - count < 1:
        said = f"{op.data} has {len(order)} record: at least two are needed, one of them to measure"
        raise BadInputFile(said, hint="give more records", path=str(op.data))
    return Prepared(items, task, rows, tuple(sorted(order[count:])), tuple(sorted(order[:count])))


@dataclass(frozen=True, slots=True)
class Pick:
    """The rows of one step, and its number."""

    number: int
    rows: tuple[int, ...]

    def to(self, where: torch.device) -> Pick:
        """Itself: row numbers live nowhere."""
        return self


class Picks:
    """The feed: every row once per epoch, in an order of its own."""

    def __init__(self, prepared: Prepared, batch: int, seed: int) -> None:
        self.train, self.seed = prepared.train, seed
        self.batch = min(batch, len(self.train))
        self.read = prepared.items.digest
        self.tokens = sum(prepared.rows.lengths) / len(prepared.rows)
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def batch_tokens(self) -> int:
        return round(self.tokens * self.batch)

    def digest(self) -> str:
        return record_digest("mlc.picks.v1", repr((self.read, self.seed, self.batch, self.train)).encode())

    def at(self, number: int) -> Pick:
        return Pick(number, tuple(self._row(number * self.batch + k) for k in range(self.batch)))

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.train))
        if self._epoch[0] != epoch:
            order = list(self.train)
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._epoch = epoch, order
        return self._epoch[1][place]


# --- one step ----------------------------------------------------------------------------------------------


class Curing:
    """The objective of a step, the mask that it leaves, and what becomes of both after the optimizer has moved: it rides along.

    Called with the module (in evaluation mode, fp32) and the rows of a step, it returns the loss, a scalar that can be differentiated:
    CE(x) + trade KL(p(x) || p(x')) + consistency (KL(rev(x) || p(x)) + KL(rev(x') || p(x'))), x' the moved inputs; AT: CE(x').
    Raises BadParameter for a scope that finds no matrix.
    """

    def __init__(self, op: Cure, module: nn.Module, adversary: Adversary, seed: int) -> None:
        self.op, self.module, self.adversary, self.seed = op, module, adversary, seed
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        cure = op.method == "cure"
        self.share = op.conserve if cure else 0.0
        wanted = re.compile(op.scope)
        self.conserved = [n for n, p in self.trained.items() if p.dim() > 1 and wanted.search(n)] if self.share else []
        if self.share and not self.conserved:
            raise BadParameter(f"--scope {op.scope!r} finds no matrix of the model", hint="`mlc show REV --tensors` lists the names")
        self.decay = decay_of(op)
        self.revision = copy.deepcopy(module).requires_grad_(False) if cure and op.consistency else None
        self.masks: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.selected: list[int] = []  # elements that moved in each step, of the conserved tensors
        for name in self.conserved:
            self.trained[name].register_post_accumulate_grad_hook(self._still(name))

    def _still(self, name: str) -> Any:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None:
                parameter.grad.mul_(self.masks[name])

        return hook

    def __call__(self, module: nn.Module, batch: Pick) -> Tensor:
        noise = torch.Generator().manual_seed(_number(self.seed, batch.number))
        delta = self.adversary.moved(module, batch.rows, noise)
        clean = answers(self.adversary.task, module, self.adversary.rows, batch.rows)
        moved = self.adversary.answers(module, batch.rows, delta)
        if self.conserved:
            self._conserve(clean, moved)
        if self.op.method == "at":
            return moved.loss()
        loss = clean.loss() + self.op.trade * divergence(clean, moved)
        return loss + self._consistency(batch.rows, delta, clean, moved)

    def _conserve(self, clean: Answers, moved: Answers) -> None:
        """Equation 6: prominence = a |grad of clean loss| + (1 - a) |grad of moved loss|; the least share p of each matrix stays."""
        tensors = [self.trained[name] for name in self.conserved]
        natural = torch.autograd.grad(clean.loss(), tensors, retain_graph=True, allow_unused=True)
        robust = torch.autograd.grad(moved.loss(), tensors, retain_graph=True, allow_unused=True)
        for name, parameter, g_n, g_r in zip(self.conserved, tensors, natural, robust, strict=True):
            self.masks[name] = prominent(parameter, g_n, g_r, self.op.natural, self.share)
            if self.op.strict:
                self.before[name] = parameter.detach().clone()
        self.selected.append(sum(int(self.masks[name].sum()) for name in self.conserved))

    def _consistency(self, chosen: tuple[int, ...], delta: Tensor, clean: Answers, moved: Answers) -> Tensor | float:
        if self.revision is None:
            return 0.0
        with torch.no_grad():
            kept = answers(self.adversary.task, self.revision, self.adversary.rows, chosen)
            shaken = self.adversary.answers(self.revision, chosen, delta)
        return self.op.consistency * (divergence(kept, clean) + divergence(shaken, moved))

    # --- riding along ---

    @torch.no_grad()
    def after_step(self, module: nn.Module, done: int) -> None:
        """Step number `done` (from 1) is made: what was conserved gets its bits back, the revision model may follow."""
        for name, before in self.before.items():
            parameter = self.trained[name]
            parameter.copy_(torch.where(self.masks[name], parameter, before))
        if self.revision is not None and random.Random(f"{self.seed}/revise/{done}").random() < self.op.revise:
            follow(dict(self.revision.named_parameters()), self.trained, min(1 - 1 / done, self.decay))

    def state(self) -> dict[str, Tensor]:
        """The revision model."""
        return {} if self.revision is None else {name: p.detach() for name, p in self.revision.named_parameters()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """The revision model as it was."""
        for name, parameter in self.revision.named_parameters() if self.revision is not None else ():
            parameter.copy_(tensors[name])

    def finish(self, module: nn.Module) -> None:
        """The trained model is the result; the revision model was there to hold it back."""


def prominent(parameter: Tensor, natural: Tensor | None, robust: Tensor | None, share: float, conserved: float) -> Tensor:
    """Mask (bool, of the parameter's shape) of the elements that may move.

    Exactly ceil((1 - conserved) n), those of the greatest `share |natural| + (1 - share) |robust|`, gradients of the parameter; None is
    zeros. Equals are taken by flat index.
    """
    score = torch.zeros_like(parameter, dtype=torch.float32)
    for gradient, weight in ((natural, share), (robust, 1 - share)):
        if gradient is not None:
            score += weight * gradient.detach().abs().float()
    return top_k_masks([score.reshape(-1)], math.ceil((1 - conserved) * score.numel()))[0].view(parameter.shape)


def decay_of(op: Cure) -> float:
    """What the revision model keeps of itself in a step. Unless it is given, the model looks back over a sixteenth of the training.

    The paper has 0.999 and a step in one batch of five, for 200 epochs of CIFAR: a memory of 5,000 of 78,000 steps. In a run of a few
    hundred steps 0.999 remembers the clean model to the end, and pulls the trained one back to it.
    """
    if op.decay is not None:
        return op.decay
    return min(1 - 1 / max(MEMORY * op.steps * op.revise, 1.0), LONGEST)


def follow(revision: dict[str, nn.Parameter], trained: dict[str, nn.Parameter], decay: float) -> None:
    """revision <- decay revision + (1 - decay) trained. The first steps of the reference code decay less, so that it starts near."""
    for name, parameter in trained.items():
        revision[name].mul_(decay).add_(parameter, alpha=1 - decay)


def _number(seed: int, step: int) -> int:
    return random.Random(f"{seed}/noise/{step}").getrandbits(62)


# --- the operation -----------------------------------------------------------------------------------------


def plan(op: Cure, view: ModelView) -> Plan:
    """What is trained and what it costs, from names, shapes and the file's size."""
    items = read_items(op.data, "retain")
    names = tuple(n for n in view.names() if view.entry(n).dtype in WIDTHS)
    count = sum(math.prod(view.entry(n).shape) for n in names)
    size = sum(math.prod(view.entry(n).shape) * WIDTHS[view.entry(n).dtype] for n in names)
    passes = op.attack_steps + (6 if op.method == "cure" else 3)
    return Plan(
        f"train {count:,} parameters by {op.method} for {op.steps} steps on {len(items.items)} records",
        names,
        bytes_touched=size,
        trainable=count,
        steps=op.steps,
        memory=4 * count * (9 if op.method == "cure" else 5),
        details={"method": op.method, "records": len(items.items), "passes_per_step": passes, "lr": _rate(op, count)},
    )


def apply(op: Cure, view: ModelView, run: Run) -> Iterator[Change]:
    """Train and yield the changes."""
    found = prepare(op, view, run.seed)
    run.input(InputRecord("data", found.items.name, found.items.digest, found.items.bytes))
    with threads(run.threads):
        method = Full(view)
        module = placed(method.module).eval()
        epsilon = epsilon_of(op, found.task, module)
        curing = Curing(op, module, Adversary(found.task, found.rows, epsilon, op.attack_steps), run.seed)
    count = sum(p.numel() for p in curing.trained.values())
    settings = TrainSettings(
        steps=op.steps, lr=_rate(op, count), warmup=min(WARMUP, math.ceil(op.steps / 10)), weight_decay=op.weight_decay,
        betas=(0.9, 0.999), clip=op.clip, save_every=op.save_every, seed=run.seed, threads=run.threads, dropout=False,
    )  # fmt: skip
    picks = Picks(found, op.batch, run.seed)
    outcome = LocalEngine().train(module, picks, settings, run, objective=curing, attached=[curing])
    facts: dict[str, Any] = {"method": op.method, "epsilon": epsilon, "lr": settings.lr, "steps": outcome.steps}
    if curing.revision is not None:
        facts["decay"] = curing.decay
    if curing.conserved:
        matrices = sum(curing.trained[name].numel() for name in curing.conserved)
        facts |= {"conserved_tensors": len(curing.conserved), "moving_share": math.ceil(curing.selected[-1] / matrices * 1e6) / 1e6}
    run.record("training", {**facts, "curve": [list(point) for point in outcome.curve]})
    yield from method.changes()


def epsilon_of(op: Cure, task: Task, module: nn.Module) -> float:
    """How far an input may move, in the input's own numbers. Raises BadParameter where it must be given."""
    if task.kind == "classes" and getattr(task, "images", False):
        return EPSILON if op.epsilon is None else op.epsilon
    if op.epsilon is None:
        said = "of texts the embeddings are moved, and how far is not known: --epsilon takes it in units of their root mean square"
        raise BadParameter(said, hint="for example: --epsilon 0.5")
    return op.epsilon * scale_of(module)


def _rate(op: Cure, count: int) -> float:
    return op.lr if op.lr is not None else usual_rate(count)


def check(op: Cure, before: ModelView, after: ModelView, run: Run) -> Check:
    """Passed when more held-out records are right under attack, and not too many are lost on clean inputs.

    Both versions are attacked anew, each with its own gradients; epsilon is that of the training (for texts: of the clean embeddings).
    """
    found = prepare(op, before, run.seed)
    with threads(run.threads):
        first = placed(load_model(before, dtype=torch.float32))
        adversary = Adversary(found.task, found.rows, epsilon_of(op, found.task, first), op.attack_steps)
        was, was_robust = accuracies(adversary, first, found.held, run.seed)
        now, now_robust = accuracies(adversary, placed(load_model(after, dtype=torch.float32)), found.held, run.seed)
    values: dict[str, Any] = {
        "rows": len(found.held),
        "clean_before": was,
        "clean_after": now,
        "robust_before": was_robust,
        "robust_after": now_robust,
        "robust_gain": now_robust - was_robust,
        "harmonic_after": harmonic(now, now_robust),
    }
    if was - now > op.clean_limit:
        reason = f"on clean inputs {was - now:.1%} of the held-out records were lost, more than the {op.clean_limit:.1%} allowed"
        return Check(False, values, reason, "a smaller --epsilon or --trade, or a higher --clean-limit")
    if now_robust <= was_robust:
        reason = f"no more of the held-out records are right under attack ({was_robust:.1%} before, {now_robust:.1%} after)"
        return Check(False, values, reason, "more --steps, or a higher --lr")
    return Check(True, values)


def harmonic(natural: float, robust: float) -> float:
    """The harmonic mean of clean and robust accuracy (the paper's NRR)."""
    return 2 * natural * robust / (natural + robust) if natural + robust else 0.0
