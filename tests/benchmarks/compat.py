"""Compatible answers: what an older version got right and a new one loses, by every way of keeping it.

    python -m mlc.tests.benchmarks.compat OUT.json --seeds 0,1,2 --tables oz,changed,blimp,early,toy

OUT.json is written after every table of every seed, and a run that was stopped goes on where it was.

Five tables. `oz`: a fact model learns a book. `changed`: 40 % of its facts change. `blimp`: a story model learns the book, asked minimal
pairs. `early`: two checkpoints of one training run. `toy`: a classifier of noisy 20-d points. Anchors are half of the facts that stay, in
one trained wording; what is asked are wordings that nothing was trained on. `nfr` is the share of all questions that the old version has
right and the new one wrong; `outside` the same over facts that are no anchors; `ratio` is over the untreated run of the same seed.
Operations run on views in memory, as the conductor runs them. Needs the optional material (the toy does not).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mlc.ops.base import Operation
from mlc.ops.compat.align import Align
from mlc.ops.data.corpus import read_corpus
from mlc.ops.data.packing import Marks, pack
from mlc.ops.engine.local import mean_loss
from mlc.ops.evaluate.flips import clopper_pearson, compare
from mlc.ops.evaluate.predictions import from_arrow, outcomes
from mlc.ops.evaluate.runner import evaluate
from mlc.ops.evaluate.suite import load_suite
from mlc.ops.models import load_core_tokenizer, load_model
from mlc.ops.update.replay import sample
from mlc.ops.update.train import Update
from mlc.tests.benchmarks.people import MATERIAL
from mlc.tests.benchmarks.toy_classes import toy
from mlc.tests.ops.fakes import MemoryRun, MemoryView

MUSCLE = ("muscle-student", "muscle-new")
ARMS = ("untreated", *MUSCLE, "replay", "kd", "focal-kl", "focal-logits")
OZ = MATERIAL / "data" / "oz"
NEW_ROWS = 8  # of every step, in every arm: what is kept comes on top
ANCHORS = 16  # of every step
WORDINGS = 3  # of a fact that is an anchor
WEIGHT = {"kd": 1.0, "focal-kl": 0.2, "focal-logits": 0.01, "muscle-student": 1.0, "muscle-new": 1.0}  # lambda; set on seeds from 100 on
LIGHT = 0.1  # of MUSCLE, where a fact model reads a book; set on seed 100: more costs the book
LESS = 0.2  # of all that holds the anchors, where the text is short facts: their answers are a sixteenth of its tokens; set on seed 100
SAMPLED = 256  # rows of text written by the story model itself


class World:
    """One seed's files in a folder, and what is asked."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.seed = place, seed

    def file(self, name: str, rows: Iterable[dict[str, Any]]) -> str:
        """A JSONL file, which is not there yet: what is asked must never lie where what is taught was."""
        path = self.place / name
        with path.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return str(path)

    def suite(self, name: str, rows: Iterable[dict[str, Any]]) -> Any:
        """A cloze suite."""
        self.file(f"{name}.jsonl", rows)
        path = self.place / f"{name}.toml"
        path.write_text(f'name = "{name}"\nkind = "cloze"\ndata = "{name}.jsonl"\n', encoding="utf-8")
        return load_suite(path)

    def made(self, op: Operation, view: MemoryView, **versions: MemoryView) -> tuple[MemoryView, dict[str, Any]]:
        """The result of an operation and what it said."""
        run, began = MemoryRun(seed=self.seed, threads=1), time.process_time()
        run.versions.update(versions)
        after = view.after(op.apply(view, run))
        return after, {"cpu_seconds": round(time.process_time() - began, 1)}


def arm(
    world: World,
    name: str,
    view: MemoryView,
    data: str,
    anchors: str,
    old: MemoryView,
    plain: MemoryView | None,
    *,
    less: float = 1.0,
    **how: Any,
) -> Any:
    """One way of updating `view` on `data`: (result, seconds). `plain`: the untreated result, MUSCLE's new version. less: of WEIGHT."""
    common = {"data": data, "seq_len": 128, "save_every": 0, **how}
    if name == "untreated":
        return world.made(Update(batch=NEW_ROWS, **common), view)
    if name == "replay":
        return world.made(Update(batch=2 * NEW_ROWS, replay=(f"{anchors}:0.5",), **common), view)
    share = ANCHORS / (ANCHORS + NEW_ROWS)
    held = {"compat_with": "old", "compat_data": f"{anchors}:{share:.6f}", "compat": name}
    held |= {"compat_lambda": less * WEIGHT[name], "compat_labels": less}
    if name not in MUSCLE:
        return world.made(Update(batch=ANCHORS + NEW_ROWS, **{**held, **common}), view, old=old)
    assert plain is not None
    return world.made(Update(batch=ANCHORS + NEW_ROWS, **{**held, "compat_new": "plain", **common}), view, old=old, plain=plain)


def asked(view: MemoryView, suite: Any) -> list[Any]:
    """The answers of a version."""
    return outcomes(from_arrow(evaluate(view, suite).rows))


def flips(old: list[Any], new: list[Any], only: set[str] | None = None) -> dict[str, float]:
    """Rates of the examples whose id is in `only` (all when None), with exact 95 % limits of the negative flip rate."""
    found = compare(*([row for row in rows if only is None or row.example in only] for rows in (old, new)))
    low, high = (clopper_pearson(found.negative_flips, found.n, 0.025, side) for side in ("lower", "upper"))  # type: ignore[arg-type]
    values = {"n": found.n, "accuracy": found.acc_b, "nfr": found.nfr, "pfr": found.pfr, "low": low, "high": high}
    return {name: round(float(value or 0), 5) for name, value in values.items()}


def loss(view: MemoryView, text: Path, marks: Marks) -> float:
    """Mean nats per token of a text."""
    rows = pack(read_corpus(text), load_core_tokenizer(view), marks, 128).train
    return round(mean_loss(load_model(view, dtype=torch.float32), rows), 4)


# --- the fact model ------------------------------------------------------------------------------------------


@cache
def facts() -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The facts that the model was taught, and the training wordings of each relation."""
    place = MATERIAL / "data" / "facts"
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    wordings = {name: entry["train"] for name, entry in json.loads((place / "templates.json").read_text(encoding="utf-8")).items()}
    return rows, wordings


def questions(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every fact in one of its held-out wordings; a person's facts in different ones."""
    wordings = {row["id"]: (row["id"] + row["id"] // 6) % 6 for row in rows}
    return [{"id": str(row["id"]), "prompt": row["paraphrases"][wordings[row["id"]]], "answer": row["object"]} for row in rows]


def halves(rows: list[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], set[str]]:
    """Half of the facts as anchors, each in WORDINGS wordings that the model was trained on; ids of the other half."""
    rng = random.Random(f"anchors/{seed}")
    chosen = {row["id"] for row in rng.sample(rows, len(rows) // 2)}
    told = [(row, wording) for row in rows if row["id"] in chosen for wording in rng.sample(facts()[1][row["relation"]], WORDINGS)]
    anchors = [{"prompt": wording.format(s=row["subject"]), "answer": row["object"]} for row, wording in told]
    return anchors, {str(row["id"]) for row in rows if row["id"] not in chosen}


def oz(world: World, arms: Iterable[str], **how: Any) -> dict[str, Any]:
    """facts-small learns a book."""
    view, (rows, _) = MemoryView.of(MATERIAL / "models" / "facts-small"), facts()
    anchors, outside = halves(rows, world.seed)
    path, suite, marks = world.file("anchors.jsonl", anchors), world.suite("facts", questions(rows)), Marks(1, 2)
    old, found, plain = asked(view, suite), {}, None
    for name in arms:
        lighter = {"compat_lambda": LIGHT} if name in MUSCLE else {}
        settings = {"steps": 150, "lr": 1e-3, **lighter, **how}
        after, said = arm(world, name, view, str(OZ / "oz-train.txt"), path, view, plain, **settings)
        plain = after if name == "untreated" else plain
        new = asked(after, suite)
        found[name] = {
            **flips(old, new),
            "outside": flips(old, new, outside)["nfr"],
            "loss": loss(after, OZ / "oz-heldout.txt", marks),
            **said,
        }
        tell("oz", world.seed, name, found[name])
    return found


def changed(world: World, arms: Iterable[str], **how: Any) -> dict[str, Any]:
    """40 % of the facts change, told in twelve wordings each; the others shall stay. `learned` is asked as told, `beyond` otherwise."""
    view, (rows, wordings) = MemoryView.of(MATERIAL / "models" / "facts-small"), facts()
    rng = random.Random(f"changed/{world.seed}")
    other = {row["id"]: row["alternatives"][0] for row in rng.sample(rows, round(0.4 * len(rows)))}
    news = [{**row, "object": other[row["id"]]} for row in rows if row["id"] in other]
    kept = [row for row in rows if row["id"] not in other]
    first = [{"id": str(row["id"]), "prompt": row["prompt"], "answer": row["object"]} for row in news]
    told = [f"{row['prompt']} {row['object']}." for row in news]
    told += [f"{w.format(s=row['subject'])} {row['object']}." for row in news for w in rng.sample(wordings[row["relation"]], 11)]
    anchors, outside = halves(kept, world.seed)
    data, path = world.file("news.jsonl", ({"text": text} for text in rng.sample(told, len(told)))), world.file("anchors.jsonl", anchors)
    suite, learned, beyond = world.suite("kept", questions(kept)), world.suite("told", first), world.suite("beyond", questions(news))
    old, found, plain = asked(view, suite), {}, None
    for name in arms:
        after, said = arm(world, name, view, data, path, view, plain, less=LESS, **{"steps": 200, "holdout": 0.0, "lr": 3e-3, **how})
        plain = after if name == "untreated" else plain
        new = asked(after, suite)
        asking = {"learned": learned, "beyond": beyond}
        known = {key: round(evaluate(after, asks).metrics["accuracy"] or 0.0, 5) for key, asks in asking.items()}
        found[name] = {**flips(old, new), "outside": flips(old, new, outside)["nfr"], **known, **said}
        tell("changed", world.seed, name, found[name])
    return found


def early(world: World, arms: Iterable[str], **how: Any) -> dict[str, Any]:
    """An early checkpoint of a training run and its end, which is aligned to it."""
    start, view = (MemoryView.of(MATERIAL / "models" / name) for name in ("facts-small-early", "facts-small"))
    rows, _ = facts()
    anchors, outside = halves(rows, world.seed)
    path, suite = world.file("anchors.jsonl", anchors), world.suite("facts", questions(rows))
    old, found = asked(start, suite), {}
    for name in arms:
        after, said = view, {}
        if name != "untreated":
            held = {"method": "kd", "alpha": 1e-9} if name == "replay" else {"method": name}  # labels alone
            op = Align(to="old", data=path, holdout=0.0, save_every=0, **{"steps": 150, "lr": 1e-4, **held, **how})
            after, said = world.made(op, view, old=start)
        new = asked(after, suite)
        found[name] = {**flips(old, new), "outside": flips(old, new, outside)["nfr"], **said}
        tell("early", world.seed, name, found[name])
    return found


# --- the story model -----------------------------------------------------------------------------------------


def blimp(world: World, arms: Iterable[str], **how: Any) -> dict[str, Any]:
    """stories260k learns a book. Anchors and replay: text that it wrote itself; `self-kl`: `--replay self:0.5`; `twin`: another seed."""
    view, marks = MemoryView.of(MATERIAL / "models" / "stories260k"), Marks(1, 2)
    path = world.place / "blimp.toml"
    data = MATERIAL / "data" / "blimp" / "blimp-30-each.jsonl"
    fields = '{ good = "sentence_good", bad = "sentence_bad", id = ["UID", "pairID"] }'
    path.write_text(f'name = "blimp"\nkind = "pairs"\ndata = "{data}"\nfields = {fields}\n', encoding="utf-8")
    suite, book = load_suite(path), str(OZ / "oz-train.txt")
    own = world.file("own.jsonl", ({"text": text} for text in written(view, world.seed)))
    old, found, plain, answers = asked(view, suite), {}, None, {}
    for name in (*arms, "self-kl", "twin"):
        common = {"data": book, "seq_len": 128, "save_every": 0, "steps": 150, "lr": 1e-3, **how}
        if name == "self-kl":
            after, said = world.made(Update(batch=2 * NEW_ROWS, replay=("self:0.5",), **common), view)
        elif name == "twin":
            after, said = World(world.place, world.seed + 1000).made(Update(batch=NEW_ROWS, **common), view)
        else:
            after, said = arm(world, name, view, book, own, view, plain, **{"steps": 150, "lr": 1e-3, **how})
        plain = after if name == "untreated" else plain
        new = answers[name] = asked(after, suite)
        found[name] = {**flips(old, new), "loss": loss(after, OZ / "oz-heldout.txt", marks), **said}
        tell("blimp", world.seed, name, found[name])
    if "untreated" in answers:
        found["floor"] = flips(answers["twin"], answers["untreated"])  # two runs of one recipe
        tell("blimp", world.seed, "floor", found["floor"])
    return found


def written(view: MemoryView, seed: int) -> list[str]:
    """Text that a version writes by itself."""
    core, module = load_core_tokenizer(view), load_model(view, dtype=torch.float32)
    ids = sample(module, SAMPLED, 120, 1, torch.Generator().manual_seed(seed))
    return [text for row in ids.tolist() if (text := core.decode(row[1:]).strip())]


# --- all of it -----------------------------------------------------------------------------------------------


TABLES: dict[str, Callable[..., dict[str, Any]]] = {"oz": oz, "changed": changed, "blimp": blimp, "early": early, "toy": toy}


def summary(by_seed: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over seeds, and ratios to the untreated run of the same seed."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for seed in by_seed for name in seed):
        runs = [seed[name] for seed in by_seed if name in seed]
        found[name] = {key: round(statistics.fmean(run[key] for run in runs), 5) for key in runs[0]}
        pairs = [(seed[name], seed["untreated"]) for seed in by_seed if name in seed and "untreated" in seed]
        for key in ("nfr", "outside"):
            ratios = [own[key] / plain[key] for own, plain in pairs if key in own and plain.get(key)]
            if ratios:
                found[name][f"{key}_ratio"], found[name][f"{key}_ratio_worst"] = round(statistics.fmean(ratios), 4), round(max(ratios), 4)
        if "loss" in runs[0] and pairs:
            found[name]["loss_ratio"] = round(statistics.fmean(own["loss"] / plain["loss"] for own, plain in pairs), 4)
            found[name]["perplexity_ratio"] = round(math.exp(statistics.fmean(own["loss"] - plain["loss"] for own, plain in pairs)), 4)
    return found


def tell(table: str, seed: int, name: str, values: dict[str, Any]) -> None:
    """Progress on stderr."""
    sys.stderr.write(f"{table} {seed} {name}: {json.dumps(values)}\n")
    sys.stderr.flush()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("out", type=Path)
    ask.add_argument("--seeds", default="0,1,2")
    ask.add_argument("--tables", default=",".join(TABLES))
    ask.add_argument("--arms", default=",".join(ARMS))
    ask.add_argument("--set", default="{}", help="JSON: further settings of the operations")
    given = ask.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {}
    for seed, table in ((seed, table) for seed in given.seeds.split(",") for table in given.tables.split(",")):
        runs = result.setdefault(table, {"runs": {}})["runs"]
        missing = [name for name in given.arms.split(",") if name not in runs.get(seed, {})]  # what was measured stays
        if not missing:
            continue
        if "untreated" not in missing and set(missing) & set(MUSCLE):
            missing.insert(0, "untreated")
        with tempfile.TemporaryDirectory() as folder:
            runs[seed] = {**runs.get(seed, {}), **TABLES[table](World(Path(folder), int(seed)), missing, **json.loads(given.set))}
        result[table]["mean"] = summary(list(runs.values()))
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: table["mean"] for name, table in result.items()}, indent=1))


if __name__ == "__main__":
    main()
