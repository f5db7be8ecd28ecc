"""Unfinished runs as `status` and `runs` tell them. Imports no typer: `status` is asked by shell prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..registry.repository import Repository


def unfinished(repo: Repository) -> list[dict[str, Any]]:
    """Unfinished runs, the latest first."""
    from ..policies.runs import Runs

    return [
        {
            "id": info.id,
            "op": info.op,
            "branch": info.branch,
            "start": info.start,
            "step": info.step,
            "steps": info.params.get("steps"),
            "started": info.started,
            "state": "running" if info.active else "resumable",
        }
        for info in Runs(repo).list()
    ]
