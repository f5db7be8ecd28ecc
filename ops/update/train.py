"""`update`: continual pretraining of a language model on new text. Full, by new or chosen blocks (`expand`, `tune`), or as a LoRA adapter.

The dataclass is the whole surface: options, recipe keys and audit record. It imports no torch, so that `--help` stays light; the work
is done by the rooms beside it. Replay mixes old text in at fixed shares (forgetting-controls: the strongest cheap control; total
tokens stay the same); `self:RATIO` takes that text from the parent itself, for when the old data is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..base import Change, Check, Expectations, History, Operation, Plan, Run, option
from ..compat.options import check_compat, check_idle
from .auto import check_auto
from .growth import check_growth
from .mixes import Domain, check_mixing, domains
from .options import Adapter, Replay, check_controls, parse_adapter, parse_ema, parse_protect, parse_replay, parse_slow, require

if TYPE_CHECKING:
    from ...registry.view import ModelView

DECAYS = ("cosine", "linear", "constant", "wsd", "infinite")
PRECISIONS = ("auto", "fp32", "bf16")
DEDUPS = ("none", "exact", "near")


@dataclass(frozen=True, slots=True)
class Update(Operation):
    """Train a language model further on new text."""

    name: ClassVar[str] = "update"
    version: ClassVar[int] = 3  # 2: documents of a row are read apart; 3: also where weights, blocks and rows are measured before training
    needs_forward: ClassVar[bool] = True
    retunable: ClassVar[tuple[str, ...]] = ("slow",)

    data: str = option(help="text to learn: a .txt file, or JSONL with `text` (or a prompt and its answer)")
    steps: int = option(150, help="optimizer steps")
    lr: float | None = option(None, help="peak learning rate (default: by model size and method)")
    batch: int = option(8, help="rows per micro-batch")
    seq_len: int | None = option(None, help="tokens per row (default: 128, or the model's context where that is shorter)")
    expand: int = option(0, help="add N blocks that change nothing at first, and train only them")
    where: str = option(
        "interleave",
        help="where new blocks go: interleave, append, stack-side, block numbers such as 1,3, or importance: behind the blocks that turn "
        "the new text most (alone: an eighth as many as there are)",
    )
    tune: int = option(0, help="train the K most important blocks, alone or beside new ones, and freeze the others")
    source: str = option("frozen", help="the block that a new one was copied from: frozen or tuned")
    init: str = option("zeros", help="new blocks begin as zeros, copy, random, merge-linear or merge-slerp; only zeros changes nothing")
    rank: str = option("new", help="importance is the angle on new text (new), or minus that on old text (difference)")
    token: str = option("mean", help="importance is measured over all tokens (mean) or at the last one of a row (last)")
    mix: tuple[str, ...] = option(
        (), help="FILE:WEIGHT,...: further corpora, and how often each is read; --data has the weight 1 unless it is named as well"
    )
    mix_temperature: float | None = option(None, help="weigh by size as well: rows^(1/T), so that 1 is proportional and a large T uniform")
    mix_policy: str = option(
        "fixed",
        help="weights stay (fixed), follow the losses on the way (skillit), or are those that served best in recorded updates (learned)",
    )
    mix_eta: float = option(0.5, help="skillit: how strongly losses pull")
    mix_window: int = option(3, help="skillit: how many of the last evaluations count")
    mix_every: int | None = option(None, help="skillit: steps between two evaluations (default: a sixth of the run)")
    mix_graph: str | None = option(None, help="skillit: JSON file that says which corpus helps which (default: each itself alone)")
    mix_from: tuple[str, ...] = option((), help="commits that learned weights come from (filled in)")
    select: str | None = option(None, help="tarot:N: train only on the N rows of --data that serve --select-for best, by their gradients")
    select_for: str | None = option(None, help="text like what the selection shall serve")
    reweight: str = option("none", help="weigh rows by their loss: linupper (easy ones less), quadratic (the middle) or extremes")
    reweight_r: float = option(1.0, help="temperature of --reweight: the larger, the more equal")
    dedup: str = option("none", help="duplicates in the data are counted (none) or left out: exact, or near as well")
    replay: tuple[str, ...] = option(
        (),
        help="FILE:RATIO, self:RATIO or sample:RATIO: share of the rows that are old text, the model's own text where its answers are to "
        "stay (self), or that text learnt as any other (sample)",
    )
    compat_with: str | None = option(None, help="the older version whose right answers shall stay")
    compat_data: str | None = option(None, help="FILE or FILE:RATIO: anchors that it answers, and their share of the rows (default: 0.5)")
    compat: str = option("focal-kl", help="how they stay: focal-kl, focal-logits, kd, muscle-student or muscle-new")
    compat_new: str | None = option(None, help="MUSCLE's second teacher (default: the version that is trained)")
    compat_alpha: float = option(1.0, help="weight of every anchor")
    compat_beta: float = option(5.0, help="further weight of anchors that the older version has right")
    compat_tau: float = option(1.0, help="temperature of the divergence")
    compat_lambda: float = option(1.0, help="weight of the compatibility loss beside the labels'")
    compat_labels: float = option(1.0, help="weight of the anchors' own answers as labels (not MUSCLE's, which has none)")
    protect: str = option("none", help="what must stay is kept by: spu, ewc, hle, l2sp, or several with commas between")
    protect_rate: float = option(0.1, help="share of the first MLP matrices that --protect spu lets move")
    protect_weight: float | None = option(None, help="how strong ewc, hle and l2sp pull back (default: by method)")
    ema: str = option("none", help="the result is a mean over the run: dynamic, paper, or the share of the new weights, such as 0.01")
    blend: float = option(1.0, help="the result lies this share of the way from the parent to what was trained")
    renew_embeddings: int = option(0, help="draw the token embedding anew at first and every N steps: for a new language; 0 for never")
    begin: str = option("weights", flag="--from", help="weights, or stable: go on from before the rate of the last run fell")
    auto: bool = option(False, help="choose between replay, blend, spu and new blocks by trials on 2 % of the tokens, then train so")
    auto_keep: float = option(
        0.75, help="--auto: what the choice must learn, as a share of full tuning's gain: nearer 1 for new text, nearer 0 for old text"
    )
    adapter: str | None = option(None, help="lora:R or lora:R:ALPHA: train an adapter instead of the weights")
    holdout: float = option(0.05, help="share of the data that is measured and not trained on")
    warmup: float = option(0.1, help="share of the steps in which the rate rises")
    decay: str = option("cosine", help="how the rate falls: cosine, linear, constant; wsd and infinite also keep the state before")
    slow: tuple[str, ...] = option((), help="STEP:FACTOR: from this step on the rate is multiplied by FACTOR")
    weight_decay: float = option(0.0, help="AdamW weight decay of matrices")
    grad_accum: int = option(1, help="micro-batches per step")
    clip: float = option(1.0, help="largest gradient norm; 0 turns clipping off")
    precision: str = option("auto", help="auto, fp32 or bf16 (autocast; weights and moments stay fp32)")
    save_every: int = option(50, help="steps between resumable states; 0 for none")

    def __post_init__(self) -> None:
        require(bool(self.data), "--data needs the path of a text file")
        for flag, value in (("steps", self.steps), ("batch", self.batch), ("grad-accum", self.grad_accum)):
            require(value >= 1, f"--{flag} must be at least 1, not {value}")
        require(self.seq_len is None or self.seq_len >= 2, f"--seq-len must be at least 2, not {self.seq_len}")
        require(self.save_every >= 0, f"--save-every must not be negative, it is {self.save_every}")
        require(self.lr is None or (math.isfinite(self.lr) and self.lr > 0), f"--lr must be a positive number, not {self.lr}")
        require(0 <= self.holdout <= 0.5, f"--holdout is a share from 0 to 0.5, not {self.holdout}")
        require(0 <= self.warmup < 1, f"--warmup is a share of the steps below 1, not {self.warmup}")
        require(self.clip >= 0 and math.isfinite(self.clip), f"--clip must not be negative, it is {self.clip}")
        require(0 <= self.weight_decay < 1, f"--weight-decay is from 0 to 1, not {self.weight_decay}")
        require(self.decay in DECAYS, f"--decay is one of {', '.join(DECAYS)}, not {self.decay!r}")
        require(self.precision in PRECISIONS, f"--precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        require(self.dedup in DEDUPS, f"--dedup is one of {', '.join(DEDUPS)}, not {self.dedup!r}")
        check_growth(self)
        parse_replay(self.replay)
        parse_adapter(self.adapter)
        check_controls(self)
        check_mixing(self)
        check_auto(self)
        check_compat(self)

    # --- what the options mean ---

    @property
    def replays(self) -> tuple[Replay, ...]:
        """The replay sources, parsed."""
        return parse_replay(self.replay)

    @property
    def domains(self) -> tuple[Domain, ...]:
        """The corpora that are learned, `data` first."""
        return domains(self)

    @property
    def protections(self) -> tuple[str, ...]:
        """The methods of `protect`, parsed."""
        return parse_protect(self.protect)

    @property
    def slower(self) -> tuple[tuple[int, float], ...]:
        """The entries of `slow`, parsed."""
        return parse_slow(self.slow)

    @property
    def averaging(self) -> str | float:
        """What `ema` asks for, parsed."""
        return parse_ema(self.ema)

    @property
    def lora(self) -> Adapter | None:
        """The adapter to train, parsed."""
        return parse_adapter(self.adapter)

    @property
    def grows(self) -> bool:
        """Whether blocks are added: asked for by number, or left to importance."""
        return self.expand > 0 or (self.where == "importance" and not self.tune and not self.adapter)

    @property
    def measures_blocks(self) -> bool:
        """Whether the plan of blocks needs their importance, which needs a forward."""
        return self.tune > 0 or (self.grows and self.where == "importance")

    def new_blocks(self, blocks: int) -> int:
        """How many blocks are added to a model of `blocks`: the number asked for, else an eighth of them, at least one."""
        return self.expand or (max(1, blocks // 8) if self.grows else 0)

    @property
    def method(self) -> Literal["full", "expand", "tune", "lora"]:
        """Which parameters are trained."""
        return "expand" if self.grows else "tune" if self.tune else "lora" if self.adapter else "full"

    def output_kind(self) -> Literal["model", "adapter"]:
        return "adapter" if self.adapter else "model"

    # --- the contract ---

    def as_typed(self) -> Update:
        check_idle(self)
        return self

    def alone(self) -> str:
        from .spread import alone

        return alone(self)

    def foresee(self, past: History) -> Update:
        from .mixes import learned

        return learned(self, past) if self.mix_policy == "learned" and not self.mix_from else self

    def plan(self, view: ModelView) -> Plan:
        from .planning import plan

        return plan(self, view)

    def preview(self, view: ModelView, run: Run) -> dict[str, Any]:
        from .picture import preview

        return preview(self, view, run)

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .session import apply

        return apply(self, view, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        from .session import check

        return check(self, before, after, run)

    def expects(self) -> Expectations:
        notes = () if self.replay or self.auto else ("no replay: expect the old text to suffer; `--replay self:0.5` halves that",)
        return Expectations(may_forget=True, notes=notes)
