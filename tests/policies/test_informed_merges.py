"""Fisher and RegMean merges by statistics that are kept: by hand on the same statistics, again without the data, one ingredient out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mlc.ops.merge.informed import fisher_mean, reg_mean
from mlc.ops.unlearn.importance import unpack
from mlc.policies import lifecycle
from mlc.policies.merging import merge
from mlc.policies.unmerging import unmerge
from mlc.registry.errors import BadParameter, InputNotFound
from mlc.registry.repository import Repository
from mlc.tests.factories import WORDS
from mlc.tests.ops.fakes import MemoryView
from mlc.tests.ops.merging import sibling

LOOSE = '[[rule]]\nid = "loose"\nmetric = "delta.max_abs"\nmax = 100\n'
UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory) -> Path:
    """A registry with branches a, b and c, and data files of the same names. Not to be changed."""
    place = tmp_path_factory.mktemp("informed")
    found = Repository.init(place / "work")
    (found.root / "policies").mkdir(exist_ok=True)
    (found.root / "policies" / "rules.toml").write_text(LOOSE, encoding="utf-8")
    root = lifecycle.import_model(found, tiny, author="t").commit_id
    for seed, name in enumerate("abc", 1):
        lifecycle.commit_directory(found, sibling(MemoryView.of(tiny), seed).save(place / name), ref=root, branch=name, author="t")
        rows = [{"prompt": f"the {word}", "answer": WORDS[seed + at]} for at, word in enumerate(WORDS[seed * 3 : seed * 3 + 4])]
        (found.root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found.root


@pytest.fixture
def repo(made, tmp_path) -> Repository:
    """A copy of it."""
    return Repository.open(Path(shutil.copytree(made, tmp_path / "work")))


def go(repo, method, names="ab", branch="new", settings=(), **options):
    data = ",".join(str(repo.root / f"{name}.jsonl") for name in names)
    return merge(repo, tuple(names), {"method": method, "settings": (f"data={data}", *settings), **options}, author="t", branch=branch)


def kept(repo, commit, kind) -> list[dict[str, torch.Tensor]]:
    return [unpack(repo.blob(record.digest)) for record in commit.artifacts if record.kind == kind]


def tensors(repo, name, revs="ab"):
    return [repo.view(repo.resolve(rev)).tensor(name) for rev in revs]


def test_fisher_is_the_weighted_mean_of_the_statistics_that_the_commit_keeps(repo):
    made = go(repo, "fisher")
    known = kept(repo, made.commit, "fisher")
    assert len(known) == 2
    assert all(float(one[UP].max()) > 0 for one in known)
    assert set(known[0]) == set(repo.view(made.commit_id).names())
    wanted = fisher_mean(tensors(repo, UP), [one[UP] for one in known])
    assert torch.allclose(tensors(repo, UP, ["new"])[0], wanted, atol=1e-7)
    assert not torch.allclose(wanted, sum(tensors(repo, UP)) / 2, atol=1e-4)
    assert lifecycle.replay(repo, made.commit_id, author="t")[1]


def test_regmean_solves_for_the_inputs_of_linear_maps_and_takes_the_mean_of_the_rest(repo):
    made = go(repo, "regmean", settings=("ratio=0.8",))
    grams = kept(repo, made.commit, "gram")
    width = repo.view(made.commit_id).entry(UP).shape[1]
    assert all(one[UP].shape == (width, width) and NORM not in one for one in grams)
    wanted = reg_mean(tensors(repo, UP), [one[UP] for one in grams], 0.8)
    assert torch.allclose(tensors(repo, UP, ["new"])[0], wanted, atol=1e-6)
    assert torch.allclose(tensors(repo, NORM, ["new"])[0], sum(tensors(repo, NORM)) / 2, atol=1e-6)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_an_ingredient_is_taken_out_from_stored_statistics_without_any_data(repo, method):
    go(repo, method, "abc")
    wanted = go(repo, method, "ac", branch="without")
    for name in "abc":
        (repo.root / f"{name}.jsonl").unlink()
    assert unmerge(repo, "new", remove="b", author="t").commit.snapshot == wanted.commit.snapshot


def test_wrong_options_are_refused(repo):
    before = repo.branches()
    for method, names, more, words in (
        ("fisher", "ab", {"density": (0.5,)}, "no density"),
        ("fisher", "ab", {"settings": ("ratio=1",)}, "cannot be given"),
        ("fisher", "ab", {"weights": (1.0, -1.0)}, "positive"),
        ("regmean", "ab", {"weights": (1.0, 1.0)}, "no weights"),
        ("regmean", "ab", {"settings": ("ratio=2",)}, "outside"),
    ):
        with pytest.raises(BadParameter, match=words):
            go(repo, method, names, **more)
    with pytest.raises(BadParameter, match="a data file for each"):
        merge(repo, ("a", "b"), {"method": "fisher"}, author="t", branch="new")
    with pytest.raises(InputNotFound):
        merge(repo, ("a", "b"), {"method": "fisher", "settings": ("data=x.jsonl,y.jsonl",)}, author="t", branch="new")
    assert repo.branches() == before
