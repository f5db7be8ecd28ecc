"""PEFT adapters as children of their base: what PEFT itself merges, we merge; what does not fit is refused before it is stored."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mlc.registry.errors import BadInputFile, Incompatible, ShapeMismatch
from mlc.registry.formats.directory import build_adapter, export, ingest, scan
from mlc.registry.formats.peft import LowRank, locate, plan_merge, unsupported
from mlc.registry.records import Snapshot
from mlc.registry.view import EffectiveView
from mlc.tests.factories import tiny_model


def store(repo, folder: Path, **how) -> tuple[Snapshot, list[str]]:
    with repo.ingest() as tx:
        snapshot, _, said = ingest(tx, scan(folder), **how)
        tx.seal()
    return snapshot, said


def loaded(folder: Path, auto: str = "AutoModelForCausalLM"):
    import transformers

    return getattr(transformers, auto).from_pretrained(folder)


def adapter(base: Path, target: Path, *, auto: str = "AutoModelForCausalLM", **settings) -> dict[str, torch.Tensor]:
    """Save a LoRA adapter with random factors to `target`; returns the weights that PEFT merges, by the base's names."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT speaks of tied weights and transposed layers while it does the right thing
        torch.manual_seed(1)
        model = peft.get_peft_model(
            loaded(base, auto), peft.LoraConfig(**{"r": 4, "lora_alpha": 10, "init_lora_weights": False, **settings})
        )
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                torch.nn.init.normal_(parameter.data)
        model.save_pretrained(target)
        return {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}


CASES = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all linear, rank-stabilised": {"target_modules": "all-linear", "use_rslora": True},
    "patterns of rank and alpha": {
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 32, "^model.layers.0.self_attn.q_proj": 3},
    },
    "a module saved whole": {"target_modules": ["o_proj"], "modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("case", CASES)
def test_the_effective_view_is_what_peft_merges(case: str, repo, tmp_path: Path):
    base = tiny_model(tmp_path / "base", "llama")
    merged = adapter(base, tmp_path / "adapter", **CASES[case])
    view = effective(repo, base, tmp_path / "adapter")
    compare(view, merged)
    assert 0 < len(view.changed_names()) < len(view.names())


def effective(repo, base: Path, folder: Path) -> EffectiveView:
    parent, _ = store(repo, base)
    child, said = store(repo, folder, adapter_of=parent)
    assert (child.kind, child.base, said) == ("adapter", parent.id, [])
    view = repo.view(child.id)
    assert isinstance(view, EffectiveView)
    assert (view.snapshot_id, view.base.snapshot_id, view.own.snapshot_id) == (child.id, parent.id, child.id)
    return view


def compare(view: EffectiveView, merged: dict[str, torch.Tensor]) -> None:
    for name in view.names():
        got, base = view.tensor(name), view.base.tensor(name) if view.base.has(name) else None
        assert got.dtype == merged[name].dtype
        torch.testing.assert_close(got, merged[name], rtol=2e-6, atol=2e-6)
        changed = base is None or not got.equal(base)
        assert changed == (name in view.changed_names())
        assert (view.entry(name).digest != view.base.entry(name).digest if base is not None else True) == changed
        assert bytes(view.raw(name)) == bytes(got.reshape(-1).view(torch.uint8).numpy())


def test_transposed_layers_and_embeddings_are_merged_as_peft_does(repo, tmp_path: Path):
    base = tiny_model(tmp_path / "base", "gpt2", tie_word_embeddings=False)
    merged = adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_fc", "wte"], fan_in_fan_out=True)
    compare(effective(repo, base, tmp_path / "adapter"), merged)


def test_a_new_head_on_a_base_without_its_prefix_is_added(repo, tmp_path: Path):
    import transformers

    base = tiny_model(tmp_path / "base", "bert")
    transformers.BertModel.from_pretrained(base).save_pretrained(tmp_path / "bare")
    merged = adapter(
        base, tmp_path / "adapter", auto="AutoModelForSequenceClassification", target_modules=["query"], modules_to_save=["classifier"]
    )
    view = effective(repo, tmp_path / "bare", tmp_path / "adapter")
    assert "encoder.layer.0.attention.self.query.weight" in view.changed_names()
    assert view.tensor("classifier.weight").equal(merged["classifier.weight"])
    assert "classifier.weight" in view.primary_names()
    torch.testing.assert_close(
        view.tensor("encoder.layer.0.attention.self.query.weight"), merged["bert.encoder.layer.0.attention.self.query.weight"]
    )


def test_a_bf16_base_is_rounded_once(repo, tmp_path: Path):
    base = tiny_model(tmp_path / "base", "llama", dtype="bfloat16")
    adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    view = effective(repo, base, tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj.weight"
    up, down = (view.own.tensor(f"base_model.model.{name[:-7]}.lora_{part}.weight").double() for part in "BA")
    exact = view.base.tensor(name).double() + 2.5 * up @ down
    got = view.tensor(name)
    assert got.dtype == torch.bfloat16
    assert (got.double() - exact).abs().max() <= exact.abs().max() * 2**-8


def test_a_convolution_is_merged_over_its_whole_kernel():
    config = {"peft_type": "LORA", "lora_alpha": 4}
    plan = plan_merge(config, {"conv.lora_A.weight": (2, 3, 5, 5), "conv.lora_B.weight": (7, 2, 1, 1)}, {"conv.weight": (7, 3, 5, 5)})
    assert plan.added == {"conv.weight": LowRank("conv.lora_B.weight", "conv.lora_A.weight", 2.0, False)}


def test_config_and_tokenizer_come_from_where_they_belong(repo, tmp_path: Path):
    base = tiny_model(tmp_path / "base", "llama")
    adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    (tmp_path / "adapter" / "config.json").write_text('{"model_type": "something else"}')
    (tmp_path / "adapter" / "tokenizer_config.json").write_text('{"mine": true}')
    view = effective(repo, base, tmp_path / "adapter")
    assert view.adapter
    assert view.config is not None
    assert view.config["model_type"] == "llama"
    assert view.file("tokenizer_config.json") == b'{"mine": true}'
    assert view.file("tokenizer.json") == (base / "tokenizer.json").read_bytes()
    listed = {file.path: file for file in view.files()}
    assert {"config.json", "tokenizer.json", "adapter_config.json", "model.safetensors", "adapter_model.safetensors"} <= set(listed)
    assert repo.blob(listed["config.json"].digest) == view.file("config.json")


def test_an_adapter_directory_comes_back_byte_for_byte(repo, tmp_path: Path):
    base = tiny_model(tmp_path / "base", "llama")
    adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    child, _ = store(repo, tmp_path / "adapter", adapter_of=store(repo, base)[0])
    export(repo, child, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()
    }


def test_an_adapter_that_was_built_here_is_seen_on_its_base(repo, tmp_path: Path):
    base, _ = store(repo, tiny_model(tmp_path / "base", "llama"))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.lora_A.weight": torch.ones(1, 16), f"{module}.lora_B.weight": torch.ones(16, 1)}
    config = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 3, "target_modules": ["q_proj"]}).encode()
    with repo.ingest() as tx:
        child = build_adapter(tx, base.id, tensors, {"adapter_config.json": config})
        tx.seal()
    view = repo.view(child.id)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert view.tensor(name).equal(view.base.tensor(name) + 3.0)


def test_an_adapter_without_its_base_is_stored_and_said(repo, tmp_path: Path):
    adapter(tiny_model(tmp_path / "base", "llama"), tmp_path / "adapter", target_modules=["q_proj"])
    snapshot, said = store(repo, tmp_path / "adapter")
    assert (snapshot.kind, snapshot.base) == ("adapter", None)
    assert "--adapter-of" in said[0]
    view = repo.view(snapshot.id)
    assert view.adapter
    assert all("lora_" in name for name in view.names())


def test_a_directory_that_is_no_adapter_cannot_be_imported_as_one(repo, tmp_path: Path):
    base = tiny_model(tmp_path / "base", "llama")
    with pytest.raises(BadInputFile, match=r"adapter_config\.json"):
        store(repo, base, adapter_of=store(repo, base)[0])


# --- what does not fit -----------------------------------------------------------------------------------


def test_an_adapter_of_another_model_is_refused_before_it_is_stored(repo, tmp_path: Path):
    adapter(tiny_model(tmp_path / "base", "llama"), tmp_path / "adapter", target_modules=["q_proj"])
    narrow, _ = store(repo, tiny_model(tmp_path / "narrow", "llama", hidden_size=8))
    other, _ = store(repo, tiny_model(tmp_path / "other", "gpt2"))
    packs = repo.objects.packs()
    with pytest.raises(ShapeMismatch, match="does not fit"):
        store(repo, tmp_path / "adapter", adapter_of=narrow)
    with pytest.raises(ShapeMismatch, match="stores no such weight"):
        store(repo, tmp_path / "adapter", adapter_of=other)
    assert repo.objects.packs() == packs


BASE = {"m.q.weight": (4, 6), "m.norm.weight": (4,)}


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"m.q.lora_A.weight": (2, 6)}, "only one of the two factors"),
        ({"m.q.lora_A.weight": (2, 6), "m.q.lora_B.weight": (4, 3)}, "does not fit"),
        ({"m.q.lora_A.weight": (2, 4), "m.q.lora_B.weight": (6, 2)}, "does not fit"),
        ({"m.q.lora_A.weight": (0, 6), "m.q.lora_B.weight": (4, 0)}, "does not fit"),
        ({"m.q.lora_A.weight": (6,), "m.q.lora_B.weight": (4,)}, "does not fit"),
        ({"m.q.lora_A.weight": (2, 6, 1, 1), "m.q.lora_B.weight": (4, 2, 1, 1)}, "does not fit"),
        ({"m.q.lora_A.weight": (2, 2, 3), "m.q.lora_B.weight": (4, 2, 2)}, "does not fit"),
        ({"m.k.lora_A.weight": (2, 6), "m.k.lora_B.weight": (4, 2)}, "stores no such weight"),
        ({"m.head.weight": (4,)}, "no tensor of that place"),
        ({"m.norm.weight": (5,)}, "does not fit"),
        ({"m.q.lora_magnitude_vector": (4,)}, "no tensor of that place"),
    ],
)
def test_factors_that_do_not_make_the_weight_are_refused(tensors: dict, word: str):
    with pytest.raises(ShapeMismatch, match=word) as caught:
        plan_merge({"peft_type": "LORA", "lora_alpha": 1}, tensors, BASE)
    assert caught.value.exit_code == 6
    assert caught.value.hint


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({}, "None"),
        ({"peft_type": "LORA", "use_dora": True}, "use_dora"),
        ({"peft_type": "LORA", "layer_replication": [[0, 2]]}, "layer_replication"),
        ({"peft_type": "LORA", "lora_bias": True}, "lora_bias"),
        ({"peft_type": "LORA", "trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}, "also changed its base"),
        ({"peft_type": "LORA", "lora_alpha": "8"}, "not a number"),
        ({"peft_type": "LORA", "lora_alpha": True}, "not a number"),
        ({"peft_type": "LORA", "alpha_pattern": {"(a+)+$": 1}}, "plain module names"),
        ({"peft_type": "LORA", "alpha_pattern": [1]}, "plain module names"),
        ({"peft_type": "LORA", "alpha_pattern": {"q": None}}, "not a number"),
    ],
)
def test_a_kind_of_adapter_that_would_be_merged_wrongly_is_named(config: dict, word: str):
    assert word in (unsupported(config) or "")


@pytest.mark.parametrize(
    "config", [{"peft_type": "LORA"}, {"peft_type": "LORA", "use_dora": False, "init_lora_weights": "gaussian", "bias": "none"}]
)
def test_a_plain_adapter_is_supported(config: dict):
    assert unsupported(config) is None


def test_an_unsupported_adapter_is_stored_and_refused_only_when_it_is_to_be_merged(repo, tmp_path: Path):
    base = tiny_model(tmp_path / "base", "llama")
    adapter(base, tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)
    child, said = store(repo, tmp_path / "adapter", adapter_of=store(repo, base)[0])
    assert said == ["the adapter is stored but cannot be merged into its base: it uses use_dora, which is not supported"]
    with pytest.raises(Incompatible, match="use_dora"):
        repo.view(child.id)
    export(repo, child, tmp_path / "out")


def test_scales_follow_rank_and_alpha():
    shapes = {"m.q.lora_A.weight": (4, 6), "m.q.lora_B.weight": (4, 4)}

    def scale(**config) -> float:
        return plan_merge({"peft_type": "LORA", **config}, shapes, BASE).added["m.q.weight"].scale

    assert scale(lora_alpha=8) == 2.0
    assert scale(lora_alpha=8, use_rslora=True) == 8 / math.sqrt(4)
    assert scale(lora_alpha=8, alpha_pattern={"q": 16}) == 4.0
    assert scale(lora_alpha=8, alpha_pattern={"^q": 16}) == 2.0
    assert scale(lora_alpha=8, alpha_pattern={r"m\.q": 16}) == 4.0
    assert scale() == 2.0  # PEFT's default alpha is 8


def test_a_missing_prefix_is_found_on_either_side_and_never_guessed():
    assert locate("a.b", {"a.b", "b"}) == "a.b"
    assert locate("bert.encoder.w", {"encoder.w"}) == "encoder.w"
    assert locate("h.0.w", {"transformer.h.0.w"}) == "transformer.h.0.w"
    assert locate("w", {"a.w", "b.w"}) is None
    assert locate("x", {"y"}) is None


def test_an_eight_bit_base_is_refused_when_it_would_be_merged(repo, tmp_path: Path):
    (tmp_path / "base").mkdir()
    safetensors.torch.save_file({"m.q.weight": torch.ones(4, 6).to(torch.float8_e4m3fn)}, tmp_path / "base" / "model.safetensors")
    base, _ = store(repo, tmp_path / "base")
    tensors = {"base_model.model.m.q.lora_A.weight": torch.ones(2, 6), "base_model.model.m.q.lora_B.weight": torch.ones(4, 2)}
    with repo.ingest() as tx:
        child = build_adapter(tx, base.id, tensors, {"adapter_config.json": b'{"peft_type":"LORA"}'})
        tx.seal()
    with pytest.raises(ShapeMismatch, match="F8_E4M3"):
        repo.view(child.id).tensor("m.q.weight")
