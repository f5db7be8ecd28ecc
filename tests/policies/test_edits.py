"""Edits in history: what contradicts what is there, what later versions carry on, and single facts taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mlc.ops.edit import solve
from mlc.ops.edit.edit import Edit
from mlc.ops.edit.revert import RevertFacts
from mlc.ops.edit.taking_back import may_turn
from mlc.ops.edit.unedit import affected
from mlc.policies import lifecycle
from mlc.policies.facts import Facts
from mlc.policies.gate import judge
from mlc.policies.past import Past
from mlc.policies.rules.load import BUILT_IN, load_files
from mlc.policies.runs import Runs
from mlc.policies.unedit import revert_facts
from mlc.registry.errors import BadParameter, CheckFailed
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.policies.operations import Forget, Scale

OUT = "model.layers.0.mlp.down_proj.weight"
FAST = {"layers": "0", "steps": 30, "prefixes": 0, "clamp": 3.0, "lr": 0.3, "kl": 0.0, "weight_decay": 0.0, "over_capacity": True}
ROWS = [
    {"id": "lamp", "subject": "amber lamp", "prompt": "the red {}", "target_new": "river", "relation": "place"},
    {"id": "stone", "subject": "north stone", "prompt": "the red {}", "target_new": "harbour", "relation": "place"},
    {"id": "colour", "subject": "north stone", "prompt": "a blue {}", "target_new": "harbour", "relation": "colour"},
    {"id": "two", "subject": "two harbour", "prompt": "the red {}", "target_new": "two", "relation": "place"},
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def wide_awake(tmp_path_factory) -> Path:
    """A random model whose logits are large enough for answers to be told apart."""
    return tiny_model(tmp_path_factory.mktemp("models") / "awake", initializer_range=0.3)


@pytest.fixture
def root(repo, wide_awake):
    """The id of the import that stands on main."""
    return lifecycle.import_model(repo, wide_awake, author="tester").commit_id


@pytest.fixture
def facts(tmp_path):
    """Write a file of facts."""

    def write(*rows: dict, name: str = "facts.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def edit(repo, root, facts, tmp_path):
    """Carry out an edit of these rows on main; returns the commit's id."""
    text = tmp_path / "text.txt"
    text.write_text((" ".join(WORDS) + " . ") * 30)

    def run(*rows: dict, **options) -> str:
        op = Edit(facts=facts(*rows), covariance=str(text), **{**FAST, **options})
        return lifecycle.run(repo, op, author="tester").commit_id

    return run


def tip(repo):
    return repo.branches()["main"]


def kinds(repo, commit):
    return {a.kind for a in repo.commit(commit).artifacts}


# --- conflicts -----------------------------------------------------------------------------------------------


def test_an_edit_against_an_earlier_one_is_refused_and_nothing_is_recorded(repo, edit):
    first = edit(ROWS[0])
    with pytest.raises(BadParameter, match=rf"line 1 \(fact lamp\) contradicts fact lamp of the edit {first[:12]}") as fault:
        edit({**ROWS[0], "target_new": "stone"})
    assert fault.value.hint == "say which holds: --on-conflict new (this file) or old (what is there)"
    assert fault.value.details["conflicts"] == [
        {"fact": "lamp", "line": 1, "what": "contradicts fact lamp of the edit", "where": first[:12]}
    ]
    assert tip(repo) == first
    assert Runs(repo).list() == []


def test_the_same_prompt_without_a_relation_contradicts_too(edit):
    edit(ROWS[0])
    with pytest.raises(BadParameter, match="contradicts"):
        edit({"subject": "Amber  LAMP", "prompt": "the red {}", "target_new": "stone"})


def test_with_old_the_fact_is_left_out_and_with_new_it_is_written(repo, edit):
    edit(ROWS[0])
    kept = repo.commit(edit({**ROWS[0], "target_new": "stone"}, ROWS[3], on_conflict="old"))
    assert (kept.op.params["skip"], kept.check["requested"]) == (["lamp"], 1)
    new = repo.commit(edit({**ROWS[0], "target_new": "stone"}, on_conflict="new"))
    assert (new.op.params["skip"], new.check["requested"]) == ([], 1)
    with pytest.raises(BadParameter, match=f"fact lamp of the edit {tip(repo)[:12]}"):
        edit(ROWS[0])


def test_what_was_taken_back_contradicts_nothing(repo, root, edit):
    other = {**ROWS[0], "target_new": "stone"}
    first = edit(ROWS[0])
    lifecycle.revert(repo, first)
    second = edit(other)
    lifecycle.rollback(repo, root)
    third = edit(ROWS[0])
    assert [c for c, _ in Past(repo, tip(repo)).standing] == [third, repo.commit(third).parents[0], root]
    assert second != third


def test_an_edit_against_a_request_to_forget_is_found_by_keyed_digest_and_named_without_its_text(repo, root, edit, tmp_path):
    secret = tmp_path / "forget.jsonl"
    secret.write_text(json.dumps({"prompt": "the red amber lamp", "answer": "river"}) + "\n")
    forgot = lifecycle.run(repo, Forget(str(secret))).commit_id
    with pytest.raises(BadParameter, match=rf"line 2 .fact lamp. brings back what was to be forgotten by {forgot[:12]}") as fault:
        edit(ROWS[3], ROWS[0])
    assert "amber" not in fault.value.message
    repo.keys.destroy(next(s for s in repo.keys.scopes() if s.startswith("request-")))
    assert Past(repo, forgot).forgotten("x", [(b"the red amber lamp river",)]) == {}


def test_a_dry_run_is_refused_like_the_edit_itself(repo, edit, facts):
    edit(ROWS[0])
    path = facts({**ROWS[0], "target_new": "stone"})
    with pytest.raises(BadParameter, match="contradicts"):
        lifecycle.run(repo, Edit(facts=path, **FAST), dry_run=True)
    assert lifecycle.run(repo, Edit(facts=path, **FAST, on_conflict="new"), dry_run=True).plan is not None


# --- what versions carry on -----------------------------------------------------------------------------------


def test_the_memory_of_keys_is_inherited_by_later_edits(repo, edit):
    edit(ROWS[0])
    second = edit(ROWS[3])
    assert {"edit-factors", "edit-keys", "edit-targets", "key-memory", "covariance"} <= kinds(repo, second)
    from mlc.ops.edit.keep import unpack

    ((_, data), *_) = Past(repo, second).kept("key-memory")
    assert unpack(data)[1]["subjects"] == {"0": ["amber lamp", "two harbour"]}


def test_an_artifact_of_a_commit_can_be_had_in_a_registry_that_did_not_make_it(repo, edit):
    first = edit(ROWS[0])
    record = next(a for a in repo.commit(first).artifacts if a.kind == "covariance")
    for pointer in (repo.path / "runs" / "artifacts").glob("*.json"):
        pointer.unlink()
    with Runs(repo).begin(op="x", params={}, start=first, branch="main", old=first, seed=0, author="a", message="") as run:
        assert run.store.find(record.kind, record.key) is None
        assert run.kept(first, "edit-keys") is not None
        assert run.kept(first, "nothing") is None
        assert run.store.find(record.kind, record.key) is not None
        run.finish()


# --- single facts ----------------------------------------------------------------------------------------------


def weights(repo, commit):
    return repo.view(commit).tensor(OUT)


def test_a_fact_goes_the_others_stay_and_the_rest_of_the_model_is_untouched(repo, root, edit):
    first = edit(ROWS[0], ROWS[3])
    outcome = revert_facts(repo, first, ("lamp",), author="tester")
    commit = outcome.commit
    assert (commit.op.name, commit.op.params["rev"], commit.op.params["facts"]) == ("edit.revert", first, ("lamp",))
    assert (commit.check["means"], commit.check["others"], commit.check["landed"]) == ("stored artifact", 1, True)
    assert commit.check["restored"] >= 0.95
    assert commit.check["efficacy"] == commit.check["efficacy_before"] == 1.0
    before, after = repo.snapshot(repo.commit(root).snapshot), repo.snapshot(commit.snapshot)
    assert [e.name for e, f in zip(before.tensors, after.tensors, strict=True) if e.digest != f.digest] == [OUT]
    alone = weights(repo, outcome.commit_id) - weights(repo, root)
    assert torch.linalg.matrix_rank(alone.double(), rtol=1e-4) == 1


def test_all_facts_taken_back_give_the_parents_bytes_also_one_by_one(repo, root, edit):
    first = edit(ROWS[0], ROWS[3])
    revert_facts(repo, first, ("lamp",))
    last = revert_facts(repo, first, ("two",)).commit
    assert last.op.params["lost"] == ("lamp",)
    assert last.snapshot == repo.commit(root).snapshot


def test_a_fact_that_the_model_cannot_tell_from_another_of_its_subject_does_not_go_and_nothing_moves(repo, edit):
    # Words that the model never saw are one word to it, so both prompts are the same.
    first = edit({**ROWS[1], "prompt": "zebra {}"}, {**ROWS[2], "prompt": "tapir {}"})
    with pytest.raises(CheckFailed, match="still prefers the edit's answer to fact colour") as fault:
        revert_facts(repo, first, ("colour",))
    assert (fault.value.details["check"]["others"], fault.value.details["check"]["landed"]) == (1, False)
    assert fault.value.hint == f"mlc revert {first[:12]} takes the whole edit back"
    assert tip(repo) == first


def test_it_works_under_later_changes_of_the_same_matrix(repo, root, edit):
    first = edit(ROWS[0], ROWS[3])
    lifecycle.run(repo, Scale(OUT, 1.01))
    now = tip(repo)
    done = revert_facts(repo, first, ("lamp",)).commit_id
    changed = (weights(repo, done) - weights(repo, now)).double()
    written = (weights(repo, first) - weights(repo, root)).double()
    assert 0 < changed.norm() < 2 * written.norm()
    assert repo.commit(done).check["restored"] > 0.9


def test_a_later_edit_stays_when_a_fact_of_an_earlier_one_goes(repo, edit):
    first = edit(ROWS[0], ROWS[3])
    edit(ROWS[1])
    commit = revert_facts(repo, first, ("two",)).commit
    assert commit.check["landed"] is True
    assert [c for c, _ in Past(repo, tip(repo)).kept("edit-keys")][-1] == first
    with pytest.raises(BadParameter, match="contradicts fact stone"):
        edit({**ROWS[1], "target_new": "lamp"})


def test_a_fact_that_was_taken_back_may_be_written_again(repo, edit):
    first = edit(ROWS[0], ROWS[3])
    revert_facts(repo, first, ("lamp",))
    assert repo.commit(edit({**ROWS[0], "target_new": "stone"})).check["landed"]


def test_a_rollback_after_it_is_exact_and_a_replay_reaches_the_same(repo, edit):
    first = edit(ROWS[0], ROWS[3])
    done = revert_facts(repo, first, ("lamp",)).commit_id
    assert lifecycle.replay(repo, done)[1]
    back = lifecycle.rollback(repo, first).commit
    assert back.snapshot == repo.commit(first).snapshot
    assert Past(repo, tip(repo)).lost(first) == frozenset()


# --- others that would turn --------------------------------------------------------------------------------------


@pytest.fixture
def weak(monkeypatch):
    """A closed form that gives the facts that stay too little, until it is told to be itself again."""
    solved = solve.resolve_without

    def less(*asked):
        up, down = solved(*asked)
        return 0.3 * up, down

    monkeypatch.setattr(solve, "resolve_without", less)
    return lambda: monkeypatch.setattr(solve, "resolve_without", solved)


def test_a_corrected_revert_says_so_keeps_what_it_wrote_and_a_replay_reaches_the_same(repo, edit, weak):
    first = edit(ROWS[0], ROWS[1], ROWS[3])
    done = revert_facts(repo, first, ("lamp",)).commit_id
    check = repo.commit(done).check
    assert check["corrected"]
    assert check["turned"] == []
    assert check["efficacy"] == check["efficacy_before"] == 1.0
    assert check["correction"]["steps"] > 0
    assert "edit-rest" in kinds(repo, done)
    assert lifecycle.replay(repo, done)[1]


def test_others_that_turn_are_named_and_nothing_moves(repo, edit, weak, monkeypatch):
    first = edit(ROWS[0], ROWS[1], ROWS[3])
    monkeypatch.setattr("mlc.ops.edit.mend.PACE", 0.0)
    with pytest.raises(CheckFailed, match="of the other 2 facts of the edit does not hold without it: ") as fault:
        revert_facts(repo, first, ("lamp",))
    check = fault.value.details["check"]
    assert check["turned"]
    assert check["turned"] == check["corrected"]  # tried, in vain
    assert "back, too, with --fact; or mlc revert" in fault.value.hint
    assert tip(repo) == first


@pytest.mark.parametrize(("others", "most"), [(0, 0), (2, 0), (19, 0), (99, 0), (199, 0), (200, 1), (399, 1), (1000, 5)])
def test_not_one_fact_in_two_hundred_may_go_along(others, most):
    assert may_turn(others) == most


def test_the_next_fact_goes_from_what_the_last_revert_wrote(repo, root, edit, weak):
    first = edit(ROWS[0], ROWS[1], ROWS[3])
    one = revert_facts(repo, first, ("lamp",)).commit_id
    weak()
    two = revert_facts(repo, first, ("two",))
    assert (two.commit.op.params["lost"], two.commit.op.params["after"]) == (("lamp",), one)
    assert two.commit.check["turned"] == []
    alone = weights(repo, two.commit_id) - weights(repo, root)
    assert torch.linalg.matrix_rank(alone.double(), rtol=1e-4) == 1
    assert lifecycle.replay(repo, two.commit_id)[1]
    last = revert_facts(repo, first, ("stone",)).commit
    assert last.op.params["after"] == two.commit_id
    assert last.snapshot == repo.commit(root).snapshot


def test_under_a_later_edit_the_others_of_the_first_hold_and_it_stays(repo, edit, weak):
    first = edit(ROWS[0], ROWS[1])
    second = edit(ROWS[3])
    done = revert_facts(repo, first, ("lamp",))
    assert "stone" in done.commit.check["corrected"]
    assert done.commit.check["efficacy"] == 1.0
    assert Past(repo, tip(repo)).lost(second) == frozenset()
    assert lifecycle.replay(repo, done.commit_id)[1]
    weak()
    assert revert_facts(repo, first, ("stone",)).commit.op.params["after"] == done.commit_id


def test_where_two_lines_met_that_took_back_different_facts_neither_is_what_is_written(repo, edit):
    first = edit(ROWS[0], ROWS[1], ROWS[3])
    one = revert_facts(repo, first, ("lamp",), ref=first, branch="one").commit_id
    revert_facts(repo, first, ("two",), ref=first, branch="other")
    behind = Past(repo, one)
    asked = RevertFacts(rev=first, facts=("stone",))
    assert asked.foresee(behind).after == one

    class Met:
        """Behind a merge of both."""

        kept = staticmethod(behind.kept)

        def lost(self, _):
            return frozenset({"lamp", "two"})

    assert asked.foresee(Met()).after == ""


@pytest.mark.parametrize(
    ("which", "ids", "reason"),
    [
        (0, ("nobody",), "wrote no fact 'nobody'"),
        (0, (), "no fact was named"),
        (1, ("lamp",), "is no edit that still holds here"),
    ],
)
def test_what_cannot_be_taken_back_is_said_and_nothing_is_recorded(repo, root, edit, which, ids, reason):
    first = edit(ROWS[0])
    with pytest.raises(BadParameter, match=reason):
        revert_facts(repo, (first, root)[which], ids)
    assert tip(repo) == first


def test_a_fact_is_taken_back_once_and_only_behind_the_branch(repo, root, edit):
    first = edit(ROWS[0], ROWS[3])
    revert_facts(repo, first, ("lamp",))
    with pytest.raises(BadParameter, match="taken back already"):
        revert_facts(repo, first, ("lamp",))
    with pytest.raises(BadParameter, match="not part of the history"):
        revert_facts(repo, first, ("lamp",), ref=root, branch="other")


def test_without_its_artifacts_an_edit_can_only_go_whole(repo, edit, monkeypatch):
    first = edit(ROWS[0], ROWS[3])
    monkeypatch.setattr("mlc.policies.runs.ActiveRun.kept", lambda *_: None)
    with pytest.raises(CheckFailed, match="no longer keeps its edit-factors"):
        revert_facts(repo, first, ("lamp",))
    assert tip(repo) == first
    assert lifecycle.revert(repo, first).means == "exact bytes of the parent"


def test_subjects_of_which_nothing_stays_and_those_that_share_are_told_apart():
    gone, shared = affected([["a"], ["b", "c"], ["d", "e"]], ["a", "c", "d", "e"])
    assert (gone.tolist(), shared) == ([True, False, True], [1])


def test_paths_of_facts_are_not_needed_any_more(repo, edit, facts):
    first = edit(ROWS[0], ROWS[3])
    Path(facts(ROWS[0])).unlink()
    assert revert_facts(repo, first, ("lamp",)).ref_moved


# --- earlier edits are held to ----------------------------------------------------------------------------------


def test_a_later_edit_is_judged_by_what_it_leaves_of_the_earlier_ones(repo, edit):
    first = repo.commit(edit(ROWS[0]))
    assert (first.check["earlier_facts"], first.check["earlier_efficacy"]) == (0, None)
    second = repo.commit(edit(ROWS[3]))
    assert (second.check["earlier_facts"], second.check["earlier_efficacy_before"]) == (1, 1.0)
    again = repo.commit(edit({**ROWS[3], "target_new": "stone"}, on_conflict="new"))
    assert again.check["earlier_facts"] == 1  # the lamp; what is written anew is no earlier fact


def said(rule: str, **check) -> str:
    facts = Facts("edit", check={"landed": True, **check})
    return next(o.outcome for o in judge(load_files([BUILT_IN])[0], facts).rules if o.rule == rule)


def test_the_gate_refuses_what_undoes_earlier_edits():
    assert said("earlier-edits", earlier_facts=10, earlier_efficacy=0.7) == "fail"
    assert said("earlier-edits", earlier_facts=10, earlier_efficacy=0.8) == "pass"
    assert said("earlier-edits", earlier_facts=0, earlier_efficacy=None) == "skipped"


def test_the_gate_refuses_what_pushes_other_subjects_out():
    assert said("other-subjects", other_subjects=0.58) == "fail"
    assert said("other-subjects", other_subjects=0.8) == "pass"
    assert said("other-subjects", other_subjects=None) == "skipped"  # the fact file asks nobody else
