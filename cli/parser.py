"""Verbs as typer commands: loaded one at a time, with light coercion and one help page for all.

A verb's function is plain Python. A parameter annotated `Session`, or with a `Bundle` (a dataclass whose fields carry
typer options), is replaced by plain options before typer sees it; so the global options work before and after a verb.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from .. import __version__
from ..registry.errors import Interrupted, UsageError
from .coerce import lighten
from .commands import VERBS
from .context import Session, completing, merge_globals
from .options import Bundle, GlobalOptions
from .render.text import sentence

PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[2]  # type: ignore[assignment]  # the parser's base error, wherever this typer keeps it

HELP = """Version control for model weights and for model behaviour.

Every verb answers --help. `mlc demo` walks through the whole job in two minutes."""


class Shared:
    """What our commands and groups do differently from typer's: light coercion, and our own help page."""

    def get_params(self, ctx: Any) -> list[Any]:
        return lighten(super().get_params(ctx))  # type: ignore[misc]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from .render.help import help_page

        formatter.write(help_page(self, ctx))


class Command(Shared, typer.core.TyperCommand):
    """One verb. `optional_values` are options that may stand without their value, and what is meant then; `several_values` are those
    that take a fixed number of them."""

    optional_values: dict[str, str]
    several_values: dict[str, int]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = getattr(self, "several_values", {})
        for place, word in reversed(list(enumerate(args))):
            for further in range(several.get(word, 1) - 1, 0, -1):  # `--world OLD NEW` is `--world OLD --world NEW`
                if not args[place + further + 1 : place + further + 2] or args[place + further + 1].startswith("-"):
                    continue  # one is missing: the verb says so
                args.insert(place + further + 1, word)
        meant = getattr(self, "optional_values", {})
        for place, word in reversed(list(enumerate(args))):
            if word in meant and (place + 1 == len(args) or args[place + 1].startswith("-")):
                args.insert(place + 1, meant[word])
        try:
            return super().parse_args(ctx, args)
        except PARSER_ERROR as fault:
            if getattr(fault, "ctx", None) is None:  # an option without its value: the parser does not say of which verb
                fault.ctx = ctx  # type: ignore[attr-defined]
            raise


class Group(Shared, typer.core.TyperGroup):
    """A verb with sub-verbs."""


class Root(Group):
    """The root command: its verbs come from the table and are imported when called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and cmd_name in VERBS:
            self.commands[cmd_name] = load(cmd_name)
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.commands = {name: _stub(name) for name in VERBS}
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in VERBS:
            self.commands = {name: _stub(name) for name in VERBS}  # names for "did you mean"
        return super().resolve_command(ctx, args)


class Verb(typer.Typer):
    """The typer app of one verb; see the module docstring for what its functions may ask for."""

    def __init__(self, **options: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"]}
        shared = {"add_completion": False, "pretty_exceptions_enable": False, "context_settings": settings, "cls": Group}
        super().__init__(**{**shared, **options})

    def add(self, function: Callable[..., None], name: str | None = None, **options: Any) -> None:
        """A command of this app."""
        super().command(name, cls=Command, **options)(_expand(function))

    def group(self, function: Callable[..., None]) -> None:
        """What stands before the sub-verbs: the global options and the group's help."""
        super().callback()(_expand(function))


def load(name: str) -> Any:
    """The parser's command of one verb; imports the verb's module, which has `run`, or `SUBVERBS` of functions."""
    module = import_module(f".commands.{VERBS[name].module}", __package__)
    app = Verb(help=inspect.getdoc(getattr(module, "group", None)), subcommand_metavar="COMMAND ...")
    if hasattr(module, "run"):
        app.add(module.run, name, epilog=getattr(module, "EPILOG", None))
    else:
        app.group(module.group)
        for sub, function in module.SUBVERBS.items():
            app.add(function, sub)
    command: Any = typer.main.get_command(app)
    command.name = name
    for each in (command, *getattr(command, "commands", {}).values()):
        each.optional_values = getattr(module, "OPTIONAL_VALUES", {})
    command.several_values = getattr(module, "SEVERAL_VALUES", {})
    return command


def _stub(name: str) -> Any:
    """A verb as the root help shows it: name and summary, nothing imported."""
    entry = VERBS[name]
    return Command(name, help=entry.summary, rich_help_panel=entry.panel)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"mlc {__version__}\n")
        raise typer.Exit


def build(*, completion: bool = False) -> Any:
    """The root command. `completion` adds the options that install shell completion: kept off the usual way in."""
    app = Verb(cls=Root, help=HELP, add_completion=completion, subcommand_metavar="VERB ...")

    def root(
        version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)] = False,
    ) -> None: ...

    app.group(root)
    return typer.main.get_command(app)


def invoke(arguments: list[str]) -> int:
    """Parse and run; returns the exit code that the parser asked for. The parser's errors leave as ours."""
    in_help = any(word in ("--help", "-h") or "completion" in word for word in arguments[:1]) or not arguments
    command = build(completion=in_help or completing())
    if completing():
        command.main(args=arguments, prog_name="mlc")
    try:
        with command.make_context("mlc", arguments or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as leaving:
        return leaving.exit_code
    except typer.Abort:
        raise Interrupted("Interrupted.") from None
    except PARSER_ERROR as fault:
        raise _usage(fault) from None
    return 0


def _usage(fault: Any) -> UsageError:
    """A parser's error as ours: its sentence, and the help page that answers it."""
    context = getattr(fault, "ctx", None)
    said = " ".join(fault.format_message().split())
    return UsageError(sentence(said), hint=f"{context.command_path if context else 'mlc'} --help")


# --- from a function with bundles to one with plain options ------------------------------------------------


def _expand(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with Session and bundle parameters replaced by their options."""
    plain: list[inspect.Parameter] = []
    bundles: dict[str, tuple[type[Bundle], list[str]]] = {}
    session_name = None
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.annotation is Session:
            session_name = name
        elif isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Bundle):
            fields = _parameters(parameter.annotation)
            bundles[name] = (parameter.annotation, [f.name for f in fields])
            plain += fields
        else:
            plain.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    shared = _parameters(GlobalOptions)

    @functools.wraps(function)
    def call(**values: Any) -> None:
        context = values.pop("ctx")
        given = merge_globals(context.meta, GlobalOptions(**{p.name: values.pop(p.name) for p in shared}))
        for name, (bundle, fields) in bundles.items():
            values[name] = bundle(**{f: values.pop(f) for f in fields})
        if session_name is None:
            function(**values)
            return
        with Session(given) as session:
            function(**values, **{session_name: session})

    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *plain, *shared]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    del call.__wrapped__  # or inspect would look through to the function as written
    return call


def _parameters(bundle: type[Bundle]) -> list[inspect.Parameter]:
    """The fields of a bundle as keyword parameters with resolved annotations."""
    hints = typing.get_type_hints(bundle, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in dataclasses.fields(bundle)  # type: ignore[arg-type]
    ]
