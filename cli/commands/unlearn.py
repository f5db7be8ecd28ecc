"""`mlc unlearn`: make a model forget records, measure that it did, and write evidence. The options are the operation's fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...ops.catalog import load
from ...registry.errors import BadParameter, GateRefused
from ..conduct import conduct
from ..context import Session
from ..operations import build, given, options_of
from ..options import Mutation, Rev

OPERATION = load("unlearn")
METAVARS = {
    **{name: "FILE" for name in ("forget_set", "retain_set", "holdout_set")},
    **{"method": "NAME", "objective": "NAME", "strength": "auto|X", "mask": "KIND", "fisher": "KIND", "measure": "basic|full"},
    **{"exclude": "PARTS", "reference": "REV"},
}
Options = options_of(OPERATION, METAVARS)
OPTIONAL_VALUES = {"--resume": "latest"}  # an option that may stand without its value

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
    resume: Annotated[str | None, typer.Option(metavar="[RUN]", help="Go on with an unfinished run; the latest without a name.")] = None,
) -> None:
    """Make a version forget records, measured and with evidence."""
    from ...policies import lifecycle
    from ...policies.evidence import require_free
    from ...policies.recipe import read_given

    words, common = given(operation), how.arguments(session)
    if evidence is not None:
        require_free(evidence)
    folder: list[Path] = []

    def begin() -> lifecycle.Outcome:
        if resume is None:
            values = {**(read_given(how.recipe, "unlearn") if how.recipe else {}), **words}
            if values.get("reference"):  # what a name means later must not change what was compared with
                values["reference"] = session.repo.resolve(values["reference"])
            return lifecycle.run(session.repo, build(OPERATION, {}, values), ref=rev, **common)
        if words or rev or how.recipe:
            raise BadParameter("--resume goes on with the options that the run was started with.", hint=f"mlc unlearn --resume {resume}")
        return lifecycle.run(session.repo, None, resume=resume, **common)

    def work() -> lifecycle.Outcome:
        try:
            outcome = begin()
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
        if words.get("forget_set") and not folder:
            return f"mlc impact --data {words['forget_set']}"
        return f"mlc diff {commit['parents'][0][:12]} {commit['short']} --flips"

    conduct(session, work, hint=hint, measured=measured)


def _write(session: Session, outcome: Any, directory: Path) -> Path:
    from ...policies.evidence import write_evidence

    forget_set = Path(outcome.commit.op.params["forget_set"])
    return write_evidence(session.repo, outcome.commit_id, directory, forget_set=forget_set)
