"""The table of knowledge edits on the fact models: what lands, in which wordings, and what it costs the rest.

    python tests/benchmarks/edits.py --out edits.json

Needs the optional material. Facts are drawn with the seed; each learns from its prompt and three training wordings, and is asked in ones
that neither the model nor the edit ever saw. 20 edits at once are drawn with all --seeds, other numbers with the first two. Prints one JSON
object per row, and a table at the end; `refused` says why an edit was not made. Rows that the file holds already are not made again, and
several calls may share a file. The seeds of the reported table were not used to choose any default.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import random
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


FLOORS = {
    "facts-small": {"efficacy": 0.85, "exact_match": 0.80, "held_out_wordings": 0.50, "neighbourhood": 0.92, "other_subjects": 0.93},
    "facts-deep": {"efficacy": 0.85, "exact_match": 0.65, "held_out_wordings": 0.45, "neighbourhood": 0.92, "other_subjects": 0.90},
}
BOTH = {"same_subject": 0.85}
MOST = {"perplexity_ratio": 1.03}
AT = 20  # edits at once, for which floors are given
NAMES = {
    "efficacy": "effic", "exact_match": "exact", "held_out_wordings": "held", "neighbourhood": "neigh", "other_subjects": "others",
    "same_subject": "same", "perplexity_ratio": "ppl", "write_fraction": "write", "capacity_used": "room",
}  # fmt: skip


def misses(found: dict[str, Any]) -> list[str]:
    """The floors that a row of AT edits does not reach."""
    if found["edits"] != AT:
        return []
    if "refused" in found:
        return ["refused"]
    low = [key for key, least in {**FLOORS[found["model"]], **BOTH}.items() if found[key] < least]
    return low + [key for key, most in MOST.items() if found[key] > most]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as text, and the mean over seeds where there are several."""
    lines = [f"{'model':12}{'edits':>6} {'per subject':12}{'seed':>5} " + "".join(f"{n:>8}" for n in NAMES.values()) + "  misses"]
    for found in sorted(rows, key=_order):
        head = f"{found['model']:12}{found['edits']:>6} {found['subjects']:12.12}{found['seed']:>5} "
        if "refused" in found:
            lines.append(head + f" refused: {found['refused']}")
        else:
            lines.append(head + "".join(f"{found[k]:>8.3f}" for k in NAMES) + f"  {', '.join(misses(found))}")
    for (model, count, kind), members in _means(rows).items():
        values = {key: sum(m[key] for m in members) / len(members) for key in NAMES}
        lines.append(
            f"{model:12}{count:>6} {kind:12.12} mean " + "".join(f"{values[k]:>8.3f}" for k in NAMES) + f"  of {len(members)} seeds"
        )
    return "\n".join(lines)


def _means(rows: list[dict[str, Any]]) -> dict[tuple[str, int, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for found in sorted(rows, key=_order):
        if "refused" not in found:
            groups.setdefault((found["model"], found["edits"], found["subjects"]), []).append(found)
    return groups


def _order(found: dict[str, Any]) -> tuple[Any, ...]:
    return found["model"], found["subjects"], found["edits"], found["seed"]


def kept(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that calls share; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def add(path: Path, found: dict[str, Any]) -> None:
    """Add one row, while nobody else does."""
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = sorted([*kept(path), found], key=_order)
        missed = [{k: r[k] for k in ("model", "subjects", "seed")} | {"misses": misses(r)} for r in rows if misses(r)]
        fresh = path.with_suffix(".new")
        document = {"floors_at": AT, "floors": FLOORS, "both": BOTH, "at_most": MOST, "missed": missed, "rows": rows}
        fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--models", default="facts-small,facts-deep")
    ask.add_argument("--edits", default="20,10,50,200")
    ask.add_argument("--seeds", default="31,32,33,34,35")
    ask.add_argument("--subjects", default="one,several")
    ask.add_argument("--layers", default="auto")
    ask.add_argument("--method", default="memit")
    ask.add_argument("--over-capacity", action="store_true")
    ask.add_argument("--out", type=Path, help="file of the rows, which may be there already")
    given = ask.parse_args()
    seeds, rows = [int(n) for n in given.seeds.split(",")], []
    held: dict[tuple[str, int], dict[tuple[str, str], bytes]] = {}
    options = {"layers": given.layers, "method": given.method, "over_capacity": given.over_capacity}
    for count in map(int, given.edits.split(",")):
        for seed in seeds if count == AT else seeds[:2]:
            for model in given.models.split(","):
                for kind in given.subjects.split(","):
                    about = {"model": model, "edits": count, "seed": seed, **options}
                    about["subjects"] = "several facts each" if kind == "several" else "one fact each"
                    if given.out and any(all(r.get(k) == v for k, v in about.items() if k != "layers") for r in kept(given.out)):
                        continue
                    found = row(model, count, seed, kind == "several", held.setdefault((model, seed), {}), **options)
                    print(json.dumps(found), flush=True)
                    rows.append(found)
                    if given.out:
                        add(given.out, found)
    print(table(kept(given.out) if given.out else rows))


if __name__ == "__main__":
    main()
