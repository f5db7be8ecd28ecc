"""Loading: the same numbers as transformers' own loader, strictly, from bytes; and every way it may not work, said."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf

from mlc.ops.models import load_model, load_tokenizer, state_names
from mlc.registry.errors import Incompatible, ShapeMismatch, VocabularyMismatch
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView

AUTO = {"bert": tf.AutoModelForSequenceClassification, "vit": tf.AutoModelForImageClassification}
FAMILIES = ("llama", "qwen3", "gpt2", "neox", "bert", "vit")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama")))


def inputs(family):
    generator = torch.Generator().manual_seed(0)
    if family == "vit":
        return {"pixel_values": torch.randn(2, 1, 8, 8, generator=generator)}
    return {"input_ids": torch.randint(0, 64, (2, 9), generator=generator)}


def changed(view, *, tensors=None, drop=(), config=None, files=None):
    """`view` with some tensors replaced, dropped, or its config altered."""
    held = {n: view.tensor(n) for n in view.names() if n not in drop} | (tensors or {})
    blobs = {e.path: view.file(e.path) for e in view.files()} | (files or {})
    if config is not None:
        blobs["config.json"] = json.dumps({**view.config, **config}).encode()
    return MemoryView(held, {k: v for k, v in blobs.items() if v is not None})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_model_computes_what_transformers_own_loader_computes(family, dtype, tmp_path):
    directory = tiny_model(tmp_path, family, dtype=dtype)
    theirs = AUTO.get(family, tf.AutoModelForCausalLM).from_pretrained(directory, attn_implementation="sdpa", dtype="auto").eval()
    ours = load_model(MemoryView.of(directory))
    given = {k: v.to(theirs.dtype) if v.is_floating_point() else v for k, v in inputs(family).items()}
    assert not ours.training
    assert torch.equal(ours(**given).logits, theirs(**given).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "bert"])
def test_names_without_the_base_models_prefix_are_understood_and_mapped_back(family, tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, family))
    prefix = {"llama": "model.", "gpt2": "transformer.", "neox": "gpt_neox.", "bert": "bert."}[family]
    bare = MemoryView({n.removeprefix(prefix): view.tensor(n) for n in view.names()}, {e.path: view.file(e.path) for e in view.files()})
    module = load_model(bare)
    assert sorted(state_names(module, bare).values()) == sorted(bare.names())
    assert torch.equal(module(**inputs(family)).logits, load_model(view)(**inputs(family)).logits)


def test_old_spellings_and_buffers_that_modules_compute_themselves_are_no_obstacle(tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, "bert"))

    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    tensors = {old(n): view.tensor(n) for n in view.names()} | {"bert.embeddings.position_ids": torch.arange(64)[None]}
    legacy = MemoryView(tensors, {"config.json": view.file("config.json")})
    assert torch.equal(load_model(legacy)(**inputs("bert")).logits, load_model(view)(**inputs("bert")).logits)


def test_a_tied_head_stays_tied_and_may_be_stored_once_or_twice(llama):
    module = load_model(llama)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    twice = changed(llama, tensors={"lm_head.weight": llama.tensor("model.embed_tokens.weight")})
    assert load_model(twice).lm_head.weight is not None
    assert set(state_names(load_model(twice), twice).values()) == set(twice.names())


def test_a_tied_head_that_differs_from_its_embedding_is_refused(llama):
    wrong = changed(llama, tensors={"lm_head.weight": torch.zeros(64, 16)})
    with pytest.raises(Incompatible, match=r"ties .* but the two tensors differ"):
        load_model(wrong)


def test_an_untied_head_is_loaded_as_stored(tmp_path):
    view = MemoryView.of(tiny_model(tmp_path, tie_word_embeddings=False))
    module = load_model(view)
    assert torch.equal(module.lm_head.weight, view.tensor("lm_head.weight"))
    assert module.lm_head.weight is not module.model.embed_tokens.weight


def test_floating_tensors_are_converted_on_request_and_positions_stay_exact(llama):
    module = load_model(llama, dtype=torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module.model.rotary_emb.inv_freq.dtype == torch.float32


def test_loading_neither_reads_nor_moves_the_global_generator(llama):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_model(llama)
    assert torch.equal(torch.get_rng_state(), before)


def test_writing_into_a_loaded_model_does_not_reach_the_view(llama):
    digests = llama.digests()
    with torch.no_grad():
        for parameter in load_model(llama).parameters():
            parameter.add_(1)
    assert llama.digests() == digests


# --- what cannot be run ---


def test_a_plain_state_dict_can_be_stored_but_not_run():
    with pytest.raises(Incompatible, match=r"no config.json that transformers understands: it can be stored and compared, not run"):
        load_model(MemoryView({"gru.weight": torch.zeros(2, 2)}, {}))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "no-such-model"}, "model_type 'no-such-model'"),
        ({"model_type": 5}, "not run"),
        ({"architectures": ["SomethingForCausalLM"]}, "knows no SomethingForCausalLM"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"num_hidden_layers": 10_000_000}, "speaks of 10000000 layers"),
        ({"num_hidden_layers": 3}, "missing model.layers.2."),
        ({"num_hidden_layers": 1}, "unexpected model.layers.1."),
        ({"num_hidden_layers": "many"}, "transformers refuses"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_sentence(llama, config, words):
    with pytest.raises(Incompatible) as caught:
        load_model(changed(llama, config=config))
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 6


def test_absurd_shapes_are_refused_before_memory_is_taken(llama):
    with pytest.raises(ShapeMismatch, match=r"is stored as \[64, 16\], config.json asks for \[64, 1073741824\]"):
        load_model(changed(llama, config={"hidden_size": 1 << 30, "head_dim": 4}))


def test_missing_and_unexpected_tensors_are_named(llama):
    wrong = changed(llama, drop=["model.norm.weight"], tensors={"model.extra.weight": torch.zeros(2)})
    with pytest.raises(Incompatible, match=r"missing model.norm.weight; unexpected model.extra.weight"):
        load_model(wrong)


def test_weights_of_another_kind_of_number_are_not_run(llama):
    wrong = changed(llama, tensors={"model.norm.weight": torch.ones(16, dtype=torch.int32)})
    with pytest.raises(Incompatible, match="stored as I32"):
        load_model(wrong)


# --- tokenizer ---


def test_the_tokenizer_comes_from_bytes_with_its_special_tokens(llama):
    tokenizer = load_tokenizer(llama)
    assert tokenizer("the river", add_special_tokens=False).input_ids == [4, 11]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 2, 0, 3)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": None},  # then the ids in config.json speak
        {"tokenizer_config.json": b"not json"},
        {"tokenizer_config.json": None, "special_tokens_map.json": b'{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}'},
        {"tokenizer_config.json": b'{"bos_token": {"content": "<s>", "lstrip": false}, "mask_token": "<no such>"}'},
    ],
)
def test_special_tokens_are_found_wherever_a_hub_keeps_them(llama, files):
    tokenizer = load_tokenizer(changed(llama, files=files))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.mask_token) == ("<s>", "</s>", None)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(llama):
    with pytest.raises(VocabularyMismatch, match=r"token ids up to 63, the model's embedding has 32 rows"):
        load_tokenizer(changed(llama, config={"vocab_size": 32}))


@pytest.mark.parametrize(
    ("data", "words"), [(None, "has no tokenizer.json"), (b"{}", "cannot be read"), (b"\xff\xfe", "not UTF-8"), (b"[1]", "cannot be read")]
)
def test_a_missing_or_broken_tokenizer_is_said(llama, data, words):
    with pytest.raises(Incompatible, match=words):
        load_tokenizer(changed(llama, files={"tokenizer.json": data}))
