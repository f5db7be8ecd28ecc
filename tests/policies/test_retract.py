"""Taking the new blocks of an update out: the parent to the byte, later changes kept, and what is in the way said."""

from __future__ import annotations

import hashlib

import pytest

from mlc.ops.update.train import Update
from mlc.policies import lifecycle
from mlc.policies.past import Past
from mlc.policies.rehearsal import Rehearsal
from mlc.policies.retract import retract
from mlc.policies.targets import Target
from mlc.registry.errors import BadParameter, HashMismatch, Incompatible, MissingObject, MlcError
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.policies.operations import Scale

SHORT = {"steps": 6, "batch": 4, "seq_len": 12, "lr": 1e-2, "save_every": 0}
OLD, NEW = "model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "new.txt"
    path.write_text(" ".join(WORDS[i * 7 % len(WORDS)] for i in range(600)), encoding="utf-8")  # every word decides the next one
    return str(path)


def grow(repo, text, **more):
    where = {k: v for k, v in more.items() if k != "branch"}
    where = where if where.get("where") == "importance" else {"expand": 1, "where": "1"} | where
    outcome = lifecycle.run(repo, Update(data=text, **SHORT, **where), author="a", branch=more.get("branch"))
    assert outcome.commit_id is not None
    return outcome.commit_id


def content(repo, rev):
    return repo.commit(repo.resolve(rev)).snapshot


def sums(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


# --- the tip ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "where"),
    [
        ("llama", {"where": "importance"}),
        ("gpt2", {"expand": 2, "where": "stack-side"}),
        ("neox", {"expand": 1, "where": "0"}),
        ("qwen3", {"expand": 1, "where": "1", "init": "copy"}),
    ],
)
def test_the_parent_stands_again_to_the_byte(repo, text, family, where, tmp_path):
    model = tiny_model(tmp_path / "model", family, layers=3)
    root = lifecycle.import_model(repo, model, author="a").commit_id
    grown = grow(repo, text, **where)
    outcome = retract(repo, "main", author="a")
    commit = outcome.commit
    assert content(repo, grown) != commit.snapshot == repo.commit(root).snapshot
    assert commit.parents == (grown,)
    assert commit.verdict.outcome == "ungated"
    assert commit.check["proved"] is True
    assert commit.check["equal_to"] == root
    before = len(repo.snapshot(commit.snapshot).tensors)
    assert commit.check["old_tensors_equal"] == commit.check["tensors_verified"] == before
    assert commit.check["new_tensors_removed"] == len(repo.snapshot(content(repo, grown)).tensors) - before
    assert sum(delta.bytes_stored for delta in outcome.deltas) == 0
    from mlc.registry.formats.export import export

    export(repo, repo.snapshot(commit.snapshot), tmp_path / "out")
    assert sums(tmp_path / "out") == sums(model)


def test_what_is_gone_is_not_behind_any_more_and_cannot_go_twice(repo, root, text):
    grown = grow(repo, text)
    assert grown in [c for c, _ in Past(repo, grown).standing]
    tip = retract(repo, "main", author="a").commit_id
    assert grown not in [c for c, _ in Past(repo, tip).standing]
    again = retract(repo, grown, author="a")
    assert (again.commit_id, again.ref_moved) == (tip, False)
    assert "nothing of" in again.warnings[0]


def test_a_dry_run_writes_nothing(repo, root, text):
    grown = grow(repo, text)
    plan = retract(repo, "main", author="a", dry_run=True).plan
    assert plan.details == {"blocks_removed": [2]}
    assert NEW in plan.touches
    assert OLD not in plan.touches
    assert repo.branches()["main"] == grown


def test_an_undone_retract_leaves_the_grown_model(repo, root, text):
    grown = grow(repo, text)
    retract(repo, "main", author="a")
    lifecycle.undo(repo, "a")
    assert repo.branches()["main"] == grown


# --- with later commits ----------------------------------------------------------------------------------


def test_later_changes_of_old_tensors_stay_under_their_old_names(repo, tiny, text):
    lifecycle.import_model(repo, tiny, author="a")
    grown = grow(repo, text, where="0")  # blocks: 0, new 1, and the old 1 is 2 now
    name = "model.layers.2.mlp.gate_proj.weight"
    tip = lifecycle.run(repo, Scale(tensor=name, factor=1.01), author="a").commit_id
    outcome = retract(repo, grown, author="a")
    here, start = repo.view(content(repo, "main")), repo.view(content(repo, "main~3"))
    assert outcome.commit.parents == (tip,)
    assert outcome.commit.check["proved"] is False
    assert outcome.commit.check["carried"] == 1
    assert outcome.verdict.outcome != "ungated"
    was = "model.layers.1.mlp.gate_proj.weight"
    assert here.entry(was).digest == repo.view(content(repo, tip)).entry(name).digest != start.entry(was).digest
    assert {n for n in start.names() if here.entry(n).digest != start.entry(n).digest} == {was}
    assert here.names() == start.names()
    assert here.file("config.json") == start.file("config.json")


def test_later_changes_of_the_new_blocks_are_in_the_way(repo, root, text):
    grown = grow(repo, text)
    lifecycle.run(repo, Scale(tensor=NEW, factor=1.01), author="a")
    with pytest.raises(Incompatible, match=r"later commits changed 'model\.layers\.2\.mlp\.up_proj\.weight'") as caught:
        retract(repo, grown, author="a")
    assert "--branch NAME" in caught.value.hint
    beside = retract(repo, grown, author="a", branch="beside")
    assert beside.commit.snapshot == content(repo, root)
    assert beside.branch == "beside"


def test_blocks_that_were_added_on_top_go_first(repo, root, text):
    first, second = grow(repo, text), grow(repo, text)
    with pytest.raises(Incompatible, match=r"config\.json"):
        retract(repo, first, author="a")
    retract(repo, second, author="a")
    assert content(repo, "main") == content(repo, first)
    assert retract(repo, first, author="a").commit.snapshot == content(repo, root)


# --- what is refused -------------------------------------------------------------------------------------


def test_a_commit_that_added_no_blocks_is_refused(repo, root, text):
    with pytest.raises(BadParameter, match="added no blocks: it was made by import"):
        retract(repo, "main", author="a")
    lifecycle.run(repo, Scale(), author="a")
    with pytest.raises(BadParameter, match="made by scale"):
        retract(repo, "main", author="a")


@pytest.mark.parametrize("more", [{"source": "tuned"}, {"tune": 1}])
def test_an_update_that_trained_old_blocks_as_well_is_refused(repo, root, text, more):
    grown = grow(repo, text, **more)
    with pytest.raises(Incompatible, match="trained old blocks as well") as caught:
        retract(repo, "main", author="a")
    assert f"mlc revert {grown[:12]}" in caught.value.hint


def test_a_tag_needs_a_branch_and_an_id_must_be_behind_head(repo, root, text):
    grown = grow(repo, text, branch="side")
    lifecycle.set_name(repo, "tag", "v1", "side", author="a")
    with pytest.raises(BadParameter, match="v1 is not a branch"):
        retract(repo, "v1", author="a")
    with pytest.raises(BadParameter, match="not part of the history of main"):
        retract(repo, grown, author="a")
    assert retract(repo, "v1", author="a", branch="out").commit.snapshot == content(repo, root)


def test_a_damaged_parent_is_told_and_nothing_moves(repo, root, text):
    grown = grow(repo, text)
    info = repo.objects.info(repo.view(root).entry(OLD).digest)
    pack = repo.path / "objects" / f"pack-{info.pack}.pack"
    data = bytearray(pack.read_bytes())
    data[info.offset + info.stored_size // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    from mlc.registry.repository import Repository

    fresh = Repository.open(repo.path)
    with pytest.raises((HashMismatch, MissingObject)):
        retract(fresh, "main", author="a")
    assert fresh.branches()["main"] == grown


# --- previews --------------------------------------------------------------------------------------------


def test_a_preview_keeps_nothing_and_uses_what_is_kept(repo, root, text):
    def files():
        return sorted(p for p in repo.path.rglob("*") if p.is_file())

    before, op = files(), Update(data=text, **SHORT, tune=1)
    plan = lifecycle.run(repo, op, author="a", dry_run=True).plan
    assert [row["plan"] for row in plan.details["blocks"]] == ["frozen", "tuned"]
    assert files() == before
    made = lifecycle.run(repo, op, author="a").commit
    assert made.check["blocks"] == plan.details["blocks"]


def test_a_preview_makes_no_key(repo, root):
    run = Rehearsal(repo, Target(root, "main", root), 0, 1)
    with pytest.raises(MlcError, match="pseudonym"):
        run.pseudonym(b"text", scope="registry")
    assert run.load_state() is None
    assert run.artifact("kind", "key", lambda: b"one") == run.artifact("kind", "key", lambda: b"two") == b"one"
