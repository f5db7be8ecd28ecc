"""The handbook is kept honest: a page per verb, and its help block is what the program says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from mlc.cli.commands import VERBS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    """docs/render_help.py as a module."""
    spec = importlib.util.spec_from_file_location("render_help", ROOT / "docs" / "render_help.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page_whose_help_block_is_what_the_program_says(script, verb: str):
    page = (script.PAGES / f"{verb}.md").read_text(encoding="utf-8")
    assert page == script.with_help(page, verb), "run `make docs`"
    assert page.startswith(f"# mlc {verb}\n")
    for heading in ("## Examples", "## Options", "## Exit codes"):
        assert heading in page


def test_there_is_no_page_without_a_verb_and_the_index_lists_them_all(script):
    assert {page.stem for page in script.PAGES.glob("*.md")} == {*VERBS, "README"}
    assert (script.PAGES / "README.md").read_text(encoding="utf-8") == script.index()


@pytest.mark.parametrize("verb", VERBS)
def test_examples_on_a_page_use_options_that_exist(script, verb: str):
    page = (script.PAGES / f"{verb}.md").read_text(encoding="utf-8")
    examples = page.partition("```sh\n")[2].partition("```")[0]
    for line in examples.splitlines():
        for command in re.findall(r"mlc ([a-z]+)([^|&#]*)", line):
            block = script.help_block(command[0])
            for option in re.findall(r"(?<= )--[a-z-]+", re.sub(r'"[^"]*"', "", command[1])):
                assert option in block, f"{line!r} uses {option}"
