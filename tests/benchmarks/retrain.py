"""The reference of every unlearning: the same model trained again, from new weights, without the people to be forgotten.

The recipe is that of `facts-small` (short documents, the word that completes a fact weighted 6, two rows of ordinary text per
step, AdamW with a cosine), on the same tokenizer, so that the result can be compared token by token.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlc.tests.benchmarks.people import MATERIAL, documents_without, people

FACT_ROWS, TEXT_ROWS, TEXT_LEN = 40, 2, 48
PEAK, WARMUP, DECAY, WEIGHT = 3e-3, 100, 0.05, 6.0
START_STEPS, START_PEOPLE = 200, 25  # a short first phase on few people forms the recall circuit sooner


def retrain(out: Path, *, seed: int, steps: int = 2400, source: str = "facts-small") -> dict[str, Any]:
    """Train without the forget split and write a Hugging Face directory to `out`; returns CPU seconds and the last loss."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    place = MATERIAL / "models" / source
    tokenizer = AutoTokenizer.from_pretrained(place)
    world = people()
    lines = documents_without(sorted({fact["subject"] for fact in world.facts["forget"]}))
    names = sorted({fact["subject"] for fact in world.facts["core"]})
    model = LlamaForCausalLM(AutoConfig.from_pretrained(place))
    found = learn(model, tokenizer, lines, names, world.text, seed=seed, steps=steps)
    model.save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place / file, out / file)
    return found


def learn(
    model: Any,
    tokenizer: Any,
    lines: list[str],
    names: list[str],
    paragraphs: list[str],
    *,
    seed: int,
    steps: int,
    peak: float = PEAK,
    few: int = START_STEPS,
) -> dict[str, Any]:
    """Teach `model` the documents `lines` about the people `names`, beside ordinary text; in eval mode afterwards.

    `few`: steps of the first phase on few people.
    """
    rng = random.Random(seed)
    documents = tokenizer(lines)["input_ids"]
    weights = [_weights(tokenizer, ids) for ids in documents]
    first = rng.sample(names, START_PEOPLE)
    early = [i for i, line in enumerate(lines) if any(name in line for name in first)]
    text = _text_rows(tokenizer, paragraphs)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    began, order, loss = time.process_time(), [], torch.tensor(0.0)
    for step in range(1, steps + 1):
        share = max(0.0, (step - WARMUP) / (steps - WARMUP))
        rate = peak * min(1.0, step / WARMUP) * (0.05 + 0.475 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if not order or step == few + 1:
            order = _batches(rng, documents, early if step <= few else list(range(len(documents))))
        chosen = order.pop()
        ids, weight = _padded([documents[i] for i in chosen], 0), _padded([weights[i] for i in chosen], 0.0)
        facts = (_losses(model, ids) * weight[:, 1:]).sum() / weight[:, 1:].sum()
        rows = text[torch.randint(len(text), (TEXT_ROWS,))]
        part = rows.numel() / (rows.numel() + ids.numel())
        loss = (1 - part) * facts + part * _losses(model, rows).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            sys.stderr.write(f"step {step} loss {loss.item():.3f} {time.process_time() - began:.0f} s\n")
    model.eval()
    return {"seed": seed, "steps": steps, "cpu_seconds": round(time.process_time() - began, 1), "loss": round(loss.item(), 4)}


def _losses(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


def _weights(tokenizer: Any, ids: list[int]) -> list[float]:
    """1 per token, WEIGHT for those of the word in front of each full stop."""
    dot = tokenizer("a.", add_special_tokens=False)["input_ids"][-1]
    opens = [token.startswith("\u0120") for token in tokenizer.convert_ids_to_tokens(ids)]
    found, inside = [1.0] * len(ids), False
    for i in range(len(ids) - 1, -1, -1):
        if ids[i] == dot:
            inside = True
        elif inside:
            found[i], inside = WEIGHT, not opens[i]
    return found


def _text_rows(tokenizer: Any, paragraphs: list[str]) -> Tensor:
    stream = [token for ids in tokenizer(paragraphs, add_special_tokens=False)["input_ids"] for token in ids]
    span = TEXT_LEN - 1
    return torch.tensor([[tokenizer.bos_token_id, *stream[i : i + span]] for i in range(0, len(stream) - span, span)])


def _batches(rng: random.Random, documents: list[list[int]], pool: list[int]) -> list[list[int]]:
    """Shuffled, then rows of similar length side by side, which saves padding."""
    rng.shuffle(pool)
    found = []
    for start in range(0, len(pool), FACT_ROWS * 16):
        part = sorted(pool[start : start + FACT_ROWS * 16], key=lambda i: len(documents[i]))
        found += [part[i : i + FACT_ROWS] for i in range(0, len(part), FACT_ROWS)]
    rng.shuffle(found)
    return found


def _padded(rows: list[list[Any]], fill: Any) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


if __name__ == "__main__":
    print(json.dumps(retrain(Path(sys.argv[1]), seed=int(sys.argv[2]), steps=int(sys.argv[3]) if len(sys.argv) > 3 else 2400)))
