"""Block expansion: nothing changes at insertion, to the bit; and every way to get that wrong is seen."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mlc.ops.base import CopyTensor, SetFile, SetTensor
from mlc.ops.models import load_model
from mlc.ops.update.expand import Expand, ExpandedView, check_old_tensors, insertion
from mlc.ops.update.growth import Growth
from mlc.ops.update.inits import slerp
from mlc.ops.update.layout import expandable, expanded_names, explicit, lay_out, layout_for, sources_for, spread
from mlc.ops.update.train import Update
from mlc.registry.errors import BadParameter, CheckFailed, Incompatible
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView

IDS = torch.randint(4, 64, (2, 24), generator=torch.Generator().manual_seed(0))
SLIDING = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
CASES = {
    "llama": ("llama", {}),
    "llama-untied-biases": ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "qwen3-sliding": ("qwen3", {"layer_types": SLIDING, "use_sliding_window": True, "sliding_window": 8}),
    "gpt2": ("gpt2", {}),
    "neox": ("neox", {}),
    "neox-sequential": ("neox", {"use_parallel_residual": False}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each case as a view, fp32 and bf16, made once."""
    made = {}

    def get(case, dtype="float32"):
        if (case, dtype) not in made:
            family, changes = CASES[case]
            made[case, dtype] = MemoryView.of(tiny_model(tmp_path_factory.mktemp(case), family, layers=4, dtype=dtype, **changes))
        return made[case, dtype]

    return get


def expanded(view, sources, init="zeros", seed=0):
    family, blocks = expandable(view)
    return ExpandedView(view, family, lay_out(blocks, sources), init, seed)


def logits(view, ids=IDS):
    with torch.no_grad():
        return load_model(view)(input_ids=ids, use_cache=False).logits


def op(**more):
    return Update(data="unused.txt", expand=1, **more)


# --- exactness ---


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_expanded_model_has_bit_equal_logits(models, case, dtype):
    view = models(case, dtype)
    for sources in ((3,), (1, 3), (0, 1, 2, 3), (3, 3), (0,)):
        assert torch.equal(logits(expanded(view, sources)), logits(view))


@pytest.mark.parametrize("case", CASES)
def test_generation_with_a_cache_is_the_same_token_for_token(models, case):
    view = models(case)
    before, after = load_model(view), load_model(expanded(view, (0, 2)))
    prompt = IDS[:, :5]
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(before.generate(prompt, **settings), after.generate(prompt, **settings))


def test_names_without_the_prefix_expand_as_well(models):
    view = models("gpt2")
    bare = MemoryView({n.removeprefix("transformer."): view.tensor(n) for n in view.names()}, {"config.json": view.file("config.json")})
    result = expanded(bare, (1,))
    assert "h.4.ln_1.weight" in result.names()
    assert torch.equal(logits(result), logits(view))


def test_taking_the_new_blocks_out_again_gives_the_parent(models):
    view = models("qwen3-sliding")
    result = expanded(view, (1, 3))
    old = {name: source for name, (source, new) in result.origin.items() if not new}
    assert sorted(old.values()) == sorted(view.names())
    assert all(torch.equal(result.tensor(name), view.tensor(source)) for name, source in old.items())


# --- negative controls: what must not pass ---


class Sloppy(ExpandedView):
    """An expansion with one mistake in it."""

    mistake = ""

    def tensor(self, name):
        source, new = self.origin[name]
        if new and self.mistake == "biases" and name.endswith(".bias"):
            return self.parent.tensor(source)
        if new and self.mistake == "outputs" and "c_proj.weight" in name:
            return self.parent.tensor(source)
        return super().tensor(name)


@pytest.mark.parametrize("mistake", ["biases", "outputs"])
def test_an_output_that_is_left_as_it_was_is_caught_before_training(models, mistake):
    view = models("gpt2")
    result = Sloppy(view, *[expandable(view)[0], lay_out(4, (1,))])
    result.mistake = mistake
    with pytest.raises(CheckFailed, match="changed the model before any training"):
        insertion(view, result, IDS, op())


@pytest.mark.parametrize(
    ("case", "keep"), [("llama", {"num_hidden_layers": 4}), ("qwen3-sliding", {"layer_types": SLIDING}), ("gpt2", {"n_layer": 4})]
)
def test_a_config_that_is_left_as_it_was_does_not_load(models, case, keep):
    result = expanded(models(case), (1,))
    result.config = {**result.config, **keep}
    with pytest.raises(Incompatible):
        load_model(result)


def test_gpt2_that_scales_attention_by_the_block_number_is_refused(tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(Incompatible, match="depends on the number of the block"):
        expandable(view)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_encoders_are_refused(family, tmp_path):
    with pytest.raises(Incompatible, match="blocks can be added to Llama"):
        expandable(MemoryView.of(tiny_model(tmp_path, family)))


def test_blocks_with_experts_or_foreign_tensors_are_refused(models):
    view = models("llama")
    files = {"config.json": view.file("config.json")}
    tensors = {n: view.tensor(n) for n in view.names()}
    with pytest.raises(Incompatible, match=r"not every block has mlp\.down_proj\.weight"):
        expandable(MemoryView({n: t for n, t in tensors.items() if "layers.2.mlp.down" not in n}, files))
    with pytest.raises(Incompatible, match="router"):
        expandable(MemoryView(tensors | {"model.layers.0.mlp.router.weight": torch.zeros(2)}, files))


def test_a_list_of_unknown_meaning_with_one_entry_per_block_is_refused(models):
    view = models("llama")
    config = {**json.loads(view.file("config.json")), "secret_layer_scales": [1, 2, 3, 4]}
    odd = MemoryView({n: view.tensor(n) for n in view.names()}, {"config.json": json.dumps(config).encode()})
    with pytest.raises(Incompatible, match="secret_layer_scales"):
        expanded(odd, (1,))


# --- where blocks go ---


@pytest.mark.parametrize(
    ("blocks", "count", "sources", "new"),
    [
        (4, 1, (3,), (4,)),
        (4, 2, (1, 3), (2, 5)),
        (4, 4, (0, 1, 2, 3), (1, 3, 5, 7)),
        (5, 2, (2, 4), (3, 6)),
        (32, 8, (3, 7, 11, 15, 19, 23, 27, 31), (4, 9, 14, 19, 24, 29, 34, 39)),
        (2, 3, (0, 1, 1), (1, 3, 4)),
    ],
)
def test_interleaving_spreads_evenly_and_is_llama_pros_where_it_divides(blocks, count, sources, new):
    assert spread(blocks, count) == sources
    assert lay_out(blocks, sources).new_blocks == new


@pytest.mark.parametrize(
    ("blocks", "count", "origin"),
    [
        (4, 2, [0, 1, 2, "1", "2", 3]),
        (5, 1, [0, 1, 2, "2", 3, 4]),
        (6, 4, [0, 1, 2, 3, 4, "1", "2", "3", "4", 5]),
        (2, 2, [0, 1, "0", "1"]),
    ],
)
def test_stack_side_repeats_the_middle_as_one_run(blocks, count, origin):
    layout = layout_for("stack-side", blocks, count)
    assert layout.origin == tuple((int(entry), isinstance(entry, str)) for entry in origin)
    assert sorted(layout.old_index()) == list(range(blocks))


def test_stack_side_cannot_repeat_more_blocks_than_there_are():
    with pytest.raises(BadParameter, match="at most the 3 blocks"):
        layout_for("stack-side", 3, 4)


def test_other_places():
    assert sources_for("append", 5, 2) == (4, 4)
    assert sources_for("importance", 5, 2, ranking=[3, 1, 2, 4]) == (1, 3)
    assert sources_for("2,0", 5, 2) == (0, 2)
    assert explicit("interleave") is None


@pytest.mark.parametrize(
    ("where", "blocks", "count"), [("5", 5, 1), ("1,2", 5, 1), ("importance", 3, 3), ("middle", 5, 1), ("", 5, 1), ("-1", 5, 1)]
)
def test_places_that_do_not_exist_are_refused(where, blocks, count):
    with pytest.raises(BadParameter):
        sources_for(where, blocks, count, ranking=list(range(1, blocks)))


# --- how new blocks begin ---


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_zeros_keeps_the_function(models, case, dtype):
    view, run = models(case, dtype), MemoryRun()
    family, blocks = expandable(view)
    layout = layout_for("stack-side", blocks, 2)
    assert torch.equal(logits(ExpandedView(view, family, layout)), logits(view))
    for init in ("copy", "random", "merge-linear", "merge-slerp"):
        result = ExpandedView(view, family, layout, init)
        facts = insertion(view, result, IDS, op(init=init))
        assert facts["init"] == init
        assert facts["keeps_function"] is False
        assert facts["max_logit_difference"] > 0
        old = {name: source for name, (source, new) in result.origin.items() if not new}
        assert all(torch.equal(result.tensor(name), view.tensor(source)) for name, source in old.items())
    assert run.notes == []


@pytest.mark.parametrize("case", ["llama-untied-biases", "gpt2", "neox"])
def test_a_new_block_holds_what_its_way_says(models, case):
    view = models(case)
    for init in ("copy", "merge-linear", "merge-slerp", "random"):
        result = expanded(view, (2,), init)
        for name in (n for n, (_, new) in result.origin.items() if new):
            got, here = result.tensor(name), view.tensor(result.origin[name][0])
            before = view.tensor(result.origin[name][0].replace(".2.", ".1.", 1))
            assert got.shape == here.shape
            assert got.dtype == here.dtype
            if init == "copy":
                assert torch.equal(got, here)
            elif init == "merge-linear":
                assert torch.equal(got, (here + before) / 2)
            elif init == "merge-slerp":
                assert torch.allclose(got, slerp(here, before), rtol=0, atol=0)
            elif got.dim() == 2:
                assert 0 < got.std() < 0.03
            else:
                gain = name.endswith("weight") and any(word in name for word in ("norm", ".ln_"))
                assert set(got.tolist()) == {1.0 if gain else 0.0}


def test_the_first_block_has_none_before_it_and_is_copied(models):
    view = models("llama")
    result = expanded(view, (0,), "merge-linear")
    assert torch.equal(result.tensor("model.layers.1.mlp.up_proj.weight"), view.tensor("model.layers.0.mlp.up_proj.weight"))


def test_random_blocks_differ_by_seed_and_place_and_repeat(models):
    view, name, other = models("llama"), "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"
    one = expanded(view, (0, 0), "random", seed=1)
    assert torch.equal(one.tensor(name), expanded(view, (0, 0), "random", seed=1).tensor(name))
    assert not torch.equal(one.tensor(name), expanded(view, (0, 0), "random", seed=2).tensor(name))
    assert not torch.equal(one.tensor(name), one.tensor(other))


def test_halfway_on_the_arc_keeps_the_length_and_falls_back_to_the_line():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    assert torch.allclose(slerp(a, b), torch.tensor([3.0, 3.0]) / 2**0.5)
    assert torch.equal(slerp(a, 2 * a), 1.5 * a)
    assert torch.equal(slerp(torch.zeros(2), b), b / 2)


# --- what is trained and what is written ---


def test_after_one_backward_only_the_output_projections_of_new_blocks_have_a_gradient(models):
    view = models("gpt2")
    method = Expand(op(where="1"), view, MemoryRun(), IDS)
    method.module.train()
    method.module(input_ids=IDS, labels=IDS).loss.backward()
    moved = {n for n, p in method.module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {f"transformer.h.2.{m}.c_proj.{part}" for m in ("attn", "mlp") for part in ("weight", "bias")}
    trained = {n for n, p in method.module.named_parameters() if p.requires_grad}
    assert all(n.startswith("transformer.h.2.") for n in trained)


def test_changes_copy_what_moved_set_what_is_new_and_edit_the_config(models):
    view, run = models("llama"), MemoryRun()
    changes = list(Expand(op(where="1"), view, run, IDS).changes())
    copies = {c.name: c.source for c in changes if isinstance(c, CopyTensor)}
    assert copies["model.layers.3.mlp.up_proj.weight"] == "model.layers.2.mlp.up_proj.weight"
    assert {n.split(".")[2] for n in copies} == {"3", "4"}
    sets = [c for c in changes if isinstance(c, SetTensor)]
    assert {c.name.split(".")[2] for c in sets} == {"2"}
    assert all(c.base == c.name.replace("layers.2.", "layers.1.") for c in sets)
    assert [c.path for c in changes if isinstance(c, SetFile)] == ["config.json"]
    after = view.after(changes)
    assert after.config == {**view.config, "num_hidden_layers": 5}
    assert torch.equal(logits(after), logits(view))
    assert run.records["insertion"] == {
        "init": "zeros",
        "keeps_function": True,
        "max_logit_difference": 0.0,
        "probe_tokens": 48,
        "dtype": "float32",
        "where": "1",
        "positions": [2],
        "copies_of": [1],
    }


def test_old_tensors_are_compared_by_digest_under_their_new_names(models):
    view = models("llama")
    after = view.after(Expand(op(where="1"), view, MemoryRun(), IDS).changes())
    layout = lay_out(4, (1,))
    assert check_old_tensors(view, after, Growth(layout)) == {"old_tensors_unchanged": 38, "new_tensors": 9}
    family, _ = expandable(view)
    assert len(expanded_names(family, view.names(), layout)) == len(after.names())
    touched = after.after([SetTensor("model.layers.4.mlp.up_proj.weight", torch.zeros(32, 16))])
    with pytest.raises(CheckFailed, match="was to stay as it is"):
        check_old_tensors(view, touched, Growth(layout))


def test_per_block_settings_follow_their_blocks(models):
    result = expanded(models("qwen3-sliding"), (1, 3))
    full, sliding = "full_attention", "sliding_attention"
    assert result.config["layer_types"] == [full, full, full, sliding, sliding, sliding]
    assert result.config["num_hidden_layers"] == 6


def test_per_block_settings_that_the_config_only_implies_are_written_out(models):
    view = models("qwen3-sliding")
    config = {k: v for k, v in json.loads(view.file("config.json")).items() if k != "layer_types"} | {"max_window_layers": 2}
    implied = MemoryView({n: view.tensor(n) for n in view.names()}, {"config.json": json.dumps(config).encode()})
    result = expanded(implied, (0,))
    assert result.config["layer_types"] == ["full_attention"] * 3 + ["sliding_attention"] * 2
    assert torch.equal(logits(result), logits(implied))


def test_an_adapter_is_not_expanded(models):
    view = models("llama")
    adapter = MemoryView({n: view.tensor(n) for n in view.names()}, {"config.json": view.file("config.json")}, adapter=True)
    with pytest.raises(Incompatible, match="adapter"):
        expandable(adapter)


def test_the_stored_config_keeps_every_other_byte(models):
    view = models("llama")
    result = expanded(view, (0, 2))
    assert result.file("config.json") == view.file("config.json").replace(b'"num_hidden_layers": 4', b'"num_hidden_layers": 6')
    assert (
        replace(result.entry("model.layers.5.mlp.up_proj.weight"), name="x").digest
        == view.entry("model.layers.3.mlp.up_proj.weight").digest
    )


@pytest.mark.material
@pytest.mark.parametrize("name", ["stories260k", "facts-deep"])
def test_real_models_expand_without_a_bit_of_difference(material, name):
    view = MemoryView.of(material / "models" / name)
    text = str(material / "data" / "oz" / "oz-train.txt")
    for where in ("interleave", "append", "stack-side", "importance"):
        run = MemoryRun()
        Expand(
            Update(data=text, expand=1, where=where), view, run, torch.randint(3, 500, (2, 64), generator=torch.Generator().manual_seed(1))
        )
        assert run.records["insertion"]["max_logit_difference"] == 0.0
