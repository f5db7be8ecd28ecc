"""The small pieces of what people read: numbers, times, lines of progress, help pages, values typed on the command line."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import typer

from mlc.cli import threads
from mlc.cli.coerce import Coercion
from mlc.cli.render import progress, text
from mlc.cli.render.ask import confirm
from mlc.cli.render.console import make_console, print_table
from mlc.cli.render.edit import edit_lines
from mlc.cli.render.log import names_of
from mlc.cli.render.style import Paint
from mlc.cli.render.verdict import verdict_lines
from mlc.cli.unfinished import going_on
from mlc.registry.errors import Interrupted, UsageError


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")])
def test_sizes_are_in_powers_of_1024(count: int, shown: str):
    assert text.size(count) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.0, "0.0"),
        (12, "12"),
        (0.98765, "0.9877"),
        (5.8342, "5.834"),
        (1e-7, "1.00e-07"),
        (123456.7, "123,457"),
        (1.0, "1.0"),
    ],
)
def test_metrics_have_four_digits(value: float | None, shown: str):
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (10, "just now"),
        (60, "1 minute ago"),
        (3_000, "50 minutes ago"),
        (7_200, "2 hours ago"),
        (86_400 * 3, "3 days ago"),
        (86_400 * 800, "2 years ago"),
    ],
)
def test_times_are_told_as_distances(seconds: int, shown: str):
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    moment = datetime.fromtimestamp(now.timestamp() - seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert text.ago(moment, now) == shown


def test_text_from_a_file_cannot_drive_the_terminal():
    assert text.printable("a\x1b[31mb\n") == "a\\x1b[31mb\\n"


def test_progress_in_a_pipe_is_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 1.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    stream = io.StringIO()
    report = progress.make_progress(stream, quiet=False, colour=False)
    for done in range(5):
        report("train", done, 10, loss=2.5)
    assert stream.getvalue().splitlines() == [
        "train: 2 of 10, 0.18 a second, 44 s left  loss 2.5",
        "train: 4 of 10, 0.18 a second, 33 s left  loss 2.5",
    ]


def test_progress_is_silent_when_asked_to_be_and_for_short_work():
    stream = io.StringIO()
    progress.make_progress(stream, quiet=True, colour=False)("train", 1, 2)
    bars = progress.Bars(stream, colour=False)
    bars("train", 1, 2)
    bars.close()
    assert stream.getvalue() == ""


def test_bars_show_phase_count_and_values(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    stream = io.StringIO()
    bars = progress.Bars(stream, colour=False)
    bars("train", 3, 10, loss=2.5)
    bars.close()
    assert "train" in stream.getvalue()
    assert "3/10" in stream.getvalue()
    assert "loss 2.5" in stream.getvalue()


def test_a_table_of_many_rows_is_plain_lines():
    stream = io.StringIO()
    print_table(make_console(stream, colour=False, width=80), ("n", "word"), [(str(i), "x") for i in range(2000)], right=("n",))
    assert stream.getvalue().splitlines()[:2] == ["   n  word", "   0  x"]


def test_names_stand_at_their_commits_with_the_current_branch_first():
    found = names_of("main", {"a": "1", "main": "1"}, {"v1": "1"}, {"champion": "2"})
    assert found == {"1": ["HEAD -> main", "a", "v1"], "2": ["@champion"]}


def test_a_verdict_counts_and_says_each_rule():
    rules = [{"rule": "r", "outcome": "fail", "sentence": "too many"}, {"rule": "s", "outcome": "pass", "sentence": "fine"}]
    waiver = {"rule": "r", "author": "Ada", "reason": "why", "until": "2030-01-01"}
    assert verdict_lines({"outcome": "refused", "rules": rules, "waivers": [waiver]}, Paint(False)) == [
        "Refused: 1 passed, 1 failed.",
        "  ✗ r: too many.",
        "  ✓ s: fine.",
        "  waived r by Ada until 2030-01-01: why",
    ]


def test_colours_are_escape_codes_or_nothing():
    assert Paint(True).red("x") == "\x1b[31mx\x1b[0m"
    assert Paint(False).red("x") == "x"


def test_a_question_needs_a_terminal_or_yes(monkeypatch: pytest.MonkeyPatch):
    confirm("Sure", yes=True, terminal=False)
    with pytest.raises(UsageError, match="no terminal"):
        confirm("Sure", yes=False, terminal=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    with pytest.raises(Interrupted):
        confirm("Sure", yes=False, terminal=True)


def test_words_become_values_of_the_parameters_type():
    assert Coercion(int).coerce("7", None, None) == 7
    assert Coercion(float).coerce("1e-3", None, None) == 0.001
    assert Coercion(Path).coerce("a/b", None, None) == Path("a/b")
    assert Coercion(list[str]).coerce(("a", "b"), None, None) == ["a", "b"]
    assert Coercion(str).coerce(None, None, None) is None
    assert Coercion(list[str]).coerce(None, None, None) == ()


@pytest.mark.parametrize(
    ("coercion", "word", "said"),
    [
        (Coercion(int), "x", "whole number"),
        (Coercion(float), "x", "a number"),
        (Coercion(Literal["a", "b"]), "c", "one of a, b"),
        (Coercion(int, 0, 3), "4", "between 0 and 3"),
        (Coercion(int, 1), "0", "at least 1"),
        (Coercion(float, 0.0, 1.0), "nan", "between"),
    ],
)
def test_a_word_that_is_no_such_value_is_a_sentence(coercion: Coercion, word: str, said: str):
    with pytest.raises(typer.BadParameter, match=said):
        coercion.coerce(word, None, None)


def test_a_container_with_two_cores_gets_two_threads_and_the_user_is_obeyed(tmp_path: Path):
    quota = tmp_path / "cpu.max"
    quota.write_text("200000 100000\n")
    found: dict[str, str] = {}
    threads.say(found, quota)
    assert found["OMP_WAIT_POLICY"] == "passive"
    assert found.get("OMP_NUM_THREADS", "2") == "2"
    said = {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "active"}
    threads.say(said, quota)
    assert said == {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "active"}
    for text_ in ("max 100000\n", "", "nonsense"):
        quota.write_text(text_)
        free: dict[str, str] = {}
        threads.say(free, quota)
        assert "OMP_NUM_THREADS" not in free


def test_an_edit_tells_how_the_facts_of_earlier_ones_fare_where_there_are_any():
    lines = edit_lines({"efficacy": 1.0, "earlier_efficacy": 0.9, "earlier_efficacy_before": 1.0}, Paint(False))
    assert lines[-1].split("  ")[1:] == ["facts of earlier edits that hold", " 90.0 %", "(was 100.0 %)"]
    assert len(edit_lines({"efficacy": 1.0, "earlier_efficacy": None}, Paint(False))) == 1


def test_an_id_in_a_table_is_never_broken_over_two_lines():
    out = io.StringIO()
    rows = [("fog", "0123456789ab", "a form that needs a good many columns to be told")]
    print_table(make_console(out, colour=False, width=40), ("name", "signature", "form"), rows, whole=("signature",))
    assert any("0123456789ab" in line for line in out.getvalue().splitlines())


@pytest.mark.parametrize(
    ("op", "command"),
    [
        ("merge.opcm", "mlc merge --resume 7"),
        ("align.embeddings", "mlc align --resume 7"),
        ("patch.train", "mlc patch train --resume 7"),
        ("unmerge", "mlc unmerge main --remove REV"),
        ("rollback", "mlc runs --forget 7"),
    ],
)
def test_what_goes_on_with_an_unfinished_run_is_a_command_that_there_is(op: str, command: str):
    assert going_on({"op": op, "id": "7", "branch": "main"}) == command
