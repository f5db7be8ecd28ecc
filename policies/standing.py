"""What a commit's verdict is worth today: the one it was recorded with, or a later acceptance, until its waivers expire."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from ..registry.errors import BadParameter, GateRefused
from ..registry.ids import CommitId, short
from ..registry.records import Verdict, Waiver
from .gate import summary
from .outcome import Outcome

if TYPE_CHECKING:
    from ..registry.repository import Repository


def standing(repo: Repository, commit_id: CommitId) -> Verdict:
    """The verdict that holds now: the latest acceptance on the chain, else the commit's own."""
    own = repo.commit(commit_id).verdict
    if own.outcome != "refused":
        return own  # nothing that was not refused is ever accepted: most commits need no look at the journal
    verdict = own
    for body in bodies(repo, commit_id, "accept"):
        verdict = Verdict.from_json(body["verdict"])
        break
    return verdict


def bodies(repo: Repository, commit_id: CommitId, kind: str) -> Iterable[dict]:
    """Journal bodies of one kind about a commit, the latest first."""
    for record in repo.journal.with_text(f'"commit":"{commit_id}"'):
        if record.body.get("kind") == kind and record.body.get("commit") == commit_id:
            yield record.body


def require_accepted(repo: Repository, commit_id: CommitId, what: str) -> None:
    """Raises GateRefused when the commit was refused and never accepted. `what` names what it was wanted for."""
    verdict = standing(repo, commit_id)
    if verdict.outcome == "refused":
        said = f"{short(commit_id)} was refused ({summary(verdict)}): {what}"
        raise refusal(repo, commit_id, verdict, said, f"mlc accept {short(commit_id)} --waive RULE --reason TEXT")


def refusal(repo: Repository, commit_id: CommitId, verdict: Verdict, message: str, hint: str) -> GateRefused:
    """A refusal about a commit that exists already; like every refusal it carries the outcome that is shown."""
    commit = repo.commit(commit_id)
    outcome = Outcome(commit, commit_id, None, False, verdict, commit.check)
    return GateRefused(message, hint=hint, outcome=outcome, verdict=verdict.to_json(), commit=commit_id)


def expired(verdict: Verdict, today: date | None = None) -> list[Waiver]:
    """The waivers that have run out."""
    today = today or datetime.now(UTC).date()
    return [waiver for waiver in verdict.waivers if waiver.until is not None and last_day(waiver.until) < today]


def last_day(until: str) -> date:
    """The last day of a waiver, from a date or a time in ISO 8601. Raises BadParameter."""
    try:
        return datetime.fromisoformat(until).date()
    except ValueError:
        raise BadParameter(f"--until {until!r} is not a date", hint="--until 2030-12-31") from None
