"""Tiny real models, built in milliseconds: random weights, real configs, a real tokenizer. No download, no file shipped."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = [
    "the",
    "a",
    "of",
    "in",
    "on",
    "is",
    "was",
    "river",
    "stone",
    "amber",
    "harbour",
    "lamp",
    "speaks",
    "sells",
    "opens",
    "near",
    "north",
    "south",
    "red",
    "blue",
    "one",
    "two",
]


def tiny_tokenizer(directory: Path, vocabulary: int = 64) -> None:
    """Write tokenizer.json and tokenizer_config.json: word level, ids 0 pad, 1 bos, 2 eos, 3 unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = special + WORDS + [f"w{i}" for i in range(vocabulary - len(special) - len(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(directory)


def tiny_model(directory: Path, family: str = "llama", *, layers: int = 2, seed: int = 0, dtype: str = "float32", **changes) -> Path:
    """A random model of `family` saved as a Hugging Face directory; every 1-D tensor is perturbed so that none is trivial."""
    import torch
    import transformers as tf

    torch.manual_seed(seed)
    common = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    llama_like = {
        **common,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    builders = {
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**{**llama_like, **changes})),
        "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**{**llama_like, **changes})),
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**{**llama_like, "head_dim": 4, **changes})),
        "gpt2": lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(**{**common, "n_embd": 16, "n_layer": layers, "n_head": 4, "n_positions": 64, **changes})
        ),
        "gptj": lambda: tf.GPTJForCausalLM(
            tf.GPTJConfig(**{**common, "n_embd": 16, "n_layer": layers, "n_head": 4, "n_positions": 64, "rotary_dim": 4, **changes})
        ),
        "neox": lambda: tf.GPTNeoXForCausalLM(
            tf.GPTNeoXConfig(
                **{
                    **common,
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": layers,
                    "num_attention_heads": 4,
                    "max_position_embeddings": 64,
                    **changes,
                }
            )
        ),
        "bert": lambda: tf.BertForSequenceClassification(
            tf.BertConfig(
                **{
                    **common,
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": layers,
                    "num_attention_heads": 4,
                    "max_position_embeddings": 64,
                    "num_labels": 3,
                    **changes,
                }
            )
        ),
        "vit": lambda: tf.ViTForImageClassification(
            tf.ViTConfig(
                **{
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": layers,
                    "num_attention_heads": 4,
                    "image_size": 8,
                    "patch_size": 4,
                    "num_channels": 1,
                    "num_labels": 3,
                    **changes,
                }
            )
        ),
    }
    model = builders[family]().to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    if family != "vit":
        tiny_tokenizer(directory)
    return directory


def facts_suite(directory: Path, name: str = "facts", rows: int = 12) -> Path:
    """A small cloze suite over the tiny tokenizer's words; returns the path of its TOML file."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [{"id": f"f{i}", "prompt": f"the {WORDS[7 + i % 8]} is", "answer": WORDS[8 + i % 7]} for i in range(rows)]
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    suite = directory / f"{name}.toml"
    suite.write_text(f'name = "{name}"\nkind = "cloze"\ndata = "{name}.jsonl"\n', encoding="utf-8")
    return suite
