"""Tiny encoders of texts and labelled texts, for tests of alignment and search."""

from __future__ import annotations

import json
import random
from pathlib import Path

from mlc.tests.factories import tiny_tokenizer

NAMES = 60  # labels; a text of a label holds its two words of the tiny vocabulary


def tiny_encoder(directory: Path, *, width: int = 16, seed: int = 0) -> Path:
    """A random BertModel saved as sentence-transformers lays it out, mean pooling."""
    import torch
    import transformers as tf

    torch.manual_seed(seed)
    config = tf.BertConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    config.pad_token_id = 0
    tf.BertModel(config).save_pretrained(directory)
    tiny_tokenizer(directory)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}))
    return directory


def labelled_texts(path: Path, *, labels: int = NAMES, texts: int = 8, seed: int = 0) -> Path:
    """JSONL with `text` and `label`: two words name the label, the others are any."""
    chance = random.Random(seed)
    rows = []
    for label in range(labels):
        for _ in range(texts):
            words = [f"w{label % 20}", f"w{20 + label // 20 + label % 7}", *(f"w{chance.randrange(30, 40)}" for _ in range(6))]
            chance.shuffle(words)
            rows.append({"text": " ".join(words), "label": f"p{label}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
