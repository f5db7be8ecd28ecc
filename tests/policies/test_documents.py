"""Files that people write: every complaint names its place, and hostile ones are refused."""

from __future__ import annotations

import contextlib
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.policies import documents
from mlc.policies.documents import parse_toml, parse_yaml
from mlc.registry.errors import BadRecipe, InputNotFound

EXAMPLE = textwrap.dedent(
    '''\
    # a comment with [brackets] and "quotes"
    top = "a \\" = quote"
    [table]
      key = [1, 2,  # why
        "three"]
    long = """
    not_a_key = 1
    [not.a.table]
    """
    lit = 'a # b'
    [[rule]]
    id = "one"
    [[rule]]
    "quoted key" = { inner = 1, other = [true] }
    a.b.c = 2021-01-01
    [rule.sub]
    x = 1
    '''
)


def test_every_key_of_a_toml_file_has_its_line_and_column():
    places = parse_toml(EXAMPLE, "e").places

    assert places["top",] == (2, 1)
    assert places["table",] == (3, 2)
    assert places["table", "key"] == (4, 3)
    assert places["table", "key", 2] == (5, 5)
    assert places["table", "long"] == (6, 1)
    assert places["table", "lit"] == (10, 1)
    assert places["rule", 0, "id"] == (12, 1)
    assert places["rule", 1, "quoted key"] == (14, 1)
    assert places["rule", 1, "quoted key", "inner"] == (14, 18)
    assert places["rule", 1, "a", "b", "c"] == (15, 1)
    assert places["rule", 1, "sub", "x"] == (17, 1)
    assert not any("not_a_key" in path or "not" in path for path in places)


KEYS = st.text("abcdefgh_-", min_size=1, max_size=6)
VALUES = st.recursive(
    st.booleans() | st.integers(-99, 99) | st.text("ab #=[]{},'\n\\\"", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def written(value) -> str:
    """TOML of a value, inline."""
    import json

    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {written(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES), max_size=6, unique_by=lambda pair: pair[0]), st.booleans())
def test_any_toml_file_that_parses_has_a_place_for_every_key(pairs, table):
    lines = (["[t]"] if table else []) + [f"{key} = {written(value)}" for key, value in pairs]

    document = parse_toml("\n".join(lines), "any")

    base = ("t",) if table else ()
    for number, (key, _) in enumerate(pairs, 2 if table else 1):
        assert document.places[(*base, key)] == (number, 1)


def test_a_toml_syntax_error_names_line_and_column():
    with pytest.raises(BadRecipe, match=r"f\.toml, line 2, column 5: not valid TOML") as caught:
        parse_toml("a = 1\nb = @\n", "f.toml")
    assert caught.value.details["line"] == 2


def test_a_yaml_file_has_places_too():
    document = parse_yaml("data: new.txt\nreplay:\n  - self:0.5\n  - 'old.txt:0.1'\n", "f")

    assert document.data == {"data": "new.txt", "replay": ["self:0.5", "old.txt:0.1"]}
    assert document.places["replay",] == (2, 1)
    assert document.places["replay", 1] == (4, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x\n", "line 1, column 4: YAML anchors and aliases are not read"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("a: 1\na: 2\n", "line 2, column 1: the key 'a' appears twice"),
        ("1: 2\n", "keys must be plain words"),
        ("- a\n", "must hold keys and values"),
        ("a: [1\n", "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
    ],
)
def test_yaml_that_is_more_than_plain_data_is_refused(text, said):
    with pytest.raises(BadRecipe) as caught:
        parse_yaml(text, "f.yaml")
    assert said in caught.value.message


def test_deeply_nested_files_end_in_a_sentence():
    for text, parse in (("a = " + "[" * 3000 + "]" * 3000, parse_toml), ("a: " + "[" * 3000 + "]" * 3000, parse_yaml)):
        with pytest.raises(BadRecipe, match="nested too deeply"):
            parse(text, "deep")


def test_a_file_over_one_mebibyte_is_refused(tmp_path):
    (tmp_path / "big.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(BadRecipe, match="larger than 1 MiB"):
        documents.read(tmp_path / "big.toml")


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
    (tmp_path / "bad.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(BadRecipe, match="not UTF-8"):
        documents.read(tmp_path / "bad.toml")
    with pytest.raises(InputNotFound):
        documents.read(tmp_path / "none.toml")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_text_at_all_brings_the_readers_down(text):
    for parse in (parse_toml, parse_yaml):
        with contextlib.suppress(BadRecipe):
            assert isinstance(parse(text, "any").data, dict)
