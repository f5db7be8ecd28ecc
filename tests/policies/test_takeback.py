"""Going back: rollback proven by digest, revert to the bit, and what cannot be taken back alone."""

from __future__ import annotations

import pytest

from mlc.policies import lifecycle
from mlc.registry.errors import BadParameter, GateRefused, HashMismatch, Incompatible, MissingObject
from mlc.tests.policies.operations import GATE, NORM, UP, Remembering, Scale


def scaled(repo, tensor=UP, factor=1.01, **how):
    return lifecycle.run(repo, Scale(tensor=tensor, factor=factor), author="a", **how)


def snapshot_at(repo, rev):
    return repo.commit(repo.resolve(rev)).snapshot


# --- rollback --------------------------------------------------------------------------------------------


def test_a_rollback_is_a_new_commit_with_the_old_content(repo, root):
    second = scaled(repo)
    third = scaled(repo, NORM)

    outcome = lifecycle.rollback(repo, "main~2", author="a", message="back")

    commit = repo.commit(repo.branches()["main"])
    assert outcome.commit_id == commit.id
    assert commit.parents == (third.commit_id,)
    assert commit.snapshot == repo.commit(root).snapshot != second.commit.snapshot
    assert commit.verdict.outcome == "ungated"
    assert commit.op.params == {"to": root}
    assert commit.check["equal_to"] == root
    assert commit.check["tensors_verified"] == len(repo.snapshot(commit.snapshot).tensors)
    assert {d.tensor for d in outcome.deltas} == {UP, NORM}
    assert sum(d.bytes_stored for d in outcome.deltas) == 0


def test_a_rollback_proves_every_byte_and_says_when_one_is_damaged(repo, root):
    scaled(repo)
    wanted = repo.view(root).entry(UP).digest
    pack = next((repo.path / "objects").glob("pack-*.pack"))
    info = repo.objects.info(wanted)
    pack = repo.path / "objects" / f"pack-{info.pack}.pack"
    data = bytearray(pack.read_bytes())
    data[info.offset + info.stored_size // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    from mlc.registry.repository import Repository

    fresh = Repository.open(repo.path)
    before = fresh.refs.all()
    with pytest.raises((HashMismatch, MissingObject)) as caught:
        lifecycle.rollback(fresh, root, author="a")
    assert caught.value.exit_code == 7
    assert fresh.refs.all() == before


def test_a_rollback_to_refused_content_is_refused(repo, root, strict):
    with pytest.raises(GateRefused) as caught:
        scaled(repo, factor=50.0)
    before = repo.refs.all()
    with pytest.raises(GateRefused, match="main cannot return to it"):
        lifecycle.rollback(repo, caught.value.details["commit"], author="a")
    assert repo.refs.all() == before


def test_a_rollback_to_where_the_branch_is_records_nothing(repo, root):
    outcome = lifecycle.rollback(repo, root, author="a")
    assert (outcome.commit_id, outcome.ref_moved) == (root, False)


def test_a_rollback_can_be_undone(repo, root):
    tip = scaled(repo).commit_id
    lifecycle.rollback(repo, root, author="a")
    lifecycle.undo(repo, "a")
    assert repo.branches()["main"] == tip
    lifecycle.redo(repo, "a")
    assert snapshot_at(repo, "main") == snapshot_at(repo, root)


def test_a_dry_run_of_a_rollback_says_what_would_change(repo, root):
    scaled(repo)
    plan = lifecycle.rollback(repo, root, author="a", dry_run=True).plan
    assert plan.touches == (UP,)


def test_a_rollback_keeps_the_numbers_that_were_measured(repo, tiny, settings):
    from mlc.tests.factories import facts_suite

    facts_suite(repo.root / "suites")
    settings('[eval]\nsuites = ["suites/*.toml"]')
    root = lifecycle.import_model(repo, tiny, author="a")
    scaled(repo)
    back = lifecycle.rollback(repo, root.commit_id, author="a").commit
    assert back.metrics == root.commit.metrics
    assert back.evaluations == root.commit.evaluations


# --- revert ----------------------------------------------------------------------------------------------


def test_reverting_the_tip_returns_the_exact_snapshot_of_its_parent(repo, root):
    scaled(repo)
    outcome = lifecycle.revert(repo, "HEAD", author="a")
    assert outcome.commit.snapshot == repo.commit(root).snapshot
    assert outcome.means == "exact bytes of the parent"
    assert outcome.commit.verdict.outcome == "accepted"  # judged, not waved through


def test_reverting_an_earlier_change_restores_its_tensors_and_keeps_the_later_ones(repo, root):
    first = scaled(repo, UP)
    lifecycle.run(repo, Remembering(), author="a")
    third = scaled(repo, NORM)

    outcome = lifecycle.revert(repo, first.commit_id, author="a")

    view, old, late = (repo.view(c) for c in (outcome.commit_id, root, third.commit_id))
    assert view.entry(UP).digest == old.entry(UP).digest
    assert view.entry(NORM).digest == late.entry(NORM).digest
    assert view.file("notes.txt") == b"hello"
    assert outcome.means == "exact bytes of the tensors that it changed"
    assert outcome.commit.op.params == {"rev": first.commit_id, "parent": root}


def test_reverting_a_file_change_restores_the_file(repo, root):
    made = lifecycle.run(repo, Remembering(), author="a")
    scaled(repo)
    outcome = lifecycle.revert(repo, made.commit_id, author="a")
    assert repo.view(outcome.commit_id).file("notes.txt") is None


def test_reverting_what_a_later_commit_changed_again_names_the_tensors(repo, root):
    first = scaled(repo, UP)
    scaled(repo, UP, 1.02)
    before = repo.refs.all()

    with pytest.raises(Incompatible) as caught:
        lifecycle.revert(repo, first.commit_id, author="a")

    assert caught.value.exit_code == 6
    assert UP in caught.value.message
    assert caught.value.details["touched"] == [UP]
    assert repo.refs.all() == before


def test_reverting_twice_says_that_nothing_is_left(repo, root):
    made = scaled(repo, UP)
    scaled(repo, NORM)
    once = lifecycle.revert(repo, made.commit_id, author="a")
    again = lifecycle.revert(repo, made.commit_id, author="a")
    assert (again.commit_id, again.ref_moved) == (once.commit_id, False)
    assert "nothing of" in again.warnings[0]


def test_a_revert_that_breaks_a_rule_moves_nothing(repo, root, rules):
    scaled(repo, factor=50.0)
    tip = repo.branches()["main"]
    rules('[[rule]]\nid = "still"\nmetric = "delta.max_abs"\nmax = 0.5')
    with pytest.raises(GateRefused):
        lifecycle.revert(repo, tip, author="a")
    assert repo.branches()["main"] == tip


def test_what_cannot_be_reverted_is_said(repo, root, tiny):
    with pytest.raises(BadParameter, match="is a root"):
        lifecycle.revert(repo, "HEAD", author="a")
    elsewhere = scaled(repo, GATE, ref=root, branch="other").commit_id
    with pytest.raises(BadParameter, match="not part of the history of main"):
        lifecycle.revert(repo, elsewhere, author="a")
    made = scaled(repo)
    with pytest.raises(BadParameter, match="has no parent 2"):
        lifecycle.revert(repo, made.commit_id, parent=2, author="a")


def test_reverting_a_merge_needs_the_side_to_return_to(repo, root):
    from mlc.policies.candidate import Candidate, enter, op_record
    from mlc.policies.outcome import Request
    from mlc.policies.targets import aim

    left = scaled(repo, UP).commit_id
    right = scaled(repo, NORM, ref=root, branch="right").commit_id
    request = Request.of(repo, author="a")
    with repo.ingest() as tx:  # a merge by hand: the left side's content with two parents
        snapshot = repo.snapshot(repo.commit(left).snapshot)
        merged = enter(repo, tx, request, Candidate(aim(repo, "main", None), op_record("merge", {}), snapshot, (left, right)))

    with pytest.raises(BadParameter) as caught:
        lifecycle.revert(repo, merged.commit_id, author="a")
    assert caught.value.hint == "say which side to return to: --parent 1"

    outcome = lifecycle.revert(repo, merged.commit_id, parent=2, author="a")
    assert outcome.commit.snapshot == repo.commit(right).snapshot
