"""`mlc eval`: one version, one suite, measured once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from ..context import Session
from ..options import Author, Rev

EPILOG = """A suite is a TOML file with `name`, `kind` (cloze, choice, perplexity, classify, pairs, generate, truth,
membership, utility) and `data`, a path relative to it. Suites named in mlc.toml are measured on every commit.

Examples:
  mlc eval --suite suites/known.toml
  mlc eval main~1 --suite known --limit 100"""


def run(
    session: Session,
    rev: Rev = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", "-s", metavar="FILE|NAME", help="A suite file, or the name of a configured suite. May be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N examples.", min=1)] = None,
    scorer: Annotated[Literal["builtin"], typer.Option(metavar="builtin", help="Who scores.")] = "builtin",
    author: Author = None,
) -> None:
    """Measure a version on a suite."""
    from ...policies import lifecycle
    from ...registry.errors import BadParameter
    from ..measuring import find_suites

    suites = find_suites(session, suite)
    if not suites:
        raise BadParameter("No suite was named, and mlc.toml configures none.", hint="mlc eval --suite FILE.toml")
    commit_id = session.repo.resolve(rev)
    answers = []
    for one in suites:
        measured = lifecycle.evaluate_rev(
            session.repo, commit_id, one, limit=limit, author=session.author(author), config=session.settings, progress=session.progress
        )
        answers.append({"rev": commit_id, "suite": one.name, "metrics": measured.metrics, "n": measured.n, "cached": measured.cached})
    document = answers[0] if len(answers) == 1 else {"rev": commit_id, "evaluations": answers}
    session.show(document, lambda: _render(session, answers))
    session.hint(f"mlc diff REV {commit_id[:12]} --flips")


def _render(session: Session, answers: list[dict[str, Any]]) -> None:
    from ..render.commit import rank
    from ..render.text import count, number

    width = max(len(answer["suite"]) for answer in answers)
    for answer in answers:
        values = "  ".join(f"{name} {number(value)}" for name, value in sorted(answer["metrics"].items(), key=lambda item: rank(item[0])))
        note = f"{count(answer['n'], 'example')}{', cached' if answer['cached'] else ''}"
        session.line(f"{session.paint.cyan(answer['suite'].ljust(width))}  {values}  {session.paint.dim(note)}")
