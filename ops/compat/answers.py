"""What `update` and `align` share: anchors, teachers and the objective, from the names of files and versions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadInputFile, BadParameter, Incompatible
from ..data.corpus import read_corpus
from ..data.identity import KIND, documents, identities
from ..data.mixing import Mixture
from .anchors import Anchors, input_record, read_anchors
from .measure import beside
from .objective import Compatible
from .options import Settings, parse_anchors, settings_of
from .rows import with_anchors
from .teacher import Teacher, ask

if TYPE_CHECKING:
    from ...registry.view import ModelView
    from ..base import Run
    from ..engine import Objective
    from ..update.train import Update


@dataclass(frozen=True, slots=True)
class Held:
    """Anchors with the teachers' answers on them."""

    settings: Settings
    anchors: Anchors
    old: Teacher
    new: Teacher | None


def hold(
    settings: Settings, path: str, view: ModelView, old: str, new: ModelView | None, run: Run, *, new_name: str = "the new one"
) -> Held:
    """Read the anchors, ask the teachers. `new` is the second teacher of MUSCLE.

    Raises BadInputFile when the old version knows or gets nothing of the file, BadParameter when MUSCLE's two teachers are one version.
    """
    anchors = read_anchors(path, view)
    run.input(input_record(anchors))
    teacher = run.version(old)
    told = ask(teacher, _short(old), view, anchors, run, settings.tau)
    require_overlap(told, anchors, _short(old))
    if not settings.muscle:
        return Held(settings, anchors, told, None)
    if new is None or new.snapshot_id == teacher.snapshot_id:
        raise BadParameter(
            f"{settings.method} needs two teachers, and the version that is trained holds the same content as {_short(old)}",
            hint="update first, then `mlc align NEW --to OLD --method muscle-student`; or name a new teacher",
        )
    return Held(settings, anchors, told, ask(new, new_name, view, anchors, run, settings.tau))


def require_overlap(told: Teacher, anchors: Anchors, name: str) -> None:
    """Raise BadInputFile when there is nothing that could be kept."""
    if not bool(told.kept["known"].any()):
        words = f"{name} knows none of the classes in {anchors.items.name}"
        raise BadInputFile(words, hint="give records of classes that it has learned", path=anchors.items.path)
    if not bool((told.kept["hit"] & told.kept["known"]).any()):
        words = f"{name} gets none of the {len(anchors)} records of {anchors.items.name} right: there is nothing to keep"
        raise BadInputFile(words, hint="give records that it answers right", path=anchors.items.path)


# --- in an update ------------------------------------------------------------------------------------------


def compatible(op: Update, view: ModelView, run: Run, mixture: Mixture, text: Objective) -> tuple[Mixture, Objective]:
    """The rows of an update with anchors among them, and its loss with what holds the anchors to the older version."""
    file, held = parse_anchors(op.compat_data or ""), _held(op, view, run)
    leave_documents(file.path, run)
    run.record("compat_teacher", held.old.facts())
    rows = with_anchors(mixture, held.anchors, range(len(held.anchors)), file.share, batch=op.batch, seed=run.seed)
    return rows, Compatible(held.settings, held.anchors, held.old, held.new, len(mixture.sources), text)


def compared(op: Update, before: ModelView, after: ModelView, run: Run) -> dict[str, Any]:
    """For the check of an update: the anchors before and after, against the older version."""
    held = _held(op, before, run)
    return beside(before, after, held.anchors, range(len(held.anchors)), held.old)


def _held(op: Update, view: ModelView, run: Run) -> Held:
    assert op.compat_with is not None
    settings, path = settings_of(op), parse_anchors(op.compat_data or "").path
    new, name = (run.version(op.compat_new), _short(op.compat_new)) if op.compat_new else (view, "the version that is trained")
    return hold(settings, path, view, op.compat_with, new if settings.muscle else None, run, new_name=name)


def leave_documents(path: str, run: Run) -> None:
    """Keep which documents were trained on, as keyed digests: `mlc impact` finds the commit by any one of them."""
    if Path(path).suffix.lower() == ".toml":
        return  # a suite: named among the inputs, its data digested with it
    try:
        corpus = read_corpus(path)
    except BadInputFile:  # images and labels are no documents
        return
    run.artifact(KIND, corpus.record.digest, partial(documents, identities(corpus), partial(run.pseudonym, scope="registry")))


def require_tokenizer(view: ModelView) -> None:
    """Raise Incompatible for a model that cannot read text."""
    if view.file("tokenizer.json") is None:
        raise Incompatible("text to go on with needs a model with a tokenizer", hint="leave --text out")


def _short(rev: str) -> str:
    return rev[:12] if len(rev) == 64 else rev
