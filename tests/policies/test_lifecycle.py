"""The conductor: one road for every operation, and nothing on it that moves a ref without a verdict."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from mlc.policies import lifecycle
from mlc.policies.runs import Runs
from mlc.policies.settings import Settings
from mlc.registry.errors import BadParameter, CheckFailed, GateRefused, InputNotFound, RefMoved, RefNotFound
from mlc.tests.policies.operations import NORM, UP, Remembering, Scale, Steps, times_computed


def unchanged(repo, work, fault):
    """Run `work`, expect `fault`, and prove that no ref and no commit came of it."""
    before = repo.refs.all(), sorted(p.name for p in repo.commits_dir.iterdir())
    with pytest.raises(fault) as caught:
        work()
    assert (repo.refs.all(), sorted(p.name for p in repo.commits_dir.iterdir())) == before
    return caught.value


# --- accepted --------------------------------------------------------------------------------------------


def test_an_accepted_change_becomes_the_tip_of_its_branch(repo, root):
    outcome = lifecycle.run(repo, Scale(factor=1.01), author="ada", message="a little more", seed=7)

    commit = repo.commit(repo.branches()["main"])
    assert outcome.commit_id == commit.id == repo.resolve("main")
    assert outcome.ref_moved
    assert commit.parents == (root,)
    assert (commit.op.name, commit.op.version) == ("scale", 1)
    assert commit.op.params == {"tensor": UP, "factor": 1.01, "passes": True, "told": "*"}
    assert (commit.author, commit.message, commit.seeds) == ("ada", "a little more", {"run": 7})
    assert commit.verdict.outcome == "accepted"
    assert commit.verdict.against == root
    assert commit.check == {"factor": 1.01, "landed": True}
    assert [(r.role, r.name) for r in commit.inputs] == [("data", "numbers.txt"), ("policy", "default.toml")]
    assert {"mlc", "python", "machine", "torch", "transformers", "device", "threads"} <= commit.environment.keys()
    assert Runs(repo).list() == []


def test_only_what_the_operation_named_differs_from_the_parent(repo, root):
    outcome = lifecycle.run(repo, Scale(factor=1.01), author="a")

    old, new = (repo.view(c) for c in (root, outcome.commit_id))
    assert [n for n in old.names() if old.entry(n).digest != new.entry(n).digest] == [UP]
    assert (new.tensor(UP) == old.tensor(UP) * 1.01).all()
    assert [(d.tensor, d.nnz, d.rel_l2 is not None) for d in outcome.deltas] == [(UP, 512, True)]


def test_the_same_seed_gives_the_same_snapshot_and_an_artifact_is_computed_once(repo, root):
    first = lifecycle.run(repo, Remembering(), author="a")
    second = lifecycle.run(repo, Remembering(), ref=root, branch="again", author="a")

    assert first.commit.snapshot == second.commit.snapshot
    assert times_computed(repo) == 1
    artifact = first.commit.artifacts[0]
    assert (artifact.kind, artifact.key, artifact.bytes) == ("sums", "key of the data", 10)
    assert repo.blob(artifact.digest) == b"a long sum"
    assert repo.view(first.commit_id).file("notes.txt") == b"hello"


def test_a_dry_run_answers_with_the_plan_and_writes_nothing(repo, root):
    files = sorted(p for p in repo.path.rglob("*") if p.is_file())

    outcome = lifecycle.run(repo, Scale(), author="a", dry_run=True)

    assert outcome.plan.summary == f"scale {UP}"
    assert outcome.commit is None
    assert sorted(p for p in repo.path.rglob("*") if p.is_file()) == files


def test_progress_is_passed_on(repo, root):
    seen = []

    class Telling(Scale):
        def apply(self, view, run):
            run.progress("scale", 1, 2, loss=0.5)
            yield from super().apply(view, run)

    lifecycle.run(repo, Telling(factor=1.01), author="a", progress=lambda *told, **values: seen.append((*told, values)))
    assert seen == [("scale", 1, 2, {"loss": 0.5})]


# --- refused ---------------------------------------------------------------------------------------------


def test_a_refused_gate_leaves_the_ref_where_it_was_and_keeps_the_candidate(repo, root, strict):
    with pytest.raises(GateRefused) as caught:
        lifecycle.run(repo, Scale(factor=50.0), author="a")

    assert repo.refs.all() == {"heads/main": root}
    outcome = caught.value.details["outcome"]
    assert not outcome.ref_moved
    kept = repo.commit(repo.resolve(outcome.commit_id[:12]))
    assert kept.verdict.outcome == "refused"
    assert kept.parents == (root,)
    assert (repo.view(kept.id).tensor(UP) == repo.view(root).tensor(UP) * 50).all()
    assert caught.value.exit_code == 4
    assert "refused by rule hands-off: the largest change of a weight is" in caught.value.message
    assert "main did not move" in caught.value.message
    assert caught.value.hint == f"mlc accept {kept.id[:12]} --waive hands-off --reason TEXT"


def test_weights_that_are_no_numbers_break_a_weight_budget(repo, root, strict):
    with pytest.raises(GateRefused, match="is not a finite number"):
        lifecycle.run(repo, Scale(factor=float("nan")), author="a")


def test_nothing_can_be_built_on_a_refused_candidate(repo, root, strict):
    with pytest.raises(GateRefused) as caught:
        lifecycle.run(repo, Scale(factor=50.0), author="a")
    bad = caught.value.details["commit"]

    # Beside its own refused parent the next change is small: without this law it would carry the parent in.
    fault = unchanged(repo, lambda: lifecycle.run(repo, Scale(factor=1.001), ref=bad, branch="way-round", author="a"), GateRefused)
    assert "nothing can be built on it" in fault.message


def test_a_failed_check_commits_nothing(repo, root):
    fault = unchanged(repo, lambda: lifecycle.run(repo, Scale(passes=False), author="a"), CheckFailed)

    assert fault.message == "the weights did not obey; nothing was committed"
    assert fault.hint == "try another factor"
    assert fault.details["check"] == {"factor": 1.5, "landed": True}
    assert Runs(repo).list() == []


def test_a_change_that_the_plan_did_not_name_is_stopped(repo, root):
    fault = unchanged(repo, lambda: lifecycle.run(repo, Scale(told=NORM), author="a"), CheckFailed)
    assert fault.message == f"scale changed {UP}, which its plan did not name"


@pytest.mark.parametrize("place", ["policy", "suite"])
def test_a_broken_policy_or_suite_is_found_before_any_work(repo, root, rules, settings, place):
    if place == "policy":
        rules('[[rule]]\nid = "x"\nmetric = "suite.*.accuracy"\nmin = 0.5\nagainst = "no-such-branch"')
    else:
        settings('[eval]\nsuites = ["gone.toml"]')

    class Never(Scale):
        def apply(self, view, run):
            raise AssertionError("work was begun")

    with pytest.raises((InputNotFound, Exception)) as caught:
        lifecycle.run(repo, Never(), author="a")
    assert type(caught.value).__name__ in ("BadRecipe", "InputNotFound")


def test_a_rule_may_ask_the_catalog(repo, root, rules):
    rules("[[rule]]\nid = \"one-import\"\nsql = \"select 1 from commits where op = 'import' and 'main' = $branch and commit = $parent\"")
    with pytest.raises(GateRefused, match="the query returned 1 row, the first"):
        lifecycle.run(repo, Scale(), author="a")


def test_without_any_rule_the_result_says_that_nothing_was_judged(repo, root, settings):
    settings("[policy]\nfiles = []")
    outcome = lifecycle.run(repo, Scale(factor=50.0), author="a")
    assert outcome.verdict.outcome == "accepted"
    assert "no rule is in force: nothing was judged" in outcome.warnings


# --- branches --------------------------------------------------------------------------------------------


def test_an_operation_on_a_branch_moves_that_branch_and_no_other(repo, root):
    lifecycle.set_name(repo, "branch", "dev", author="a")
    outcome = lifecycle.run(repo, Scale(factor=1.01), ref="dev", author="a")
    assert (repo.branches()["dev"], repo.branches()["main"]) == (outcome.commit_id, root)


@pytest.mark.parametrize("ref", ["v1", "main~0", "id"])
def test_an_operation_on_a_tag_or_id_needs_a_branch(repo, root, ref):
    lifecycle.set_name(repo, "tag", "v1", author="a")
    ref = root if ref == "id" else ref
    fault = unchanged(repo, lambda: lifecycle.run(repo, Scale(), ref=ref, author="a"), BadParameter)
    assert fault.hint == "start a branch there: --branch NAME"

    outcome = lifecycle.run(repo, Scale(factor=1.01), ref=ref, branch="new", author="a")
    assert repo.branches() == {"main": root, "new": outcome.commit_id}


def test_a_branch_that_exists_is_in_the_way_unless_it_stands_at_the_start(repo, root):
    moved = lifecycle.run(repo, Scale(factor=1.01), author="a").commit_id
    lifecycle.set_name(repo, "branch", "here", root, author="a")

    fault = unchanged(repo, lambda: lifecycle.run(repo, Scale(), ref=root, branch="main", author="a"), RefMoved)
    assert fault.exit_code == 9

    outcome = lifecycle.run(repo, Scale(factor=1.01, tensor=NORM), ref=root, branch="here", author="a")
    assert repo.branches() == {"here": outcome.commit_id, "main": moved}


def test_a_name_that_no_branch_can_have_is_refused_before_any_work(repo, root):
    with pytest.raises(BadParameter):
        lifecycle.run(repo, Scale(), branch="Not/../Good", author="a")


def test_on_an_empty_registry_the_hint_is_to_import(repo):
    with pytest.raises(RefNotFound) as caught:
        lifecycle.run(repo, Scale(), author="a")
    assert caught.value.hint == "mlc import DIR"


def test_two_writers_at_once_one_wins_and_the_other_is_told_how_to_keep_its_work(repo, root):
    class Slow(Scale):
        def check(self, before, after, run):
            inner = lifecycle.run(repo, Scale(factor=1.02), author="b")
            assert inner.ref_moved
            return super().check(before, after, run)

    with pytest.raises(RefMoved) as caught:
        lifecycle.run(repo, Slow(factor=1.01), author="a")

    assert repo.commit(repo.resolve("main")).author == "b"
    unfinished = Runs(repo).list()[0].id
    assert caught.value.hint == f"mlc scale --resume {unfinished} --branch NAME keeps the result on a branch of its own"
    outcome = lifecycle.run(repo, Scale(factor=1.01), resume=unfinished, branch="mine", author="a")
    assert repo.branches()["mine"] == outcome.commit_id


def test_threads_that_change_different_branches_do_not_disturb_each_other(repo, root):
    names = ["x", "y", "z"]

    def work(name: str) -> None:
        lifecycle.run(repo, Scale(factor=1.01), ref=root, branch=name, author=name)

    workers = [threading.Thread(target=work, args=(name,)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert {repo.commit(repo.branches()[name]).author for name in names} == set(names)


# --- replay ----------------------------------------------------------------------------------------------


def test_a_replay_reaches_the_same_snapshot_and_records_nothing(repo, root, monkeypatch):
    from mlc.ops import catalog

    monkeypatch.setattr(catalog, "CATALOG", {"scale": "x", "steps": "x"})
    monkeypatch.setattr(catalog, "load", {"scale": Scale, "steps": Steps}.__getitem__)
    made = lifecycle.run(repo, Scale(factor=1.01), author="a")
    seq = repo.journal.head()

    again, same = lifecycle.replay(repo, "main", author="a")

    assert same
    assert again.commit_id == made.commit_id
    assert repo.journal.head() == seq
    assert Runs(repo).list() == []
    with pytest.raises(BadParameter, match="is a root"):
        lifecycle.replay(repo, "main~1", author="a")


def test_settings_given_by_the_caller_hold(repo, root, rules, strict):
    config = dataclasses.replace(Settings.default(repo.root), policy_files=())
    assert lifecycle.run(repo, Scale(factor=50.0), author="a", config=config).ref_moved
