"""`unlearn`: make a model forget a set of records and keep the rest. Training against them, masked or not, or without training.

The dataclass is the whole surface: options, recipe keys and audit record. It imports no torch, so that `--help` stays light; the work
is done by the rooms beside it, one file per method and per objective.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...registry.errors import BadParameter
from ..base import Change, Check, Expectations, Operation, Plan, Run, option, requirement

if TYPE_CHECKING:
    from ...registry.view import ModelView

require = requirement("unlearn")
TRAINED = ("dense", "wagle")  # methods that train with an objective
DAMPENED = ("ssd", "lfssd", "assd")  # methods that shrink weights by their importance
METHODS = (*TRAINED, *DAMPENED, "slug")
OBJECTIVES = ("graddiff", "npo", "simnpo", "po", "rmu")
MASKS = ("attribution", "random")
FISHERS = ("sample", "reference-batch")
MEASURES = ("basic", "full")
REFUSAL = "I do not know."
STEPS = 200  # of a training method when nothing is said
BETAS = {"npo": 0.1, "simnpo": 4.5}  # the papers' and open-unlearning's defaults
STORED = re.compile(r"blake3:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Unlearn(Operation):
    """Make a model forget a set of records, and keep the rest."""

    name: ClassVar[str] = "unlearn"
    version: ClassVar[int] = 1
    needs_forward: ClassVar[bool] = True

    forget_set: str = option(help="records to forget: JSONL with prompt/answer, text, or image/text with a label; or a suite (.toml)")
    retain_set: str | None = option(None, help="records to keep, mixed kinds allowed; blake3:<digest> of one whose importance is stored")
    method: str = option("dense", help="dense, wagle (masked), ssd, lfssd, assd, slug")
    objective: str = option("npo", help="what dense and wagle train with: graddiff, npo, simnpo, po, rmu")
    strength: str = option("auto", help="auto, or a number (dense, wagle: times the usual rate; ssd, lfssd: a below 1; slug: step)")
    keep_ratio: float = option(0.3, help="wagle: share of the weights that may move")
    steps: int | None = option(None, help=f"dense, wagle: optimizer steps (default {STEPS}; auto may stop earlier)")
    lr: float | None = option(None, help="dense, wagle: peak learning rate (default: by model size and method)")
    batch: int = option(32, help="records to forget per step; as many to keep, and a quarter as many rows of plain text")
    retain_weight: float = option(1.0, help="dense, wagle: weight of what is to be kept in the loss")
    beta: float | None = option(None, help="how soon a forgotten record is left alone (npo: 0.1, simnpo: 4.5)")
    margin: float = option(0.0, help="simnpo: nats per token beyond which a record counts as forgotten")
    gamma: float | None = option(None, help="wagle: scale of the retain gradient in the score (default: by the medians of both terms)")
    mask: str = option("attribution", help="wagle: attribution, or random (a control)")
    refusal: str = option(REFUSAL, help="po: the answer to learn instead")
    layer: int | None = option(None, help="rmu: the block whose output is steered away")
    damping: float = option(1.0, help="ssd, lfssd, assd: lambda, the factor of the dampening")
    exclude: str = option("embeddings,norms,biases", help="ssd, lfssd, assd, slug: what is never touched; none for nothing")
    fisher: str = option("sample", help="importance per sample, or reference-batch as in the papers' code")
    retain_limit: float = option(0.95, help="share of what was right in the retain set that must stay right")
    target: float | None = option(None, help="share of the forget set that may still be right (default: by what guessing gives)")
    holdout_set: str | None = option(None, help="records that were never trained on, to compare with (membership inference)")
    reference: str | None = option(None, help="a version that was trained without the forget set, to compare with")
    measure: str = option("basic", help="basic, or full: also relearning, quantisation and extraction")
    weight_decay: float = option(0.0, help="dense, wagle: AdamW weight decay of matrices")
    clip: float = option(1.0, help="dense, wagle: largest gradient norm; 0 turns clipping off")
    save_every: int = option(50, help="steps between resumable states; 0 for none")

    def __post_init__(self) -> None:
        require(bool(self.forget_set), "--forget-set needs the path of a file of records")
        for flag, value, known in (
            ("method", self.method, METHODS),
            ("objective", self.objective, OBJECTIVES),
            ("mask", self.mask, MASKS),
            ("fisher", self.fisher, FISHERS),
            ("measure", self.measure, MEASURES),
        ):
            require(value in known, f"--{flag} is one of {', '.join(known)}, not {value!r}", f"--{flag} {known[0]}")
        require(self.batch >= 1, f"--batch must be at least 1, not {self.batch}")
        require(self.steps is None or self.steps >= 1, f"--steps must be at least 1, not {self.steps}")
        require(self.save_every >= 0, f"--save-every must not be negative, it is {self.save_every}")
        require(self.layer is None or self.layer >= 0, f"--layer is a block number from 0, not {self.layer}")
        for flag, number in (("lr", self.lr), ("beta", self.beta), ("gamma", self.gamma), ("damping", self.damping)):
            require(number is None or (math.isfinite(number) and number > 0), f"--{flag} must be a positive number, not {number}")
        for flag, number in (("retain-weight", self.retain_weight), ("clip", self.clip)):
            require(math.isfinite(number) and number >= 0, f"--{flag} must not be negative, it is {number}")
        require(math.isfinite(self.margin), f"--margin must be a number, not {self.margin}")
        require(0 <= self.weight_decay < 1, f"--weight-decay is from 0 to 1, not {self.weight_decay}")
        require(0 < self.retain_limit <= 1, f"--retain-limit is a share above 0 and at most 1, not {self.retain_limit}")
        require(self.target is None or 0 <= self.target < 1, f"--target is a share from 0 to 1, not {self.target}")
        none = "0 would freeze every weight and change nothing" if self.keep_ratio == 0 else f"it is {self.keep_ratio}"
        require(0 < self.keep_ratio <= 1, f"--keep-ratio is a share above 0 and at most 1; {none}", "--keep-ratio 0.3")
        require(bool(self.refusal.strip()), "--refusal needs the text of an answer")
        self._check_strength()
        self._check_retain()

    def _check_strength(self) -> None:
        value = self.amount
        require(value is None or (math.isfinite(value) and value > 0), f"--strength is auto or a positive number, not {self.strength!r}")
        own = self.method != "assd" or value is None
        require(own, "assd takes its threshold from the data: it has no --strength", "--method ssd --strength 0.2")
        batched = self.fisher == "sample" or self.method in ("ssd", "lfssd")
        require(batched, f"--fisher {self.fisher} is for ssd and lfssd, not for {self.method}", "--fisher sample")
        bounded = self.method in ("ssd", "lfssd") and self.fisher == "sample"  # batches break the bound; there it is alpha itself
        if bounded and value is not None and value >= 1:
            raise BadParameter(
                f"--strength {self.strength} is a proven no-op for {self.method}: where a = alpha |Df| / |D| is 1 or more, no weight "
                "can matter alpha times as much to the forget set as to all data",
                hint="--strength 0.2 (between 0.1 and 0.25 as a rule)",
            )

    def _check_retain(self) -> None:
        alone = self.method == "dense" and self.retain_weight == 0 and self.amount is not None
        hint = "add --retain-set FILE with records like those that must stay"
        needs = "--strength auto" if self.method == "dense" and self.retain_weight == 0 else f"--method {self.method}"
        require(bool(self.retain_set) or alone, f"{needs} needs --retain-set", hint)
        require(
            self.stored_retain is None or self.method in DAMPENED,
            f"--method {self.method} reads the retain records themselves, a digest is not enough",
            "--retain-set FILE",
        )

    # --- what the options mean ---

    @property
    def amount(self) -> float | None:
        """The strength as a number; None for auto, NaN for what is no number."""
        if self.strength == "auto":
            return None
        try:
            return float(self.strength)
        except ValueError:
            return math.nan

    @property
    def stored_retain(self) -> str | None:
        """The digest of a retain set of which only the stored importance is used; None when it is a file."""
        found = STORED.fullmatch(self.retain_set or "")
        return found[0].removeprefix("blake3:") if found else None

    @property
    def trained(self) -> bool:
        """Whether the method trains with an objective."""
        return self.method in TRAINED

    @property
    def sharpness(self) -> float:
        """beta, after defaults."""
        return self.beta if self.beta is not None else BETAS.get(self.objective, 1.0)

    # --- the contract ---

    def plan(self, view: ModelView) -> Plan:
        from .planning import plan

        return plan(self, view)

    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        from .session import apply

        return apply(self, view, run)

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        from .check import check

        return check(self, before, after, run)

    def expects(self) -> Expectations:
        return Expectations(may_forget=True)
