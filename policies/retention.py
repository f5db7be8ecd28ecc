"""How long things are kept that nothing points at: unfinished runs and refused candidates. Says what may go; gc takes it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from .runs import RunInfo, Runs

if TYPE_CHECKING:
    from ..registry.repository import Repository

RUN_DAYS = 30  # since an unfinished run was started
REFUSED_DAYS = 30  # since a candidate was refused: as long as reflogs remember what is unreachable


def stale_runs(runs: Iterable[RunInfo], now: datetime) -> list[str]:
    """Runs that nobody works on and that were started too long ago."""
    return [run.id for run in runs if not run.active and older(run.started, RUN_DAYS, now)]


def older(time: str, days: int, now: datetime) -> bool:
    """Whether a recorded time lies more than so many days back."""
    return now - datetime.fromisoformat(time) > timedelta(days=days)


def sweep(repo: Repository, now: datetime) -> list[str]:
    """Remove stale runs; returns their ids."""
    runs = Runs(repo)
    gone = stale_runs(runs.list(), now)
    for run_id in gone:
        runs.forget(run_id)
    return gone
