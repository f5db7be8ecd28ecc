"""Adapters: ours, and PEFT's reading of them."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf

from mlc.ops.base import SetFile, SetTensor
from mlc.ops.models import load_model
from mlc.ops.update.lora import Lora, LowRank
from mlc.ops.update.options import Adapter
from mlc.registry.errors import BadParameter, Incompatible
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView

IDS = torch.randint(4, 64, (2, 16), generator=torch.Generator().manual_seed(0))
FAMILIES = ("llama", "qwen3", "gpt2", "neox")


def trained(view, spec, seed=0):
    """An adapter whose B is no longer zero, as after training."""
    method = Lora(spec, view, seed)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for made in method.maps.values():
            made.lora_B.copy_(0.05 * torch.randn(made.lora_B.shape, generator=generator))
    return method


@pytest.mark.filterwarnings("ignore")  # PEFT still asks transformers for names that are going away
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_the_adapter_and_computes_the_same_logits(family, tmp_path):
    from peft import PeftModel

    directory = tiny_model(tmp_path / "base", family, attention_bias=True) if family == "llama" else tiny_model(tmp_path / "base", family)
    view = MemoryView.of(directory)
    method = trained(view, Adapter(4, 6.0))
    adapter = view.after(method.changes(), adapter=True).save(tmp_path / "adapter")
    base = tf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        ours, wanted = method.module(input_ids=IDS).logits, theirs(input_ids=IDS).logits
        plain = load_model(view)(input_ids=IDS).logits
    assert (wanted - plain).abs().max() > 1e-3  # the adapter does something
    assert (ours - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_no_logit(family, tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, family))
    method = Lora(Adapter(2, 4.0), view, seed=0)
    with torch.no_grad():
        assert torch.equal(method.module(input_ids=IDS).logits, load_model(view)(input_ids=IDS).logits)


def test_only_the_two_factors_of_each_projection_are_trained(tmp_path):
    view = MemoryView.of(tiny_model(tmp_path))
    method = Lora(Adapter(2, 4.0), view, seed=0)
    trained_names = {n for n, p in method.module.named_parameters() if p.requires_grad}
    assert all(n.endswith((".lora_A", ".lora_B")) for n in trained_names)
    assert len(trained_names) == 2 * 2 * 7  # layers, factors, projections


def test_the_tensors_and_the_config_are_what_peft_writes(tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, "gpt2"))
    changes = list(Lora(Adapter(2, 3.0), view, seed=0).changes())
    shapes = {c.name: tuple(c.data.shape) for c in changes if isinstance(c, SetTensor)}
    assert shapes["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"] == (2, 16)
    assert shapes["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"] == (48, 2)
    assert len(shapes) == 2 * 4 * 2
    (file,) = [c for c in changes if isinstance(c, SetFile)]
    config = json.loads(file.data)
    assert file.path == "adapter_config.json"
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == ("LORA", 2, 3, True)
    assert config["target_modules"] == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def test_names_without_the_prefix_get_the_adapter_of_the_full_names(tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, "gpt2"))
    bare = MemoryView({n.removeprefix("transformer."): view.tensor(n) for n in view.names()}, {"config.json": view.file("config.json")})
    one, other = (Lora(Adapter(2, 4.0), v, seed=0).changes() for v in (view, bare))
    assert [c.name for c in one if isinstance(c, SetTensor)] == [c.name for c in other if isinstance(c, SetTensor)]


def test_the_first_factor_is_drawn_from_the_seed(tmp_path):
    view = MemoryView.of(tiny_model(tmp_path))
    first, again, other = (next(iter(Lora(Adapter(2, 4.0), view, s).maps.values())).lora_A for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_low_rank_map_is_base_plus_scaled_product():
    base = torch.nn.Linear(5, 3)
    made = LowRank(base, Adapter(2, 8.0), (5, 3), torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.lora_B.copy_(torch.randn(3, 2))
        x = torch.randn(4, 5)
        merged = x @ (base.weight + 4.0 * made.lora_B @ made.lora_A).T + base.bias
        assert torch.allclose(made(x), merged, atol=1e-6)


@pytest.mark.parametrize("text", ["lora", "lora:", "lora:0", "lora:x", "lora:4:0", "lora:4:nan", "lora:4:8:2", "dora:4"])
def test_a_malformed_adapter_option_is_refused_with_an_example(text):
    from mlc.ops.update.options import parse_adapter

    with pytest.raises(BadParameter, match="is not lora:RANK") as caught:
        parse_adapter(text)
    assert "--adapter lora:8" in caught.value.hint


def test_alpha_is_twice_the_rank_unless_given():
    from mlc.ops.update.options import parse_adapter

    assert parse_adapter("lora:8") == Adapter(8, 16.0)
    assert parse_adapter("lora:8:4") == Adapter(8, 4.0)
    assert parse_adapter(None) is None


def test_encoders_and_adapters_get_no_adapter(tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, "bert"))
    with pytest.raises(Incompatible, match="adapters go on Llama"):
        Lora(Adapter(2, 4.0), view, 0)
    llama = MemoryView.of(tiny_model(tmp_path / "llama"))
    merged = MemoryView({n: llama.tensor(n) for n in llama.names()}, {"config.json": llama.file("config.json")}, adapter=True)
    with pytest.raises(Incompatible, match="an adapter already"):
        Lora(Adapter(2, 4.0), merged, 0)
