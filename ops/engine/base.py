"""What an engine promises, and the settings it is given. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..base import Run

Decay = Literal["cosine", "linear", "constant", "wsd", "infinite"]
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
    dropout: bool = True  # False: the module stays in evaluation mode, so that nothing in a step is random but its rows
    keep_stable: bool = False  # hand back the state before the rate of a `wsd` or `infinite` run falls
    slow: tuple[tuple[int, float], ...] = ()  # (step, counted from 1, factor): from there on the rate is that much lower


@dataclass(frozen=True, slots=True)
class State:
    """Where training stands after `step` steps: parameters and moments as the engine saves them, on the CPU, and what was read."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]  # `rows`: digest of the feed, `batches`: how many were read, `rate`: of the last step


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run says about itself. `steps` were done; `curve` holds (step, mean loss since the point before), at most 100."""

    steps: int
    tokens: int
    curve: tuple[tuple[int, float], ...]
    resumed_at: int
    stable: State | None = None  # before the rate fell, where `keep_stable` asked for it


class Movable(Protocol):
    """One micro-batch, whatever it holds."""

    def to(self, where: torch.device) -> Any:
        """The same batch on another device."""
        ...


class Feed(Protocol):
    """What is read: batches that are a function of their number alone, so that a resumed run reads what it would have read."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of one micro-batch (about, where rows differ in length)."""
        ...

    def at(self, number: int) -> Movable:
        """The micro-batch with this number, counted from 0 over the whole run."""
        ...

    def digest(self) -> str:
        """Covers everything that may be read: a resumed run must read what the stopped one read."""
        ...


class Objective(Protocol):
    """The loss of one micro-batch: a scalar, the mean over its tokens."""

    def __call__(self, module: nn.Module, batch: Any) -> Tensor: ...


class Attached(Protocol):
    """What rides along with a run: an average of the weights, say. Its state is saved and restored with the run's."""

    def after_step(self, module: nn.Module, done: int) -> Collection[str] | None:
        """Called after every optimizer step, gradients (clipped, masked) still in place; `done` steps are over.

        May change parameters. Returns the names of those that it drew anew: their moments start again at zero.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs; {} for nothing. Names are the object's own, tensors may be its live ones."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take such a state back, on the CPU or elsewhere. Not called on a fresh start."""
        ...

    def finish(self, module: nn.Module) -> None:
        """Called once after the last step, in the order in which the objects were given: may put other weights in place."""
        ...


Watch = Callable[[int], bool]  # told the number of steps done; True stops the run there
Masks = Mapping[str, "Tensor"]  # parameter name -> bool tensor of its shape: True may move


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine is given to do; `Engine.train` says what each of these is."""

    module: nn.Module
    rows: Feed
    settings: TrainSettings
    run: Run
    objective: Objective
    masks: Masks
    watch: Watch | None
    attached: tuple[Attached, ...]
    start: State | None

    @property
    def read(self) -> int:
        """Batches that are over: a run that begins where another stood reads on behind it, where the rows are the same."""
        if self.start is None or self.start.meta["rows"] != self.rows.digest():
            return 0
        return self.start.meta["batches"]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients, by name."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}


class Engine(ABC):
    """Trains the parameters of a module that require gradients, in place."""

    def train(
        self,
        module: nn.Module,
        rows: Feed,
        settings: TrainSettings,
        run: Run,
        *,
        objective: Objective,
        masks: Masks | None = None,
        watch: Watch | None = None,
        attached: Sequence[Attached] = (),
        start: State | None = None,
    ) -> Outcome:
        """Train on the batches of `rows`. Resumes from `run.load_state()` when there is one. Raises Diverged, the state before that step
        saved, when loss or gradient is no longer a number.

        masks: where they say False an element keeps its bits, whatever clipping, moments and weight decay do (parameters without a
        mask move freely); the same holds for what `attached` puts in place. watch: asked after every step, before a state is saved.
        attached: called after every step in the order given, and once at the end. start: weights and moments to begin with; when the
        rows are those that it was made on, they are read on from where it stopped.
        """
        return self.perform(Work(module, rows, settings, run, objective, masks or {}, watch, tuple(attached), start))

    @abstractmethod
    def perform(self, work: Work) -> Outcome:
        """`train`, for who carries it out."""
