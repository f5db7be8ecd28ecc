"""`mlc update`: continual training. The options are the fields of the operation; nothing here knows about models."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ...ops.catalog import load
from ...registry.errors import BadParameter
from ..conduct import conduct
from ..context import Session
from ..operations import build, given, options_of
from ..options import Mutation, Rev

OPERATION = load("update")
METAVARS = {"data": "FILE", "replay": "FILE:RATIO", "adapter": "lora:R", "where": "PLACE", "decay": "SHAPE", "precision": "KIND"}
Options = options_of(OPERATION, METAVARS)
OPTIONAL_VALUES = {"--resume": "latest"}  # an option that may stand without its value

EPILOG = """Examples:
  mlc update --data new.txt -m "the new texts"
  mlc update --data new.jsonl --replay old.jsonl:0.5      half of the rows from old text
  mlc update --data new.txt --replay self:0.5             old text sampled from the model itself
  mlc update --data new.txt --expand 1                    only a new block is trained
  mlc update --data new.txt --adapter lora:8 --branch lora
  mlc update --resume                                     go on after a kill"""


def run(
    session: Session,
    operation: Options,  # type: ignore[valid-type]
    how: Mutation,
    rev: Rev = None,
    resume: Annotated[str | None, typer.Option(metavar="[RUN]", help="Go on with an unfinished run; the latest without a name.")] = None,
    engine: Annotated[Literal["local"], typer.Option(metavar="local", help="Where the work runs.")] = "local",
) -> None:
    """Train a version further on new text."""
    from ...policies import lifecycle
    from ...policies.recipe import read_given

    words, common = given(operation), how.arguments(session)

    def work() -> lifecycle.Outcome:
        if resume is None:
            recipe = read_given(how.recipe, "update") if how.recipe else {}
            return lifecycle.run(session.repo, build(OPERATION, recipe, words), ref=rev, **common)
        if words or rev or how.recipe:
            raise BadParameter("--resume goes on with the options that the run was started with.", hint=f"mlc update --resume {resume}")
        return lifecycle.run(session.repo, None, resume=resume, **common)

    conduct(session, work, hint=lambda commit: f"mlc diff {commit['parents'][0][:12]} {commit['short']} --flips")
