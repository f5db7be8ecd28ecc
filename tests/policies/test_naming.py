"""Branches, tags and aliases: no name for what was refused; a protected alias is judged again on every move."""

from __future__ import annotations

import pytest

from mlc.policies import lifecycle
from mlc.registry.errors import BadParameter, GateRefused, RefMoved, RefNotFound
from mlc.tests.policies.conftest import STRICT
from mlc.tests.policies.operations import GATE, NORM, UP, Scale


def scaled(repo, tensor=UP, factor=1.01, **how):
    return lifecycle.run(repo, Scale(tensor=tensor, factor=factor), author="a", **how)


@pytest.mark.parametrize("kind", ["branch", "tag", "alias"])
def test_a_refused_commit_gets_no_name(repo, root, strict, kind):
    with pytest.raises(GateRefused) as caught:
        scaled(repo, factor=50.0)
    before = repo.refs.all()
    for force in (False, True):
        with pytest.raises(GateRefused, match=f"no {kind} may point at it"):
            lifecycle.set_name(repo, kind, "name", caught.value.details["commit"], force=force, author="a")
    assert repo.refs.all() == before


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_a_name_that_is_taken_moves_only_by_force(repo, root, kind):
    lifecycle.set_name(repo, kind, "name", author="a")
    tip = scaled(repo).commit_id
    with pytest.raises(RefMoved, match=f"the {kind} name exists"):
        lifecycle.set_name(repo, kind, "name", author="a")
    update = lifecycle.set_name(repo, kind, "name", force=True, author="a")
    assert (update.old, update.new) == (root, tip)
    assert lifecycle.set_name(repo, kind, "name", author="a").old == tip  # already there: nothing to do


def test_an_alias_moves_freely_and_follows_its_history(repo, root):
    lifecycle.set_name(repo, "alias", "@champion", author="a")
    tip = scaled(repo).commit_id
    lifecycle.set_name(repo, "alias", "champion", author="a")
    assert repo.aliases() == {"champion": tip}
    assert repo.resolve("@champion@{1}") == root


def test_names_are_removed_but_not_the_branch_one_stands_on(repo, root):
    lifecycle.set_name(repo, "tag", "v1", author="a")
    assert lifecycle.remove_name(repo, "tag", "v1", author="a").new is None
    assert repo.tags() == {}
    with pytest.raises(BadParameter, match="main is the current branch"):
        lifecycle.remove_name(repo, "branch", "main", author="a")
    with pytest.raises(RefNotFound):
        lifecycle.remove_name(repo, "tag", "v1", author="a")


def test_a_protected_alias_is_judged_against_what_it_stands_for_now(repo, root, rules, settings):
    settings('[policy]\nprotected = ["@champion"]')
    rules('[[rule]]\nid = "one-at-a-time"\nmetric = "delta.tensors_changed"\nmax = 1')
    lifecycle.set_name(repo, "alias", "champion", author="a")
    first = scaled(repo, UP).commit_id
    scaled(repo, NORM)
    third = scaled(repo, GATE).commit_id  # each step passes; three together are more than the alias may take

    with pytest.raises(GateRefused, match=r"@champion stays at .* is refused by rule one-at-a-time"):
        lifecycle.set_name(repo, "alias", "champion", third, author="a")
    assert repo.aliases() == {"champion": root}

    lifecycle.set_name(repo, "alias", "champion", first, author="a")
    lifecycle.set_name(repo, "alias", "other", third, author="a")  # not protected
    lifecycle.set_name(repo, "alias", "champion", root, author="a")  # back to what it stood for before
    assert repo.aliases() == {"champion": root, "other": third}


def test_a_protected_alias_does_not_move_to_what_stands_on_a_waiver_that_ran_out(repo, root, rules, settings, monkeypatch):
    from datetime import date

    from mlc.policies import naming, standing

    rules(STRICT)
    settings('[policy]\nprotected = ["champion"]')
    with pytest.raises(GateRefused) as caught:
        scaled(repo, factor=50.0)
    lifecycle.accept(repo, caught.value.details["commit"], waive=["hands-off"], reason="trial", author="a", until="2999-01-01")
    monkeypatch.setattr(naming, "expired", lambda verdict: standing.expired(verdict, date(2999, 1, 2)))

    with pytest.raises(GateRefused, match="stands on a waiver of hands-off that ended on 2999-01-01"):
        lifecycle.set_name(repo, "alias", "champion", author="a")


def test_rules_may_compare_with_an_alias_and_are_skipped_until_there_is_one(repo, tiny, rules, settings):
    from mlc.tests.factories import facts_suite

    facts_suite(repo.root / "suites")
    settings('[eval]\nsuites = ["suites/*.toml"]')
    rules('[[rule]]\nid = "champion"\nmetric = "suite.*.logprob"\ndrop_max = 5.0\nagainst = "@champion"')
    lifecycle.import_model(repo, tiny, author="a")
    assert scaled(repo).verdict.rules[0].sentence == "not judged on facts: @champion does not exist yet"

    lifecycle.set_name(repo, "alias", "champion", author="a")
    assert scaled(repo).verdict.rules[0].outcome == "pass"


def test_an_alias_that_moves_while_a_candidate_is_judged_against_it_stops_the_commit(repo, root, rules):
    rules('[[rule]]\nid = "champion"\nmetric = "suite.*.logprob"\ndrop_max = 5.0\nagainst = "@champion"')
    first = scaled(repo).commit_id
    lifecycle.set_name(repo, "alias", "champion", root, author="a")

    class Meanwhile(Scale):
        def check(self, before, after, run):
            lifecycle.set_name(repo, "alias", "champion", first, author="b")
            return super().check(before, after, run)

    with pytest.raises(RefMoved, match="@champion moved while the candidate was judged"):
        lifecycle.run(repo, Meanwhile(), author="a")
    assert repo.branches() == {"main": first}


def test_a_misspelt_argument_is_an_error_and_not_passed_over(repo, root):
    with pytest.raises(TypeError, match="mesage"):
        lifecycle.run(repo, Scale(), author="a", mesage="x")
