"""Facts that contradict each other: in one file, against earlier edits, against requests to forget, and by their keys."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mlc.ops.data.facts import Fact, FactSet
from mlc.ops.edit import keep
from mlc.ops.edit.conflicts import ALIKE, about, alike, earlier_facts, fact_of, forms, settled, spared, with_edits, within
from mlc.registry.errors import BadInputFile, BadParameter
from mlc.tests.ops.fakes import MemoryRun

ADA = Fact("a", 1, "Ada", "{} lives in", "Rome", "Oslo", relation="home")
FIRST = "1" * 64


def given(*facts: Fact) -> FactSet:
    return FactSet(tuple(dataclasses.replace(f, line=n) for n, f in enumerate(facts, 1)), "f.jsonl", "0" * 64, 1)


def other(**changes) -> Fact:
    return dataclasses.replace(ADA, **{"id": "b", "target_new": "Bonn", **changes})


class Behind:
    """A history of edits and requests to forget."""

    def __init__(self, *edits: tuple[str, list[Fact]], lost: dict[str, set[str]] | None = None, forgot: set[bytes] = frozenset()):
        self.edits, self.taken, self.forgot = edits, lost or {}, forgot

    def kept(self, kind):
        assert kind == "edit-keys"
        for commit, facts in self.edits:
            yield commit, keep.pack({"x": torch.zeros(1)}, facts=[dataclasses.asdict(f) for f in facts])

    def lost(self, commit):
        return frozenset(self.taken.get(commit, ()))

    def forgotten(self, name, records):
        return {place: "9" * 64 for place, own in enumerate(records) if self.forgot & set(own)}


# --- one file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second",
    [
        other(),
        other(prompt="The home of {} is"),
        other(relation=None),
        other(subject="  ADA "),
        other(prompt="{}  LIVES in", relation="seat"),
    ],
)
def test_two_answers_to_one_question_are_refused_with_both_lines(second):
    with pytest.raises(BadInputFile, match=r"f.jsonl, line 3: asks the same of the same subject as line 1") as fault:
        within(given(ADA, other(subject="Bo"), second), "refuse")
    assert (fault.value.details["line"], fault.value.details["other"], fault.value.exit_code) == (3, 1, 2)


def test_new_keeps_the_later_line_and_old_the_earlier():
    assert [f.line for f in within(given(ADA, other(subject="Bo"), other()), "new").facts] == [2, 3]
    assert [f.line for f in within(given(ADA, other(subject="Bo"), other()), "old").facts] == [1, 2]
    third = other(target_new="Lima", id="c")
    assert [f.line for f in within(given(ADA, other(), third), "new").facts] == [3]


def test_the_same_said_twice_is_kept_once_and_other_questions_are_no_conflict():
    assert [f.line for f in within(given(ADA, dataclasses.replace(ADA, id="b", prompt="Home of {}:")), "refuse").facts] == [1]
    apart = given(ADA, other(subject="Bo"), other(relation="seat", prompt="{} works in"))
    assert within(apart, "refuse") == apart


# --- history -------------------------------------------------------------------------------------------------


def test_an_earlier_edit_is_found_by_relation_and_by_prompt_unless_it_says_the_same():
    past = Behind((FIRST, [ADA]))
    assert [c.where for c in with_edits([other(prompt="Home of {}:")], list(earlier_facts(past)))] == [FIRST[:12]]
    assert with_edits([dataclasses.replace(ADA, target_new=" Rome")], list(earlier_facts(past))) == []
    assert with_edits([other(subject="Bo")], list(earlier_facts(past))) == []


def test_of_two_edits_of_one_fact_the_nearer_counts_and_what_was_taken_back_does_not():
    newer = other(id="n")
    past = Behind(("2" * 64, [newer]), (FIRST, [ADA]))
    assert [(e.commit, e.fact.id) for e in earlier_facts(past)] == [("2" * 64, "n")]
    assert settled(given(newer), past, "refuse") == ()
    past.taken = {"2" * 64: {"n"}}
    assert [(e.commit, e.fact.id) for e in earlier_facts(past)] == [(FIRST, "a")]


def test_a_request_to_forget_is_found_in_any_wording_with_either_answer_and_told_without_its_text():
    for text in (b"Ada lives in Oslo", b"Ada lives in Rome.", b"The home of Ada is Rome"):
        past = Behind(forgot={text})
        fact = dataclasses.replace(ADA, paraphrases=("The home of  Ada is",))
        with pytest.raises(BadParameter, match=r"line 1 .fact a. brings back what was to be forgotten by 999999999999") as fault:
            settled(given(fact), past, "refuse")
        assert "Oslo" not in fault.value.message
    assert settled(given(ADA), Behind(forgot={b"Ada lives in Lima"}), "refuse") == ()


def test_what_is_to_hold_decides_which_facts_are_left_out():
    past = Behind((FIRST, [ADA]))
    facts = given(other(), other(subject="Bo", id="c"))
    assert settled(facts, past, "new") == ()
    assert settled(facts, past, "old") == ("b",)
    many = given(*(other(id=str(n), prompt=f"{n} {{}}") for n in range(5)))
    with pytest.raises(BadParameter, match="and 2 more"):
        settled(many, past, "refuse")


def test_a_fact_survives_its_artifact_and_no_tensor_is_read_for_it():
    fact = dataclasses.replace(ADA, neighbourhood=(("Bo lives in", "Oslo"),), wordings=("Home of {}:",))
    data = keep.pack({"x": torch.zeros(3)}, facts=[dataclasses.asdict(fact)])
    (row,) = about(data[:-12])["facts"]
    assert fact_of(row) == fact
    assert b"Home of Ada: Rome" in forms(fact)


# --- keys ----------------------------------------------------------------------------------------------------

SAME = torch.eye(4, dtype=torch.float64)


def test_keys_are_alike_as_ordinary_text_weighs_directions():
    keys = torch.tensor([[1.0, 0.0], [0.1, 1.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    held = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    ((i, j, cosine),) = alike(keys, held, lambda x: x)
    assert (i, j) == (0, 1)
    assert cosine == pytest.approx(1 / 1.01**0.5)
    scale = torch.tensor([0.01, 1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    assert alike(keys, held, lambda x: x * scale) == []
    assert alike(keys, held[:, :0], lambda x: x) == []


def test_at_the_limit_a_third_of_a_write_at_one_key_is_a_write_at_the_other():
    from mlc.ops.edit.solve import factors, memit_metric, single_fractions

    moment = torch.diag(torch.linspace(0.2, 3, 6, dtype=torch.float64))
    root = moment.sqrt()
    keys = root @ torch.tensor([[1.0, ALIKE], [0.0, (1 - ALIKE**2) ** 0.5], *[[0.0, 0.0]] * 4], dtype=torch.float64)
    metric = memit_metric(moment)
    weight = 0.05 / 0.95
    assert single_fractions(metric, keys, weight).tolist() == pytest.approx([0.95, 0.95])
    written = factors(metric, keys[:, :1], weight, keys[:, 1:])
    assert (keys[:, 1] @ written[:, 0]).item() == pytest.approx(0.35, abs=0.01)
    far = root @ torch.eye(6, 2, dtype=torch.float64)
    assert (far[:, 1] @ factors(metric, far[:, :1], weight, far[:, 1:])[:, 0]).item() == pytest.approx(0, abs=1e-12)


def test_a_subject_that_the_model_confuses_with_an_edited_one_is_refused_noted_or_wins():
    keys, run = SAME[:, :1], MemoryRun()
    held = SAME[:, :3]
    facts, names = [[ADA]], ["Adah", "Bo", "Cy"]
    with pytest.raises(BadParameter, match=r"line 1: the model hardly tells its subject from 'Adah'"):
        spared(facts, keys, held, names, lambda x: x, "refuse", run)
    assert torch.equal(spared(facts, keys, held, names, lambda x: x, "old", run), held)
    assert torch.equal(spared(facts, keys, held, names, lambda x: x, "new", run), held[:, 1:])
    assert len(run.notes) == 2
    assert torch.equal(spared(facts, SAME[:, 3:], held, names, lambda x: x, "refuse", run), held)
