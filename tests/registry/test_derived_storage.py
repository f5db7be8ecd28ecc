"""Derived tensors in a registry: a merge costs its recipe, an edit its factors; what is not as was said is stored all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlc.ops.base import SetTensor
from mlc.registry.delta import MAX_DEPTH, blocks
from mlc.registry.delta.derived import Derived, derive
from mlc.registry.delta.recipes import Recipe, Source
from mlc.registry.errors import BadParameter, IntegrityError, MissingObject
from mlc.registry.formats.directory import export
from mlc.registry.ids import Digest
from mlc.registry.maintenance.du import du
from mlc.registry.maintenance.fsck import fsck
from mlc.registry.objects import making, sources
from mlc.registry.repository import Repository
from mlc.tests.registry.derived_models import changed, imported, made, model, raw, recipes, weights
from mlc.tests.registry.harm import faults, flip, pack_of

CHILD = Path(__file__).with_name("derived_child.py")


@pytest.fixture
def repo(tmp_path):
    return Repository.init(tmp_path / "work")


@pytest.fixture
def two(repo, tmp_path):
    """Two models without a common history."""
    return imported(repo, tmp_path / "a", model(seed=1), "a"), imported(repo, tmp_path / "b", model(seed=2), "b")


def same(repo, commit, tensors: dict[str, torch.Tensor]) -> bool:
    view = Repository.open(repo.root).view(commit)
    return set(view.names()) == set(tensors) and all(bytes(view.raw(name)) == raw(x) for name, x in tensors.items())


def tensors_of(changes) -> dict[str, torch.Tensor]:
    return {change.name: change.data for change in changes}


def derived_infos(repo):
    return [info for info in repo.objects.iter_infos() if info.codec == "derived"]


# --- what it costs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "numbers", "limit"), [("linear", (0.3, 0.7), 1000), ("task", (0.5, 0.4, 0.9), 1060)])
@pytest.mark.parametrize("count", [48, 290])
def test_a_merge_of_a_whole_model_costs_about_three_bytes_a_tensor_and_one_recipe(repo, tmp_path, function, numbers, limit, count):
    parents = [imported(repo, tmp_path / str(i), model(count, (16, 8), i, torch.bfloat16), f"m{i}") for i in range(3)]
    used = parents[: 2 if function == "linear" else 3]
    changes = list(made(repo, function, numbers, *used, dtype=torch.bfloat16))
    merged, deltas = changed(repo, parents[0], changes, "merged")
    assert {delta.codec for delta in deltas} == {"derived"}
    assert len(deltas) == count
    (recipe,) = recipes(repo)
    assert sum(delta.bytes_stored for delta in deltas) <= 3 * count
    assert sum(delta.bytes_stored for delta in deltas) + len(recipe) <= (limit if count == 290 else 400)
    assert same(repo, merged, tensors_of(changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_edit_of_100_facts_costs_at_most_its_fp32_factors(repo, tmp_path, dtype):
    before = {f"m{i}": weights(384, 128, seed=i, dtype=dtype) for i in range(3)}
    parent = imported(repo, tmp_path / "m", before, "main")
    view, changes = repo.view(parent), []
    for name in before:
        up, down = (torch.randn(*s, generator=torch.Generator().manual_seed(7)) for s in ((384, 100), (100, 128)))
        edit = Derived("rank1", (view.entry(name).digest,), (0.5,), (up, down))
        data = derive(edit, lambda d, rows, name=name: before[name][rows], dtype, (384, 128))
        changes.append(SetTensor(name, data, derived=edit))
    edited, deltas = changed(repo, parent, changes, "main")
    factors = 3 * 4 * 100 * (384 + 128)
    stored = sum(delta.bytes_stored for delta in deltas) + sum(map(len, recipes(repo)))
    assert stored <= 1.05 * factors
    assert [(d.codec, d.rank, d.base) for d in deltas] == [("derived", 100, view.entry(name).digest) for name in before]
    assert same(repo, edited, tensors_of(changes))


def test_tensors_that_sum_the_same_models_in_other_orders_share_their_recipe(repo, tmp_path):
    parents = [imported(repo, tmp_path / str(i), model(24, (16, 8), i), f"m{i}") for i in range(6)]
    weight = dict(zip(parents, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    changes = []
    for step, name in enumerate(repo.view(parents[0]).names()):
        turned = [*parents[step % 6 :], *parents[: step % 6]]
        changes += [c for c in made(repo, "linear", tuple(weight[p] for p in turned), *turned) if c.name == name]
    merged, deltas = changed(repo, parents[0], changes, "merged")
    assert {d.codec for d in deltas} == {"derived"}
    assert len(recipes(repo)) == 1
    assert max(d.bytes_stored for d in deltas) <= 7  # form, five of six numbers, a place
    assert same(repo, merged, tensors_of(changes))


def test_du_and_the_delta_records_say_derived(repo, two):
    _, deltas = changed(repo, two[0], made(repo, "linear", (0.5, 0.5), *two), "merged")
    assert {row.key: row.objects for row in du(repo, "codec").by}["derived"] == 4
    view = repo.view(two[0])
    assert [d.base for d in deltas] == [view.entry(d.tensor).digest for d in deltas]
    assert all(d.rank is None and d.nnz for d in deltas)


# --- the whole way -----------------------------------------------------------------------------------------


def test_export_and_an_older_version_are_as_they_were(repo, two, tmp_path):
    changes = list(made(repo, "task", (0.5, 1.5), *two))
    merged, _ = changed(repo, two[0], changes, "merged")
    export(repo, repo.snapshot(repo.commit(merged).snapshot), tmp_path / "out")  # verifies every SHA-256
    export(repo, repo.snapshot(repo.commit(two[0]).snapshot), tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()


def test_a_tensor_derived_in_a_commit_may_be_a_source_in_the_same_commit(repo, two):
    first = next(iter(made(repo, "linear", (0.5, 0.5), *two)))
    with repo.ingest() as tx:
        source = tx.put_tensor("F32", (24, 32), raw(first.data), derived=first.derived)
        second = Derived("linear", (source,), (2.0,))
        twice = tx.put_tensor("F32", (24, 32), raw(first.data * 2), derived=second)
        assert (tx.info(source).depth, tx.info(twice).depth, tx.info(twice).codec) == (1, 2, "derived")
        tx.seal()
    assert bytes(Repository.open(repo.root).objects.tensor_bytes(twice)) == raw(first.data * 2)


def test_blocked_tensors_are_stored_and_read_in_ranges(repo, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "WHOLE", 2000)
    monkeypatch.setattr(blocks, "BLOCK", 700)
    parents = [imported(repo, tmp_path / str(i), model(2, (40, 33), i), f"m{i}") for i in range(2)]
    changes = list(made(repo, "linear", (0.9, 0.1), *parents))
    changes[1].data[7, 7] = 5.0
    merged, deltas = changed(repo, parents[0], changes, "merged")
    assert {d.codec for d in deltas} == {"derived"}
    assert sorted(info.blocked for info in derived_infos(repo)) == [False, True]
    assert same(repo, merged, tensors_of(changes))
    target = repo.view(merged).entry("layers.1.weight").digest
    assert bytes(repo.objects.tensor_range(target, 699, 2112)) == raw(changes[1].data)[699:2112]


def test_a_delta_on_a_derived_tensor_and_a_derived_tensor_on_a_delta_are_read(repo, two):
    merged, _ = changed(repo, two[0], made(repo, "linear", (0.5, 0.5), *two), "main")
    nudge = {n: repo.view(merged).tensor(n).clone() for n in repo.view(merged).names()}
    for x in nudge.values():
        x[0, 0] += 1e-3
    tuned, deltas = changed(repo, merged, [SetTensor(n, x) for n, x in nudge.items()], "main")
    assert {d.codec for d in deltas} == {"sparse"}
    again = list(made(repo, "linear", (0.5, 0.5), tuned, two[1]))
    last, deltas = changed(repo, tuned, again, "main")
    assert {d.codec for d in deltas} == {"derived"}
    assert {repo.objects.info(d.target).depth for d in deltas} == {3}
    assert same(repo, last, tensors_of(again))
    chain = repo.objects.chain(deltas[0].target)
    assert [link.codec for link in chain if link.kind == "tensor"] == ["derived", "sparse", "planes", "derived", "planes"]
    assert fsck(Repository.open(repo.root), 3).findings == ()


def test_a_derived_tensor_of_another_type_than_its_source_is_a_base_like_any_other(repo, tmp_path):
    parent = imported(repo, tmp_path / "m", model(1, seed=3), "main")
    narrow, _ = changed(repo, parent, made(repo, "linear", (1.0,), parent, dtype=torch.bfloat16), "main")
    x = repo.view(narrow).tensor("layers.0.weight").clone()
    x[0, 0] = 1.0
    after, (delta,) = changed(repo, narrow, [SetTensor("layers.0.weight", x)], "main")
    assert (delta.codec, repo.objects.info(delta.target).depth) == ("sparse", 2)
    assert same(repo, after, {"layers.0.weight": x})


# --- nothing is trusted ------------------------------------------------------------------------------------


def test_a_small_lie_is_a_small_residual(repo, two):
    changes = list(made(repo, "linear", (0.3, 0.7), *two))
    for change in changes:
        change.data[3, 3] = 9.0
    merged, deltas = changed(repo, two[0], changes, "merged")
    assert {d.codec for d in deltas} == {"derived"}
    assert max(d.bytes_stored for d in deltas) < 60
    assert same(repo, merged, tensors_of(changes))


def test_a_recipe_that_has_nothing_to_do_with_the_tensor_is_not_kept(repo, two):
    told = [SetTensor(c.name, weights(24, 32, seed=77 + i), derived=c.derived) for i, c in enumerate(made(repo, "task", (9.0, 9.0), *two))]
    merged, deltas = changed(repo, two[0], told, "merged")
    assert {d.codec for d in deltas} == {"planes"}
    assert recipes(repo) == []
    assert same(repo, merged, tensors_of(told))


def test_sources_that_are_not_stored_or_do_not_fit_are_no_sources(repo, two):
    x, stored = weights(24, 32, seed=5), repo.view(two[0]).entry("layers.0.weight").digest
    blob, long = repo.view(two[0]).snapshot.files[0].digest, "z" * 64
    with repo.ingest() as tx:
        small, whole = tx.put_tensor("F32", (2, 32), raw(x[:2])), tx.put_tensor("I32", (24, 32), raw(x.view(torch.int32)))
        for i, odd in enumerate(("0" * 64, blob, long, small, whole)):
            info = tx.info(tx.put_tensor("F32", (24, 32), raw(x + i), derived=Derived("linear", (stored, odd), (0.5, 0.5))))
            assert info.codec == "planes"
        double = Derived("rank1", (stored,), (1.0,), (weights(24, 1), weights(1, 32)))
        assert tx.info(tx.put_tensor("F64", (24, 32), raw((x * 2).double()), derived=double)).codec != "derived"


def test_a_damaged_source_is_no_source(repo, two):
    changes = list(made(repo, "linear", (0.5, 0.5), *two))
    source = repo.view(two[1]).entry("layers.0.weight").digest
    pack, info = pack_of(repo, source)
    flip(pack, info.offset + info.stored_size // 2)
    fresh = Repository.open(repo.root)
    with fresh.ingest() as tx:
        told = tx.info(tx.put_tensor("F32", (24, 32), raw(changes[0].data), derived=changes[0].derived))
    assert told.codec == "planes"


def test_a_chain_of_derived_tensors_ends_at_the_depth_of_every_chain(repo, two):
    commits = [two[0]]
    for step in range(MAX_DEPTH + 2):
        commits.append(changed(repo, commits[-1], made(repo, "linear", (0.5, 0.5 + step / 64), commits[-1], two[1]), "main")[0])
    depths = [repo.objects.info(repo.view(c).entry("layers.0.weight").digest).depth for c in commits]
    assert depths[: MAX_DEPTH + 1] == list(range(MAX_DEPTH + 1))
    assert max(depths) == MAX_DEPTH
    assert depths[-1] < MAX_DEPTH
    assert fsck(Repository.open(repo.root), 3).findings == ()


def test_the_work_of_reading_is_bounded_when_it_is_written(repo, two, monkeypatch):
    monkeypatch.setattr(making, "MAX_WORK", 3)
    first, deltas = changed(repo, two[0], made(repo, "linear", (0.5, 0.5), *two), "main")
    assert {d.codec for d in deltas} == {"derived"}
    assert {sources.work(repo.objects, repo.objects.info(d.target)) for d in deltas} == {3}
    _, deltas = changed(repo, first, made(repo, "linear", (0.5, 0.25), first, two[1]), "main")
    assert "derived" not in {d.codec for d in deltas}


def test_a_recipe_that_explodes_is_refused_by_the_reader(repo, two, monkeypatch):
    changed(repo, two[0], made(repo, "linear", (0.5, 0.5), *two), "main")
    monkeypatch.setattr(sources, "MAX_WORK_READ", 2)
    with pytest.raises(IntegrityError, match="derived from more than 2"):
        repo.objects.tensor_bytes(derived_infos(repo)[0].digest)


# --- what storage computed itself --------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "numbers", "cuts"), [("linear", (0.3, 0.7), ()), ("elect", (0.3, 0.7), ((0.015625, 3),))])
def test_what_storage_computed_is_put_without_computing_it_again(repo, two, monkeypatch, function, numbers, cuts):
    views = [repo.view(commit) for commit in two]
    derived = Derived(function, tuple(view.entry("layers.0.weight").digest for view in views), numbers, cuts=cuts)
    data = views[0].derive(derived, torch.float32, (24, 32))
    monkeypatch.setattr(making._Verified, "read", None)  # nothing is read to be proven
    after, (delta,) = changed(repo, two[0], [SetTensor("layers.0.weight", data, derived=derived)], "main")
    assert delta.codec == "derived"
    monkeypatch.undo()
    kept = {name: views[0].tensor(name) for name in views[0].names()} | {"layers.0.weight": data}
    assert same(repo, after, kept)


@pytest.mark.parametrize("spoilt", ["tensor", "claim"])
def test_what_was_changed_since_storage_computed_it_is_proven_as_ever(repo, two, spoilt):
    views = [repo.view(commit) for commit in two]
    derived = Derived("linear", tuple(view.entry("layers.0.weight").digest for view in views), (0.3, 0.7))
    data = views[0].derive(derived, torch.float32, (24, 32))
    if spoilt == "tensor":
        data[3, 3] = 9.0
    else:
        derived = Derived("linear", derived.sources, (0.7, 0.3))
    after, _ = changed(repo, two[0], [SetTensor("layers.0.weight", data, derived=derived)], "main")
    assert same(repo, after, {name: views[0].tensor(name) for name in views[0].names()} | {"layers.0.weight": data})
    assert fsck(Repository.open(repo.root), 3).findings == ()


def test_storage_derives_from_what_fits_only(repo, two):
    view = repo.view(two[0])
    derived = Derived("linear", (view.entry("layers.0.weight").digest,), (1.0,))
    with pytest.raises(BadParameter, match="no tensor of shape"):
        view.derive(derived, torch.float32, (32, 24))


# --- what else must be stored ------------------------------------------------------------------------------


def test_whoever_follows_objects_is_told_of_all_that_is_needed(repo, two):
    changed(repo, two[0], made(repo, "linear", (0.5, 0.5), *two), "main")
    (info, *_), views = derived_infos(repo), [repo.view(c) for c in two]
    needed = set(repo.objects.needs(info))
    assert needed == {*repo.objects.sources(info), info.base, *(view.snapshot_id for view in views)}
    assert set(repo.objects.sources(info)) < {e.digest for view in views for e in view.snapshot.tensors}
    assert {link.digest for link in repo.objects.chain(info.digest)} == {info.digest, *needed}


@pytest.mark.parametrize("gone", ["source", "recipe", "table"])
@pytest.mark.parametrize(("function", "cuts"), [("linear", ()), ("elect", ((0.015625, 3),))])
def test_what_is_gone_is_named_at_level_1_and_by_the_reader(repo, two, gone, function, cuts):
    merged, _ = changed(repo, two[0], made(repo, function, (0.5, 0.5), *two, cuts=cuts), "main")
    info = repo.objects.info(repo.view(merged).entry("layers.0.weight").digest)
    view = repo.view(two[1])
    name = {"source": view.entry("layers.0.weight").digest, "recipe": info.base, "table": Digest(view.snapshot_id)}[gone]
    repo.objects.quarantine(name)
    fresh = Repository.open(repo.root)
    sentences = [f.sentence for f in fsck(fresh, 1).findings if f.object == info.digest]
    assert len(sentences) == 1
    assert name in sentences[0]
    with pytest.raises(MissingObject, match=name):
        fresh.objects.tensor_bytes(info.digest)


def test_damage_to_a_recipe_is_found_at_levels_1_and_2_and_to_a_payload_at_2_and_3(repo, two):
    merged, _ = changed(repo, two[0], made(repo, "linear", (0.5, 0.5), *two), "main")
    info = repo.objects.info(repo.view(merged).entry("layers.0.weight").digest)
    pack, recipe = pack_of(repo, info.base)
    flip(pack, recipe.offset + 20)
    assert ("object", info.digest) in faults(repo, 1)
    assert ("object", recipe.digest) in faults(repo, 2)
    flip(pack, recipe.offset + 20)
    flip(pack, info.offset + 1)  # the place of its sources
    assert ("object", info.digest) in faults(repo, 2)
    assert ("object", info.digest) in faults(repo, 3)


def test_a_source_of_another_shape_is_found_at_level_1(repo, two):
    """A recipe as no mlc writes it."""
    x, wrong = weights(24, 32, seed=5), weights(2, 3, seed=6)
    with repo.ingest() as tx:
        pack, source = tx._pack(), tx.put_tensor("F32", (2, 3), raw(wrong))
        recipe = Recipe("linear", (1.0,), (Source("tensor", source),))
        told = making.Made(recipe.encode(), b"\0", False, True, 1, 0, 1)
        digest = pack._put_derived(Digest("5" * 64), "F32", (24, 32), len(raw(x)), told).digest
        tx.seal()
    assert ("object", digest) in faults(repo, 1)
    with pytest.raises(IntegrityError, match="no tensor of shape"):
        repo.objects.tensor_bytes(digest)


def test_a_tensor_derived_from_itself_is_found_at_level_1_and_refused(repo, two):
    name = Digest("5" * 64)
    with repo.ingest() as tx:
        recipe = Recipe("linear", (1.0,), (Source("tensor", name),))
        tx._pack()._put_derived(name, "F32", (24, 32), 24 * 32 * 4, making.Made(recipe.encode(), b"\0", False, True, 1, 0, 1))
        tx.seal()
    assert ("object", name) in faults(repo, 1)
    for read in (repo.objects.tensor_bytes, repo.objects.chain):
        with pytest.raises(IntegrityError, match="chain of more than 32"):
            read(name)


# --- every machine -----------------------------------------------------------------------------------------


def test_a_plain_processor_restores_every_byte(repo, tmp_path):
    """Written under the capability of this machine, read without any of it; and the other way about."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        word = str(dtype)[6:]
        parents = [imported(repo, tmp_path / f"{word}{i}", model(2, (65, 43), i, dtype), f"{word}{i}") for i in range(3)]
        changed(repo, parents[0], made(repo, "linear", (0.3, 0.6, 1.1, 0.95), *parents, dtype=dtype), f"{word}-linear")
        changed(repo, parents[0], made(repo, "task", (0.3, 0.6, 0.7), *parents, dtype=dtype), f"{word}-task")
        elected = made(repo, "elect", (0.3, 0.6, 0.7, 1.0), *parents, dtype=dtype, cuts=((0.015625, 900), (-1.0, -1)))
        changed(repo, parents[0], elected, f"{word}-elect")
        x = repo.view(parents[0]).entry("layers.0.weight")
        edit = Derived("rank1", (x.digest,), (0.3,), (weights(65, 5, seed=1), weights(5, 43, seed=2)))
        data = derive(edit, lambda d, rows, p=parents[0]: repo.view(p).tensor("layers.0.weight")[rows], dtype, x.shape)
        changed(repo, parents[0], [SetTensor("layers.0.weight", data, derived=edit)], f"{word}-edit")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-P", str(CHILD), str(repo.root)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["DEFAULT", "21", "True"]
