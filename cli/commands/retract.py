"""`mlc retract`: the blocks that an update added go, and the model is what it grew from, proven by digest."""

from __future__ import annotations

from ..conduct import conduct, proven
from ..context import Session
from ..options import Mutation, NeededRev

EPILOG = """Examples:
  mlc retract HEAD                                the update that HEAD is
  mlc retract 3f2a9c81d0e4                        an update behind HEAD: later changes of old tensors stay
  mlc retract v2-grown --branch without-blocks    of a tag, on a branch of its own"""


def run(session: Session, rev: NeededRev, how: Mutation) -> None:
    """Take the new blocks of an update out, to the byte."""
    from ...policies.retract import retract

    conduct(
        session,
        lambda: retract(session.repo, rev, **how.arguments(session, "retract")),
        hint=lambda _: "mlc log -n 5",
        proof=proven,
        more=lambda outcome: {"proved": bool(outcome.commit.check.get("proved"))},
    )
