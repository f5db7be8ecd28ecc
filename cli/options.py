"""Options that many verbs share, written once: the globals, what every change takes, and revs with completion."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .render.help import GLOBAL as GLOBAL_PANEL

if TYPE_CHECKING:
    from .context import Session

COMMON_PANEL = "Every change takes"


class Bundle:
    """Base of option bundles: dataclasses whose field annotations are `Annotated[type, typer.Option(...)]`."""


@dataclass
class GlobalOptions(Bundle):
    """What every verb understands, before it or after it."""

    registry: Annotated[
        Path | None,
        typer.Option(
            "--registry", "-R", metavar="DIR", help="The registry; else MLC_REGISTRY, else upwards.", rich_help_panel=GLOBAL_PANEL
        ),
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=GLOBAL_PANEL)] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No hints, no progress.", rich_help_panel=GLOBAL_PANEL)] = False
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours.", rich_help_panel=GLOBAL_PANEL)] = False


@dataclass
class Mutation(Bundle):
    """What every verb that makes history understands."""

    message: Annotated[
        str | None, typer.Option("--message", "-m", metavar="TEXT", help="Why; shown in the log.", rich_help_panel=COMMON_PANEL)
    ] = None
    author: Annotated[
        str | None, typer.Option(metavar="WHO", help="Else MLC_AUTHOR, git's user, the login name.", rich_help_panel=COMMON_PANEL)
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of everything random.", show_default="0", rich_help_panel=COMMON_PANEL)
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.", rich_help_panel=COMMON_PANEL)] = False
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML or YAML with the verb's options; flags win.", rich_help_panel=COMMON_PANEL)
    ] = None
    branch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Start this new branch instead of moving REF's.", rich_help_panel=COMMON_PANEL)
    ] = None

    def arguments(self, session: Session, verb: str | None = None) -> dict[str, Any]:
        """What every function of the conductor takes. `verb`: the recipe may say the common options (an operation reads its own)."""
        said = self._recipe(verb) if verb is not None and self.recipe is not None else {}
        return {
            "message": self.message or said.get("message") or "",
            "author": session.author(self.author or said.get("author")),
            "seed": said.get("seed") if self.seed is None else self.seed,
            "branch": self.branch or said.get("branch"),
            "dry_run": self.dry_run,
            "config": session.settings,
            "progress": session.progress,
        }

    def _recipe(self, verb: str) -> dict[str, Any]:
        from ..policies.recipe import read_given

        keys = [(name, kind | None, None) for name, kind in (("message", str), ("author", str), ("seed", int), ("branch", str))]
        shape = make_dataclass(verb, keys, namespace={"name": verb})
        assert self.recipe is not None
        return read_given(self.recipe, verb, operation=shape)  # type: ignore[arg-type]


def complete_rev(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ref names from the registry's text mirror: no catalog is opened."""
    from .context import GLOBALS, complete_refs

    given = ctx.meta.get(GLOBALS)
    return complete_refs(given.registry if given else None, incomplete)


REV_HELP = "Branch, tag, @alias, id prefix, HEAD, REV~n."
Rev = Annotated[str | None, typer.Argument(metavar="[REV]", help=REV_HELP, show_default="HEAD", autocompletion=complete_rev)]
Resume = Annotated[str | None, typer.Option(metavar="[RUN]", help="Go on with an unfinished run; the latest without a name.")]
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="local|torchrun:N|ray:N|slurm:N",
        help="Where training runs: this process, N processes here, N workers of Ray, N tasks of a Slurm job. A resumed run may change it.",
        show_default="local",
    ),
]
RESUMED = {"--resume": "latest"}  # for a verb's OPTIONAL_VALUES: the option may stand without its value
NeededRev = Annotated[str, typer.Argument(metavar="REV", help=REV_HELP, autocompletion=complete_rev)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Author = Annotated[str | None, typer.Option(metavar="WHO", help="Else MLC_AUTHOR, git's user, the login name.")]
