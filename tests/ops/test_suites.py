"""Suite files: what they accept, what they digest, and what they say about a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc.ops.evaluate.suite import Suite, load_suite, unique_names
from mlc.registry.errors import BadInputFile, BadRecipe, InputNotFound


def suite(tmp_path, settings="", rows=None, *, kind="cloze", name="s", data=None):
    """A suite file with its data; `rows` are written as JSONL, `data` as bytes."""
    if rows is not None:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if data is not None:
        (tmp_path / "d.jsonl").write_bytes(data)
    path = tmp_path / f"{name}.toml"
    path.write_text(f'name = "{name}"\nkind = "{kind}"\ndata = "d.jsonl"\n{settings}\n', encoding="utf-8")
    return path


CLOZE = [{"prompt": "the lamp is", "answer": "red"}, {"id": "second", "prompt": "the stone is", "answer": "blue"}]


def test_a_cloze_suite_yields_examples_with_ids_and_slices(tmp_path):
    rows = [{"id": 7, "prompt": "p", "answer": "a", "topic": "lamps", "hard": True}]
    loaded = load_suite(suite(tmp_path, 'slices = ["topic", "hard"]', rows))
    (example,) = loaded.examples()
    assert (example.id, example.slice, example.values) == ("7", "lamps/True", {"prompt": "p", "answer": "a"})
    assert (loaded.metric, loaded.kind, loaded.record().name) == ("accuracy", "cloze", "s.toml")


def test_an_example_without_id_is_named_by_its_content_wherever_it_stands(tmp_path):
    first = load_suite(suite(tmp_path, rows=CLOZE)).examples()
    again = load_suite(suite(tmp_path, rows=CLOZE[::-1] + CLOZE[:1])).examples()
    assert [e.id for e in again] == ["second", first[0].id, first[0].id + "~2"]
    assert len(first[0].id) == 16


def test_the_limit_takes_rows_from_the_top(tmp_path):
    assert [e.id for e in load_suite(suite(tmp_path, rows=CLOZE[::-1])).examples(1)] == ["second"]


def test_fields_are_read_under_the_names_the_data_use(tmp_path):
    rows = [{"UID": "island", "pairID": "3", "sentence_good": "a b", "sentence_bad": "b a"}]
    settings = 'fields = { id = ["UID", "pairID"], good = "sentence_good", bad = "sentence_bad" }\nslices = "UID"'
    (example,) = load_suite(suite(tmp_path, settings, rows, kind="pairs")).examples()
    assert (example.id, example.slice, example.values) == ("island-3", "island", {"good": "a b", "bad": "b a"})


def test_a_template_composes_the_prompt_and_never_runs_anything(tmp_path):
    rows = [{"question": "who {x.__class__}?", "answer": "a"}]
    (example,) = load_suite(suite(tmp_path, 'template = "Q: {question} A:"', rows)).examples()
    assert example.values["prompt"] == "Q: who {x.__class__}? A:"


def test_data_may_lie_anywhere_the_user_says(tmp_path):
    (tmp_path / "deep").mkdir()
    path = suite(tmp_path / "deep", rows=CLOZE)
    (tmp_path / "deep" / "d.jsonl").rename(tmp_path / "d.jsonl")
    absolute, relative = (path.read_text().replace("d.jsonl", place) for place in (f"{tmp_path}/d.jsonl", "../d.jsonl"))
    path.write_text(absolute)
    first = load_suite(path)
    path.write_text(relative)
    assert load_suite(path).digest == first.digest  # the place is not the content
    assert len(first.examples()) == 2


def test_the_digest_follows_settings_and_data_and_nothing_else(tmp_path):
    path = suite(tmp_path, 'slices = "id"', rows=CLOZE)
    digest = load_suite(path).digest
    path.write_text("# a comment\n" + path.read_text().replace(" = ", "="))
    assert load_suite(path).digest == digest
    assert load_suite(suite(tmp_path, rows=CLOZE)).digest != digest
    assert load_suite(suite(tmp_path, 'slices = "id"', rows=CLOZE[:1])).digest != digest


def test_the_digest_of_a_suite_is_pinned(tmp_path):
    assert load_suite(suite(tmp_path, rows=CLOZE)).digest == "26613503f41c937d230133f78287c0a5568697afad00607f819777bee3942cd4"


def test_what_is_scored_is_what_was_digested(tmp_path):
    loaded = load_suite(suite(tmp_path, rows=CLOZE))
    (tmp_path / "d.jsonl").write_text("gone")
    assert len(loaded.examples()) == 2


@pytest.mark.parametrize(
    ("settings", "kind", "line", "says", "hint"),
    [
        ('metrik = "accuracy"', "cloze", 4, "unknown key 'metrik'", "did you mean 'metric'?"),
        ("", "cloz", 2, "unknown kind 'cloz'", "did you mean 'cloze'?"),
        ('metric = "acuracy"', "cloze", 4, "no metric 'acuracy'", "did you mean 'accuracy'?"),
        ('fields = { promt = "q" }', "cloze", None, "no field 'promt'", "did you mean 'prompt'?"),
        ('[fields]\npromt = "q"', "cloze", 5, "no field 'promt'", "did you mean 'prompt'?"),
        ("fields = { prompt = 3 }", "cloze", None, "must name a field", "id"),
        ("slices = [1]", "cloze", 4, "'slices' must be field names", "relation"),
        ('template = "no slot"', "cloze", 4, "names no field", "{question}"),
        ('template = "{x}"', "pairs", 4, "takes no template", "remove"),
        ("seq_len = 64", "cloze", 4, "only perplexity", "remove"),
        ("seq_len = 1", "perplexity", 4, "at least 2", "128"),
        ("seq_len = true", "perplexity", 4, "at least 2", "128"),
    ],
)
def test_a_mistake_in_the_settings_is_named_with_its_line_and_a_way_out(tmp_path, settings, kind, line, says, hint):
    with pytest.raises(BadRecipe) as caught:
        load_suite(suite(tmp_path, settings, CLOZE, kind=kind))
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.details.get("line") == line
    assert caught.value.exit_code == 2


def test_broken_toml_is_named_with_line_and_column(tmp_path):
    with pytest.raises(BadRecipe) as caught:
        load_suite(suite(tmp_path, "slices = [", CLOZE))
    assert caught.value.details["line"] >= 4
    (tmp_path / "s.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(BadRecipe, match="not UTF-8"):
        load_suite(tmp_path / "s.toml")


@pytest.mark.parametrize("text", ["kind = 'cloze'\ndata = 'x'", "name = 'a b'\nkind = 'cloze'\ndata = 'x'", "name = '../x'", "name = 'a'"])
def test_name_kind_and_data_are_needed(tmp_path, text):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(BadRecipe):
        load_suite(tmp_path / "s.toml")


def test_missing_files_are_not_found(tmp_path):
    with pytest.raises(InputNotFound):
        load_suite(tmp_path / "none.toml")
    with pytest.raises(InputNotFound, match=r"data file of suite s\.toml"):
        load_suite(suite(tmp_path))
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(BadInputFile):
        load_suite(suite(tmp_path))


GOOD = b'{"id": "a", "prompt": "p", "answer": "x"}\n'


@pytest.mark.parametrize(
    ("kind", "data", "line", "says"),
    [
        ("cloze", b"", None, "empty"),
        ("cloze", b"\n \n", None, "empty"),
        ("cloze", GOOD + b"{oops\n", 2, "not valid JSON"),
        ("cloze", GOOD + b"\n[1]\n", 3, "not a JSON object"),
        ("cloze", GOOD + b'{"prompt": "p"}\n', 2, "field 'answer' is missing"),
        ("cloze", GOOD + b'{"prompt": "p", "answer": " "}\n', 2, "non-empty text"),
        ("cloze", GOOD + b'{"prompt": 5, "answer": "x"}\n', 2, "non-empty text"),
        ("cloze", GOOD + GOOD, 2, "already used in line 1"),
        ("cloze", GOOD + b'{"prompt": "\xff", "answer": "x"}\n', 2, "not UTF-8"),
        ("cloze", b'{"prompt": "\\ud800", "answer": "x"}\n', 1, "not valid JSON"),
        ("cloze", b'{"prompt": "p", "answer": "x", "v": NaN}\n', 1, "NaN"),
        ("cloze", b'{"prompt": "p", "answer": "x", "id": null}\n', 1, "must be a text or a number"),
        ("cloze", b"[" * 100_000 + b"\n", 1, "not valid JSON"),
        ("choice", b'{"prompt": "p", "choices": ["a"], "index": 0}\n', 1, "two or more"),
        ("choice", b'{"prompt": "p", "choices": ["a", "b"], "index": 2}\n', 1, "from 0 to 1"),
        ("choice", b'{"prompt": "p", "choices": ["a", "b"], "index": true}\n', 1, "from 0 to 1"),
        ("classify", b'{"text": "t", "label": 0.5}\n', 1, "class number"),
        ("classify", b'{"image": [[1, 2], [3]], "label": 0}\n', 1, "equal length"),
        ("classify", b'{"image": ["x"], "label": 0}\n', 1, "numbers"),
        ("pairs", b'{"good": "g"}\n', 1, "field 'bad' is missing"),
        ("perplexity", b'{"txt": "g"}\n', 1, "field 'text' is missing"),
    ],
)
def test_a_bad_row_is_named_with_path_and_line(tmp_path, kind, data, line, says):
    loaded = load_suite(suite(tmp_path, kind=kind, data=data))
    with pytest.raises(BadInputFile) as caught:
        loaded.examples(1)
    assert says in caught.value.message
    assert caught.value.details.get("line") == line
    assert caught.value.details["path"].endswith("d.jsonl")
    assert caught.value.hint


def test_missing_slice_and_template_fields_are_named(tmp_path):
    for settings, says in [('slices = "topic"', "slice field 'topic'"), ('template = "{q}"', "template's field 'q'")]:
        with pytest.raises(BadInputFile, match=says):
            load_suite(suite(tmp_path, settings, CLOZE)).examples()


def test_a_row_may_hold_any_unicode_and_a_byte_order_mark_is_no_text(tmp_path):
    data = "\ufeff".encode() + json.dumps({"prompt": "a\u2028b", "answer": "ü"}, ensure_ascii=False).encode()
    (example,) = load_suite(suite(tmp_path, data=data)).examples()
    assert example.values == {"prompt": "a\u2028b", "answer": "ü"}


def test_plain_text_is_one_document(tmp_path):
    (tmp_path / "t.txt").write_text("one two\nthree")
    (tmp_path / "s.toml").write_text('name = "s"\nkind = "perplexity"\ndata = "t.txt"')
    (example,) = load_suite(tmp_path / "s.toml").examples()
    assert (example.id, example.values["text"]) == ("t.txt", "one two\nthree")


def test_two_suites_of_one_name_are_refused(tmp_path):
    one = load_suite(suite(tmp_path, rows=CLOZE))
    assert unique_names([one]) == ["s"]
    with pytest.raises(BadRecipe, match="two suites are called 's'"):
        unique_names([one, one])


@given(st.binary(max_size=200))
def test_no_data_file_makes_a_suite_fall_over(data):
    loaded = Suite("s", "cloze", Path("s.toml"), Path("d.jsonl"), "", "accuracy", payload=data)
    with suppress(BadInputFile):  # anything else would be a traceback
        assert loaded.examples()


def test_reading_a_suite_or_counting_flips_needs_no_heavy_library():
    code = (
        "import sys, mlc.ops.evaluate.suite, mlc.ops.evaluate.flips, mlc.ops.evaluate.predictions;"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
