"""`accept`: a person overrules the gate, in writing, and only for the branch as it was judged."""

from __future__ import annotations

import pytest

from mlc.policies import lifecycle
from mlc.policies.standing import expired, standing
from mlc.registry.errors import BadParameter, GateRefused, RefMoved
from mlc.tests.policies.conftest import STRICT
from mlc.tests.policies.operations import NORM, Scale

TWO = STRICT + '\n[[rule]]\nid = "few-tensors"\nmetric = "delta.tensors_changed"\nmax = 0\n'


@pytest.fixture
def refused(repo, root, rules):
    """A candidate for main that two rules refuse."""
    rules(TWO)
    with pytest.raises(GateRefused) as caught:
        lifecycle.run(repo, Scale(factor=50.0), author="a")
    return caught.value.details["commit"]


def accept(repo, rev, waive=("hands-off", "few-tensors"), reason="the customer wants it", **more):
    return lifecycle.accept(repo, rev, waive=list(waive), reason=reason, author="boss", **more)


def test_a_waiver_for_every_failed_rule_moves_the_branch_to_the_very_commit(repo, root, refused):
    outcome = accept(repo, refused[:10], until="2999-12-31")

    assert repo.branches() == {"main": refused}
    assert (outcome.commit_id, outcome.ref_moved, outcome.branch) == (refused, True, "main")
    assert outcome.verdict.outcome == "accepted"
    assert [o.outcome for o in outcome.verdict.rules] == ["waived", "waived"]
    assert [(w.rule, w.reason, w.author, w.until) for w in outcome.verdict.waivers] == [
        ("hands-off", "the customer wants it", "boss", "2999-12-31"),
        ("few-tensors", "the customer wants it", "boss", "2999-12-31"),
    ]
    assert repo.commit(refused).verdict.outcome == "refused"  # what was said then stays on the chain
    assert standing(repo, refused).outcome == "accepted"
    assert lifecycle.run(repo, Scale(factor=1.0001, tensor=NORM), author="a", config=no_rules(repo)).ref_moved  # it can be built on


def no_rules(repo):
    import dataclasses

    from mlc.policies.settings import Settings

    return dataclasses.replace(Settings.default(repo.root), policy_files=())


def test_while_another_rule_stands_against_it_nothing_moves(repo, root, refused):
    with pytest.raises(GateRefused) as caught:
        accept(repo, refused, waive=["hands-off"])
    assert "still refused by rule few-tensors" in caught.value.message
    assert caught.value.hint == "--waive hands-off --waive few-tensors"
    assert repo.branches() == {"main": root}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"waive": ["hands-of"]}, "no rule 'hands-of' was judged here"),
        ({"waive": []}, "no rule was named"),
        ({"reason": "  "}, "a waiver needs a reason"),
        ({"until": "2001-01-01"}, "the waiver would end on 2001-01-01, which has passed"),
        ({"until": "tomorrow"}, "--until 'tomorrow' is not a date"),
    ],
)
def test_a_waiver_must_name_a_rule_a_reason_and_a_day_to_come(repo, root, refused, change, message):
    with pytest.raises(BadParameter, match=message) as caught:
        accept(repo, refused, **change)
    assert caught.value.exit_code == 2
    assert repo.branches() == {"main": root}
    if change.get("waive"):
        assert caught.value.hint == "did you mean 'hands-off'?"


def test_a_rule_that_did_not_fail_cannot_be_waived(repo, root, rules):
    rules(STRICT + '\n[[rule]]\nid = "fine"\nmetric = "delta.tensors_removed"\nmax = 0\n')
    with pytest.raises(GateRefused) as caught:
        lifecycle.run(repo, Scale(factor=50.0), author="a")
    with pytest.raises(BadParameter, match="rule 'fine' did not fail"):
        accept(repo, caught.value.details["commit"], waive=["fine"])


def test_a_branch_that_went_on_meanwhile_is_not_thrown_back(repo, root, refused):
    tip = lifecycle.run(repo, Scale(factor=1.01), author="a", config=no_rules(repo)).commit_id

    with pytest.raises(RefMoved, match=r"branch main has moved since .* was judged") as caught:
        accept(repo, refused)
    assert caught.value.exit_code == 9
    assert repo.branches() == {"main": tip}

    outcome = accept(repo, refused, branch="theirs")
    assert repo.branches() == {"main": tip, "theirs": refused}
    assert outcome.branch == "theirs"


def test_a_candidate_for_a_branch_that_was_to_be_started_starts_it(repo, root, rules):
    rules(TWO)
    with pytest.raises(GateRefused) as caught:
        lifecycle.run(repo, Scale(factor=50.0), ref=root, branch="trial", author="a")
    assert "trial" not in repo.branches()
    accept(repo, caught.value.details["commit"])
    assert repo.branches()["trial"] == caught.value.details["commit"]


def test_what_was_not_refused_cannot_be_accepted_nor_twice(repo, root, refused):
    with pytest.raises(BadParameter, match="was not refused"):
        accept(repo, root)
    accept(repo, refused)
    with pytest.raises(BadParameter, match="was not refused"):
        accept(repo, refused)


def test_an_acceptance_can_be_undone_and_the_waiver_runs_out(repo, root, refused):
    from datetime import date

    accept(repo, refused, until="2999-01-01")
    assert expired(standing(repo, refused)) == []
    assert [w.rule for w in expired(standing(repo, refused), date(2999, 1, 2))] == ["hands-off", "few-tensors"]
    lifecycle.undo(repo, "a")
    assert repo.branches() == {"main": root}
