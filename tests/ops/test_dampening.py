"""The SSD family on real importances of tiny models: what is selected, what becomes of it, and what is proven."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mlc.ops.models import load_model
from mlc.ops.unlearn.dampening import Dampener, dust, mixed, pack_bits
from mlc.ops.unlearn.exclusion import Slot, changeable, excluded, groups_of, parse, slots
from mlc.ops.unlearn.importance import importance, reference_batch_importance
from mlc.registry.errors import BadParameter, CheckFailed
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView, raw_bytes

FORGET, ROWS, LENGTH = 6, 24, 8


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    torch.set_num_threads(1)
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("m") / "llama", layers=1))


@pytest.fixture(scope="module")
def fishers(view):
    """Per-sample importances of 6 rows to forget, the 18 others, and all 24."""
    return {"forget": fisher(view, range(FORGET)), "retain": fisher(view, range(FORGET, ROWS)), "all": fisher(view, range(ROWS))}


def rows() -> torch.Tensor:
    return torch.randint(4, 40, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))


def losses(module):
    """Row numbers -> mean NLL per row."""
    ids = rows()

    def score(chosen: list[int]) -> torch.Tensor:
        logits = module(input_ids=ids[chosen], use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), ids[chosen][:, 1:], reduction="none").mean(1)

    return score


def fisher(view, which, *, size: int = 5, how=importance):
    module, numbers = load_model(view, dtype=torch.float32), list(which)
    return how(module, losses(module), [numbers[i : i + size] for i in range(0, len(numbers), size)])


def dampener(view, fishers, *, damping: float = 1.0, reference=None, exclude: str = "none") -> Dampener:
    module = load_model(view, dtype=torch.float32)
    reference = reference or mixed(fishers["forget"], fishers["retain"], FORGET / ROWS)
    return Dampener(module, slots(module, view, exclude), fishers["forget"], reference, damping=damping)


# --- what may change -------------------------------------------------------------------------------------


def test_embeddings_norms_and_biases_are_left_out_of_every_family(tmp_path):
    left = {}
    for family in ("llama", "gpt2", "neox", "vit"):
        one = MemoryView.of(tiny_model(tmp_path / family, family, layers=1))
        left[family] = set(changeable(one, "embeddings,norms,biases"))
        assert all(len(one.entry(n).shape) >= 2 for n in left[family])
        assert not any("embed" in n or "wte" in n or "wpe" in n or "norm" in n for n in left[family] if n != "embed_out.weight")
        assert len(changeable(one, "none")) == len(one.names())
    assert {n.split(".")[-2] for n in left["llama"]} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {n.split(".")[-2] for n in left["gpt2"]} == {"c_attn", "c_proj", "c_fc"}
    assert "classifier.weight" in left["vit"]


def test_a_network_of_no_known_family_is_read_by_names_and_shapes(tmp_path):
    from mlc.tests.digits import untrained

    untrained("cnn", 0).save_pretrained(tmp_path)
    net = MemoryView.of(tmp_path)
    left = changeable(net, "embeddings,norms,biases")
    assert "resnet.embedder.embedder.convolution.weight" in left
    assert "classifier.1.weight" in left
    assert not any("normalization" in n or n.endswith("bias") for n in left)
    assert not any("running" in n or "num_batches" in n for n in changeable(net, "none"))
    module = load_model(net)
    assert {s.name for s in slots(module, net, "none")} == {n for n, _ in module.named_parameters()}


def test_a_tied_head_is_one_weight_and_an_embedding(view):
    module = load_model(view)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    names = [s.name for s in slots(module, view, "none")]
    assert len(names) == len(set(names)) == sum(1 for _ in module.parameters())
    assert not any("embed" in s.name for s in slots(module, view, "embeddings"))


def test_patterns_leave_out_what_they_fit_and_an_unknown_one_is_an_error(view):
    assert excluded(view, "*.mlp.*") == {n for n in view.names() if ".mlp." in n}
    assert groups_of(view, "model.layers.0.input_layernorm.weight") == {"norms"}
    for wrong, sentence in (("norm", "fits no tensor"), ("", "says nothing"), ("none,norms", "says nothing"), ("*", "no weight")):
        with pytest.raises(BadParameter, match=sentence):
            changeable(view, wrong)
    assert parse("none") == ()


# --- the importance of both sets together ----------------------------------------------------------------


def test_the_mixture_of_both_sets_is_the_importance_of_their_union(fishers):
    together = mixed(fishers["forget"], fishers["retain"], FORGET / ROWS)
    for name, whole in fishers["all"].items():
        assert (together[name] - whole).abs().max() <= 1e-5 * whole.max(), name


def test_no_weight_matters_more_to_a_part_than_the_share_allows(fishers):
    together = mixed(fishers["forget"], fishers["retain"], FORGET / ROWS)
    for name, part in fishers["forget"].items():
        assert (part <= (ROWS / FORGET) * together[name]).all(), name


def test_permuted_data_gives_the_same_importance_per_sample_and_another_one_per_batch(view, fishers):
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(9)).tolist()
    again = fisher(view, order)
    batch, batch_again = (fisher(view, o, how=reference_batch_importance) for o in (range(ROWS), order))
    for name, whole in fishers["all"].items():
        assert (again[name] - whole).abs().max() <= 1e-6 * whole.max(), name
    moved = max(((batch_again[n] - batch[n]).abs().max() / batch[n].max()).item() for n in batch)
    assert moved > 0.01


# --- identities ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [1.0, 1.5, 10.0])
def test_a_strength_of_one_or_more_selects_nothing(view, fishers, a):
    damper = dampener(view, fishers)
    assert damper.apply(a * ROWS / FORGET) == 0
    assert damper.values(a * ROWS / FORGET) == {}
    with pytest.raises(CheckFailed, match=f"selected 0 of {damper.weights} weights"):
        damper.require_some(a * ROWS / FORGET, "smaller")


def test_forgetting_everything_selects_nothing_from_alpha_one_on(view, fishers):
    damper = dampener(view, fishers, reference=mixed(fishers["forget"], fishers["forget"], 1.0))
    assert damper.apply(1.0) == 0


def test_damping_beyond_alpha_times_the_largest_ratio_changes_no_bit(view, fishers):
    damper = dampener(view, fishers, damping=1e30)
    assert damper.apply(0.5 * ROWS / FORGET) > 0
    assert damper.values(0.5 * ROWS / FORGET) == {}
    with pytest.raises(CheckFailed, match="leaves each at its value"):
        damper.require_some(0.5 * ROWS / FORGET, "smaller")


def test_a_strength_that_selects_everything_is_refused(view, fishers):
    ones = {n: torch.ones_like(v) for n, v in fishers["forget"].items()}
    damper = dampener(view, {"forget": ones}, reference=ones)
    with pytest.raises(CheckFailed, match=f"selected all {damper.weights} of {damper.weights} weights"):
        damper.require_some(0.5, "larger")


# --- what happens to the selected ------------------------------------------------------------------------


def test_without_damping_left_the_selected_weights_are_exactly_zero(view, fishers):
    damper = dampener(view, fishers, damping=0.0)
    alpha = 0.3 * ROWS / FORGET
    changed = damper.values(alpha)
    assert changed
    for place in damper.slots:
        mask = damper.mask(place, alpha)
        if mask.any():
            assert (changed[place.name][mask] == 0).all()
            assert torch.equal(changed[place.name][~mask], view.tensor(place.stored[0])[~mask])


def test_a_larger_alpha_selects_a_subset(view, fishers):
    damper = dampener(view, fishers)
    alphas = [a * ROWS / FORGET for a in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)]
    counts = [damper.apply(alpha) for alpha in alphas]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    for weak, strong in zip(alphas[1:], alphas, strict=False):
        assert all((~damper.mask(s, weak) | damper.mask(s, strong)).all() for s in damper.slots)


def test_weights_only_shrink_keep_their_sign_and_those_not_selected_keep_their_bits(view, fishers):
    damper = dampener(view, fishers)
    alpha = 0.2 * ROWS / FORGET
    assert damper.apply(alpha) == sum(int(damper.mask(s, alpha).sum()) for s in damper.slots)
    changed = damper.values(alpha)
    assert changed
    for name, data in changed.items():
        was = view.tensor(name)
        moved = data != was
        assert (data * was >= 0).all()
        assert (data.abs() <= was.abs()).all()
        assert (data[moved].abs() <= damper.damping / alpha * was[moved].abs() * (1 + 1e-5)).all()
        place = next(s for s in damper.slots if s.name == name)
        kept = ~damper.mask(place, alpha)
        assert raw_bytes(data[kept]) == raw_bytes(was[kept])


def test_every_strength_starts_from_the_stored_weights(view, fishers):
    damper = dampener(view, fishers)
    damper.apply(0.05 * ROWS / FORGET)
    damper.apply(0.6 * ROWS / FORGET)
    twice = {n: p.clone() for n, p in damper.parameters.items()}
    fresh = dampener(view, fishers)
    fresh.apply(0.6 * ROWS / FORGET)
    assert all(torch.equal(p, twice[n]) for n, p in fresh.parameters.items())
    damper.restore()
    assert all(torch.equal(p, view.tensor(n)) for n, p in damper.parameters.items())


def test_the_report_counts_per_role_and_names_factors_that_are_there(view, fishers):
    damper = dampener(view, fishers)
    alpha = 0.3 * ROWS / FORGET
    told = damper.report(alpha)
    assert told["selected"] == sum(r["selected"] for r in told["by_role"].values()) == damper.apply(alpha)
    assert told["weights"] == sum(p.numel() for p in damper.parameters.values())
    assert told["beta_quantiles"] == sorted(told["beta_quantiles"])
    assert told["beta_quantiles"][-1] <= 1 / alpha + 1e-6
    assert {"attn.q", "mlp.out", "norm", "embedding"} <= told["by_role"].keys()


def test_a_mask_is_kept_as_bits(view, fishers):
    import numpy as np
    from safetensors.torch import load

    damper = dampener(view, fishers)
    alpha = 0.3 * ROWS / FORGET
    stored = load(damper.packed_masks(alpha))
    for place in damper.slots:
        mask = damper.mask(place, alpha)
        bits = np.unpackbits(stored[place.stored[0]].numpy(), bitorder="little")[: mask.numel()]
        assert (torch.from_numpy(bits).bool() == mask.flatten()).all()
    assert pack_bits(torch.tensor([True, False, True])).tolist() == [5]


# --- numerics --------------------------------------------------------------------------------------------


def test_a_weight_that_only_the_forget_set_uses_goes_to_zero_and_dust_is_never_divided_by():
    module = torch.nn.Linear(5, 1, bias=False)
    place = Slot("weight", ("weight",), "other", None)
    forget, reference = torch.tensor([[1.0, 0.0, 0.0, 1e-30, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 0.0, 1.0]])
    damper = Dampener(module, [place], {"weight": forget}, {"weight": reference})
    assert dust({"w": forget}) == pytest.approx(1e-20)
    assert damper.mask(place, 2.0).tolist() == [[True, False, False, False, False]]
    assert damper.ratios()[0].tolist() == [[math.inf, 0, 0, 0, 1]]
    assert damper.values(2.0)["weight"][0, 0] == 0
    assert torch.equal(damper.values(2.0)["weight"][0, 1:], module.weight[0, 1:])
