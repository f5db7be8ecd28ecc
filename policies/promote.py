"""`accept`: a person overrules the gate, in writing. The refused commit is promoted as it is; its id does not change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..registry.errors import BadParameter, RefMoved
from ..registry.ids import CommitId, short
from ..registry.journal import utc_now
from ..registry.records import Verdict, Waiver
from .documents import did_you_mean
from .gate import failures, summary
from .gate import waive as waive_rules
from .outcome import Outcome, Progress
from .settings import Settings
from .standing import bodies, last_day, refusal, standing
from .targets import Target, check_name

if TYPE_CHECKING:
    from ..registry.repository import Repository


def accept(
    repo: Repository,
    rev: str,
    *,
    waive: Sequence[str],
    reason: str,
    author: str,
    until: str | None = None,
    branch: str | None = None,
    config: Settings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Let the failures of the named rules pass and move the branch that the candidate was meant for (or start `branch`).

    Raises BadParameter for a rule that did not fail, an empty reason, a waiver that has ended already or a commit that
    was not refused; GateRefused while other rules stand against it; RefMoved when the branch has gone on.
    """
    commit_id = repo.resolve(rev)
    commit, verdict = repo.commit(commit_id), standing(repo, commit_id)
    if verdict.outcome != "refused":
        raise BadParameter(f"{short(commit_id)} was not refused: there is nothing to accept", hint=f"mlc show {short(commit_id)}")
    waivers = _waivers(verdict, waive, reason, until, author)
    decided = waive_rules(verdict, waivers)
    if decided.outcome == "refused":
        hint = " ".join(f"--waive {name}" for name in dict.fromkeys(o.rule for o in failures(verdict)))
        raise refusal(repo, commit_id, decided, f"{short(commit_id)} is still refused by {summary(decided)}", hint)
    target = _meant_for(repo, commit_id, branch)
    body = {"kind": "accept", "commit": commit_id, "verdict": decided.to_json()}
    repo.record(body, refs=[target.update(commit_id)], author=author)
    return Outcome(commit, commit_id, target.branch, True, decided, commit.check)


def _waivers(verdict: Verdict, names: Sequence[str], reason: str, until: str | None, author: str) -> list[Waiver]:
    if not names:
        raise BadParameter("no rule was named", hint="--waive " + (failures(verdict)[0].rule if failures(verdict) else "RULE"))
    if not reason.strip():
        raise BadParameter("a waiver needs a reason: it is kept with the verdict", hint='--reason "..."')
    known = {outcome.rule for outcome in verdict.rules}
    failed = {outcome.rule for outcome in failures(verdict)}
    for name in names:
        if name not in known:
            raise BadParameter(f"no rule {name!r} was judged here", hint=did_you_mean(name, known))
        if name not in failed:
            raise BadParameter(f"rule {name!r} did not fail: there is nothing to waive", hint=f"failed: {', '.join(sorted(failed))}")
    if until is not None and last_day(until) < datetime.now(UTC).date():
        raise BadParameter(f"the waiver would end on {until}, which has passed", hint="--until takes a day to come")
    time = utc_now()
    return [Waiver(name, reason.strip(), author, time, until) for name in dict.fromkeys(names)]


def _meant_for(repo: Repository, commit_id: CommitId, branch: str | None) -> Target:
    """The branch to move, and where it must still be: where it was when the candidate was judged."""
    start = repo.commit(commit_id).parents[0]
    tips = repo.branches()
    if branch is not None:
        check_name(branch)
        old = tips.get(branch)
        if old not in (None, start):
            raise RefMoved(f"branch {branch} exists and does not stand at the candidate's parent", hint="choose another name")
        return Target(start, branch, old)
    meant = next((body["meant_for"] for body in bodies(repo, commit_id, "commit") if "meant_for" in body), None)
    if meant is None:
        raise BadParameter(f"it is not recorded which branch {short(commit_id)} was meant for", hint="--branch NAME")
    name, old = meant["branch"], meant["old"]
    if tips.get(name) != old:
        where = short(tips[name]) if name in tips else "gone"
        raise RefMoved(
            f"branch {name} has moved since {short(commit_id)} was judged (it is {where})",
            hint=f"start a branch of its own: mlc accept {short(commit_id)} --branch NAME, or repeat the change on the new tip",
        )
    return Target(start, name, old)
