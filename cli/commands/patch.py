"""`mlc patch`: robustness as something that is put on and comes off clean."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from ...ops.catalog import load
from ...registry.errors import BadParameter
from ..conduct import conduct
from ..context import Session
from ..operations import begin, options_of
from ..options import RESUMED, Author, Mutation, Resume, Rev, complete_rev

TRAINING = load("patch.train")
METAVARS = {"data": "FILE", "method": "cure|trades|at", "scope": "REGEX"}
Training = options_of(TRAINING, METAVARS)
OPTIONAL_VALUES = RESUMED
ROBUST = "-robust"  # ends the branch that a patch is trained on, after its name

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Patches, as `mlc patch list` shows them.")]
Onto = Annotated[str | None, typer.Option(metavar="REV", help="The version.", show_default="HEAD", autocompletion=complete_rev)]


def group() -> None:
    """Take robustness from one model, lay it over others, and take it off to the byte."""


def extract(
    session: Session,
    robust: Annotated[str, typer.Argument(metavar="ROBUST", help="The version that is robust: any rev.", autocompletion=complete_rev)],
    clean: Annotated[str, typer.Argument(metavar="CLEAN", help="The version that is not.", autocompletion=complete_rev)],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What the patch shall be called.")],
    base: Annotated[
        str | None,
        typer.Option(metavar="REV", help="What both come from.", show_default="their merge base", autocompletion=complete_rev),
    ] = None,
    bits: Annotated[str, typer.Option(metavar="8|4|ternary", help="Bits of an element; ternary: a sign, one scale per tensor.")] = "8",
    density: Annotated[
        float | None, typer.Option(metavar="X", help="Share of each tensor that is kept.", show_default="0.4 if ternary, else 1")
    ] = None,
    layers: Annotated[str, typer.Option(metavar="all|shallow:K", help="All tensors, or those of the first K blocks.")] = "all",
    strength: Annotated[float, typer.Option(metavar="X", help="The strength that it is applied at unless another is given.")] = 1.0,
    force: Annotated[bool, typer.Option("--force", help="Give the name away when another signature has it.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", metavar="TEXT", help="Why; kept with the patch.")] = None,
    author: Author = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be kept; write nothing.")] = False,
) -> None:
    """Take the signature of a robust version against a clean one and name it."""
    from ...policies import patches

    named, said = patches.extract(
        session.repo, robust, clean, name=name, base=base, bits=bits, density=density, layers=layers, strength=strength, force=force,
        message=message or "", author=session.author(author), dry_run=dry_run, progress=session.progress,
    )  # fmt: skip
    document = {"patch": named.to_json(), "warnings": said}

    def render() -> None:
        from ..render.patch import patch_lines

        for text in said:
            session.warn(text)
        session.lines(patch_lines(document["patch"], session.paint))

    session.show(document, render)
    if not dry_run:
        session.hint(f"mlc patch apply {name}" + ("" if name in session.repo.branches() else f" --branch {name}"))


def apply(
    session: Session,
    names: Names,
    how: Mutation,
    strength: Annotated[
        str | None, typer.Option(metavar="X[,Y...]", help="A factor for all, or one for each.", show_default="as extracted")
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(metavar="norm|sum", help="What several come to: as far as the strongest, or their sum.", show_default="norm"),
    ] = None,
    onto: Onto = None,
) -> None:
    """Lay one or several patches over a version; their order does not matter."""
    from ...policies import patches

    strengths = _numbers(strength)
    conduct(
        session,
        lambda: patches.apply(session.repo, names, strengths=strengths, combine=combine, ref=onto, **how.arguments(session, "patch")),
        hint=lambda commit: f"mlc diff {commit['parents'][0][:12]} {commit['short']}",
        measured=lambda check: _measured(session, check),
    )


def remove(session: Session, names: Names, how: Mutation, onto: Onto = None) -> None:
    """Take patches off: what remains is the clean version with the others, to the byte."""
    from ...policies import patches

    conduct(
        session,
        lambda: patches.remove(session.repo, names, ref=onto, **how.arguments(session, "patch")),
        hint=lambda _: "mlc patch list",
        measured=lambda check: _measured(session, check),
    )


def list_(session: Session, rev: Rev = None) -> None:
    """List every patch, and those that lie over a version."""
    from ...policies import patches

    repo = session.repo
    tip = repo.resolve(rev) if rev is not None or repo.branches() else None
    overlay = patches.overlay(repo, tip) if tip is not None else None
    applied = [{"name": p.name, "signature": p.signature, "strength": p.strength} for p in overlay.patches] if overlay else []
    grown = [{"name": name, "signature": digest, "commit": by} for digest, (name, by) in overlay.grown.items()] if overlay else []
    found = [named.to_json() for named in patches.signatures(repo).values()]
    document = {"rev": tip, "clean": overlay.clean if overlay else None, "patches": found, "applied": applied, "part_of_weights": grown}

    def render() -> None:
        from ..render.patch import render_list

        render_list(session, document)

    session.show(document, render)
    if not found:
        session.hint("mlc patch extract ROBUST CLEAN --name NAME")


def show(session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="A patch, as `mlc patch list` shows it.")]) -> None:
    """Show one patch: what it changes, what it was taken from, what it weighs."""
    from ...policies import patches

    document = {"patch": patches.describe(session.repo, name)}

    def render() -> None:
        from ..render.patch import patch_lines

        session.lines(patch_lines(document["patch"], session.paint))

    session.show(document, render)
    session.hint(f"mlc patch apply {name}")


def train(
    session: Session,
    operation: Training,  # type: ignore[valid-type]
    how: Mutation,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What the patch shall be called. A resumed run's branch says it."),
    ] = None,
    rev: Rev = None,
    bits: Annotated[str, typer.Option(metavar="8|4|ternary", help="Bits of an element of the signature.")] = "8",
    density: Annotated[
        float | None, typer.Option(metavar="X", help="Share of each tensor that is kept.", show_default="0.4 if ternary, else 1")
    ] = None,
    strength: Annotated[float, typer.Option(metavar="X", help="The strength that it is applied at unless another is given.")] = 1.0,
    resume: Resume = None,
) -> None:
    """Train a robust version of a clean one, on a branch of its own, and take its signature."""
    from ...policies import patches

    name = name if name is not None else _name_of(session, resume)
    patches.require_free(session.repo, name)
    patches.check_form(bits, density, strength)  # after hours of training would be too late
    if resume is None and how.branch is None:
        how = replace(how, branch=name + ROBUST)
    made: list[tuple[Any, list[str]]] = []

    def work() -> Any:
        outcome = begin(session, TRAINING, operation, how, rev, resume)
        if outcome.commit is not None:
            made.append(
                patches.extract(
                    session.repo, outcome.commit_id, outcome.commit.parents[0], name=name, bits=bits, density=density, strength=strength,
                    author=outcome.commit.author, message=how.message or "", progress=session.progress,
                )
            )  # fmt: skip
        return outcome

    def proof(_: Any) -> str:
        from ..render.patch import patch_lines

        return "\n".join(patch_lines(made[0][0].to_json(), session.paint))

    conduct(
        session,
        work,
        hint=lambda _: f"mlc patch apply {name}",
        proof=proof,
        measured=lambda check: _robustness(session, check),
    )


def forget(session: Session, names: Names, author: Author = None) -> None:
    """Take names of patches away. Versions that carry them stay as they are; `mlc undo` gives the names back."""
    from ...policies import patches

    gone = patches.forget(session.repo, names, author=session.author(author))
    document = {"forgotten": [named.to_json() for named in gone]}

    def render() -> None:
        for named in gone:
            session.line(f"Patch {named.name} is forgotten (it was signature {named.signature[:12]}).")

    session.show(document, render)
    session.hint("mlc undo")


def _name_of(session: Session, resume: str | None) -> str:
    """The name of an unfinished run's patch, by its branch. Raises BadParameter where that does not say."""
    from ...policies.lifecycle import LATEST
    from ...policies.runs import Runs

    if resume is not None:
        branch = Runs(session.repo).find(None if resume == LATEST else resume, TRAINING.name).branch or ""
        if branch.endswith(ROBUST):
            return branch.removesuffix(ROBUST)
    raise BadParameter("patch train needs --name: what the patch shall be called", hint="for example: --name steady")


def _robustness(session: Session, check: dict[str, Any]) -> None:
    from ..render.patch import robustness_lines

    session.lines(robustness_lines(check))


def _numbers(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise BadParameter(f"--strength takes numbers, not {text!r}", hint="for example: --strength 1,0.5") from None


def _measured(session: Session, check: dict[str, Any]) -> None:
    from ..render.patch import overlay_line

    session.line(overlay_line(check, session.paint))


SUBVERBS = {"extract": extract, "train": train, "apply": apply, "remove": remove, "list": list_, "show": show, "forget": forget}
