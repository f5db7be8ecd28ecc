"""`mlc fsck`: trust, but rehash."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...registry.errors import BadParameter, IntegrityError
from ..context import Session
from ..render.text import count, printable, sentence, size

LEVELS = ("ends and refs", "structure", "every object's digest", "every tensor of every commit rebuilt")


def run(
    session: Session,
    level: Annotated[
        int, typer.Option(metavar="0-3", help="0 ends and refs, 1 structure, 2 every digest, 3 every tensor rebuilt.", min=0, max=3)
    ] = 2,
    sample: Annotated[str | None, typer.Option(metavar="N/T", help="Levels 2 and 3: only the N-th of T parts, by digest.")] = None,
) -> None:
    """Verify the registry, down to every tensor's bytes."""
    from ...registry.maintenance.fsck import fsck

    document = fsck(session.repo, level, sample=_sample(sample), progress=session.progress).to_json()
    session.show(document, lambda: _render(session, document))
    if not document["clean"]:
        faults = [finding for finding in document["findings"] if finding["severity"] == "fault"]
        raise IntegrityError(f"{count(len(faults), 'fault')} found at level {level}.", hint="mlc doctor")
    session.hint("mlc du")


def _sample(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise BadParameter(f"--sample {text!r} is not N/T with N from 1 to T.", hint="for example: --sample 1/10")
    return int(part), int(parts)


def _render(session: Session, document: dict[str, Any]) -> None:
    paint = session.paint
    for finding in document["findings"]:
        word = paint.red("fault ") if finding["severity"] == "fault" else paint.yellow("remark")
        session.line(f"{word}  {finding['kind']}  {printable(finding['object'])}  {sentence(finding['sentence'])}")
    checked = f"level {document['level']} ({LEVELS[document['level']]}), {count(document['objects'], 'object')}, {size(document['bytes'])}"
    session.line(f"{paint.green('Clean') if document['clean'] else paint.red('Damaged')}: {checked}.")
