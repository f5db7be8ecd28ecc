"""`mlc unlearn`: make a model forget records, measure that it did, and write evidence. The options are the operation's fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...ops.catalog import load
from ...registry.errors import GateRefused
from ..conduct import conduct
from ..context import Session
from ..operations import begin, given, options_of
from ..options import RESUMED, Mutation, Resume, Rev

OPERATION = load("unlearn")
METAVARS = {
    **{name: "FILE" for name in ("forget_set", "retain_set", "holdout_set")},
    **{"method": "NAME", "objective": "NAME", "strength": "auto|X", "mask": "KIND", "fisher": "KIND", "measure": "basic|full"},
    **{"exclude": "PARTS", "reference": "REV"},
}
Options = options_of(OPERATION, METAVARS)
OPTIONAL_VALUES = RESUMED

EPILOG = """Examples:
  mlc unlearn --forget-set forget.jsonl --retain-set retain.jsonl --evidence evidence
  mlc unlearn --forget-set forget.jsonl --retain-set retain.jsonl --method wagle --keep-ratio 0.3
  mlc unlearn --forget-set forget.jsonl --retain-set retain.jsonl --method ssd --strength 0.2
  mlc unlearn --forget-set f.jsonl --retain-set r.jsonl --holdout-set never.jsonl --reference retrained --measure full
  mlc unlearn --resume                                    go on after a kill

The text of the forget set is never stored: commits name its records by keyed digests."""


def run(
    session: Session,
    operation: Options,  # type: ignore[valid-type]
    how: Mutation,
    rev: Rev = None,
    evidence: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a folder that a third party can check: new, or empty.", show_default=False)
    ] = None,
    resume: Resume = None,
) -> None:
    """Make a version forget records, measured and with evidence."""
    from ...policies.evidence import require_free

    if evidence is not None:
        require_free(evidence)
    folder: list[Path] = []

    def pinned(values: dict[str, Any]) -> dict[str, Any]:
        """What a name means later must not change what was compared with."""
        return {**values, "reference": session.repo.resolve(values["reference"])} if values.get("reference") else values

    def work() -> Any:
        try:
            outcome = begin(session, OPERATION, operation, how, rev, resume, pinned)
        except GateRefused as refusal:
            if evidence is not None and "outcome" in refusal.details:
                folder.append(_write(session, refusal.details["outcome"], evidence))
            raise
        if evidence is not None and outcome.commit is not None:
            folder.append(_write(session, outcome, evidence))
        return outcome

    def measured(check: dict[str, Any]) -> None:
        from ..render.evidence import measured_lines, render_search

        session.lines(measured_lines(check, session.paint))
        render_search(session, check.get("search"))
        for place in folder:
            session.line(f"Evidence: {place}")

    def hint(commit: dict[str, Any]) -> str:
        if (asked := given(operation).get("forget_set")) and not folder:
            return f"mlc impact --data {asked}"
        return f"mlc diff {commit['parents'][0][:12]} {commit['short']} --flips"

    conduct(session, work, hint=hint, measured=measured)


def _write(session: Session, outcome: Any, directory: Path) -> Path:
    from ...policies.evidence import write_evidence

    forget_set = Path(outcome.commit.op.params["forget_set"])
    return write_evidence(session.repo, outcome.commit_id, directory, forget_set=forget_set)
