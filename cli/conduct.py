"""What every changing verb does around its one call: run it, show the commit, say what the gate or check said.

A refused candidate and a failed check are answers too: the document is printed, then the error leaves with its exit code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..registry.errors import CheckFailed, GateRefused
from .context import Session
from .render.commit import made_lines
from .render.trials import trial_lines
from .views import commit_json, delta_json


def conduct(
    session: Session,
    work: Callable[[], Any],
    *,
    hint: Callable[[dict[str, Any]], str],
    proof: Callable[[Any], str] | None = None,
    measured: Callable[[dict[str, Any]], None] | None = None,
    planned: Callable[[dict[str, Any]], None] | None = None,
    more: Callable[[Any], dict[str, Any]] | None = None,
) -> None:
    """Call `work` for an Outcome and answer with its commit. `hint` gets the commit object, `proof` adds a sentence.

    `measured` gets the operation's check and shows it to people, whatever became of the candidate; `planned` the details of a dry run.
    `more` adds keys of the verb's own to the document.
    """
    try:
        outcome = work()
    except GateRefused as refusal:
        if "outcome" in refusal.details:  # a candidate was made; other refusals are about what exists already
            document = outcome_json(session, refusal.details["outcome"])
            session.show(document, lambda: _say(session, document, moved=False, measured=measured))
        raise
    except CheckFailed as failure:
        check = failure.details.get("check") or {}
        session.show({"commit": None, "check": check}, lambda: (measured or partial(_say_check, session))(check))
        raise
    if outcome.commit is None:
        show_plan(session, outcome, planned)
        return
    document = outcome_json(session, outcome) | (more(outcome) if more is not None else {})
    said = proof(outcome) if proof is not None else ""

    def render() -> None:
        _say(session, document, moved=outcome.ref_moved, measured=measured)
        if said:
            session.line(said)

    session.show(document, render)
    session.hint(hint(document["commit"]))


def proven(outcome: Any) -> str:
    """The sentence that says which version's content stands again, by digest; "" when none does."""
    equal = outcome.commit.check.get("equal_to")
    return f"Snapshot {outcome.commit.snapshot} is that of {equal[:12]}." if equal else ""


def outcome_json(session: Session, outcome: Any) -> dict[str, Any]:
    """`{"commit": ..., "warnings": [...], "ref_moved": ...}`."""
    commit_id = outcome.commit_id
    total = len(session.repo.snapshot(outcome.commit.snapshot).tensors)
    commit = commit_json(commit_id, outcome.commit, branch=outcome.branch, delta=delta_json(outcome.deltas, total), verdict=outcome.verdict)
    return {"commit": commit, "warnings": list(outcome.warnings), "ref_moved": outcome.ref_moved}


def _say(session: Session, document: dict[str, Any], *, moved: bool, measured: Callable[[dict[str, Any]], None] | None = None) -> None:
    commit = document["commit"]
    told = {f"{rule['rule']}: {rule['sentence']}" for rule in commit["verdict"]["rules"]}  # by the verdict, below
    for text in document["warnings"]:
        if text not in told:
            session.warn(text)
    before = session.repo.commit(commit["parents"][0]).metrics if commit["parents"] else {}
    session.lines(made_lines(commit, session.paint, moved=moved, before=before))
    if trials := commit["check"].get("auto"):
        session.lines(trial_lines(trials, session.paint))
    if measured is not None:
        measured(commit["check"])


def _say_check(session: Session, check: dict[str, Any]) -> None:
    from .render.commit import brief

    for key, value in check.items():
        if key == "auto":
            session.lines(trial_lines(value, session.paint))
        else:
            session.line(f"  {key}  {brief(value)}")


def show_plan(session: Session, outcome: Any, planned: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Answer a --dry-run: what would be touched, what it would cost, and what the verb has to say of its details (`planned`)."""
    from .render.plan import plan_json, plan_lines

    document = {"plan": plan_json(outcome.plan), "warnings": list(outcome.warnings)}

    def render() -> None:
        if planned is not None:
            planned(document["plan"]["details"])
        session.lines(plan_lines(document["plan"], session.paint))

    session.show(document, render)
