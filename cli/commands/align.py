"""`mlc align`: bring a version back to what an older one got right. The options are the fields of the operation."""

from __future__ import annotations

from typing import Any

from ...ops.catalog import load
from ..conduct import conduct
from ..context import Session
from ..operations import begin, options_of
from ..options import RESUMED, Mutation, Resume, Rev

OPERATION = load("align")
METAVARS = {"to": "REV", "data": "FILE", "method": "NAME", "text": "FILE:RATIO", "adapter": "lora:R"}
Options = options_of(OPERATION, METAVARS)
OPTIONAL_VALUES = RESUMED

EPILOG = """Examples:
  mlc align main --to main~1 --data questions.jsonl
  mlc align v2 --to v1 --data questions.jsonl --text new.txt:0.5 --branch v2-aligned
  mlc align v2 --to v1 --data suite.toml --method muscle-student --adapter lora:16 --branch compat
  mlc align main --to @champion --data images.jsonl --method focal-logits
  mlc align --resume                                      go on after a kill"""


def run(
    session: Session,
    operation: Options,  # type: ignore[valid-type]
    how: Mutation,
    rev: Rev = None,
    resume: Resume = None,
) -> None:
    """Train a version towards the right answers of an older one."""

    def pinned(values: dict[str, Any]) -> dict[str, Any]:
        """What a name means later must not change what was aligned to."""
        return {**values, "to": session.repo.resolve(values["to"])} if values.get("to") else values

    def measured(check: dict[str, Any]) -> None:
        if (before := check.get("nfr_before")) is not None and (after := check.get("nfr_after")) is not None:
            words = f"{100 * before:.2f} % to {100 * after:.2f} %"
            session.line(f"Lost answers on {check['examples']} {check['measured_on']}: {words}.")

    conduct(
        session,
        lambda: begin(session, OPERATION, operation, how, rev, resume, pinned),
        hint=lambda commit: f"mlc diff {commit['op']['params']['to'][:12]} {commit['short']} --flips",
        measured=measured,
    )
