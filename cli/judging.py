"""What `gate`, `policy test` and `accept` share: a verdict without a commit."""

from __future__ import annotations

from typing import Any

from ..registry.errors import GateRefused
from .context import Session
from .render.verdict import verdict_lines
from .views import verdict_json


def judge_pair(session: Session, *, candidate: str | None, against: str | None) -> None:
    """Judge `candidate` as if it followed `against`; exit 4 when it is refused. Nothing is recorded but measurements."""
    from ..policies import lifecycle

    repo = session.repo
    verdict = lifecycle.gate_rev(
        repo, candidate, against=against, author=session.author(), config=session.settings, progress=session.progress
    )
    document: dict[str, Any] = {"rev": repo.resolve(candidate), "verdict": verdict_json(verdict)}
    session.show(document, lambda: session.lines(verdict_lines(document["verdict"], session.paint)))
    if verdict.outcome == "refused":
        from ..policies.gate import summary

        raise GateRefused(f"Refused by {summary(verdict)}", hint="mlc policy explain")
    session.hint("mlc alias champion " + document["rev"][:12])
