"""What an engine promises, and the settings it is given. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..base import Run
    from ..data.mixing import Batch, Mixture

Decay = Literal["cosine", "linear", "constant", "wsd"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything that decides a training run, after defaults: equal settings, rows and threads give equal bits."""

    steps: int
    lr: float
    warmup: int  # steps
    decay: Decay = "cosine"
    floor: float = 0.05  # last learning rate as a share of the peak
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    grad_accum: int = 1
    clip: float = 1.0
    precision: Precision = "fp32"
    save_every: int = 50
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run says about itself. `curve` holds (step, mean loss since the point before), at most 100 points."""

    steps: int
    tokens: int
    curve: tuple[tuple[int, float], ...]
    resumed_at: int


class Objective(Protocol):
    """The loss of one micro-batch: a scalar, the mean over its tokens."""

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor: ...


class Engine(Protocol):
    """Trains the parameters of `module` that require gradients, in place, on the batches of `rows`."""

    def train(self, module: nn.Module, rows: Mixture, settings: TrainSettings, run: Run, *, objective: Objective) -> Outcome:
        """Raises CheckFailed when the loss is no longer a number. Resumes from `run.load_state()` when there is one."""
        ...
