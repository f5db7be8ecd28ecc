"""From an operation's dataclass to command-line options and back: its fields are written once, in ops/.

Every generated option defaults to "not given", so that a recipe file can supply what the command line left out. The
operation's own default is what the help page shows.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from ..ops.base import Operation
from ..registry.errors import BadParameter
from .context import Session
from .options import Bundle, Mutation

METAVARS = {int: "N", float: "X", str: "TEXT", Path: "FILE"}


def options_of(operation: type[Operation], metavars: dict[str, str] | None = None, without: Collection[str] = ()) -> type[Bundle]:
    """A bundle with one option per field of the operation; `metavars` names what stands behind a flag, by field.

    `without`: fields that the verb takes in its own way.
    """
    hints = typing.get_type_hints(operation)
    fields: list[Any] = []
    for field in dataclasses.fields(operation):
        if field.name in without:
            continue
        kind = _plain(hints[field.name])
        shown = _shown_default(field)
        settings = {
            "help": _sentence(field.metadata.get("help", "")),
            "metavar": (metavars or {}).get(field.name) or _metavar(kind),
            "show_default": shown,
        }
        option = typer.Option(*_declarations(field, kind), **settings)
        fields.append((field.name, Annotated[kind | None, option], dataclasses.field(default=None)))
    return dataclasses.make_dataclass(f"{operation.__name__}Options", fields, bases=(Bundle,))


def given(options: Bundle) -> dict[str, Any]:
    """What the command line actually said, by field name."""
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


def joined(*bundles: Bundle) -> Bundle:
    """Several bundles as one. A field that two of them have must be unset in all but one."""
    values: dict[str, Any] = {}
    for bundle in bundles:
        for field in dataclasses.fields(bundle):  # type: ignore[arg-type]
            if (value := getattr(bundle, field.name)) is not None or field.name not in values:
                values[field.name] = value
    kind = dataclasses.make_dataclass("JoinedOptions", [(name, Any) for name in values], bases=(Bundle,))
    return kind(**values)


def build(operation: type[Operation], recipe: dict[str, Any], words: dict[str, Any]) -> Operation:
    """The operation: flags over recipe over defaults. Raises BadParameter for a required field that nobody gave."""
    values = {**recipe, **words}
    for field in dataclasses.fields(operation):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            flag = flag_of(field)
            verb = operation.name.replace(".", " ")
            raise BadParameter(f"{verb} needs {flag}: {field.metadata.get('help', '')}", hint=f"mlc {verb} --help")
    return operation.from_params(values).as_typed()


def begin(
    session: Session,
    operation: type[Operation],
    options: Bundle,
    how: Mutation,
    rev: str | None,
    resume: str | None,
    pin: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values,
    *,
    engine: str | None = None,
) -> Any:
    """Run an operation on `rev` as the command line and its recipe say, or go on with an unfinished run; returns its Outcome.

    `pin` may replace values that name something which may mean something else later. Raises BadParameter for options beside --resume.
    """
    from ..policies import lifecycle
    from ..policies.engines import parse_engine
    from ..policies.recipe import read_given

    if engine is not None:
        parse_engine(engine)  # what is misspelt is told before anything is looked for
    words, common = given(options), {**how.arguments(session), "engine": engine}
    if resume is None:
        values = {**(read_given(how.recipe, operation.name) if how.recipe else {}), **words}
        return lifecycle.run(session.repo, build(operation, {}, pin(values)), ref=rev, **common)
    if words and not rev and not how.recipe and words.keys() <= set(operation.retunable):
        return lifecycle.run(session.repo, _retuned(session, operation, words, resume), resume=resume, **common)
    if words or rev or how.recipe:
        again = f"mlc {operation.name.replace('.', ' ')} --resume {resume}"
        raise BadParameter("--resume goes on with the options that the run was started with.", hint=again)
    return lifecycle.run(session.repo, None, resume=resume, **common)


def _retuned(session: Session, operation: type[Operation], words: dict[str, Any], resume: str) -> Operation:
    """The operation of an unfinished run with more of what may be added to while it lasts."""
    from ..policies.lifecycle import LATEST
    from ..policies.runs import Runs

    asked = Runs(session.repo).find(None if resume == LATEST else resume, operation.name).params
    return operation.from_params({**asked, **{name: (*asked[name], *more) for name, more in words.items()}})  # type: ignore[misc]


def flag_of(field: dataclasses.Field[Any]) -> str:
    """The option of a field: its `flag`, else its name with dashes."""
    flag = field.metadata.get("flag") or field.name.replace("_", "-")
    return flag if flag.startswith("-") else f"--{flag}"


def _declarations(field: dataclasses.Field[Any], kind: Any) -> list[str]:
    flag = flag_of(field)
    return [f"{flag}/--no-{flag[2:]}" if kind is bool and field.default is True else flag]


def _sentence(text: str) -> str:
    """Help texts in ops/ are phrases; on the help page they stand beside sentences. A first word that is a value stays as it is."""
    if not text:
        return ""
    first = text.split()[0]
    return (text[:1].upper() + text[1:] if first.replace("-", "").isalpha() else text) + ("" if text.endswith(".") else ".")


def _plain(hint: Any) -> Any:
    """The type that the parser converts to: no None, tuples as repeatable lists."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(a for a in typing.get_args(hint) if a is not types.NoneType)
    if typing.get_origin(hint) in (tuple, list):
        return list[typing.get_args(hint)[0]]  # type: ignore[misc]
    return hint


def _metavar(kind: Any) -> str | None:
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
    if typing.get_origin(inner) is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(inner))
    return METAVARS.get(inner)


def _shown_default(field: dataclasses.Field[Any]) -> str | bool:
    """The default in words; False where there is none worth a word."""
    default = field.default
    if default in (dataclasses.MISSING, None, "", ()) or isinstance(default, bool):
        return field.metadata.get("default", False)
    return f"{default:g}" if isinstance(default, float) else str(default)
