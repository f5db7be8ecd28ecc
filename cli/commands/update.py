"""`mlc update`: continual training. The options are the fields of the operation; nothing here knows about models."""

from __future__ import annotations

from typing import Any

from ...ops.catalog import load
from ..conduct import conduct
from ..context import Session
from ..operations import begin, options_of
from ..options import RESUMED, Engine, Mutation, Resume, Rev

OPERATION = load("update")
METAVARS = {
    "tune": "K",
    "data": "FILE",
    "replay": "FILE:RATIO",
    "adapter": "lora:R",
    "where": "PLACE",
    "decay": "SHAPE",
    "precision": "KIND",
    "compat_with": "REV",
    "compat_new": "REV",
    "compat_data": "FILE:RATIO",
    "compat": "NAME",
    "protect": "NAMES",
    "ema": "KIND",
    "slow": "STEP:FACTOR",
    "begin": "STATE",
    "mix": "FILE:WEIGHT",
    "mix_temperature": "T",
    "mix_policy": "NAME",
    "mix_graph": "FILE",
    "reweight": "NAME",
    "select": "tarot:N",
    "select_for": "FILE",
}
Options = options_of(OPERATION, METAVARS, without=("mix_from",))
OPTIONAL_VALUES = RESUMED

EPILOG = """Examples:
  mlc update --data new.txt -m "the new texts"
  mlc update --data new.jsonl --replay old.jsonl:0.5      half of the rows from old text
  mlc update --data a.txt --mix b.txt:2,c.txt --mix-policy skillit
  mlc update --data new.txt --replay self:0.5             old text sampled from the model itself
  mlc update --data new.txt --protect spu                 few weights move, the rest keep their bits
  mlc update --data new.txt --expand 1                    only a new block is trained
  mlc update --data new.txt --where importance            behind the blocks that the new text needs most
  mlc update --data new.txt --tune 2 --dry-run            which blocks that would be
  mlc update --data new.txt --auto --dry-run              which of these serves the new text, tried on 2 % of it
  mlc update --data new.txt --auto --auto-keep 0.9        the same, and more of the new text
  mlc update --data new.txt --adapter lora:8 --branch lora
  mlc update --data new.txt --compat-with main --compat-data questions.jsonl:0.5
  mlc update --data new.txt --engine torchrun:4           four processes, one commit
  mlc update --resume                                     go on after a kill
  mlc update --resume --engine local                      elsewhere, or on another number of workers"""


def run(
    session: Session,
    operation: Options,  # type: ignore[valid-type]
    how: Mutation,
    rev: Rev = None,
    resume: Resume = None,
    engine: Engine = None,
) -> None:
    """Train a version further on new text."""

    def pinned(values: dict[str, Any]) -> dict[str, Any]:
        """What a name means later must not change which answers were kept."""
        return {**values, **{name: session.repo.resolve(values[name]) for name in ("compat_with", "compat_new") if values.get(name)}}

    conduct(
        session,
        lambda: begin(session, OPERATION, operation, how, rev, resume, pinned, engine=engine),
        hint=lambda commit: f"mlc diff {commit['parents'][0][:12]} {commit['short']} --flips",
        planned=lambda details: _picture(session, details),
    )


def _picture(session: Session, details: dict[str, Any]) -> None:
    """The blocks of a dry run: a table with a heat bar each."""
    from ..render.blocks import print_blocks

    if details.get("auto"):
        from ..render.trials import trial_lines

        session.lines(trial_lines(details["auto"], session.paint))
    if details.get("blocks"):
        print_blocks(session.console(), details["blocks"], details.get("importance") or {}, session.paint)
