"""Typo patches for a fact model: three kinds of typos, a robust version of each, signatures by `patch`, cloze accuracy.

Usage: python tests/benchmarks/typos.py SEED [KINDS] [PLACE]. What was trained lies in the registry PLACE (else a temporary one), so that a
run can go on kind by kind (`updated`: the clean model trained on; `report`: print one JSON document). The robust versions learn the answers
to the facts' training prompts, half of them with one typo; what is asked are canonical prompts with other typos. Steps, rate and strength
were chosen on seed 100.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from mlc.ops.data.items import read_items
from mlc.ops.engine import LocalEngine, TrainSettings
from mlc.ops.models import load_model
from mlc.ops.unlearn.draws import RETAIN, Draws
from mlc.ops.unlearn.task import task_of
from mlc.ops.update.full import Full
from mlc.ops.update.train import Update
from mlc.policies import lifecycle, patches
from mlc.registry.repository import Repository
from mlc.tests.benchmarks.people import MATERIAL
from mlc.tests.ops.fakes import MemoryRun

KINDS = ("swap", "drop", "double")
STEPS, BATCH, RATE = 120, 64, 1e-3
MEASURED = 400  # facts
SETTINGS = {"ternary": ("ternary", 1.0), "4-bit": ("4", 1.0)}


def typo(word: str, kind: str, chance: random.Random) -> str:
    """One typo within a word of at least four letters: neighbours swapped, a letter left out, a letter twice."""
    at = chance.randrange(1, len(word) - 2)
    if kind == "swap":
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at + 1 :] if kind == "drop" else word[: at + 1] + word[at:]


def typed(prompt: str, kind: str, chance: random.Random) -> str:
    """A prompt with one typo, in one of its long words."""
    words = prompt.split(" ")
    at = chance.choice([i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()])
    return " ".join(typo(word, kind, chance) if i == at else word for i, word in enumerate(words))


def material(place: Path, seed: int) -> dict[str, Path]:
    """Training files per kind, and the questions: `clean` and one set per kind, none of whose prompts is trained on."""
    source = MATERIAL / "data" / "facts"
    facts = [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()]
    templates = json.loads((source / "templates.json").read_text())
    chance = random.Random(seed)
    asked = chance.sample(facts, MEASURED)
    files = {"clean": _write(place / "clean.jsonl", [(f["prompt"], f["object"]) for f in asked])}
    for kind in KINDS:
        rows = []
        for fact in facts:
            for template in chance.sample(templates[fact["relation"]]["train"], 8):
                prompt = template.replace("{s}", fact["subject"])
                rows += [(prompt, fact["object"] + "."), (typed(prompt, kind, chance), fact["object"] + ".")]
        chance.shuffle(rows)
        known = {prompt for prompt, _ in rows}
        questions = [(prompt, f["object"]) for f in asked if (prompt := typed(f["prompt"], kind, chance)) not in known]
        files[kind], files[f"train {kind}"] = _write(place / f"{kind}.jsonl", questions), _write(place / f"train-{kind}.jsonl", rows)
    return files


def _write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows), encoding="utf-8")
    return path


class Lab:
    """A registry with the clean model, its robust relatives and a clean one that was trained on."""

    def __init__(self, place: Path, seed: int) -> None:
        self.seed = seed
        self.place = place
        (place / "data").mkdir(parents=True, exist_ok=True)
        self.files = material(place / "data", seed)
        root = place / "registry"
        self.repo = Repository.open(root) if root.exists() else Repository.init(root)
        if "main" not in self.repo.branches():
            lifecycle.import_model(self.repo, MATERIAL / "models" / "facts-small", author="benchmark")

    def train(self, kind: str) -> None:
        """The robust version of one kind (`updated`: more of the clean text), where it is not there yet."""
        if kind in self.repo.branches():
            return
        if kind == "updated":
            op = Update(data=str(MATERIAL / "data" / "facts" / "train.txt"), steps=60, batch=16, seq_len=48, lr=3e-4, holdout=0.01)
            lifecycle.run(self.repo, op, ref="main", branch=kind, author="benchmark", seed=self.seed)
            return
        view = self.repo.view(self.repo.resolve("main"))
        method, task = Full(view), task_of(view)
        rows = task.rows(read_items(self.files[f"train {kind}"], "retain"))
        feed = Draws({RETAIN: range(len(rows))}, {RETAIN: BATCH}, tokens=16, seed=self.seed, read=kind)
        settings = TrainSettings(STEPS, RATE, warmup=10, betas=(0.9, 0.999), save_every=0, seed=self.seed)
        LocalEngine().train(
            method.module, feed, settings, MemoryRun(), objective=lambda module, draw: task.losses(module, rows, draw.retain).mean()
        )
        method.module.save_pretrained(self.place / kind)  # type: ignore[operator]
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(MATERIAL / "models" / "facts-small" / file, self.place / kind / file)
        lifecycle.commit_directory(self.repo, self.place / kind, ref="main", branch=kind, author="benchmark")

    def scores(self, rev: str, kinds: Sequence[str]) -> dict[str, float]:
        """Cloze accuracy of a version on clean prompts and on these kinds of typos."""
        view = self.repo.view(self.repo.resolve(rev))
        task, module = task_of(view), load_model(view, dtype=torch.float32)
        return {n: task.measure(module, task.rows(read_items(self.files[n], "retain"))).accuracy or 0.0 for n in ("clean", *kinds)}

    def patched(self, kinds: Sequence[str], label: str, onto: str) -> dict[str, float]:
        """Scores of a version under the patches of these kinds, which are taken off again."""
        names, strength = [f"{kind}-{label}" for kind in kinds], SETTINGS[label][1]
        branch = "-".join((*names, onto, "patched"))
        start = self.repo.resolve(onto)
        patches.apply(self.repo, names, strengths=[strength], ref=onto, branch=branch, author="benchmark")
        found = self.scores(branch, kinds)
        back = patches.remove(self.repo, names, ref=branch, author="benchmark").commit
        assert back is not None
        assert back.snapshot == self.repo.commit(start).snapshot
        lifecycle.remove_name(self.repo, "branch", branch, author="benchmark")
        return found


def report(lab: Lab) -> dict[str, Any]:
    """The table of one seed, over the kinds that are trained."""
    kinds = [kind for kind in KINDS if kind in lab.repo.branches()]
    clean, updated = lab.scores("main", kinds), lab.scores("updated", ())
    robust = {kind: lab.scores(kind, [kind]) for kind in kinds}
    gap = {kind: robust[kind][kind] - clean[kind] for kind in kinds}
    found: dict[str, Any] = {"seed": lab.seed, "clean": clean, "gaps": {k: [clean[k], robust[k][k]] for k in kinds}}
    found["robust_clean_loss"] = {k: round(100 * (clean["clean"] - robust[k]["clean"]), 2) for k in kinds}
    for label, (bits, strength) in SETTINGS.items():
        share = 0.0
        for kind in kinds:
            facts = patches.extract(lab.repo, kind, "main", name=f"{kind}-{label}", bits=bits, author="benchmark")[0].facts
            share = max(share, facts["bytes"] / facts["full_bytes"])
        for onto, base in (("main", clean), ("updated", updated)):
            after = {k: lab.patched([k], label, onto) for k in kinds}
            won = {k: after[k][k] - clean[k] for k in kinds}
            losses = [100 * (base["clean"] - after[k]["clean"]) for k in kinds]
            found[label if onto == "main" else f"transfer, {label}"] = {
                "recovered": round(sum(won.values()) / sum(gap.values()), 3),
                "each": {k: round(won[k] / gap[k], 2) for k in kinds},
                "clean_loss": [round(sum(losses) / len(losses), 2), round(max(losses), 2)],
                "bytes_percent": round(100 * share, 2),
                "strength": strength,
            }
    both = {pair: lab.patched(pair, "ternary", "main") for pair in combinations(kinds, 2)}
    found["pairs, ternary"] = {"+".join(p): [round((after[k] - clean[k]) / gap[k], 2) for k in p] for p, after in both.items()}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    seed, kinds = int(sys.argv[1]), sys.argv[2].split(",") if len(sys.argv) > 2 else [*KINDS, "updated"]
    with tempfile.TemporaryDirectory() as temporary:
        lab = Lab(Path(sys.argv[3]) if len(sys.argv) > 3 else Path(temporary), seed)
        began = time.process_time()
        for kind in (kind for kind in kinds if kind != "report"):
            lab.train(kind)
        if "report" in kinds or len(sys.argv) <= 3:
            print(json.dumps(report(lab) | {"seconds": round(time.process_time() - began, 1)}, indent=1))
        else:
            print(f"trained {', '.join(kinds)} in {time.process_time() - began:.1f} CPU seconds", file=sys.stderr)
