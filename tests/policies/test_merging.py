"""Merges as history: parents, base, pins, the gate, chains; and one ingredient taken out again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlc.policies import lifecycle
from mlc.policies.merging import merge, nearest_base, origin
from mlc.policies.takeback import revert, rollback
from mlc.policies.unmerging import ingredients_of, unmerge
from mlc.registry.errors import BadParameter, GateRefused, Incompatible, RefMoved, RefNotFound
from mlc.registry.records import canonical
from mlc.registry.repository import Repository
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView
from mlc.tests.ops.merging import sibling

LOOSE = '[[rule]]\nid = "loose"\nmetric = "delta.max_abs"\nmax = 100\n'
STILL = '[[rule]]\nid = "still"\nmetric = "delta.tensors_changed"\nmax = 0\nwhen = "op in (\'merge\', \'unmerge\')"\n'


@pytest.fixture(scope="module")
def forks(tiny, tmp_path_factory) -> dict[str, Path]:
    """Directories of three siblings of the tiny model."""
    place, base = tmp_path_factory.mktemp("forks"), MemoryView.of(tiny)
    return {name: sibling(base, seed).save(place / name) for seed, name in enumerate("abc", 1)}


@pytest.fixture(scope="module")
def made(tiny, forks, tmp_path_factory) -> Path:
    """A registry with `main` at an import, and branches a, b and c, each one change away. Not to be changed."""
    found = Repository.init(tmp_path_factory.mktemp("made") / "work")
    (found.root / "policies").mkdir(exist_ok=True)
    (found.root / "policies" / "rules.toml").write_text(LOOSE, encoding="utf-8")
    root = lifecycle.import_model(found, tiny, author="t").commit_id
    for name, place in forks.items():
        lifecycle.commit_directory(found, place, ref=root, branch=name, author="t")
    return found.root


@pytest.fixture
def repo(made, tmp_path) -> Repository:
    """A copy of it."""
    return Repository.open(Path(shutil.copytree(made, tmp_path / "work")))


@pytest.fixture
def tips(repo) -> dict[str, str]:
    """Where the branches stand."""
    return dict(repo.branches())


def go(repo, *revs, branch=None, **options):
    return merge(repo, revs, options, author="t", branch=branch)


# --- a merge -----------------------------------------------------------------------------------------------


def test_a_merge_has_its_ingredients_as_parents_in_order_and_moves_the_first_ones_branch(repo, tips):
    made = go(repo, "a", "c", "b")
    assert made.commit.parents == (tips["a"], tips["c"], tips["b"])
    assert repo.branches() == {**tips, "a": made.commit_id}
    assert made.commit.op.params["ingredients"] == (tips["a"], tips["c"], tips["b"])
    assert set(made.commit.check["parents"]) == {tips["a"], tips["b"], tips["c"]}
    assert made.verdict.against == tips["a"]
    assert repo.resolve("a^3") == tips["b"]


def test_the_base_is_the_nearest_common_ancestor_and_is_pinned(repo, tips):
    made = go(repo, "a", "b", method="ties", density=(0.5,))
    assert made.commit.op.params["base"] == tips["main"]
    assert tips["main"] not in made.commit.parents
    onwards = go(repo, "c", "a", branch="on", method="task-arithmetic")
    assert onwards.commit.op.params["method"] == "task_arithmetic"
    assert nearest_base(repo, [onwards.commit_id, tips["b"]]) == tips["b"]
    replayed, same = lifecycle.replay(repo, made.commit_id, author="t")
    assert same
    assert replayed.commit_id == made.commit_id


def test_imports_without_a_common_ancestor_are_merged_only_where_no_base_is_needed(repo, tips, forks, tmp_path):
    lone = lifecycle.import_model(repo, sibling(MemoryView.of(forks["a"]), 9).save(tmp_path / "lone"), branch="lone", author="t")
    with pytest.raises(Incompatible, match="share no ancestor: give --base"):
        go(repo, "a", "lone", method="ties")
    assert go(repo, "a", "lone", branch="mean").commit.parents == (tips["a"], lone.commit_id)
    assert go(repo, "a", "lone", branch="ties", method="ties", base="main").commit.op.params["base"] == tips["main"]


def test_a_version_with_itself_is_nothing_to_do_and_with_its_ancestor_goes_part_of_the_way(repo, tips):
    same = go(repo, "a", tips["a"])
    assert not same.ref_moved
    assert "one version" in same.warnings[0]
    with pytest.raises(BadParameter, match="named twice"):
        go(repo, "a", "b", "a")
    back = go(repo, "a", "main", weights=(0.5, 0.5), branch="half")
    name = "model.norm.weight"
    half = (repo.view(tips["a"]).tensor(name) + repo.view(tips["main"]).tensor(name)) / 2
    assert torch.allclose(repo.view(back.commit_id).tensor(name), half, atol=1e-6)
    told = go(repo, "a", "main", method="ties", branch="told")
    assert any("main is the base itself" in text for text in told.warnings)


def test_versions_that_do_not_fit_are_refused_and_nothing_is_recorded(repo, tips, tmp_path):
    torch.manual_seed(0)
    lifecycle.import_model(repo, tiny_model(tmp_path / "wide", intermediate_size=48), branch="wide", author="t")
    lifecycle.import_model(repo, tiny_model(tmp_path / "other", "gpt2"), branch="other", author="t")
    seq = repo.branches()
    for other, words in (("wide", "shapes differ: model.layers.0.mlp.down_proj.weight"), ("other", "cannot be merged")):
        with pytest.raises(Incompatible, match=words):
            go(repo, "a", other)
    with pytest.raises(BadParameter, match="two versions or more"):
        go(repo, "a")
    with pytest.raises(BadParameter, match="is not a branch"):
        go(repo, tips["a"], "b")
    assert repo.branches() == seq


def test_a_refused_candidate_is_no_ingredient_and_a_refused_merge_moves_nothing(repo, tips, rules):
    rules(STILL)
    with pytest.raises(GateRefused) as refusal:
        go(repo, "a", "b")
    candidate = refusal.value.details["commit"]
    assert repo.branches() == tips
    rules(LOOSE)
    for revs in (("a", candidate), (candidate, "a")):
        with pytest.raises(GateRefused, match="was refused"):
            go(repo, *revs, branch="new")
    accepted = repo.commit(candidate)
    assert accepted.parents == (tips["a"], tips["b"])


# --- storage -----------------------------------------------------------------------------------------------

READ = """
import sys
from pathlib import Path
import torch
from mlc.registry.repository import Repository
torch.set_num_threads(1)
repo = Repository.open(Path(sys.argv[1]))
view = repo.view(repo.resolve(sys.argv[2]))
print(torch.backends.cpu.get_cpu_capability(), sum(len(view.raw(name)) for name in view.names()))
"""


@pytest.mark.parametrize(
    "options",
    [
        {"weights": (0.3, 0.7)},
        {"method": "task_arithmetic", "lam": 0.8},
        {"method": "ties", "density": (0.4,)},
        {"method": "ties", "density": (0.4,), "scope": "model", "normalize": False},
    ],
)
def test_a_plain_sum_or_election_is_stored_in_less_than_four_kibibytes_and_read_back_without_vector_instructions(repo, tips, options):
    made = go(repo, "a", "b", **options)
    assert len(made.deltas) == len(repo.view(tips["a"]).names())
    assert sum(delta.bytes_stored for delta in made.deltas) <= 4096 - 512  # the rest is for the recipe that they share
    assert {delta.codec for delta in made.deltas} <= {"derived", "ref"}
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-P", "-c", READ, str(repo.root), made.commit_id], env=environment, capture_output=True, text=True, check=False
    )  # every tensor that is read is verified by its digest
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()[0] in ("DEFAULT", "NO")


# --- going back --------------------------------------------------------------------------------------------


def test_a_merge_is_reverted_to_the_side_that_is_named(repo, tips):
    made = go(repo, "a", "b")
    with pytest.raises(BadParameter, match="has 2 parents"):
        revert(repo, "a", ref="a", author="t")
    other = revert(repo, "a", parent=2, ref="a", author="t")
    assert other.commit.snapshot == repo.commit(tips["b"]).snapshot
    assert rollback(repo, made.commit_id, ref="a", author="t").commit.snapshot == made.commit.snapshot
    assert revert(repo, "a~2", parent=1, ref="a", author="t").commit.snapshot == repo.commit(tips["a"]).snapshot


CASES = [
    ({"weights": (0.2, 0.5, 0.3)}, 1),
    ({"method": "ties", "density": (0.5,)}, 0),
    ({"method": "dare_ties", "density": (0.5, 0.6, 0.7)}, 2),
    ({"method": "opcm"}, 0),
    ({"method": "opcm"}, 2),
]


@pytest.mark.parametrize(("options", "gone"), CASES)
def test_unmerge_gives_the_snapshot_of_the_merge_without_it(repo, tips, options, gone):
    names = ["a", "b", "c"]
    go(repo, *names, branch="all", **options)
    left = [name for name in names if name != names[gone]]
    each = {k: tuple(x for i, x in enumerate(v) if i != gone) for k, v in options.items() if isinstance(v, tuple) and len(v) == 3}
    anew = go(repo, *left, branch="anew", **{**options, **each})
    made = unmerge(repo, "all", remove=names[gone], author="t")
    assert made.commit.snapshot == anew.commit.snapshot
    assert made.commit.parents == (repo.resolve("all^"),)
    assert made.commit.op.params["removed"] == tips[names[gone]]
    last = unmerge(repo, "all", remove=left[0], author="t")
    assert last.commit.snapshot == repo.commit(tips[left[1]]).snapshot
    with pytest.raises(Incompatible, match="all that is left"):
        unmerge(repo, "all", remove=left[1], author="t")
    assert nearest_base(repo, [last.commit_id, tips[names[gone]]]) == tips["main"]  # what was taken out is no ancestor of the content


def test_a_chain_goes_on_from_its_commit_and_loses_any_of_its_models(repo, tips):
    go(repo, "a", "b", branch="run", method="opcm")
    two = repo.resolve("run")
    go(repo, "run", "c", method="opcm")
    three = repo.commit(repo.resolve("run"))
    assert three.parents == (two, tips["c"])
    assert list(three.op.params["state"]) == [repo.commit(two).check["opcm"][key] for key in ("scale", "count", "norms")]
    assert three.check["opcm"]["count"] == 3
    assert [artifact.kind for artifact in three.artifacts] == ["projected-delta"]
    assert three.snapshot == go(repo, "a", "b", "c", branch="once", method="opcm").commit.snapshot
    assert ingredients_of(repo, repo.resolve("run")) == (tips["a"], tips["b"], tips["c"])
    without_b = go(repo, "a", "c", branch="ac", method="opcm").commit.snapshot
    assert unmerge(repo, "run", remove="b", author="t").commit.snapshot == without_b
    again = go(repo, "run", "b", method="opcm").commit  # the chain goes on from what was left
    assert again.check["opcm"]["count"] == 3
    assert ingredients_of(repo, again.id) == (tips["a"], tips["c"], tips["b"])
    back = unmerge(repo, "run", remove="b", author="t").commit
    assert (back.snapshot, back.check["opcm"]["count"]) == (without_b, 2)
    rolled = rollback(repo, two, ref="run", author="t")
    assert origin(repo, rolled.commit_id) == two
    assert go(repo, "run", "c", method="opcm").commit.snapshot == three.snapshot
    with pytest.raises(BadParameter, match="chain with alpha"):
        go(repo, "run", "main", method="opcm", settings=("alpha=0.9",))
    with pytest.raises(BadParameter, match="chain with shared=false"):
        go(repo, "run", "main", method="opcm", settings=("shared=true",))


def test_a_chain_that_keeps_what_is_shared_stays_one(repo, tips):
    go(repo, "a", "b", branch="run", method="opcm", settings=("shared=true",))
    go(repo, "run", "c", method="opcm")
    whole = go(repo, "a", "b", "c", branch="once", method="opcm", settings=("shared=true",)).commit
    assert repo.commit(repo.resolve("run")).snapshot == whole.snapshot
    assert whole.snapshot != go(repo, "a", "b", "c", branch="plain", method="opcm").commit.snapshot
    left = unmerge(repo, "run", remove="b", author="t").commit
    assert left.snapshot == go(repo, "a", "c", branch="ac", method="opcm", settings=("shared=true",)).commit.snapshot


def test_unmerge_says_what_it_cannot_do(repo, tips):
    go(repo, "a", "b")
    with pytest.raises(BadParameter, match="is no merge"):
        unmerge(repo, "c", remove="b", author="t")
    with pytest.raises(BadParameter, match="is no ingredient"):
        unmerge(repo, "a", remove="c", author="t")
    with pytest.raises(BadParameter, match="is not a branch"):
        unmerge(repo, repo.resolve("a"), remove="b", author="t")
    plan = unmerge(repo, "a", remove="b", author="t", dry_run=True).plan
    assert "is what is left" in plan.summary


def test_a_gate_may_refuse_what_is_left(repo, tips, rules):
    made = go(repo, "a", "b")
    rules(STILL)
    with pytest.raises(GateRefused):
        unmerge(repo, "a", remove="b", author="t")
    assert repo.resolve("a") == made.commit_id


# --- merge files -------------------------------------------------------------------------------------------


def test_a_merge_file_names_versions_and_directories_which_are_imported_on_the_way(repo, tips, forks, tmp_path):
    config = tmp_path / "ties.yml"
    named = [{"model": "a", "parameters": {"weight": 0.4}}, {"model": str(forks["c"]), "parameters": {"weight": 0.6}}]
    config.write_text(json.dumps({"merge_method": "ties", "models": named, "base_model": "main", "parameters": {"density": 0.5}}))
    planned = merge(repo, (), {"config": str(config)}, author="t", dry_run=True)
    assert "import 1 directories" in planned.plan.summary
    made = merge(repo, (), {"config": str(config)}, author="t")
    brought = repo.resolve("c-2") if "c-2" in repo.branches() else repo.resolve("c")
    assert made.commit.parents == (tips["a"], brought)
    config.unlink()
    assert lifecycle.replay(repo, made.commit_id, author="t")[1]
    assert str(forks["c"]) not in canonical(made.commit.op.params).decode()
    left = unmerge(repo, "a", remove="a^1", author="t")
    assert left.commit.op.params["ingredients"][0] == brought


def test_a_merge_file_with_an_unknown_model_is_refused_before_anything_is_imported(repo, tips, forks, tmp_path):
    config = tmp_path / "mean.yml"
    config.write_text(f"merge_method: linear\nmodels:\n  - model: {forks['a']}\n  - model: nowhere\nparameters: {{weight: 1.0}}\n")
    with pytest.raises(RefNotFound, match="nowhere"):
        merge(repo, (), {"config": str(config)}, author="t")
    with pytest.raises(BadParameter, match="none is typed"):
        merge(repo, ("a",), {"config": str(config)}, author="t")
    assert set(repo.branches()) == set(tips)


def test_a_branch_that_moved_meanwhile_is_not_overwritten(repo, tips):
    with pytest.raises(RefMoved, match="exists and stands at"):
        go(repo, "a", "b", branch="c")


def test_what_was_taken_out_is_no_longer_carried(repo, tips):
    from mlc.policies.past import Past

    go(repo, "a", "b", "c", branch="all")
    made = unmerge(repo, "all", remove="b", author="t")
    behind = {commit for commit, _ in Past(repo, made.commit_id).standing}
    assert {tips["a"], tips["c"]} <= behind
    assert tips["b"] not in behind
