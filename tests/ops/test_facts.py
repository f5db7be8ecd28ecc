"""Fact files: every layout that is read, and every fault said with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlc.ops.data.facts import Fact, read_facts
from mlc.registry.errors import BadInputFile, InputNotFound

ADA = {"subject": "Ada", "prompt": "{} lives in", "target_new": "Rome"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "facts.jsonl"


# --- layouts -----------------------------------------------------------------------------------------------


def test_our_own_rows_hold_everything(file):
    more = {"id": "a", "target_true": "Oslo", "relation": "home", "paraphrases": ["The home of {} is", "Ada's home is"]}
    beside = {"neighbourhood": [["Bo lives in", "Oslo"], {"prompt": "Cy lives in", "answer": "Oslo"}], "wordings": ["Home of {}:"]}
    (fact,) = read_facts(write(file, {**ADA, **more, **beside})).facts
    assert fact == Fact(
        "a", 1, "Ada", "{} lives in", "Rome", "Oslo", ("The home of Ada is", "Ada's home is"),
        (("Bo lives in", "Oslo"), ("Cy lives in", "Oslo")), "home", ("Home of {}:",),
    )  # fmt: skip
    assert (fact.question, fact.kind) == ("Ada lives in", "home")


def test_without_an_id_a_fact_is_named_by_its_line_and_blank_lines_count(file):
    found = read_facts(write(file, ADA, "", {**ADA, "subject": "Bo"}))
    assert [f.id for f in found.facts] == ["1", "3"]
    assert (found.name, found.bytes) == ("facts.jsonl", file.stat().st_size)


OTHERS = {
    "easyedit": {"prompt": "Today Ada lives in", "subject": "Ada", "target_new": "Rome", "ground_truth": "Oslo"},
    "known": {"prompt": "Today Ada lives in", "subject": "Ada", "attribute": "Rome", "template": "{} is"},
    "world": {"prompt": "Today Ada lives in", "subject": "Ada", "relation": "home", "object": "Rome"},
}


@pytest.mark.parametrize("layout", OTHERS)
def test_a_layout_of_whole_prompts_has_its_subject_taken_out(file, layout):
    (fact,) = read_facts(write(file, OTHERS[layout])).facts
    assert fact.prompt == "Today {} lives in"
    with pytest.raises(BadInputFile, match=r"line 1: the prompt holds no \{\}.*in it 2 times"):
        read_facts(write(file, {**OTHERS[layout], "prompt": "Ada, yes Ada, lives in"}))


def test_our_own_prompt_that_names_the_subject_is_refused_and_told_how_it_is_written(file):
    with pytest.raises(BadInputFile, match=r"line 2: the prompt holds no \{\}.*the subject is written out in it") as fault:
        read_facts(write(file, ADA, {**ADA, "prompt": "Today Ada lives in"}))
    assert fault.value.hint == '"prompt": "Today {} lives in"'


def test_counterfact_as_it_is_published(tmp_path):
    row = {
        "case_id": 7, "pararel_idx": 1,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Ada",
            "target_new": {"str": "English", "id": "Q1"}, "target_true": {"str": "French", "id": "Q2"},
        },
        "paraphrase_prompts": ["Noise. Ada speaks"], "neighborhood_prompts": ["Bo speaks", "Cy speaks"], "attribute_prompts": ["x"],
    }  # fmt: skip
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([row, {**row, "case_id": 8}], indent=1))
    first, second = read_facts(path).facts
    assert (first.id, second.id, first.relation, first.target_new, first.target_true) == ("7", "8", "P103", "English", "French")
    assert first.paraphrases == ("Noise. Ada speaks",)
    assert first.neighbourhood == (("Bo speaks", "French"), ("Cy speaks", "French"))
    assert second.line == path.read_text().split("\n").index('  "case_id": 8,')


def test_pararel_rows_take_their_prompts_from_the_patterns_beside_them(tmp_path):
    patterns = {"P19": ["[Y] is where [X] was born.", "[X] was born in [Y] .", "[X] is originally from [Y].", "[X] is [X] of [Y]"]}
    (tmp_path / "patterns.json").write_text(json.dumps(patterns))
    (fact,) = read_facts(write(tmp_path / "facts.jsonl", {"relation": "P19", "subject": "Ada", "object": "Oslo"})).facts
    assert (fact.prompt, fact.paraphrases, fact.target_new) == ("{} was born in", ("Ada is originally from",), "Oslo")


def test_a_pararel_row_without_patterns_says_which_line(file):
    with pytest.raises(BadInputFile, match="line 2: `prompt` is missing"):
        read_facts(write(file, ADA, {"relation": "P19", "subject": "Ada", "object": "Oslo"}))


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("counterfact/counterfact-2000.jsonl", 2000),
        ("known-1000/known.jsonl", 1209),
        ("pararel/facts.jsonl", 7632),
        ("facts/train.jsonl", 1200),
        ("facts/heldout.jsonl", 120),
        ("facts-deep/train.jsonl", 600),
        ("facts-deep/heldout.jsonl", 60),
    ],
)
def test_real_files_load_whole(material, path, count):
    facts = read_facts(material / "data" / path).facts
    assert len(facts) == count
    assert all(f.prompt.count("{}") == 1 and f.target_new and f.subject for f in facts)


def test_real_rows_mean_what_they_say(material):
    data = material / "data"
    counterfact = read_facts(data / "counterfact" / "counterfact-2000.jsonl").facts[0]
    assert (counterfact.prompt, counterfact.subject) == ("The mother tongue of {} is", "Danielle Darrieux")
    assert (counterfact.target_new, counterfact.target_true) == ("English", "French")
    assert counterfact.neighbourhood == (("Michel Rocard is a native speaker of", "French"),)
    known = read_facts(data / "known-1000" / "known.jsonl").facts[0]
    assert (known.prompt, known.target_new, known.relation) == ("{} is located in the continent of", "Antarctica", "P30")
    world = read_facts(data / "facts" / "train.jsonl").facts[0]
    assert (world.prompt, world.target_new, world.target_true) == ("{} was born in", "Rome", "Toronto")
    assert len(world.paraphrases) == 6
    assert world.neighbourhood[0] == ("Brisa Abernathy was born in", "Toronto")


# --- faults ------------------------------------------------------------------------------------------------

FAULTS = {
    "the prompt holds no {}, and exactly one is needed, where the subject stands; the subject is not in it either": {
        **ADA,
        "prompt": "lives in",
    },
    "the prompt holds 2 {}": {**ADA, "prompt": "{} and {} live in"},
    "the subject is in it 2 times": {**ADA, "prompt": "Ada, yes Ada, lives in"},
    "`subject` is missing": {k: v for k, v in ADA.items() if k != "subject"},
    "`subject` is empty": {**ADA, "subject": " "},
    "`prompt` is missing": {k: v for k, v in ADA.items() if k != "prompt"},
    "`target_new` is missing": {k: v for k, v in ADA.items() if k != "target_new"},
    "`target_new` is empty": {**ADA, "target_new": "  "},
    "`target_new` is not a text": {**ADA, "target_new": 3},
    "the new answer is the present answer": {**ADA, "target_true": " Rome "},
    "`target_true` is not a text": {**ADA, "target_true": 1},
    "every wording holds {} exactly once": {**ADA, "wordings": ["the home"]},
    "`paraphrases` is not a list of texts": {**ADA, "paraphrases": "one"},
    "`neighbourhood` is not a list": {**ADA, "neighbourhood": "Bo"},
    "a neighbour is a prompt with its right answer": {**ADA, "neighbourhood": ["Bo lives in"]},
    "`id` is neither a number nor a word": {**ADA, "id": []},
    "not valid JSON": '{"subject": "Ada", "prompt": ',
    "not valid JSON (Extra data": '{"subject": "Ada"} {}',
    "expected a JSON object": '"Ada"',
    "nested too deeply": '{"subject": ' + "[" * 100_000,
    "not valid Unicode": '{"subject": "\\ud800"}',
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_fault_is_said_with_its_line(file, reason):
    good = [{**ADA, "subject": name} for name in ("Bo", "Cy")]
    with pytest.raises(BadInputFile) as fault:
        read_facts(write(file, good[0], "", FAULTS[reason], good[1]))
    assert reason in fault.value.message
    assert f"{file}, line 3:" in fault.value.message
    assert fault.value.details == {"path": str(file), "line": 3}


def test_a_broken_array_says_the_line_of_the_fault(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text("[\n" + json.dumps(ADA) + ',\n{"subject":\n oops}\n]')
    with pytest.raises(BadInputFile, match="line 4: not valid JSON"):
        read_facts(path)
    path.write_text("[\n" + json.dumps(ADA))
    with pytest.raises(BadInputFile, match="line 2: not valid JSON"):
        read_facts(path)


def test_bytes_that_are_not_utf8_say_their_line(file):
    file.write_bytes(json.dumps(ADA).encode() + b"\n\xff\xfe\n")
    with pytest.raises(BadInputFile, match="line 2: not UTF-8"):
        read_facts(file)


def test_two_facts_with_one_id_name_both_lines(file):
    with pytest.raises(BadInputFile, match="line 2: the id 'a' was used in line 1"):
        read_facts(write(file, {**ADA, "id": "a"}, {**ADA, "id": "a", "subject": "Bo"}))


def test_an_empty_file_a_directory_and_a_missing_file_are_told_apart(file, tmp_path):
    with pytest.raises(BadInputFile, match="holds no facts"):
        read_facts(write(file))
    with pytest.raises(BadInputFile, match="is a directory"):
        read_facts(tmp_path)
    with pytest.raises(InputNotFound):
        read_facts(tmp_path / "none.jsonl")
