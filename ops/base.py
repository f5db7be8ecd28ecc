"""The frame every operation fits: plan, apply, check, expects.

An operation is a frozen dataclass whose fields are at once the CLI options, the recipe keys and the audit record.
It reads anything and writes nothing: it yields changes, and one conductor (policies/lifecycle.py) makes history
of them. This module imports no torch, so that `mlc log` and `--help` may know every operation.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from ..registry.errors import BadParameter, CheckFailed
from ..registry.records import InputRecord, Json

if TYPE_CHECKING:
    import torch

    from ..registry.delta.derived import Derived
    from ..registry.view import ModelView
    from .engine.base import Engine


def option(default: Any = dataclasses.MISSING, *, help: str, flag: str | None = None, **more: Any) -> Any:
    """A dataclass field that is also a CLI option and a recipe key. `flag` renames it on the command line."""
    return dataclasses.field(default=default, metadata={"help": help, "flag": flag, **more})


def requirement(verb: str) -> Callable[..., None]:
    """What a `__post_init__` checks its fields with: `require(condition, sentence, hint=None)` raises BadParameter.

    The hint is where the options of the verb are listed, unless there is a better one.
    """

    def require(condition: object, sentence: str, hint: str | None = None) -> None:
        if not condition:
            raise BadParameter(sentence, hint=hint or f"`mlc {verb} --help` lists every option")

    return require


# --- what an operation yields ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetTensor:
    """`name` now holds `data`. `base` names the parent's tensor it is best stored against (default: same name).

    `derived` says which pinned function of stored tensors `data` is; an operation that computes it by `registry.delta.derived.derive`
    is stored as the recipe alone. `data` on the `meta` device says type and shape only: storage computes what is derived, piece by piece.
    """

    name: str
    data: torch.Tensor
    base: str | None = None
    derived: Derived | None = None


@dataclass(frozen=True, slots=True)
class CopyTensor:
    """`name` now holds exactly what the parent holds under `source`; no bytes are read."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class DropTensor:
    """`name` is no longer part of the model."""

    name: str


@dataclass(frozen=True, slots=True)
class SetFile:
    """The opaque file `path` now holds `data` (a config, say). `data=None` removes it."""

    path: str
    data: bytes | None


Change = SetTensor | CopyTensor | DropTensor | SetFile


# --- what an operation says before and after -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be touched and what it will cost; made without reading a tensor."""

    summary: str  # one sentence
    touches: tuple[str, ...]  # tensor names of the result that may differ from the parent; fnmatch patterns allowed
    bytes_touched: int = 0
    trainable: int = 0  # elements, when something is trained
    steps: int = 0
    seconds: float | None = None  # estimate, None when unknown
    memory: int | None = None  # bytes, peak estimate
    details: dict[str, Json] = field(default_factory=dict)  # shown by --dry-run


@dataclass(frozen=True, slots=True)
class Check:
    """The operation's own test of its result. `passed=False` means exit 10 and nothing is committed."""

    passed: bool
    values: dict[str, Json] = field(default_factory=dict)  # recorded in the commit as `check`
    reason: str = ""  # one sentence when it failed
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Expectations:
    """What may get worse by the nature of the operation; rules may read it."""

    may_forget: bool = False
    lossless: bool = False  # outputs must be bit-equal to the parent's
    notes: tuple[str, ...] = ()


class Run(Protocol):
    """What the conductor hands to an operation while it runs."""

    id: str
    seed: int
    threads: int
    scratch: Path  # private directory of this run, kept for resuming
    engine: Engine | None  # what trains; None for this process

    def progress(self, phase: str, done: int, total: int, **values: float) -> None:
        """Report live progress; `values` (loss, lr, tokens_per_second, ...) are shown beside the bar."""

    def note(self, text: str) -> None:
        """Record a warning that the user sees and the commit result lists."""

    def record(self, key: str, value: Json) -> None:
        """Keep a fact in the commit's `check` (loss curve, equality evidence, ...)."""

    def input(self, record: InputRecord) -> None:
        """Declare one thing that was read; it goes into the commit with its digest."""

    def artifact(self, kind: str, key: str, compute: Callable[[], bytes]) -> bytes:
        """The stored artifact of this kind and key, computed and kept when absent (kept also when refused)."""
        ...

    def kept(self, rev: str, kind: str) -> bytes | None:
        """The artifact of this kind that the commit `rev` keeps, or None; all that it keeps can be had by `artifact` from then on."""
        ...

    def inherited(self, kind: str) -> bytes | None:
        """The artifact of this kind that the nearest version behind this run keeps, or None: state that versions carry on."""
        ...

    def pseudonym(self, data: bytes, *, scope: Literal["request", "registry"] = "request") -> str:
        """A keyed digest that stands for `data` where its text must not: `hmac:<key id>:<64 hex>`.

        Scope `request`: a key of this run alone, which a purge destroys. `registry`: one key for all commits of this registry, so
        that equal data can be found again.
        """
        ...

    def version(self, rev: str) -> ModelView:
        """Another version that the operation reads (a reference, an ingredient); recorded among the inputs by its commit id."""
        ...

    def save_state(self, step: int, tensors: dict[str, torch.Tensor], meta: dict[str, Json]) -> None:
        """Store a resumable state atomically (safetensors, never pickle); replaces the one before."""

    def load_state(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Json]] | None:
        """The last saved state of this run, or None for a fresh start."""


class History(Protocol):
    """What an operation may ask about the versions that it builds on, before it begins. Versions that were taken back are left out."""

    def kept(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """(commit id, artifact) of every version behind that keeps one of this kind, nearest first."""
        ...

    def recorded(self, name: str) -> Iterator[tuple[str, dict[str, Json]]]:
        """(commit id, check) of everything that this operation made in the whole registry, oldest first: also beside, also refused."""
        ...

    def lost(self, commit: str) -> frozenset[str]:
        """Ids of the facts of an edit that were taken back since."""
        ...

    def forgotten(self, name: str, records: Sequence[tuple[bytes, ...]]) -> dict[int, str]:
        """Place of each record (its normal forms) that a version behind was made to forget -> that commit, where its key is here."""
        ...


class Diverged(CheckFailed):
    """Training gave no numbers any more. The state before that step is saved: the run can go on with what the operation lets change."""


# --- the contract ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation(ABC):
    """Base of all operations. Subclasses are frozen dataclasses with `name` and `version` set on the class."""

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    needs_forward: ClassVar[bool] = False  # True: a transformers model must be buildable from the parent
    produces: ClassVar[Literal["model", "adapter"]] = "model"
    retunable: ClassVar[tuple[str, ...]] = ()  # fields (tuples) that a resumed run may be given more of

    def params(self) -> dict[str, Json]:
        """Every field, JSON-ready: what the commit records and a replay reads back."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_params(cls, params: dict[str, Json]) -> Self:
        """The inverse of `params`; raises BadParameter naming an unknown key."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(params) - known):
            raise BadParameter(f"{cls.name} has no parameter {unknown[0]!r}", hint=f"known: {', '.join(sorted(known))}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in params.items()})

    def as_typed(self) -> Self:
        """Itself; raises BadParameter for an option that changes nothing beside the others. Default: there is none.

        Asked of what somebody types or writes into a recipe, never of a record: what an older version ignored can be read and run again.
        """
        return self

    def output_kind(self) -> Literal["model", "adapter"]:
        """Whether the result is a whole model or an adapter on the parent; may depend on parameters."""
        return self.produces

    def sits_on(self, view: ModelView) -> ModelView:
        """What an adapter that this operation makes goes on. Default: the version that is changed."""
        return view

    def alone(self) -> str:
        """Why it cannot be trained by several processes, as a phrase; "" when it can. Default: it trains in one, if at all."""
        return f"{self.name} runs in one process"

    def joins(self) -> tuple[str, ...]:
        """Further versions whose content goes into the result, by commit id: parents of the commit, behind the one that is changed."""
        return ()

    def foresee(self, past: History) -> Self:
        """The operation as it fits what is behind it; raises when it contradicts that. Default: itself, nothing is asked."""
        return self

    @abstractmethod
    def plan(self, view: ModelView) -> Plan:
        """What will be touched and what it costs. Reads names, shapes, config and data sizes, never a tensor."""

    def preview(self, view: ModelView, run: Run) -> dict[str, Json]:
        """What a dry run shows beyond the plan: may read tensors, run the model and report progress, and keeps nothing.

        Joined to the plan's details. `run` computes what is not kept yet and forgets it again. Default: nothing.
        """
        return {}

    @abstractmethod
    def apply(self, view: ModelView, run: Run) -> Iterator[Change]:
        """Yield changes one tensor at a time; never mutates `view`.

        A change may share memory with the next: use it before asking for that.
        """

    def check(self, before: ModelView, after: ModelView, run: Run) -> Check:
        """Did it do its job? Default: nothing to say."""
        return Check(True)

    def expects(self) -> Expectations:
        """What may get worse."""
        return Expectations()
