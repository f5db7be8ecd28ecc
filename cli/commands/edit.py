"""`mlc edit`: write facts into the weights, or what changed between two worlds. The options are the operation's fields."""

from __future__ import annotations

import shlex
from typing import Any

from ...ops.catalog import load
from ..conduct import conduct
from ..context import Session
from ..operations import begin, given, options_of
from ..options import RESUMED, Mutation, Resume, Rev

OPERATION = load("edit")
METAVARS = {
    **{"facts": "FILE", "world": "OLD NEW", "method": "memit|alphaedit", "layers": "auto|A-B", "covariance": "FILE"},
    **{"dates": "OLD..NEW", "on_conflict": "refuse|new|old", "skip": "ID", "precision": "fp32|fp64"},
}
Options = options_of(OPERATION, METAVARS)
OPTIONAL_VALUES = RESUMED
SEVERAL_VALUES = {"--world": 2}

ROWS = "jq -c '.plan.details.needs_unlearning[]'"
UNLEARN = f"mlc edit --world {{}} --dry-run --json | {ROWS} > obsolete.jsonl; mlc unlearn --forget-set obsolete.jsonl"

EPILOG = """Examples:
  mlc edit --facts facts.jsonl -m "new addresses"
  mlc edit --facts facts.jsonl --layers 3-5 --covariance text.txt
  mlc edit --facts facts.jsonl --method alphaedit
  mlc edit --world old.jsonl new.jsonl --dry-run          what changed, and what an edit can do about it
  mlc edit --world old.jsonl new.jsonl --dates 2021-01-04..2023-02-27
  mlc revert REV --fact 17                                take one fact back, keep the others

A row of facts: {"subject": "Ada", "prompt": "{} lives in", "target_new": "Rome", "target_true": "Oslo"}"""


def run(
    session: Session,
    operation: Options,  # type: ignore[valid-type]
    how: Mutation,
    rev: Rev = None,
    resume: Resume = None,
) -> None:
    """Write facts into a version's weights, checked and reversible."""
    from ..render.edit import edit_lines, world_lines

    def measured(check: dict[str, Any]) -> None:
        session.lines(edit_lines(check, session.paint))

    def hint(commit: dict[str, Any]) -> str:
        return f"mlc revert {commit['short']} --fact ID"

    def planned(details: dict[str, Any]) -> None:
        session.lines(world_lines(details, session.paint))
        if details.get("needs_unlearning"):
            session.hint(UNLEARN.replace("{}", shlex.join(map(str, given(operation).get("world", ("OLD", "NEW"))))))

    conduct(session, lambda: begin(session, OPERATION, operation, how, rev, resume), hint=hint, measured=measured, planned=planned)
