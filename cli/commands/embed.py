"""`mlc embed`: texts to a stamped gallery, and a search in one that may be searched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...registry.errors import BadParameter, Incompatible, RefNotFound
from ..context import Session
from ..options import Rev
from .compat import recorded

if TYPE_CHECKING:
    from ...ops.embed.gallery import Gallery
    from ...registry.ids import CommitId

EPILOG = """Examples:
  mlc embed v1 --data passages.jsonl --out gallery.safetensors
  mlc embed v2 --data questions.jsonl --gallery gallery.safetensors -k 5

A gallery says which version made it. It is searched by the version that made it, and by versions that were found compatible with it
when they were aligned (`mlc compat`); any other search is refused, because numbers would come out that mean nothing."""


def run(
    session: Session,
    data: Annotated[str, typer.Option(metavar="FILE", help="JSONL with `text` (and `id`), or one text per line.", show_default=False)],
    rev: Rev = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the vectors there, as a gallery.")] = None,
    gallery: Annotated[Path | None, typer.Option(metavar="FILE", help="Search the texts in this gallery.")] = None,
    count: Annotated[int, typer.Option("-k", "--count", metavar="N", help="Items per query.", min=1)] = 5,
) -> None:
    """Turn texts into vectors: a gallery to keep, or a search in one."""
    from ...ops.embed.encoder import code, encode, load_encoder
    from ...ops.embed.gallery import Gallery, ids_of, nearest, read_gallery, read_texts
    from ...registry.fs import faults_in_words, write_new

    if (out is None) == (gallery is None):
        raise BadParameter("embed wants --out FILE to make a gallery, or --gallery FILE to search one", hint="mlc embed --help")
    if out is not None and out.exists():
        raise BadParameter(f"{out} exists already", hint="give another name, or remove it")
    commit = session.repo.resolve(rev)
    snapshot = session.repo.commit(commit).snapshot
    found, rows = read_gallery(gallery) if gallery is not None else None, read_texts(data)
    size = _permitted(session, found, commit) if found is not None else None
    view = session.repo.view(snapshot)
    vectors = encode(load_encoder(view), code(view, [text for _, text in rows]), progress=session.progress)
    if found is None:
        from torch.nn.functional import normalize

        assert out is not None
        with faults_in_words(out):
            write_new(out, Gallery(normalize(vectors, dim=-1), ids_of(rows), commit, snapshot).to_bytes())
        document: dict[str, Any] = {"commit": commit, "items": len(rows), "size": vectors.shape[1], "out": str(out)}
        session.show(document, lambda: session.line(f"{len(rows):,} texts, {vectors.shape[1]} numbers each: {out}"))
        session.hint(f"mlc embed --data QUESTIONS --gallery {out}")
        return
    results = [{"id": ident, "nearest": near} for ident, near in zip(ids_of(rows), nearest(vectors, found, count), strict=True)]
    document = {"commit": commit, "gallery": found.commit, "slice": [0, size], "results": results}
    session.show(document, lambda: _render(session, results))


def _permitted(session: Session, found: Gallery, asking: CommitId) -> int:
    """How many numbers are compared. Raises RefNotFound for an unknown maker, Incompatible without a verdict that allows the search."""
    try:
        maker = session.repo.resolve(found.commit)
    except RefNotFound:
        raise RefNotFound(
            f"the gallery was made by {found.commit[:12]}, which this registry does not know", hint="mlc fetch, or embed again"
        ) from None
    verdict = recorded(session, maker, asking)
    if verdict is None or not verdict["compatible"]:
        said = "is not known to be compatible with" if verdict is None else "was measured not to be compatible with"
        raise Incompatible(
            f"{asking[:12]} {said} the gallery of {maker[:12]}",
            hint=f"mlc align {asking[:12]} --to {maker[:12]} --data F, or embed the gallery again",
        )
    return found.vectors.shape[1]


def _render(session: Session, results: list[dict[str, Any]]) -> None:
    from ..render import text

    for row in results:
        items = ", ".join(f"{text.printable(ident)} {near:.3f}" for ident, near in row["nearest"])
        session.line(f"{session.paint.cyan(text.printable(row['id']))}  {items}")
