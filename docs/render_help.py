"""Write the help blocks of docs/commands/*.md again: `make docs`, or `python -P docs/render_help.py`.

Everything else on a page is written by hand. A test compares the blocks with what the program says.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mlc.cli import parser
from mlc.cli.commands import VERBS
from mlc.cli.render.help import help_page
from mlc.cli.render.style import Paint

PAGES = Path(__file__).parent / "commands"
WIDTH = 88
BLOCK = re.compile(r"(?<=^```text help\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)


def help_block(verb: str) -> str:
    """The help of a verb, and of its sub-verbs, at a fixed width and without colours."""
    root = parser.build()
    with root.make_context("mlc", [], resilient_parsing=True) as top:
        command = root.get_command(top, verb)
        context = type(top)(command, info_name=verb, parent=top)
        pages = [_page(command, context)]
        for name, child in getattr(command, "commands", {}).items():
            pages.append(_page(child, type(top)(child, info_name=name, parent=context)))
    return "\n".join(pages)


def _page(command: Any, context: Any) -> str:
    return help_page(command, context, width=WIDTH, paint=Paint(False))


def with_help(text: str, verb: str) -> str:
    """A page with its block written again. Raises ValueError for a page without one."""
    if not BLOCK.search(text):
        raise ValueError(f"the page of {verb} has no ```text help block")
    return BLOCK.sub(lambda _: help_block(verb), text, count=1)


def index() -> str:
    """The list of all pages."""
    lines = [
        "# The verbs of mlc",
        "",
        "One page each; `mlc VERB --help` says the options too. Every verb takes `--json`, `-R DIR`, `--quiet` and `--no-color`.",
    ]
    panel = None
    for verb, entry in VERBS.items():
        if entry.panel != panel:
            panel = entry.panel
            lines += ["", f"## {panel}", ""]
        lines.append(f"- [`{verb}`]({verb}.md): {entry.summary}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write every page and the index."""
    for verb in VERBS:
        page = PAGES / f"{verb}.md"
        page.write_text(with_help(page.read_text(encoding="utf-8"), verb), encoding="utf-8")
    (PAGES / "README.md").write_text(index(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
