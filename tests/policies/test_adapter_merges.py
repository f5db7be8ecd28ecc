"""Adapters merged as adapters: stacked, cut to a rank, written into the base, or with a basis from which each comes back."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlc.policies import lifecycle
from mlc.policies.merging import merge
from mlc.policies.unmerging import ingredients_of, rebuild, unmerge
from mlc.registry.errors import BadParameter, Incompatible
from mlc.registry.repository import Repository
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView

LOOSE = '[[rule]]\nid = "loose"\nmetric = "delta.max_abs"\nmax = 100\n'
PLACES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj")
Q = f"{PLACES[0]}.weight"


def lora(base: Path, place: Path, seed: int, rank: int = 4, *, alpha: int = 8, places=PLACES, transposed: bool = False) -> Path:
    """An adapter with random factors, as PEFT saves one."""
    generator, view, tensors = torch.Generator().manual_seed(seed), MemoryView.of(base), {}
    for module in places:
        sides = view.entry(f"{module}.weight").shape
        rows, columns = sides[::-1] if transposed else sides
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.1
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.1
    place.mkdir(parents=True)
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(places), "fan_in_fan_out": transposed}
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory) -> Path:
    """A registry with `main` at an import and adapters a, b, c and d on it, each on a branch of its own. Not to be changed."""
    place = tmp_path_factory.mktemp("adapters")
    found = Repository.init(place / "work")
    (found.root / "policies").mkdir(exist_ok=True)
    (found.root / "policies" / "rules.toml").write_text(LOOSE, encoding="utf-8")
    root = lifecycle.import_model(found, tiny, author="t").commit_id
    for seed, name in enumerate("abcd", 1):
        lifecycle.import_model(found, lora(tiny, place / name, seed), adapter_of=root, branch=name, author="t")
    wide = lora(tiny, place / "wide", 9, 6, alpha=3, places=PLACES[:3])
    lifecycle.import_model(found, wide, adapter_of=root, branch="wide", author="t")
    return found.root


@pytest.fixture
def repo(made, tmp_path) -> Repository:
    """A copy of it."""
    return Repository.open(Path(shutil.copytree(made, tmp_path / "work")))


def go(repo, *revs, branch="new", **options):
    return merge(repo, revs, options, author="t", branch=branch)


def change(repo, rev, name=Q) -> torch.Tensor:
    """What a version adds to the base, float64."""
    return repo.view(repo.resolve(rev)).tensor(name).double() - repo.view(repo.resolve("main")).tensor(name).double()


# --- as adapters -------------------------------------------------------------------------------------------


def test_ranks_side_by_side_lose_nothing_whatever_each_ones_rank_and_scale(repo):
    made = go(repo, "a", "b", "wide", weights=(0.5, 0.25, 0.25))
    own = repo.view(made.commit_id)
    assert own.adapter
    assert own.base.snapshot_id == repo.commit(repo.resolve("main")).snapshot
    assert made.commit.parents == tuple(repo.resolve(r) for r in ("a", "b", "wide"))
    for place in PLACES:
        wanted = sum(w * change(repo, r, f"{place}.weight") for w, r in ((0.5, "a"), (0.25, "b"), (0.25, "wide")))
        assert torch.allclose(change(repo, "new", f"{place}.weight"), wanted, atol=2e-7)
    assert made.commit.check["adapters"] == {"modules": 4, "rank": 14, "error": 0.0}
    assert own.own.entry(f"base_model.model.{PLACES[3]}.lora_A.weight").shape[0] == 8  # `wide` has nothing there
    _, same = lifecycle.replay(repo, made.commit_id, author="t")
    assert same


def test_one_adapter_of_weight_one_is_itself_to_the_bit(repo):
    go(repo, "a", "b", weights=(1.0, 0.0), method="task-arithmetic")
    for name in repo.view(repo.resolve("a")).names():
        assert torch.equal(repo.view(repo.resolve("new")).tensor(name), repo.view(repo.resolve("a")).tensor(name)), name


def test_a_merged_adapter_is_read_by_peft(repo, tmp_path, tiny):
    import peft
    import transformers

    from mlc.registry.formats.directory import export

    made = go(repo, "a", "wide")
    export(repo, repo.snapshot(made.commit.snapshot), tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the two libraries speak of each other's names
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
        merged = peft.PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload().state_dict()
    for place in PLACES:
        ours = repo.view(made.commit_id).tensor(f"{place}.weight")
        assert torch.allclose(merged[f"{place}.weight"], ours, atol=1e-6)


def test_a_rank_keeps_the_largest_singular_values_and_says_what_is_lost(repo):
    whole = go(repo, "a", "b", branch="whole")
    made = go(repo, "a", "b", settings=("rank=3",))
    assert made.commit.check["adapters"]["rank"] == 3
    lost = all_of_it = 0.0
    for place in PLACES:
        name = f"{place}.weight"
        values = torch.linalg.svdvals(change(repo, whole.commit_id, name))
        lost, all_of_it = lost + values[3:].square().sum(), all_of_it + values.square().sum()
        difference = change(repo, whole.commit_id, name) - change(repo, "new", name)
        assert float(difference.norm()) == pytest.approx(float(values[3:].norm()), rel=1e-3)
    assert made.commit.check["adapters"]["error"] == pytest.approx(float((lost / all_of_it).sqrt()), rel=1e-3)


def test_into_the_base_gives_a_whole_model_with_the_bits_of_the_stacked_adapter_and_stores_factors_only(repo):
    stacked = repo.view(go(repo, "a", "wide", branch="stacked").commit_id)
    made = go(repo, "a", "wide", settings=("into=base",))
    view = repo.view(made.commit_id)
    assert not view.adapter
    assert view.names() == stacked.names()
    assert all(torch.equal(view.tensor(name), stacked.tensor(name)) for name in view.names())
    untouched = "model.norm.weight"
    assert view.entry(untouched).digest == repo.view(repo.resolve("main")).entry(untouched).digest


def test_transposed_weights_are_merged_as_they_lie(tmp_path):
    base = tiny_model(tmp_path / "gpt2", "gpt2")
    found = Repository.init(tmp_path / "work")
    (found.root / "policies").mkdir(exist_ok=True)
    (found.root / "policies" / "rules.toml").write_text(LOOSE, encoding="utf-8")
    root = lifecycle.import_model(found, base, author="t", branch="main").commit_id
    places = ("transformer.h.0.attn.c_attn",)
    for seed, name in enumerate("ab"):
        where = lora(base, tmp_path / name, seed, places=places, transposed=True)
        lifecycle.import_model(found, where, adapter_of=root, branch=name, author="t")
    name = f"{places[0]}.weight"
    wanted = (change(found, "a", name) + change(found, "b", name)) / 2
    for branch, settings in (("one", ()), ("two", ("into=base",)), ("three", ("rank=8",))):
        go(found, "a", "b", branch=branch, settings=settings)
        assert torch.allclose(change(found, branch, name), wanted, atol=1e-6), branch


def test_what_cannot_be_stacked_is_refused_and_nothing_is_recorded(repo, tiny, tmp_path):
    other = lifecycle.import_model(repo, tiny_model(tmp_path / "other", intermediate_size=48), branch="other", author="t").commit_id
    lora(tmp_path / "other", tmp_path / "far", 5)
    lifecycle.import_model(repo, tmp_path / "far", adapter_of=other, branch="far", author="t")
    whole = lora(tiny, tmp_path / "whole", 5)
    tensors = load_file(whole / "adapter_model.safetensors")
    tensors["base_model.model.model.norm.weight"] = torch.ones(MemoryView.of(tiny).entry("model.norm.weight").shape)
    save_file(tensors, whole / "adapter_model.safetensors")
    config = json.loads((whole / "adapter_config.json").read_text()) | {"modules_to_save": ["norm"]}
    (whole / "adapter_config.json").write_text(json.dumps(config))
    lifecycle.import_model(repo, whole, adapter_of=repo.resolve("main"), branch="whole", author="t")
    before = repo.branches()
    for revs, options, error, words in (
        (("a", "far"), {}, Incompatible, "different bases"),
        (("a", "whole"), {}, Incompatible, "as a whole"),
        (("a", "b"), {"method": "ties"}, Incompatible, "as adapters"),
        (("a", "b"), {"settings": ("rank=x",)}, BadParameter, "rank=x"),
        (("a", "b"), {"settings": ("rank=0",)}, BadParameter, "no rank"),
        (("a", "b"), {"density": (0.5,)}, BadParameter, "no density"),
        (("a", "b"), {"weights": (1.0, -1.0)}, BadParameter, "sum to zero"),
        (("a", "b"), {"base": "other"}, BadParameter, "sit on"),
        (("a", "wide"), {"method": "rmm"}, Incompatible, "F32"),
        (("main", "a"), {"method": "rmm"}, Incompatible, "whole model"),
    ):
        with pytest.raises(error, match=words):
            go(repo, *revs, **options)
    assert repo.branches() == before


@pytest.mark.parametrize("settings", [(), ("rank=2",), ("into=base",)])
def test_an_adapter_taken_out_leaves_the_merge_without_it(repo, settings):
    go(repo, "a", "b", "c", settings=settings, weights=(1.0, 2.0, 3.0))
    wanted = go(repo, "a", "c", branch="without", settings=settings, weights=(1.0, 3.0))
    left = unmerge(repo, "new", remove="b", author="t")
    assert left.commit.snapshot == wanted.commit.snapshot
    assert ingredients_of(repo, left.commit_id) == (repo.resolve("a"), repo.resolve("c"))


# --- with a basis ------------------------------------------------------------------------------------------


def test_each_ingredient_comes_back_to_the_byte_from_one_vector_fewer_than_there_are_models(repo):
    made = go(repo, "a", "b", "c", "d", method="rmm", settings=("p=3",))
    assert made.commit.check["rmm"]["exact"] is True
    assert made.commit.check["rmm"]["error"] < 1e-12
    for name in "abcd":
        found = rebuild(repo, "new", only=name, branch=f"again-{name}", author="t")
        assert found.commit.check["rmm"]["same_bytes"] is True
        theirs, ours = repo.view(repo.resolve(name)), repo.view(found.commit_id)
        assert [theirs.own.entry(n).digest for n in theirs.own.names()] == [ours.own.entry(n).digest for n in ours.own.names()]
        assert ours.own.file("adapter_config.json") == theirs.own.file("adapter_config.json")
    _, same = lifecycle.replay(repo, repo.resolve("again-b"), author="t")
    assert same


def test_with_fewer_vectors_the_stated_error_is_the_error_and_shrinks(repo):
    errors = []
    for p in (0, 1, 2):
        made = go(repo, "a", "b", "c", "d", method="rmm", settings=(f"p={p}",), branch=f"p{p}")
        told = made.commit.check["rmm"]
        found = rebuild(repo, f"p{p}", only="b", branch=f"b{p}", author="t")
        lost = sum(float((change(repo, f"b{p}", f"{m}.weight") - change(repo, "b", f"{m}.weight")).square().sum()) for m in PLACES)
        whole = sum(float(change(repo, "b", f"{m}.weight").square().sum()) for m in PLACES)
        stated = found.commit.check["rmm"]["error"]
        assert stated == told["errors"][repo.resolve("b")]
        assert (lost / whole) ** 0.5 == pytest.approx(stated, rel=1e-3)
        errors.append(stated)
    assert errors[0] > errors[1] > errors[2] > 0.01


def test_without_p_the_fewest_vectors_are_taken_that_keep_the_error(repo):
    loose = go(repo, "a", "b", "c", "d", method="rmm", settings=("error=0.9",), branch="loose").commit.check["rmm"]
    tight = go(repo, "a", "b", "c", "d", method="rmm", branch="tight").commit.check["rmm"]
    assert loose["p"] < tight["p"] == 3
    assert loose["ratio"] < tight["ratio"]


def test_a_merge_without_a_basis_gives_nothing_back_and_one_with_it_loses_an_ingredient_like_any(repo):
    go(repo, "a", "b")
    with pytest.raises(Incompatible, match="keeps no basis"):
        rebuild(repo, "new", only="b", author="t", branch="no")
    go(repo, "a", "b", "c", branch="three", method="rmm", settings=("p=1",))
    wanted = go(repo, "a", "c", branch="two", method="rmm", settings=("p=1",))
    with pytest.raises(BadParameter, match="no ingredient"):
        rebuild(repo, "three", only="d", author="t", branch="no")
    left = unmerge(repo, "three", remove="b", author="t")
    assert left.commit.snapshot == wanted.commit.snapshot
    back = rebuild(repo, "three", only="c", author="t", branch="c-again")
    assert back.commit.check["rmm"]["same_bytes"] is True  # p = n - 1 of the two that are left
