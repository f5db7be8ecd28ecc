"""Unfinished runs as `status` and `runs` tell them. Imports no typer: `status` is asked by shell prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..registry.repository import Repository

RESUMING = ("update", "align", "edit", "unlearn", "merge")  # verbs with --resume


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


def going_on(run: dict[str, Any]) -> str:
    """The command that goes on with an unfinished run; where its verb takes none up again, the one that throws it away."""
    verb = run["op"].partition(".")[0]
    if run["op"] == "patch.train":
        return f"mlc patch train --resume {run['id']}"
    if verb == "unmerge":
        return f"mlc unmerge {run['branch']} --remove REV"  # the same request goes on by itself
    return f"mlc {verb} --resume {run['id']}" if verb in RESUMING else f"mlc runs --forget {run['id']}"
