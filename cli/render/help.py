"""The help page of a verb, in plain text: the same words in the same places whatever the installed parser prints.

Sentences first, then usage, arguments, options by panel, and for groups the sub-verbs by panel.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any

from .style import Paint

WIDEST = 100  # columns: longer lines are hard to read
WIDEST_LEFT, NARROW_LEFT = 30, 18  # columns of names and flags; narrow on pages that list verbs
GLOBAL = "Global options"


def help_page(command: Any, ctx: Any, *, width: int | None = None, paint: Paint | None = None) -> str:
    """The whole page, ending with a newline."""
    width = width or min(WIDEST, shutil.get_terminal_size((80, 24)).columns)
    paint = paint or Paint(sys.stdout.isatty())
    params = command.get_params(ctx)
    arguments = [p for p in params if p.param_type_name == "argument"]
    pieces = [ctx.command_path, "[OPTIONS]", *(_label(p) for p in arguments)]
    if getattr(command, "subcommand_metavar", None):
        pieces.append(command.subcommand_metavar)
    sections = _sections(command, ctx, arguments, [p for p in params if p.param_type_name == "option" and not p.hidden])
    left = min(
        NARROW_LEFT if hasattr(command, "list_commands") else WIDEST_LEFT, max(len(cell) for rows in sections.values() for cell, _ in rows)
    )
    parts = [_prose(command.help or "", width), f"{paint.bold('Usage:')} {' '.join(pieces)}\n"]
    parts += [_section(title, rows, left, width, paint) for title, rows in sections.items()]
    if command.epilog:
        parts.append(command.epilog.strip("\n") + "\n")
    return "\n".join(parts)


def _sections(command: Any, ctx: Any, arguments: list[Any], options: list[Any]) -> dict[str, list[tuple[str, str]]]:
    """Title -> (left cell, text): sub-verbs by panel, arguments, options by panel; the global ones last."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for name, entry in _children(command, ctx):
        sections.setdefault(entry.rich_help_panel or "Commands", []).append((name, (entry.help or "").split("\n\n")[0]))
    if arguments:
        sections["Arguments"] = [(_label(p).replace("[", "").replace("]", ""), _describe(p)) for p in arguments]
    panels: dict[str, list[tuple[str, str]]] = {"Options": []}
    for option in options:
        panel = GLOBAL if "--help" in option.opts else option.rich_help_panel or "Options"
        panels.setdefault(panel, []).append((_flags(option), _describe(option)))
    panels[GLOBAL] = panels.pop(GLOBAL, [])
    return sections | {title: rows for title, rows in panels.items() if rows}


def _children(command: Any, ctx: Any) -> list[tuple[str, Any]]:
    names = command.list_commands(ctx) if hasattr(command, "list_commands") else []
    return [(name, command.get_command(ctx, name)) for name in names]


def _prose(text: str, width: int) -> str:
    paragraphs = [textwrap.fill(" ".join(p.split()), width) for p in text.strip().split("\n\n")]
    return "\n\n".join(paragraphs) + "\n"


def _label(param: Any) -> str:
    label = param.metavar or param.name.upper()
    many = "..." if param.nargs == -1 and "..." not in label else ""
    return label + many if param.required or label.startswith("[") else f"[{label}]{many}"


def _flags(option: Any) -> str:
    short = next((o for o in option.opts if not o.startswith("--")), None)
    long = next((o for o in option.opts if o.startswith("--")), "")
    if option.secondary_opts:
        long += "/" + option.secondary_opts[0]
    value = "" if option.is_flag or option.count else " " + (option.metavar or "VALUE")
    return (f"{short}, " if short else "    ") + long + value


def _describe(param: Any) -> str:
    """The help sentence, with the default and whether it repeats."""
    text = "Show this page." if "--help" in param.opts else param.help or ""
    shown = param.show_default if isinstance(param.show_default, str) else param.default
    if getattr(param, "multiple", False) and "repeated" not in text:
        text += " May be repeated."
    plain = isinstance(shown, str | int | float) and not isinstance(shown, bool)
    return f"{text} [default: {shown}]" if plain and param.show_default else text


def _section(title: str, rows: list[tuple[str, str]], left: int, width: int, paint: Paint) -> str:
    """A titled two-column list; a left cell wider than its column pushes its text to the next line."""
    lines = [paint.bold(f"{title}:")]
    for cell, text in rows:
        wrapped = textwrap.wrap(text, max(20, width - left - 4)) or [""]
        first = wrapped.pop(0) if len(cell) <= left else ""
        lines.append(f"  {paint.cyan(cell)}{' ' * max(0, left - len(cell))}  {first}".rstrip())
        lines += [" " * (left + 4) + line for line in wrapped]
    return "\n".join(lines) + "\n"
