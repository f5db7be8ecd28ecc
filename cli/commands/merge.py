"""`mlc merge`: one version from several. The options are the fields of the operation; the versions are typed, or named by a merge file."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...ops.catalog import load
from ...registry.errors import BadParameter
from ..conduct import conduct
from ..context import Session
from ..operations import given, options_of
from ..options import REV_HELP, Mutation, complete_rev

OPERATION = load("merge")
METAVARS = {"method": "NAME", "base": "REV", "settings": "NAME=VALUE", "config": "FILE", "tokenizer": "base|union|REV"}
OWN = ("ingredients", "weights", "density")  # typed as arguments, and as lists with commas
Options = options_of(OPERATION, METAVARS, OWN)
OPTIONAL_VALUES = {"--resume": "latest"}  # an option that may stand without its value

EPILOG = """Examples:
  mlc merge main feature                                  the mean of both, on main
  mlc merge main feature --weights 0.7,0.3
  mlc merge main a b --method ties --density 0.5          the base is found in the lineage
  mlc merge main a --method slerp -t 0.4 --branch mixed
  mlc merge main new --method opcm                        one more model into a running merge
  mlc merge a b c --method soup-greedy --set suite=facts
  mlc merge lora-a lora-b --set rank=8                    adapters on one base, as one adapter
  mlc merge lora-a lora-b --set into=base                 the same, written into the base
  mlc merge lora-a lora-b lora-c --method rmm --set p=1   and a basis, to have each back
  mlc merge --config mergekit.yml                         models are versions or directories

Also: opcm (--set alpha=0.1, --set shared=true, --set deltas=false), soup-uniform, soup-greedy (--set suite=NAME),
ema (--set rate=X), lcsc (--set suite=NAME), fisher and regmean (--set data=A.jsonl,B.jsonl), rmm
(adapters; --set p=N or error=X). Adapters: linear and task-arithmetic, --set rank=N, --set into=base. Dashes and underscores are one."""

Numbers = Annotated[str | None, typer.Option(metavar="X,X,...", help="A weight per version (default: equal weights that sum to 1).")]
Shares = Annotated[str | None, typer.Option(metavar="X,...", help="Share of each task vector that is kept: one for all, or one each.")]


def run(
    session: Session,
    operation: Options,  # type: ignore[valid-type]
    how: Mutation,
    revs: Annotated[
        list[str] | None, typer.Argument(metavar="[A B ...]", help=REV_HELP, show_default=False, autocompletion=complete_rev)
    ] = None,
    weights: Numbers = None,
    density: Shares = None,
    resume: Annotated[str | None, typer.Option(metavar="[RUN]", help="Go on with an unfinished run; the latest without a name.")] = None,
) -> None:
    """Merge several versions into one."""
    from ...policies import lifecycle
    from ...policies.merging import merge, resumed
    from ...policies.recipe import read_given

    words, common = given(operation), how.arguments(session)
    words |= {name: _numbers(name, said) for name, said in (("weights", weights), ("density", density)) if said is not None}

    def work() -> lifecycle.Outcome:
        if resume is None:
            values: dict[str, Any] = {**(read_given(how.recipe, "merge") if how.recipe else {}), **words}
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            named = values.pop("ingredients", ())
            return merge(session.repo, tuple(revs or named), values, **common)
        if words or revs or how.recipe:
            raise BadParameter("--resume goes on with the options that the run was started with.", hint=f"mlc merge --resume {resume}")
        return resumed(session.repo, resume, **common)

    def measured(check: dict[str, Any]) -> None:
        from ..render.merge import parent_lines

        session.lines(parent_lines(check, session.names, session.paint))

    conduct(session, work, hint=_hint, measured=measured)


def _hint(commit: dict[str, Any]) -> str:
    if len(commit["parents"]) < 2:
        return f"mlc show {commit['short']}"
    return f"mlc diff {commit['parents'][1][:12]} {commit['short']} --flips"


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise BadParameter(f"--{name} {text!r} is not a list of numbers", hint=f"for example: --{name} 0.7,0.3") from None
