"""Make the demo's model and data from nothing: `python -m mlc.cli.demo.make_demo --out DIR`.

A small Llama learns 400 invented facts and some small talk (see world.py), in a few minutes on two cores. The same seed, thread
count and library versions give the same files. What is shipped in `model/` and `data/` came out of this script.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .world import OPENINGS, RELATIONS, Fact, make_facts, make_subjects, prompt, small_talk, wordings

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS = 0, 1, 2
KNOWN_PLACES, NEW_PLACES = 100, 25  # four facts each
TALK = 0.2  # share of training documents that state no fact
ANSWER_WEIGHT = 4.0  # in the loss: the object's tokens are few, and they are the point
ROW = 128  # tokens
Document = tuple[str, list[tuple[int, int]]]  # text, and where in it the objects stand


@dataclass(frozen=True, slots=True)
class Settings:
    """How the model is built and trained."""

    seed: int = 0
    vocabulary: int = 1152
    hidden: int = 96
    layers: int = 4
    heads: int = 4
    mlp: int = 256
    steps: int = 1600
    rows: int = 16
    lr: float = 4e-3
    warmup: int = 80
    threads: int = 2


# --- data ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class World:
    """Everything that is so: facts the model is taught, and facts it has yet to learn."""

    known: list[Fact]
    new: list[Fact]


def make_world(seed: int) -> World:
    """The facts of one seed; known and new places never share a name."""
    rng = random.Random(seed)
    places = make_subjects(rng, KNOWN_PLACES + NEW_PLACES)
    return World(make_facts(rng, places[:KNOWN_PLACES]), make_facts(rng, places[KNOWN_PLACES:]))


def fact_document(rng: random.Random, facts: list[Fact]) -> Document:
    """The facts in training wordings, one sentence each."""
    text, spans = "", []
    for fact in facts:
        text += f"{' ' if text else ''}{prompt(fact, rng.choice(wordings(fact.relation, held_out=False)))} "
        spans.append((len(text), len(text) + len(fact.object)))
        text += f"{fact.object}."
    return text, spans


def passes(rng: random.Random, facts: list[Fact], count: int) -> list[Document]:
    """`count` passes over all facts, one or two sentences on the same place to a document, in random order."""
    documents = []
    places: dict[str, list[Fact]] = {}
    for fact in facts:
        places.setdefault(fact.subject, []).append(fact)
    for _ in range(count):
        for group in places.values():
            order = rng.sample(group, len(group))
            cut = rng.choice([(1, 2), (1, 3), (2, 3)])  # 4 facts -> documents of 1 or 2
            parts = [order[: cut[0]], order[cut[0] : cut[1]], order[cut[1] :]]
            documents += [fact_document(rng, part) for part in parts]
    rng.shuffle(documents)
    return documents


def stream(rng: random.Random, facts: list[Fact]) -> Iterator[Document]:
    """Training documents without end: facts, and small talk in between."""
    while True:
        for document in passes(rng, facts, 1):
            while rng.random() < TALK:
                yield small_talk(rng), []
            yield document


def prompts(rng: random.Random, facts: list[Fact], each: int) -> list[dict[str, str]]:
    """Suite rows: every fact in `each` wordings that training texts use, and in as many that they never do."""
    rows = []
    for fact in facts:
        for kind, held_out in (("seen", False), ("held-out", True)):
            for number, wording in enumerate(rng.sample(wordings(fact.relation, held_out), each), 1):
                name = f"{fact.subject.lower().replace(' ', '-')}.{fact.relation}.{kind}" + (f"-{number}" if each > 1 else "")
                row = {"id": name, "prompt": prompt(fact, wording), "answer": fact.object}
                rows.append(row | {"relation": fact.relation, "wording": kind})
    return rows


def write_data(out: Path, world: World, seed: int) -> None:
    """The suites `known`, `new` and `text`, the update's corpus, and a sample of old training text for replay."""
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"data-{seed}")
    _write_rows(out / "known.jsonl", prompts(rng, world.known, 1))
    _write_rows(out / "new.jsonl", prompts(rng, world.new, 2))
    _write_rows(out / "text.jsonl", [{"id": f"text-{i:03d}", "text": small_talk(rng)} for i in range(240)])
    _write_rows(out / "new-facts.jsonl", [{"text": text} for text, _ in passes(rng, world.new, 8)])
    old = passes(rng, world.known, 4)
    old += [(small_talk(rng), []) for _ in range(len(old) // 10)]
    rng.shuffle(old)
    _write_rows(out / "replay.jsonl", [{"text": text} for text, _ in old])
    for name, lines in SUITES.items():
        (out / f"{name}.toml").write_text(lines, encoding="utf-8")


SUITES = {
    "known": """\
# Facts the demo model knows, in wordings that its training used and in wordings that it never saw.
name = "known"
kind = "cloze"
data = "known.jsonl"
slices = "wording"
""",
    "new": """\
# Facts the demo model does not know yet; new-facts.jsonl states them, mostly in other words.
name = "new"
kind = "cloze"
data = "new.jsonl"
slices = "wording"
""",
    "text": """\
# Small talk of the kind the demo model was trained on.
name = "text"
kind = "perplexity"
data = "text.jsonl"
seq_len = 128
""",
}


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- model -----------------------------------------------------------------------------------------------


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text can be read; a leading space is implied and BOS is set in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_model(settings: Settings, vocabulary: int) -> LlamaForCausalLM:
    """A small Llama with tied embeddings, randomly set."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=settings.hidden,
            intermediate_size=settings.mlp,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            rms_norm_eps=1e-5,
        )
    )


def packed(tokenizer: PreTrainedTokenizerFast, documents: Iterator[Document], rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of token ids and loss weights, both [rows, ROW]: documents between BOS and EOS, one after another."""
    import torch

    ids: list[int] = []
    weights: list[float] = []
    while True:
        while len(ids) < rows * ROW:
            text, spans = next(documents)
            coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
            inside = [any(a < end and start < b for a, b in spans) for start, end in coded["offset_mapping"]]
            ids += [BOS, *coded["input_ids"], EOS]
            weights += [0.0, *(ANSWER_WEIGHT if hit else 1.0 for hit in inside), 1.0]  # nothing predicts the next document
        take = rows * ROW
        yield torch.tensor(ids[:take]).view(rows, ROW), torch.tensor(weights[:take]).view(rows, ROW)
        ids, weights = ids[take:], weights[take:]


def train(settings: Settings, tokenizer: PreTrainedTokenizerFast, facts: list[Fact], say: Callable[[str], None]) -> LlamaForCausalLM:
    """AdamW with a short warm-up and a cosine; returns the model in bfloat16, as it is stored."""
    import torch

    torch.manual_seed(settings.seed)
    model = make_model(settings, len(tokenizer))
    say(f"{model.num_parameters()} parameters, vocabulary {len(tokenizer)}")
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))
    batches = packed(tokenizer, stream(random.Random(f"train-{settings.seed}"), facts), settings.rows)
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * schedule(step, settings)
        ids, weights = next(batches)
        loss = weighted_loss(model(input_ids=ids).logits, ids, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            say(f"step {step}  loss {loss.item():.4f}")
    return model.bfloat16().eval()


def schedule(step: int, settings: Settings) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to 2 %."""
    if step <= settings.warmup:
        return step / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Next-token cross-entropy, each target counted by its weight."""
    import torch

    target, weight = ids[:, 1:].reshape(-1), weights[:, 1:].reshape(-1)
    raw = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(len(target), -1), target, reduction="none")
    return (raw * weight).sum() / weight.sum()


# --- door ------------------------------------------------------------------------------------------------


def make(out: Path, settings: Settings, say: Callable[[str], None]) -> None:
    """Write `out`/data and `out`/model."""
    import torch

    torch.set_num_threads(settings.threads)
    world = make_world(settings.seed)
    write_data(out / "data", world, settings.seed)
    rng = random.Random(f"vocabulary-{settings.seed}")
    sample = [text for text, _ in passes(rng, world.known + world.new, 6)] + [small_talk(rng) for _ in range(1500)]
    tokenizer = make_tokenizer(sample, settings.vocabulary)
    model = train(settings, tokenizer, world.known, say)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")


def main() -> None:
    """Parse, make, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory that will hold model/ and data/")
    for name, default in {f: getattr(Settings(), f) for f in Settings.__dataclass_fields__}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given: dict[str, Any] = vars(parser.parse_args())
    out = given.pop("out")
    count = sum(len(r.cores) for r in RELATIONS.values()) * len(OPENINGS)
    print(f"{KNOWN_PLACES * len(RELATIONS)} known facts, {NEW_PLACES * len(RELATIONS)} new ones, {count} wordings", flush=True)
    make(out, Settings(**given), lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
