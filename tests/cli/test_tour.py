"""The tour: its commands are real ones, what it insists on is checked, and it tidies up."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from mlc.cli import parser
from mlc.cli.context import Globals, Session
from mlc.cli.demo import tour
from mlc.registry.errors import CheckFailed
from mlc.tests.cli.running import run_cli


class Recorded(tour.Tour):
    """A tour that types nothing and finds everything as it should be."""

    def mlc(self, *words: str, expect: int = 0) -> None:
        self.steps.append({"words": words, "expect": expect})

    def insist(self, holds: bool, otherwise: str) -> None:
        pass

    @property
    def repo(self):
        class Nothing:
            def resolve(self, rev):
                return "0" * 64

            def commit(self, commit):
                return type("Commit", (), {"snapshot": "0" * 64})

        return Nothing()


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(Session(Globals()), lambda words: 0, tmp_path)


def test_every_command_of_the_tour_is_one_that_the_parser_takes(recorded: Recorded, capsys: pytest.CaptureFixture[str]):
    tour.walk(recorded)
    verbs = [step["words"][0] for step in recorded.steps]
    assert verbs == ["init", "import", "update", "update", "diff", "log", "rollback", "export", "fsck"]
    assert [step["expect"] for step in recorded.steps if step["words"][0] == "update"] == [4, 0]
    for step in recorded.steps:
        command = parser.load(step["words"][0])
        command.make_context(step["words"][0], list(step["words"][1:]))  # raises for an option that does not exist


def test_a_step_that_ends_otherwise_ends_the_tour_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    walked = tour.Tour(Session(Globals()), lambda words: 9, tmp_path)
    with pytest.raises(CheckFailed, match="`mlc update` ended with exit code 9; 4 was expected"):
        walked.mlc("update", "--data", "x y.txt", expect=4)
    assert capsys.readouterr().out.startswith(f"$ mlc {shlex.join(['update', '--data', 'x y.txt'])}\n")


def test_a_failed_tour_is_exit_10_one_document_and_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(walked: tour.Tour) -> None:
        walked.mlc("init")
        assert Path.cwd() == walked.directory
        walked.insist(False, "the sky fell")

    monkeypatch.setattr(tour, "walk", broken)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    here = Path.cwd()
    answer = run_cli("demo", "--json")
    assert answer.code == 10
    assert "the sky fell" in answer.error["message"]
    assert answer.out == ""
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == here


def test_a_tour_under_json_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tour, "walk", lambda walked: walked.mlc("init"))
    answer = run_cli("demo", "--dir", tmp_path / "play", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["steps"][0]["command"] == "mlc init"
    assert (tmp_path / "play" / ".mlc").is_dir()
    assert run_cli("demo", "--dir", tmp_path / "play", "--json").code == 2
