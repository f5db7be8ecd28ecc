"""`update`: continual pretraining of a language model on new text. Full, by new blocks only (`expand`), or as a LoRA adapter.

The dataclass is the whole surface: options, recipe keys and audit record. It imports no torch, so that `--help` stays light; the work
is done by the rooms beside it. Replay mixes old text in at fixed shares (forgetting-controls: the strongest cheap control; total
tokens stay the same); `self:RATIO` takes that text from the parent itself, for when the old data is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ...registry.errors import BadParameter
from ..base import Change, Check, Expectations, Operation, Plan, Run, option
from .layout import explicit
from .options import Adapter, Replay, parse_adapter, parse_replay

if TYPE_CHECKING:
    from ...registry.view import ModelView

DECAYS = ("cosine", "linear", "constant", "wsd")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, slots=True)
class Update(Operation):
    """Train a language model further on new text."""

    name: ClassVar[str] = "update"
    version: ClassVar[int] = 1
    needs_forward: ClassVar[bool] = True

    data: str = option(help="text to learn: a .txt file, or JSONL with `text` (or a prompt and its answer)")
    steps: int = option(150, help="optimizer steps")
    lr: float | None = option(None, help="peak learning rate (default: by model size and method)")
    batch: int = option(8, help="rows per micro-batch")
    seq_len: int | None = option(None, help="tokens per row (default: 128, or the model's context where that is shorter)")
    expand: int = option(0, help="add N blocks that change nothing at first, and train only them")
    where: str = option("interleave", help="where new blocks go: interleave, append, importance, or block numbers such as 1,3")
    replay: tuple[str, ...] = option((), help="FILE:RATIO or self:RATIO: share of the rows taken from old text, or from the model itself")
    adapter: str | None = option(None, help="lora:R or lora:R:ALPHA: train an adapter instead of the weights")
    holdout: float = option(0.05, help="share of the data that is measured and not trained on")
    warmup: float = option(0.1, help="share of the steps in which the rate rises")
    decay: str = option("cosine", help="how the rate falls: cosine, linear, constant, wsd")
    weight_decay: float = option(0.0, help="AdamW weight decay of matrices")
    grad_accum: int = option(1, help="micro-batches per step")
    clip: float = option(1.0, help="largest gradient norm; 0 turns clipping off")
    precision: str = option("auto", help="auto, fp32 or bf16 (autocast; weights and moments stay fp32)")
    save_every: int = option(50, help="steps between resumable states; 0 for none")

    def __post_init__(self) -> None:
        _require(bool(self.data), "--data needs the path of a text file")
        for flag, value in (("steps", self.steps), ("batch", self.batch), ("grad-accum", self.grad_accum)):
            _require(value >= 1, f"--{flag} must be at least 1, not {value}")
        _require(self.seq_len is None or self.seq_len >= 2, f"--seq-len must be at least 2, not {self.seq_len}")
        _require(self.expand >= 0, f"--expand must not be negative, it is {self.expand}")
        _require(self.save_every >= 0, f"--save-every must not be negative, it is {self.save_every}")
        _require(self.lr is None or (math.isfinite(self.lr) and self.lr > 0), f"--lr must be a positive number, not {self.lr}")
        _require(0 <= self.holdout <= 0.5, f"--holdout is a share from 0 to 0.5, not {self.holdout}")
        _require(0 <= self.warmup < 1, f"--warmup is a share of the steps below 1, not {self.warmup}")
        _require(self.clip >= 0 and math.isfinite(self.clip), f"--clip must not be negative, it is {self.clip}")
        _require(0 <= self.weight_decay < 1, f"--weight-decay is from 0 to 1, not {self.weight_decay}")
        _require(self.decay in DECAYS, f"--decay is one of {', '.join(DECAYS)}, not {self.decay!r}")
        _require(self.precision in PRECISIONS, f"--precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        _require(not (self.expand and self.adapter), "--expand and --adapter cannot be combined", "expand first, then train an adapter")
        numbers = explicit(self.where)
        fits = numbers is None or not self.expand or len(numbers) == self.expand
        _require(fits, f"--where {self.where} does not name {self.expand} blocks")
        parse_replay(self.replay)
        parse_adapter(self.adapter)

    # --- what the options mean ---

    @property
    def replays(self) -> tuple[Replay, ...]:
        """The replay sources, parsed."""
        return parse_replay(self.replay)

    @property
    def lora(self) -> Adapter | None:
        """The adapter to train, parsed."""
        return parse_adapter(self.adapter)

    @property
    def method(self) -> Literal["full", "expand", "lora"]:
        """Which parameters are trained."""
        return "expand" if self.expand else "lora" if self.adapter else "full"

    def output_kind(self) -> Literal["model", "adapter"]:
        return "adapter" if self.adapter else "model"

    # --- the contract ---

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
        notes = () if self.replay else ("no replay: expect the old text to suffer; `--replay self:0.5` halves that",)
        return Expectations(may_forget=True, notes=notes)


def _require(condition: bool, sentence: str, hint: str | None = None) -> None:
    if not condition:
        raise BadParameter(sentence, hint=hint or "`mlc update --help` lists every option")
