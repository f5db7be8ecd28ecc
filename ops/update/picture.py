"""What an update says of its blocks and its data: in a dry run before anything is trained, and in the commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...registry.errors import Incompatible
from ..data.corpus import read_corpus
from ..data.duplicates import found_in
from .auto import chosen
from .auto import picture as picture_of_trials
from .growth import ADAPTED, TUNED, Growth, choose, table
from .layout import expandable, known_blocks

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from .train import Update

UNTOUCHED = {"full": TUNED, "lora": ADAPTED}  # what becomes of blocks that no plan names


def preview(op: Update, view: ModelView, run: Run) -> dict[str, Any]:
    """The picture of a dry run: a row per block of the result, how it was measured, and what the data holds twice.

    Raises what the update would raise for data and tokenizers that do not fit.
    """
    from .importance import measure
    from .session import require_language_model

    require_language_model(view)
    trials: dict[str, Any] = {}
    if op.auto:
        trials = {"auto": picture_of_trials(op, view, run)}
        op = chosen(op, trials["auto"])
    found = {**trials, "duplicates": count_duplicates(op, run, aloud=False)}
    try:
        _, blocks = expandable(view) if op.grows else known_blocks(view)
    except Incompatible:
        if op.grows or op.tune:
            raise
        return found  # a family without known blocks can be trained in full all the same
    growth = choose(op, blocks, measure(op, view, run))
    return {**block_facts(op, growth), **found}


def block_facts(op: Update, growth: Growth) -> dict[str, Any]:
    """`blocks`: the rows of the table; `importance`: how the angles in it were measured, where they were."""
    facts: dict[str, Any] = {"blocks": table(growth, UNTOUCHED.get(op.method, "frozen"))}
    if (seen := growth.importance) is not None:
        new, old = seen.rows
        facts["importance"] = {"token": seen.token, "rank": op.rank, "rows_new": new, "rows_old": old, "old_text": seen.old_text}
    return facts


def count_duplicates(op: Update, run: Run, *, aloud: bool = True) -> dict[str, Any]:
    """What the data holds more than once, and what becomes of it; recorded (`aloud`), with a note where copies are trained on."""
    found = found_in(op.data, read_corpus(op.data), op.dedup)
    facts = found.to_json(op.dedup)
    if aloud:
        run.record("duplicates", facts)
    if copies := len(found.extra("near")) - facts["dropped"]:
        kinds = f"{len(found.exact)} exact" + (f", {len(found.near)} near" if found.near else "")
        run.note(f"{copies} of {found.units:,} {found.unit} in the data are copies ({kinds}) and trained on; --dedup near leaves them out")
    return facts
