"""`align`: train a version towards what an older one got right (or a newer one's compatibility adapter, as MUSCLE has it).

The dataclass is the whole surface and imports no torch. Works on language models, classifiers of texts or images, and suites of choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ..base import Change, Check, Expectations, Operation, Plan, Run, option, requirement
from ..update.options import Adapter, Replay, parse_adapter, parse_replay
from .options import METHODS, Settings

if TYPE_CHECKING:
    from ...registry.view import ModelView

require = requirement("align")


@dataclass(frozen=True, slots=True)
class Align(Operation):
    """Train a version towards the right answers of an older one."""

    name: ClassVar[str] = "align"
    version: ClassVar[int] = 1
    needs_forward: ClassVar[bool] = True

    to: str = option(help="the older version whose right answers shall stay")
    data: str = option(help="anchors: prompts with answers, texts, labelled records, or a suite")
    method: str = option("focal-kl", help="focal-kl, focal-logits, kd, muscle-student or muscle-new")
    alpha: float = option(1.0, help="weight of every record")
    beta: float = option(5.0, help="further weight of records that the older version has right")
    tau: float = option(1.0, help="temperature of the divergence")
    lam: float = option(1.0, flag="--lambda", help="weight of the compatibility loss beside the labels'")
    text: tuple[str, ...] = option((), help="FILE:RATIO: share of the rows taken from text to go on with")
    adapter: str | None = option(None, help="lora:R or lora:R:ALPHA: train an adapter instead of the weights")
    steps: int = option(150, help="optimizer steps")
    lr: float | None = option(None, help="peak learning rate (default: by model size and method)")
    batch: int = option(16, help="records per step")
    holdout: float = option(0.1, help="share of the anchors that is measured and not trained on")
    warmup: float = option(0.1, help="share of the steps in which the rate rises")
    weight_decay: float = option(0.0, help="AdamW weight decay of matrices")
    clip: float = option(1.0, help="largest gradient norm; 0 turns clipping off")
    save_every: int = option(50, help="steps between resumable states; 0 for none")

    def __post_init__(self) -> None:
        require(bool(self.to), "--to needs the older version")
        require(bool(self.data), "--data needs the path of a file of anchors")
        require(self.method in METHODS, f"--method is one of {', '.join(METHODS)}, not {self.method!r}")
        for flag, value in (("steps", self.steps), ("batch", self.batch)):
            require(value >= 1, f"--{flag} must be at least 1, not {value}")
        require(self.lr is None or (math.isfinite(self.lr) and self.lr > 0), f"--lr must be a positive number, not {self.lr}")
        require(0 <= self.holdout <= 0.5, f"--holdout is a share from 0 to 0.5, not {self.holdout}")
        require(0 <= self.warmup < 1, f"--warmup is a share of the steps below 1, not {self.warmup}")
        require(0 <= self.weight_decay < 1, f"--weight-decay is from 0 to 1, not {self.weight_decay}")
        require(self.clip >= 0 and math.isfinite(self.clip), f"--clip must not be negative, it is {self.clip}")
        require(self.save_every >= 0, f"--save-every must not be negative, it is {self.save_every}")
        require(all(r.path is not None for r in self.texts), "--text names files", "give FILE:RATIO")
        parse_adapter(self.adapter)
        _ = self.settings

    @property
    def settings(self) -> Settings:
        """How the version is held to the older one."""
        return Settings(self.method, self.alpha, self.beta, self.tau, self.lam)

    @property
    def texts(self) -> tuple[Replay, ...]:
        """The sources of text, parsed."""
        return parse_replay(self.text, "--text")

    @property
    def lora(self) -> Adapter | None:
        """The adapter to train, parsed."""
        return parse_adapter(self.adapter)

    def output_kind(self) -> Literal["model", "adapter"]:
        return "adapter" if self.adapter else "model"

    def plan(self, view: ModelView) -> Plan:
        from .planning import plan

        return plan(self, view)

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .session import apply

        return apply(self, view, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        from .session import check

        return check(self, before, after, run)

    def expects(self) -> Expectations:
        notes = () if self.texts else ("no text to go on with: what the version learned since may suffer; `--text FILE:0.5` holds it",)
        return Expectations(may_forget=True, notes=notes)
