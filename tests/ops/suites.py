"""Suites written by tests, and tiny models to put them to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlc.ops.evaluate.suite import Suite, load_suite


def suite(directory: Path, kind: str, rows: list[dict[str, Any]], settings: str = "", name: str = "s") -> Suite:
    """A suite file with its data, loaded."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / f"{name}.toml").write_text(f'name = "{name}"\nkind = "{kind}"\ndata = "{name}.jsonl"\n{settings}')
    return load_suite(directory / f"{name}.toml")


def loaded(directory: Path) -> dict[str, Any]:
    """Model and tokenizer of a Hugging Face directory, as `evaluate` takes them."""
    import transformers as tf

    kind = json.loads((directory / "config.json").read_text())["architectures"][0]
    model = getattr(tf, kind).from_pretrained(directory).eval()
    return {"model": model, "tokenizer": tf.PreTrainedTokenizerFast.from_pretrained(directory)}


def token_logprobs(given: dict[str, Any], text: str, after: int) -> list[float]:
    """Nats of each token of `text` after the first `after` ones: one forward pass, no padding."""
    import torch

    ids = given["tokenizer"](text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = given["model"](input_ids=ids).logits[0].double().log_softmax(-1)
    return [logprobs[i - 1, ids[0, i]].item() for i in range(after, ids.shape[1])]
