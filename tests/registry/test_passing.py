"""Derived tensors that storage computes piece by piece, as it stores them: the bytes, names and figures of whole ones, and no damage."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import safetensors.torch
import torch

from mlc.ops.base import SetTensor
from mlc.registry.delta import alone, blocks, crew, derivation
from mlc.registry.delta.derived import Derived
from mlc.registry.errors import BadParameter, CheckFailed, HashMismatch
from mlc.registry.formats.directory import export
from mlc.registry.maintenance.fsck import fsck
from mlc.registry.objects import chain, passing
from mlc.registry.repository import Repository
from mlc.tests.registry.derived_models import changed, imported, model, raw, weights
from mlc.tests.registry.harm import flip, pack_of

FUNCTIONS = {
    "linear": ((0.3, 0.7), ()),
    "task": ((0.6, 0.9), ()),
    "elect": ((0.3, 0.7), ((0.015625, 3),)),
}


@pytest.fixture
def repo(tmp_path):
    return Repository.init(tmp_path / "work")


def cut_small(monkeypatch):
    """Blocks, segments and pieces so small that a matrix [24, 32] has several of each."""
    monkeypatch.setattr(blocks, "WHOLE", 1200)
    monkeypatch.setattr(blocks, "BLOCK", 700)
    monkeypatch.setattr(alone, "SEGMENT", 100)
    monkeypatch.setattr(derivation, "AT_ONCE", 2)


def two(repo, tmp_path, dtype=torch.bfloat16):
    return [imported(repo, tmp_path / str(i), model(seed=i, dtype=dtype), f"m{i}") for i in (1, 2)]


def claims(repo, commits, function="linear", shape=(24, 32), dtype=torch.bfloat16, names=None):
    """SetTensor of every tensor, computed by nobody; and as storage computes it whole."""
    views = [repo.view(commit) for commit in commits]
    numbers, cuts = FUNCTIONS[function]
    promised, whole = [], []
    for name in names or views[0].names():
        derived = Derived(function, tuple(view.entry(name).digest for view in views), numbers, cuts=cuts)
        promised.append(SetTensor(name, views[0].promise(derived, dtype, shape), derived=derived))
        whole.append(SetTensor(name, views[0].derive(derived, dtype, shape), derived=derived))
    return promised, whole


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_tensor_that_passes_is_the_one_that_is_put_whole(repo, tmp_path, monkeypatch, function, dtype, workers):
    monkeypatch.setattr(crew, "_processors", lambda: workers)
    cut_small(monkeypatch)
    commits = two(repo, tmp_path, dtype)
    promised, whole = claims(repo, commits, function, dtype=dtype)
    mine, told = changed(repo, commits[0], promised, "passed")
    other, known = changed(repo, commits[0], whole, "whole")
    assert repo.commit(mine).snapshot == repo.commit(other).snapshot
    assert {delta.codec for delta in told} == {"derived"}
    for delta, same in zip(told, known, strict=True):
        assert (delta.tensor, delta.target, delta.nnz, delta.max_abs) == (same.tensor, same.target, same.nnz, same.max_abs)
        assert delta.l2 == pytest.approx(same.l2, rel=1e-6)
        assert delta.rel_l2 == pytest.approx(same.rel_l2, rel=1e-6)
        assert delta.bytes_stored < 64
    view = Repository.open(repo.root).view(mine)
    assert all(bytes(view.raw(change.name)) == raw(change.data) for change in whole)
    export(Repository.open(repo.root), repo.snapshot(repo.commit(mine).snapshot), tmp_path / "out")  # proves each file's SHA-256
    assert fsck(Repository.open(repo.root), 3).findings == ()


@pytest.mark.parametrize("order", [(3, 1, 0, 2), (0, 2, 1, 3), (1, 0)])
def test_in_whatever_order_they_pass_the_file_has_its_own_hash(repo, tmp_path, order):
    commits = two(repo, tmp_path)
    promised, _ = claims(repo, commits)
    after, _ = changed(repo, commits[0], [promised[i] for i in order], "passed")
    snapshot = repo.snapshot(repo.commit(after).snapshot)
    export(Repository.open(repo.root), snapshot, tmp_path / "out")
    found = {file.path: file.sha256 for file in snapshot.files}
    assert found["model.safetensors"] == hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest()


def test_siblings_that_are_deltas_of_one_version_are_read_over_it_once(repo, tmp_path, monkeypatch):
    base = model(dtype=torch.bfloat16, shape=(64, 64))
    root = imported(repo, tmp_path / "base", base, "base")
    forks = []
    for seed in (1, 2):
        moved = {name: (x.float() * (1 + 0.01 * weights(64, 64, seed=seed) * 32)).bfloat16() for name, x in base.items()}
        commit, deltas = changed(repo, root, [SetTensor(name, x) for name, x in moved.items()], f"fork{seed}")
        assert {delta.base for delta in deltas} <= {repo.view(root).entry(delta.tensor).digest for delta in deltas}
        forks.append(commit)
    read, plain = [], chain.tensor_range
    monkeypatch.setattr(chain, "tensor_range", lambda r, info, *a, **k: [read.append((type(r).__name__, info)), plain(r, info, *a, **k)][1])
    promised, _ = claims(repo, forks, shape=(64, 64), names=["layers.0.weight"])
    read.clear()
    changed(repo, forks[0], promised, "passed")
    keyframe = repo.view(root).entry("layers.0.weight").digest
    assert sum(info.digest == keyframe for _, info in read) == 3  # read once, and found near by each fork


def test_a_flipped_bit_in_a_source_is_found_and_nothing_is_stored(repo, tmp_path):
    commits = two(repo, tmp_path)
    digest = repo.view(commits[1]).entry("layers.2.weight").digest
    info = repo.objects.info(digest)
    promised, _ = claims(repo, commits)
    flip(pack_of(repo, digest)[0], info.offset + info.stored_size - 5)
    again = Repository.open(repo.root)
    before = again.objects.packs()
    with pytest.raises(HashMismatch, match="damaged") as caught:
        changed(again, commits[0], promised, "passed")
    assert caught.value.details["damaged"] == digest
    assert Repository.open(repo.root).objects.packs() == before


def test_a_bit_that_flips_in_memory_is_found(repo, tmp_path, monkeypatch):
    commits = two(repo, tmp_path)
    promised, _ = claims(repo, commits)
    plain = passing._read

    def spoilt(*args):
        data = plain(*args).copy()
        data[7] ^= 4
        return data

    monkeypatch.setattr(passing, "_read", spoilt)
    with pytest.raises(HashMismatch):
        changed(repo, commits[0], promised, "passed")


def test_what_becomes_infinite_is_refused_and_what_was_is_not(repo, tmp_path):
    large = {name: torch.full_like(x, 3e38) for name, x in model(2).items()}
    for x in large.values():
        x[0, 0] = 1.0
    plain = imported(repo, tmp_path / "a", large, "a")
    view = repo.view(plain)
    told = Derived("linear", (view.entry("layers.0.weight").digest, view.entry("layers.1.weight").digest), (1.0, 1.0))
    with pytest.raises(CheckFailed, match=r"layers.0.weight' became infinite or no number"):
        changed(repo, plain, [SetTensor("layers.0.weight", view.promise(told, torch.float32, (24, 32)), derived=told)], "b")
    holed = {name: x.clone() for name, x in model(2).items()}
    holed["layers.0.weight"][3, 3], holed["layers.0.weight"][4, 4] = float("inf"), float("nan")
    commit = imported(repo, tmp_path / "c", holed, "c")
    view = repo.view(commit)
    told = Derived("linear", tuple(view.entry(name).digest for name in view.names()), (0.5, 0.5))
    after, (delta,) = changed(repo, commit, [SetTensor("layers.1.weight", view.promise(told, torch.float32, (24, 32)), derived=told)], "d")
    assert delta.l2 is None
    assert torch.isnan(repo.view(after).tensor("layers.1.weight")).sum() == 1


def test_what_cannot_be_a_recipe_is_computed_and_stored_as_ever(repo, tmp_path):
    tensors = {"constant": torch.full((8, 8), 0.5), "few": torch.tensor([1.0, 2.0]), "plain": weights(8, 8)}
    commits = [imported(repo, tmp_path / str(i), {n: x * i for n, x in tensors.items()}, f"m{i}") for i in (1, 2)]
    views = [repo.view(commit) for commit in commits]
    changes = []
    for name, x in tensors.items():
        told = Derived("linear", tuple(view.entry(name).digest for view in views), (0.5, 0.5))
        changes.append(SetTensor(name, views[0].promise(told, torch.float32, tuple(x.shape)), derived=told))
    after, deltas = changed(repo, commits[0], changes, "passed")
    assert {delta.tensor: delta.codec for delta in deltas} == {"constant": "constant", "few": "raw", "plain": "derived"}
    assert all(repo.view(after).tensor(name).equal(x * 1.5) for name, x in tensors.items())


def test_one_that_passes_twice_or_is_stored_already_costs_nothing_more(repo, tmp_path):
    commits = two(repo, tmp_path)
    (first, *_), _ = claims(repo, commits)
    again = dataclasses.replace(first, name="copy", base=first.name)
    after, deltas = changed(repo, commits[0], [first, again], "passed")
    assert [(delta.tensor, delta.codec) for delta in deltas] == [(first.name, "derived"), ("copy", "ref")]
    _, (delta,) = changed(repo, commits[0], [first], "later")
    assert (delta.codec, delta.bytes_stored) == ("ref", 0)
    export(Repository.open(repo.root), repo.snapshot(repo.commit(after).snapshot), tmp_path / "out")
    kept = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert kept["copy"].equal(kept[first.name])


def test_only_what_fits_passes(repo, tmp_path):
    commits = two(repo, tmp_path)
    view = repo.view(commits[0])
    told = Derived("linear", (view.entry("layers.0.weight").digest,), (1.0,))
    with pytest.raises(BadParameter, match="no tensor of shape"):
        changed(repo, commits[0], [SetTensor("layers.0.weight", view.promise(told, torch.bfloat16, (32, 24)), derived=told)], "b")
