"""The door: global options on either side of the verb, errors as sentences, exit codes, and a light start."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mlc.cli.commands import VERBS
from mlc.cli.context import json_text
from mlc.registry.errors import GateRefused, Locked
from mlc.tests.cli.running import run_cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("verb", VERBS)
def test_the_table_of_verbs_says_what_the_modules_say(verb: str):
    module = import_module(f"mlc.cli.commands.{VERBS[verb].module}")
    function = module.run if hasattr(module, "run") else module.group
    assert (function.__doc__ or "").strip().splitlines()[0] == VERBS[verb].summary


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_page_with_the_global_options(verb: str):
    answer = run_cli(verb, "--help")
    assert answer.code == 0
    assert answer.out.startswith(VERBS[verb].summary)
    assert "--json" in answer.out
    assert "--registry DIR" in answer.out


def test_the_root_help_lists_every_verb_with_its_line_and_imports_none():
    code = (
        "import sys; from mlc.cli.app import main; main(['--help']);"
        "sys.stderr.write(repr([m for m in sys.modules if m.startswith('mlc.cli.commands.') or m in ('torch', 'duckdb', 'rich.console')]))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    for verb, entry in VERBS.items():
        assert f"  {verb} " in result.stdout
        assert entry.summary.split()[-1] in result.stdout
    assert ast.literal_eval(result.stderr) == []


def test_without_a_verb_the_help_is_shown():
    assert run_cli().out == run_cli("--help").out
    assert run_cli().code == 0


def test_the_version_is_one_line():
    from mlc import __version__

    assert run_cli("--version").out == f"mlc {__version__}\n"


def test_a_mistyped_verb_is_a_usage_error_with_a_suggestion():
    answer = run_cli("statsu")
    assert answer.code == 2
    assert "Did you mean 'status'?" in answer.err
    assert answer.out == ""


def test_an_unknown_option_is_one_error_object_under_json():
    answer = run_cli("--json", "log", "--no-such")
    assert answer.code == 2
    assert answer.out == ""
    assert answer.error["kind"] == "UsageError"
    assert answer.error["hint"] == "mlc log --help"
    assert answer.error["exit_code"] == 2


@pytest.mark.parametrize(
    ("words", "page"), [(("revert", "HEAD", "--fact"), "mlc revert --help"), (("patch", "apply", "x", "--onto"), "mlc patch apply --help")]
)
def test_an_option_without_its_value_is_answered_by_the_page_of_its_verb(words, page):
    answer = run_cli(*words)
    assert answer.code == 2
    assert page in answer.err


@pytest.mark.parametrize("place", ["before", "after", "joined"])
def test_the_registry_may_be_named_on_either_side_of_the_verb(repo, place: str):
    words = {
        "before": ("-R", repo.root, "--json", "status"),
        "after": ("status", "--json", "-R", repo.root / ".mlc"),
        "joined": (f"--registry={repo.root}", "status", "--json"),
    }[place]
    answer = run_cli(*words)
    assert answer.code == 0, answer.err
    assert answer.json["head"] == "main"
    assert answer.json["commit"] is None


def test_the_environment_names_the_registry_and_an_option_wins(repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLC_REGISTRY", str(repo.root))
    assert run_cli("refs", "--json").json["head"] == "main"
    assert run_cli("refs", "--json", "-R", tmp_path / "nowhere").code == 3


def test_the_nearest_registry_upwards_is_found(repo, monkeypatch: pytest.MonkeyPatch):
    (repo.root / "a" / "b").mkdir(parents=True)
    monkeypatch.delenv("MLC_REGISTRY", raising=False)
    monkeypatch.chdir(repo.root / "a" / "b")
    assert run_cli("status", "--json").json["registry"] == str(repo.root)


def test_without_a_registry_the_hint_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLC_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    for verb in ("status", "refs", "log"):
        answer = run_cli(verb, "--json")
        assert answer.code == 3
        assert "mlc init" in answer.error["hint"]


def test_each_error_class_gives_its_exit_code(repo, monkeypatch: pytest.MonkeyPatch):
    from mlc.cli.commands import status

    for fault, code in [(GateRefused("no", hint="mlc accept"), 4), (Locked("busy"), 9), (KeyboardInterrupt(), 130), (ValueError("x"), 1)]:
        monkeypatch.setattr(status, "run", _raising(fault))
        answer = run_cli("status", "--json", "-R", repo.root)
        assert answer.code == code
        assert answer.error["exit_code"] == code


def test_a_bug_is_one_sentence_and_the_traceback_is_only_shown_when_asked_for(repo, monkeypatch: pytest.MonkeyPatch):
    from mlc.cli.commands import status

    monkeypatch.setattr(status, "run", _raising(ZeroDivisionError("division by zero")))
    answer = run_cli("status", "-R", repo.root)
    assert answer.code == 1
    assert "Traceback" not in answer.err
    assert "MLC_TRACEBACK=1" in answer.err
    monkeypatch.setenv("MLC_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run_cli("status", "-R", repo.root)


def test_a_reader_that_stops_early_ends_the_program_without_a_word(repo):
    command = f"'{sys.executable}' -P -m mlc refs --json -R '{repo.root}' | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stderr == ""


LIGHT = (["status"], ["refs"], ["--help"], ["status", "--help"], ["log"], ["show"], ["log", "--graph"], ["show", "main", "--tensors"])
HEAVY = {"torch", "transformers"}
HEAVIER = {"duckdb", "rich.console", "numpy", "pydantic", "typer"}  # what a shell prompt has no time for


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_import_nothing_heavy(repo, arguments: list[str]):
    code = f"import sys; from mlc.cli.app import main; main({arguments!r}); sys.stderr.write('\\n' + ' '.join(sys.modules))"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=repo.root, check=True)
    loaded = set(result.stderr.splitlines()[-1].split())
    assert not HEAVY & loaded
    if arguments in (["status"], ["refs"]):
        assert not HEAVIER & loaded


def test_a_terminal_without_the_characters_gets_question_marks_and_valid_json(work):
    run_cli("branch", "trial")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for words in (["show", work.refused], ["log", "--graph", "--all"]):
        command = [sys.executable, "-P", "-m", "mlc", *words]
        shown = subprocess.run(command, capture_output=True, cwd=work.root, env=environment)
        assert (shown.returncode, b"Internal" in shown.stderr) == (0, False)
        answer = subprocess.run([*command, "--json"], capture_output=True, cwd=work.root, env=environment, check=True)
        assert json.loads(answer.stdout.decode("ascii"))


def test_numbers_that_are_not_finite_are_null():
    assert json_text({"a": [float("nan"), 1.5], "b": float("inf")}, io.StringIO()) == '{"a": [null, 1.5], "b": null}'


def _raising(fault: BaseException):
    def run(session):
        raise fault

    return run
