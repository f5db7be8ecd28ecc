"""A merge without one of its ingredients, over random histories; and chains: one by one, at once, and without a link."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from mlc.ops.merge.chain import Opcm, state_of
from mlc.ops.merge.merge import Merge
from mlc.ops.merge.pins import as_text, pinned
from mlc.ops.merge.recipe import Recipe, Slice, Source
from mlc.ops.merge.without import without
from mlc.registry.errors import BadParameter, Incompatible
from mlc.tests.ops.fakes import MemoryRun, MemoryView

NAMES = tuple(f"m{i}" for i in range(1, 9))
METHODS = (
    {"method": "linear"},
    {"method": "linear", "weights": True},
    {"method": "task_arithmetic", "base": "base", "weights": True, "lam": 0.7},
    {"method": "ties", "base": "base", "weights": True, "density": (0.6,)},
    {"method": "ties", "base": "base", "density": True},
    {"method": "dare_linear", "base": "base", "density": (0.5,)},
    {"method": "della", "base": "base", "density": (0.5,)},
    {"method": "breadcrumbs", "base": "base", "density": (0.7,), "weights": True},
    {"method": "sce", "base": "base"},
    {"method": "model_stock", "base": "base"},
    {"method": "karcher"},
    {"method": "soup", "weights": True},
    {"method": "multislerp", "weights": True},
    {"method": "multislerp", "base": "base"},
    {"method": "dare_ties", "base": "base", "density": (0.5,), "rng": "mergekit"},
    {"method": "della_linear", "base": "base", "density": (0.5,), "settings": ("epsilon=0.1",)},
    {"method": "breadcrumbs_ties", "base": "base", "density": True},
    {"method": "ties", "base": "base", "density": (0.4,), "scope": "model"},
    {"method": "model_stock", "base": "base", "settings": ("filter_wise=true",)},
)


def noise(seed: int, *shape: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def versions() -> dict[str, MemoryView]:
    """A base and eight siblings of three small tensors."""
    shapes = {"a.weight": (6, 5), "b.weight": (4, 4), "norm.weight": (5,)}
    base = {name: noise(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    found = {"base": MemoryView(base, {})}
    for k, name in enumerate(NAMES):
        found[name] = MemoryView({n: x + noise(100 * k + len(n), *x.shape, size=0.1) for n, x in base.items()}, {})
    return found


def made(versions: dict[str, MemoryView], op: Merge | Opcm, scratch: Path | None = None, **run_of: object) -> tuple[MemoryView, MemoryRun]:
    run = MemoryRun(scratch=scratch, **run_of)  # type: ignore[arg-type]
    run.versions = versions
    first = (op.recipe().ingredients() if op.config else op.ingredients)[0] if isinstance(op, Merge) else op.ingredients[0]
    view = versions[first]
    return view.after(op.apply(view, run)), run


def asked(chosen: dict, members: list[str], numbers: dict[str, float]) -> Merge:
    """The merge of `members` as a person would have typed it."""
    each = {key: tuple(numbers[m] for m in members) for key in ("weights", "density") if chosen.get(key) is True}
    return Merge(ingredients=tuple(members), **(chosen | each))


def test_two_hundred_histories_of_adding_and_removing_end_where_the_merge_without_ends(versions):
    chance, removed = random.Random(0), 0
    for turn in range(200):
        chosen = METHODS[turn % len(METHODS)]
        numbers = {name: round(chance.uniform(0.1, 0.9), 3) for name in NAMES}
        members = chance.sample(NAMES, 3)
        op: Merge | str = asked(chosen, members, numbers)
        for _ in range(4):
            spare = [name for name in NAMES if name not in members]
            if isinstance(op, str) or (spare and chance.random() < 0.5 and len(members) < 5):
                members = [*members, chance.choice(spare)]
                op = asked(chosen, members, numbers)
                continue
            gone = chance.choice(members)
            members = [name for name in members if name != gone]
            op, removed = without(op, gone), removed + 1
        if isinstance(op, str):
            assert [op] == members
        else:
            anew = asked(chosen, members, numbers)
            assert made(versions, op, seed=turn)[0].snapshot_id == made(versions, anew, seed=turn)[0].snapshot_id
    assert removed > 200


def test_a_weight_goes_with_its_version_also_when_the_base_is_named_among_them():
    op = Merge(ingredients=("m1", "m2", "m3"), method="ties", base="m1", weights=(0.2, 0.7), density=(0.3, 0.4))
    left = without(op, "m2")
    assert isinstance(left, Merge)
    assert (left.ingredients, left.weights, left.density) == (("m1", "m3"), (0.7,), (0.4,))
    assert without(Merge(ingredients=("m1", "m2"), method="slerp", t=0.3), "m1") == "m2"


def test_what_has_no_result_without_one_is_refused_with_the_reason():
    with pytest.raises(Incompatible, match="soup chosen by a score"):
        without(Merge(ingredients=("m1", "m2", "m3"), method="soup", weights=(1.0, 0.0, 1.0)), "m1")
    with pytest.raises(Incompatible, match="tokenizer of the merge is that of m2"):
        without(Merge(ingredients=("m1", "m2"), tokenizer="m2"), "m2")
    stack = Recipe("passthrough", (Slice((Source("m1", (0, 1)),)), Slice((Source("m2", (1, 2)),))))
    with pytest.raises(Incompatible, match="stacked layers"):
        without(Merge(config=as_text(stack)), "m2")


def test_a_merge_file_is_kept_as_its_text_and_loses_one_model_like_options(versions):
    sources = tuple(Source(name, None, {"weight": weight}) for name, weight in (("x", 0.5), ("y", [0.2, 0.4]), ("z", 0.3)))
    recipe = Recipe("ties", (Slice(sources),), "w", {"density": 0.5, "lambda": 0.9})
    op = Merge(config=pinned(recipe, ("m1", "m2", "m3", "base")))
    assert op.joins() == ("m2", "m3")
    assert op.recipe().slices[0].sources[1].parameters == {"weight": [0.2, 0.4]}
    left = without(op, "m1")
    assert isinstance(left, Merge)
    rest = Recipe("ties", (Slice(sources[1:]),), "w", {"density": 0.5, "lambda": 0.9})
    anew = Merge(config=pinned(rest, ("m2", "m3", "base")))
    assert made(versions, left)[0].snapshot_id == made(versions, anew)[0].snapshot_id
    assert Merge.from_params(left.params()) == left


# --- chains ------------------------------------------------------------------------------------------------


def chained(versions: dict[str, MemoryView], place: Path, *models: str, alpha: float = 0.5) -> tuple[MemoryView, tuple[float, ...]]:
    """A chain, one operation per model, as commits would make it."""
    known, state, running = dict(versions), (), models[0]
    for k, model in enumerate(models[1:]):
        result, run = made(known, Opcm((running, model), "base", alpha, state), place / f"{len(models)}{k}{model}")
        state, running = state_of(run.records), f"step{k}"
        known[running] = result
    return known[running], state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_absorbing_several_at_once_gives_the_bytes_of_one_by_one(versions, tmp_path: Path, dtype: torch.dtype):
    known = {name: MemoryView({n: v.tensor(n).to(dtype) for n in v.names()}, {}) for name, v in versions.items()}
    single, state = chained(known, tmp_path, "m1", "m2", "m3", "m4")
    at_once, run = made(known, Opcm(("m1", "m2", "m3", "m4"), "base"), tmp_path / "all", threads=2)
    assert at_once.snapshot_id == single.snapshot_id
    assert state_of(run.records) == state
    assert run.records["opcm"]["count"] == 4
    distance = sum(float((single.tensor(n).double() - known["base"].tensor(n).double()).square().sum()) for n in single.names()) ** 0.5
    assert distance == pytest.approx(run.records["opcm"]["norm"], rel=1e-5 if dtype == torch.float32 else 2e-2)


def test_a_chain_may_begin_at_the_base_and_then_holds_its_first_model_to_the_byte(versions, tmp_path: Path):
    result, run = made(versions, Opcm(("base", "m1"), "base"), tmp_path)
    assert result.snapshot_id == versions["m1"].snapshot_id
    assert (run.records["opcm"]["count"], run.records["opcm"]["scale"]) == (1, 1.0)


def test_what_no_version_moved_is_not_touched_to_the_sign_of_its_zeros(versions, tmp_path: Path):
    known = {
        name: MemoryView({n: v.tensor(n) for n in v.names()} | {"still": torch.tensor([-0.0, 1.0])}, {}) for name, v in versions.items()
    }
    known["m3"] = MemoryView({n: known["m3"].tensor(n) for n in known["m3"].names()} | {"still": torch.tensor([2.0, 1.0])}, {})
    assert chained(known, tmp_path, "m1", "m2")[0].entry("still").digest == known["base"].entry("still").digest
    at_once = made(known, Opcm(("m1", "m2", "m3"), "base"), tmp_path / "all")[0]
    assert at_once.snapshot_id == chained(known, tmp_path, "m1", "m2", "m3")[0].snapshot_id


def test_what_was_added_of_the_last_version_is_kept_and_leads_back(versions, tmp_path: Path):
    from safetensors.torch import load

    from mlc.ops.merge.opcm import State, without_last

    before, was = chained(versions, tmp_path, "m1", "m2")
    known = versions | {"running": before}
    after, run = made(known, Opcm(("running", "m3"), "base", 0.5, was), tmp_path / "last")
    added = load(next(iter(run.artifacts.values())))
    states = [State(s[0], int(s[1]), s[2]) for s in (was, state_of(run.records))]
    for name in after.names():
        back = without_last(after.tensor(name), versions["base"].tensor(name), added[name], *states)
        assert torch.allclose(back, before.tensor(name) - versions["base"].tensor(name), atol=1e-5)
    assert made(known, Opcm(("running", "m3"), "base", 0.5, was, deltas=False), tmp_path / "none")[1].artifacts == {}


@pytest.mark.parametrize("wrong", [{"alpha": 1.0}, {"state": (1.0,)}, {"base": None}, {"state": (float("nan"), 1.0, 1.0)}])
def test_a_chain_that_cannot_be_is_refused(wrong: dict):
    with pytest.raises(BadParameter):
        Opcm(**({"ingredients": ("m1", "m2"), "base": "base"} | wrong))
