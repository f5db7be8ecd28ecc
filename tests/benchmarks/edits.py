"""The table of knowledge edits on the fact models: what lands, in which wordings, and what it costs the rest.

    python -m mlc.tests.benchmarks.edits --models facts-small,facts-deep --edits 10,20,50,200 --seeds 0

Needs the optional material. Facts are drawn with the seed; each learns from its prompt and three training wordings, and is asked in ones
that neither the model nor the edit ever saw. Prints one JSON object per row; `refused` says why an edit was not made.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MATERIAL = Path(os.environ.get("MLC_MATERIAL", ROOT.parent / "shared" / "material"))
DATA = {"facts-small": "facts", "facts-deep": "facts-deep"}
WORDINGS = 3
OTHERS = 300  # facts about other subjects that are asked
SHARED = ("covariance", "self-replay", "edit-text", "edit-prefixes")  # artifacts of a model and a seed that no fact has a part in


def world(model: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All facts that the model was taught, and the templates by relation."""
    place = MATERIAL / "data" / DATA[model]
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    return rows, json.loads((place / "templates.json").read_text(encoding="utf-8"))


def draw(model: str, count: int, seed: int, several: bool, wordings: int = WORDINGS) -> list[dict[str, Any]]:
    """`count` edits as rows of a fact file: about as many subjects, or (`several`) three facts about each of a third as many."""
    rows, templates = world(model)
    rng = random.Random(f"{seed}/{several}")
    by_subject: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_subject.setdefault(row["subject"], []).append(row)
    names = rng.sample(sorted(by_subject), len(by_subject))
    each = 3 if several else max(1, math.ceil(count / len(names)))
    chosen = [row for name in names for row in rng.sample(by_subject[name], each)][:count]
    return [_edit(row, templates, rng, wordings) for row in chosen]


def _edit(row: dict[str, Any], templates: dict[str, Any], rng: random.Random, wordings: int) -> dict[str, Any]:
    others = [t.replace("{s}", "{}") for t in templates[row["relation"]]["train"] if t.replace("{s}", "{}") != row["prompt_template"]]
    return {
        "id": str(row["id"]),
        "subject": row["subject"],
        "relation": row["relation"],
        "prompt": row["prompt_template"],
        "target_new": row["alternatives"][0],
        "target_true": row["object"],
        "wordings": rng.sample(others, wordings),
        "paraphrases": row["paraphrases"],
        "neighbourhood": [{"prompt": n["prompt"], "answer": n["object"]} for n in row["neighbourhood"]],
    }


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """The rows as a fact file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recall(view: Any, model: str, edits: list[dict[str, Any]]) -> dict[str, float]:
    """Greedy recall of trained wordings of the edits, of other subjects, of the same subjects' other facts; perplexity of WikiText."""
    import torch

    from mlc.ops.data.corpus import read_corpus
    from mlc.ops.data.packing import Marks, pack
    from mlc.ops.edit.measure import bench_of
    from mlc.ops.engine.local import mean_loss
    from mlc.ops.evaluate.bench import TokenRow
    from mlc.ops.evaluate.coder import Coder
    from mlc.ops.models import load_core_tokenizer, load_model, load_tokenizer

    rows, _ = world(model)
    subjects, ids = {e["subject"] for e in edits}, {e["id"] for e in edits}
    others = [r for r in rows if r["subject"] not in subjects]
    asked = {
        "trained": [(w.replace("{}", e["subject"]), e["target_new"]) for e in edits for w in e["wordings"]],
        "other_subjects": [(r["prompt"], r["object"]) for r in random.Random(1).sample(others, min(OTHERS, len(others)))],
        "same_subject": [(r["prompt"], r["object"]) for r in rows if r["subject"] in subjects and str(r["id"]) not in ids],
    }
    module, coder = load_model(view, dtype=torch.float32), Coder(load_tokenizer(view))
    bench, found = bench_of(module, coder, "recall"), {}
    with torch.no_grad():
        for name, pairs in asked.items():
            said = bench.likelihoods([TokenRow(c, a, name) for c, a in coder.split(pairs)])
            found[name] = sum(s.greedy for s in said) / len(said) if said else float("nan")
    text = pack(read_corpus(MATERIAL / "data" / "wikitext-2" / "valid.txt"), load_core_tokenizer(view), Marks(1, 2), 128).train[-24:]
    found["perplexity"] = math.exp(mean_loss(module, text))
    return found


def row(
    model: str, count: int, seed: int, several: bool, held: dict[tuple[str, str], bytes] | None = None, **options: Any
) -> dict[str, Any]:
    """One row of the table. `held` carries the artifacts of this model and seed from one row to the next."""
    from mlc.ops.edit.edit import Edit
    from mlc.registry.errors import MlcError
    from mlc.tests.ops.fakes import MemoryRun, MemoryView

    about = {"model": model, "edits": count, "subjects": "several facts each" if several else "one fact each", "seed": seed, **options}
    view, edits = MemoryView.of(MATERIAL / "models" / model), draw(model, count, seed, several)
    with tempfile.TemporaryDirectory() as place:
        op = Edit(facts=str(write(Path(place) / "facts.jsonl", edits)), **options)
        run, held, began = MemoryRun(seed=seed), held if held is not None else {}, time.process_time()
        run.artifacts.update(held)
        try:
            after = view.after(op.apply(view, run))
        except MlcError as fault:
            return {**about, "refused": fault.message, "cpu_seconds": round(time.process_time() - began, 1)}
        spent = time.process_time() - began
        held.update({k: v for k, v in run.artifacts.items() if k[0] in SHARED})
        check = op.check(view, after, run)
    was, now = recall(view, model, edits), recall(after, model, edits)
    values = check.values
    numbers = {
        "passed": check.passed,
        "layers": values["layers"],
        "efficacy": values["efficacy"],
        "exact_match": values["exact_match"],
        "trained_wordings": now["trained"],
        "held_out_wordings": values["paraphrase_exact"],
        "paraphrase_preferred": values["paraphrase"],
        "neighbourhood": values["neighbourhood"],
        "other_subjects": now["other_subjects"],
        "same_subject": now["same_subject"],
        "perplexity_ratio": now["perplexity"] / was["perplexity"],
        "write_fraction": values["write_fraction"],
        "drift": values["drift"],
        "capacity_used": values["capacity_used"],
        "cpu_seconds": round(spent, 1),
    }
    return {**about, **{k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()}}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--models", default="facts-small,facts-deep")
    ask.add_argument("--edits", default="10,20,50,200")
    ask.add_argument("--seeds", default="0")
    ask.add_argument("--subjects", default="one,several")
    ask.add_argument("--layers", default="auto")
    ask.add_argument("--method", default="memit")
    ask.add_argument("--over-capacity", action="store_true")
    given = ask.parse_args()
    for model in given.models.split(","):
        for seed in map(int, given.seeds.split(",")):
            held: dict[tuple[str, str], bytes] = {}
            for kind in given.subjects.split(","):
                for count in map(int, given.edits.split(",")):
                    options = {"layers": given.layers, "method": given.method, "over_capacity": given.over_capacity}
                    print(json.dumps(row(model, count, seed, kind == "several", held, **options)))
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
