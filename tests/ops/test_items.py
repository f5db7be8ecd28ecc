"""Sets of records: what a file may hold, what is said when it is wrong, and that its text is never said."""

from __future__ import annotations

import json

import pytest

from mlc.ops.data.items import Item, check_apart, read_items
from mlc.registry.errors import BadInputFile, BadRecipe, InputNotFound
from mlc.registry.ids import blob_digest

SECRET = "zanzibar"


def jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_may_mix_texts_pairs_and_classes(tmp_path):
    path = jsonl(
        tmp_path / "all.jsonl",
        {"prompt": "the river is", "answer": "red"},
        "",
        {"question": "where?", "completion": "there"},
        {"text": "a plain text"},
        {"text": "a text with a class", "label": "good"},
        {"image": [[0, 1], [0.5, 2]], "label": 3},
    )
    found = read_items(path, "retain")
    assert [(i.line, i.kind) for i in found.items] == [(1, "pair"), (3, "pair"), (4, "text"), (5, "label"), (6, "image")]
    assert found.items[1] == Item(3, "where?", "there")
    assert found.items[3].prompt == "a text with a class"
    assert (found.name, found.role, found.digest) == ("all.jsonl", "retain", blob_digest(path.read_bytes()))
    assert found.bytes == len(path.read_bytes())
    assert found.payload == path.read_bytes()


def test_a_running_text_can_be_kept_but_not_forgotten(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(f"{SECRET}\nand more")
    assert read_items(path, "retain").items == (Item(1, None, f"{SECRET}\nand more"),)
    with pytest.raises(BadInputFile, match="names its records"):
        read_items(path, "forget")


@pytest.mark.parametrize(
    ("kind", "row", "item"),
    [
        ("cloze", {"prompt": "the river is", "answer": "red"}, Item(2, "the river is", "red")),
        ("choice", {"prompt": "the river is", "choices": ["blue", "red"], "index": 1}, Item(2, "the river is", "red")),
        ("perplexity", {"text": "some words"}, Item(2, None, "some words")),
        ("classify", {"text": "some words", "label": 1}, Item(2, "some words", "", None, 1)),
    ],
)
def test_a_suite_is_a_set_of_its_right_answers(tmp_path, kind, row, item):
    jsonl(tmp_path / "rows.jsonl", "", row)
    suite = tmp_path / "suite.toml"
    suite.write_text(f'name = "s"\nkind = "{kind}"\ndata = "rows.jsonl"\n')
    found = read_items(suite, "forget")
    assert found.items == (item,)
    assert found.name == "suite.toml"


def test_a_suite_of_pairs_has_nothing_to_forget(tmp_path):
    jsonl(tmp_path / "rows.jsonl", {"good": "a", "bad": "b"})
    suite = tmp_path / "suite.toml"
    suite.write_text('name = "s"\nkind = "pairs"\ndata = "rows.jsonl"\n')
    with pytest.raises(BadInputFile, match="pairs"):
        read_items(suite, "forget")


# --- identity ---


def test_two_spellings_of_one_record_have_one_normal_form():
    one = Item(1, "the  café", "is red")
    assert one.normal() == Item(9, "the cafe\u0301 ", "is\nred").normal() == Item(2, None, "the café is red").normal()
    assert one.normal() != Item(1, "the café", "is blue").normal()


def test_images_and_labels_belong_to_a_record():
    image = [[0, 1], [1, 0]]
    assert Item(1, None, "", image, 1).normal() != Item(1, None, "", image, 2).normal()
    assert Item(1, "text", "", None, 1).normal() != Item(1, "text", "", None, "1").normal()


def test_a_duplicate_to_forget_is_named_with_both_lines_and_one_to_keep_is_welcome(tmp_path):
    row = {"prompt": f"the {SECRET} is", "answer": "red"}
    path = jsonl(tmp_path / "twice.jsonl", row, {"text": "other"}, {**row, "answer": " red "})
    with pytest.raises(BadInputFile, match="line 3: the same record as line 1") as caught:
        read_items(path, "forget")
    assert caught.value.details["line"] == 3
    assert SECRET not in str(caught.value)
    assert len(read_items(path, "retain").items) == 3


def test_sets_that_share_a_record_are_refused_with_both_lines(tmp_path):
    forget = read_items(jsonl(tmp_path / "f.jsonl", {"text": "one"}, {"prompt": f"the {SECRET}", "answer": "red"}), "forget")
    retain = read_items(jsonl(tmp_path / "r.jsonl", {"text": "two"}, {"text": "three"}, {"text": f"the {SECRET} red"}), "retain")
    with pytest.raises(BadInputFile, match=r"f\.jsonl are also in .*r\.jsonl, first line 2 there as line 3") as caught:
        check_apart(forget, retain)
    assert SECRET not in str(caught.value) + str(caught.value.hint)
    check_apart(forget, read_items(jsonl(tmp_path / "o.jsonl", {"text": "two"}), "retain"))


# --- what is wrong with a file ---


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": SECRET}, "this row has no `answer`"),
        ({"answer": SECRET}, "this row has no `prompt`"),
        ({"words": SECRET}, "no `text` and no `prompt`"),
        ({"text": 7, "id": SECRET}, "`text` is not a string"),
        ({"prompt": SECRET, "answer": "  "}, "`answer` is empty"),
        ({"prompt": [SECRET], "answer": "a"}, "`prompt` is not a string"),
        ({"label": 1, "id": SECRET}, "needs `text` or `image`"),
        ({"text": SECRET, "label": 1.5}, "class number or a class name"),
        ({"image": [[1], [1, 2]], "label": 0, "id": SECRET}, "nested rows of equal length"),
        (f'{{"text": "{SECRET}"', "not valid JSON"),
        (f'{{"text": NaN, "id": "{SECRET}"}}', "not valid JSON"),
        (f'["{SECRET}"]', "expected a JSON object"),
        (f'{{"text": "{SECRET} \\ud800"}}', "not valid JSON"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line_and_never_quoted(tmp_path, row, words):
    path = jsonl(tmp_path / "bad.jsonl", {"text": "fine"}, row)
    with pytest.raises(BadInputFile) as caught:
        read_items(path, "forget")
    fault = caught.value
    assert "bad.jsonl, line 2: " in fault.message
    assert words in fault.message
    assert fault.details["line"] == 2
    assert SECRET not in fault.message + str(fault.hint) + str(fault.details) + repr(fault.__cause__)


def test_a_row_that_does_not_fit_its_suite_is_not_quoted_either(tmp_path):
    jsonl(tmp_path / "rows.jsonl", {"prompt": "a", "choices": [SECRET], "index": 0})
    suite = tmp_path / "suite.toml"
    suite.write_text('name = "s"\nkind = "choice"\ndata = "rows.jsonl"\n')
    with pytest.raises(BadInputFile, match="line 1: this row does not fit") as caught:
        read_items(suite, "forget")
    assert SECRET not in str(caught.value) + str(caught.value.hint) + repr(caught.value.__cause__)


@pytest.mark.parametrize("content", ["", "\n\n", "  \n"])
def test_an_empty_set_is_refused(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(BadInputFile, match="the forget set needs at least one record"):
        read_items(path, "forget")


def test_files_that_are_not_there_or_no_text_are_refused(tmp_path):
    with pytest.raises(InputNotFound):
        read_items(tmp_path / "no.jsonl", "forget")
    with pytest.raises(BadInputFile, match="directory"):
        read_items(tmp_path, "forget")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xe9"}\n')
    with pytest.raises(BadInputFile, match="line 2: not UTF-8"):
        read_items(tmp_path / "latin.jsonl", "forget")
    (tmp_path / "s.toml").write_text("kind = ")
    with pytest.raises(BadRecipe):
        read_items(tmp_path / "s.toml", "forget")
