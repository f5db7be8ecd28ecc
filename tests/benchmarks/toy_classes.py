"""The classifier toy of positive-congruent training: noisy 20-d points of ten classes, an old small network, a new larger one.

The networks are trained by the engine with the objective that `mlc align` uses; they are no transformers, so no registry is in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlc.ops.compat.objective import Compatible
from mlc.ops.compat.options import Settings
from mlc.ops.compat.teacher import Teacher
from mlc.ops.data.items import Item, ItemSet
from mlc.ops.data.mixing import Mixture, Source
from mlc.ops.engine import LocalEngine, TrainSettings
from mlc.ops.evaluate.flips import Outcome, compare
from mlc.tests.ops.fakes import MemoryRun

OLD, NEW, TEST, DIMS, CLASSES, SPREAD = 4000, 8000, 5000, 20, 10, 2.4


class Points:
    """Anchors that are points: everything that the objective asks of them."""

    kind = "classes"

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.counts, self.pairs = (1,) * len(x), (True,) * len(x)
        self.items = ItemSet((Item(1, None, "", None, 0),), "points", "anchor", "", 0)

    def __len__(self) -> int:
        return len(self.x)

    def parts(self, chosen: Sequence[int]) -> list[list[int]]:
        return [list(chosen)]

    def answers(self, module: nn.Module, chosen: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        chosen = list(chosen)
        return module(self.x[chosen]), torch.arange(len(chosen)), self.y[chosen]

    def digest(self) -> str:
        return "points"


def points(seed: int, spread: float = SPREAD, count: int = OLD + NEW + TEST) -> tuple[Tensor, Tensor]:
    """Points around one centre for each class, so far from it that a network of any size gets about 0.6 of them right."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, DIMS, generator=generator)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    return centres[y] + spread * torch.randn(count, DIMS, generator=generator), y


def network(width: int, seed: int) -> nn.Module:
    """A perceptron with one hidden layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(DIMS, width), nn.ReLU(), nn.Linear(width, CLASSES))


def taught(
    points: Points, module: nn.Module, old: Teacher, settings: Settings, seed: int, steps: int, new: Teacher | None = None
) -> nn.Module:
    """Train a network in place."""
    numbers = torch.arange(len(points))[:, None]
    rows = Mixture([Source("points", numbers, 1.0)], batch=128, seed=seed)
    how = TrainSettings(steps=steps, lr=3e-3, warmup=20, weight_decay=1e-4, save_every=0, seed=seed)
    objective = Compatible(settings, points, old, new, 0, None)
    LocalEngine().train(module, rows, how, MemoryRun(seed=seed), objective=objective)
    return module


@torch.no_grad()
def told(points: Points, module: nn.Module) -> Teacher:
    """A network's answers, kept as a teacher's are."""
    logits, _, targets = points.answers(module.eval(), range(len(points)))
    yes = torch.ones(len(points), dtype=torch.bool)
    ids = torch.arange(CLASSES, dtype=torch.int32).expand(len(points), -1).contiguous()
    rest = torch.full((len(points),), -torch.inf)
    kept = {"ids": ids, "logits": logits, "total": logits.logsumexp(-1), "rest": rest, "hit": logits.argmax(-1) == targets}
    return Teacher({**kept, "known": yes, "spelled": yes.clone()}, points, 1.0)


def answers(points: Points, module: nn.Module) -> list[Outcome]:
    """What a network says about every point."""
    with torch.no_grad():
        best = module.eval()(points.x).argmax(-1)
    return [Outcome(str(n), bool(b == y), str(int(b))) for n, (b, y) in enumerate(zip(best, points.y, strict=True))]


PLAIN = Settings("kd", alpha=1e-9)  # labels alone
LOGITS = 0.06  # lambda of logit matching, set on seed 100: at 1 the squared distance of ten logits leaves nothing new to learn


def toy(world: Any, arms: Iterable[str], steps: int = 1500, spread: float = SPREAD) -> dict[str, Any]:
    """One seed of the table."""
    seed = world if isinstance(world, int) else world.seed
    x, y = points(seed, spread)
    # Points of their own: what the old network has learned by heart is nothing that a new one could learn from it.
    cuts = slice(0, OLD), slice(OLD, OLD + NEW), slice(OLD + NEW, None)
    small, large, test = (Points(x[cut], y[cut]) for cut in cuts)
    old = taught(small, network(64, seed), told(small, network(64, seed)), PLAIN, seed, steps)
    before, teacher = answers(test, old), told(large, old)
    found, plain = {}, None
    for name in arms:
        settings = PLAIN if name in ("untreated", "replay") else Settings(name, weight=LOGITS if name == "focal-logits" else 1.0)
        start = network(128, seed + 1)
        if name.startswith("muscle") and plain is not None:
            start.load_state_dict(plain.state_dict())  # the compatible version begins as the new one
        new = told(large, plain) if plain is not None else None
        module = taught(large, start, teacher, settings, seed + 1, steps, new)
        plain = module if name == "untreated" else plain
        report = compare(before, answers(test, module))
        values = {"n": report.n, "accuracy": report.acc_b, "nfr": report.nfr, "pfr": report.pfr, "inconsistent": report.inconsistent}
        found[name] = {key: round(float(value or 0), 5) for key, value in values.items()}
    return found
