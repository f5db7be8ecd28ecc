"""What is asked of the conductor, and what it answers: plain records shared by the rooms of this floor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack

from ..ops.base import Plan
from ..registry.ids import CommitId
from ..registry.records import Commit, Json, TensorDelta, Verdict
from .settings import Settings

if TYPE_CHECKING:
    from ..registry.repository import Repository


class Progress(Protocol):
    """Live progress: `done` of `total` in `phase`; values such as loss are shown beside the bar."""

    def __call__(self, phase: str, done: int, total: int, **values: float) -> None: ...


class How(TypedDict, total=False):
    """What every function that makes history takes, by keyword."""

    branch: str | None  # start this new branch instead of moving REF's
    message: str | None
    author: str
    seed: int | None
    dry_run: bool
    config: Settings | None  # None: read mlc.toml
    progress: Progress | None
    engine: str | None  # where training runs (`engines`); of a resumed run: instead of where it ran


@dataclass(frozen=True, slots=True)
class Request:
    """`How` with every question answered."""

    author: str
    config: Settings
    branch: str | None = None
    message: str = ""
    seed: int = 0
    dry_run: bool = False
    progress: Progress | None = None
    engine: str | None = None

    @classmethod
    def of(cls, repo: Repository, **how: Unpack[How]) -> Request:
        """Fill in what was left out; settings are read from the registry's root."""
        if unknown := set(how) - How.__annotations__.keys():
            raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")  # ** would swallow a misspelt one
        config = how.get("config") or Settings.read(repo.root)
        return cls(
            author=how.get("author") or "unknown",
            config=config,
            branch=how.get("branch"),
            message=how.get("message") or "",
            seed=config.seeds[0] if (seed := how.get("seed")) is None else seed,
            dry_run=how.get("dry_run", False),
            progress=how.get("progress"),
            engine=how.get("engine"),
        )

    def report(self, phase: str, done: int, total: int, **values: float) -> None:
        """Pass progress on, if anybody listens."""
        if self.progress is not None:
            self.progress(phase, done, total, **values)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. A dry run has a plan and no commit; a refusal has a commit and `ref_moved` False."""

    commit: Commit | None = None
    commit_id: CommitId | None = None
    branch: str | None = None
    ref_moved: bool = False
    verdict: Verdict | None = None
    check: dict[str, Json] | None = None
    deltas: tuple[TensorDelta, ...] = ()
    warnings: tuple[str, ...] = ()
    plan: Plan | None = None
    run: str | None = None
    means: str | None = None  # of a revert: how the change was taken back
