"""The fact world as unlearning needs it: who is to be forgotten, what must stay, and what is only ever asked in tests.

Made from the optional material (`data/facts`): 200 invented people with six facts each. The 20 people of the split `forget`
are the forget set, the others the retain set, 20 people that the model never met are the holdout. A fact is told in several
training wordings; the files given to `mlc unlearn` and the questions asked afterwards use different ones, and the held-out
wordings occur in neither training nor files.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MATERIAL = Path(os.environ.get("MLC_MATERIAL", ROOT.parent / "shared" / "material"))

TOLD = 6  # training wordings of a forget fact that the forget set holds
KEPT = 2  # of a retain fact in the retain set
ASKED = 3  # further training wordings that are asked in tests
TEXTS = 400  # paragraphs of ordinary text in the retain set
Fact = dict[str, Any]


@dataclass(frozen=True)
class People:
    """Facts by split, their wordings, and ordinary text for the retain set and for measuring."""

    facts: dict[str, list[Fact]]  # forget, core, absent
    wordings: dict[str, list[str]]  # relation -> training templates
    text: list[str]
    unseen_text: str


def people(name: str = "facts") -> People:
    """The world in `data/<name>` beside ordinary text from WikiText-2 (its last 4 % were never trained on)."""
    place = MATERIAL / "data" / name
    rows = [json.loads(line) for file in ("train.jsonl", "heldout.jsonl") for line in (place / file).read_text().splitlines()]
    wordings = {relation: entry["train"] for relation, entry in json.loads((place / "templates.json").read_text()).items()}
    ordinary = (MATERIAL / "data" / "wikitext-2" / "valid.txt").read_text()
    cut = int(len(ordinary) * 0.96)
    long = [line.strip() for line in ordinary[:cut].splitlines() if len(line.split()) > 40]
    facts = {split: [row for row in rows if row["split"] == split] for split in ("forget", "core", "absent")}
    return People(facts, wordings, long, ordinary[cut:])


def told(world: People, split: str, seed: int, count: int, start: int = 0) -> list[dict[str, str]]:
    """`count` training wordings of every fact of a split, drawn with `seed`; `start` skips those that another file uses."""
    rows = []
    for fact in world.facts[split]:
        drawn = random.Random(f"{seed}/{fact['id']}").sample(world.wordings[fact["relation"]], start + count)[start:]
        rows += [{"prompt": wording.format(s=fact["subject"]), "answer": fact["object"]} for wording in drawn]
    return rows


def held_out(world: People, split: str) -> list[dict[str, str]]:
    """Every fact of a split in wordings that no training saw."""
    return [{"prompt": prompt, "answer": fact["object"]} for fact in world.facts[split] for prompt in fact["paraphrases"]]


def write(directory: Path, world: People, seed: int, *, text: bool = True) -> dict[str, Path]:
    """The files of one request and the suites that judge it; returns their paths by role."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = random.Random(seed).sample(world.text, TEXTS) if text else []
    found = {
        "forget": _jsonl(directory / "forget.jsonl", told(world, "forget", seed, TOLD)),
        "retain": _jsonl(directory / "retain.jsonl", [*told(world, "core", seed, KEPT), *({"text": t} for t in texts)]),
        "holdout": _jsonl(directory / "holdout.jsonl", told(world, "absent", seed, TOLD)),
    }
    suites = {
        "forget-trained": told(world, "forget", seed, ASKED, TOLD),
        "forget-heldout": held_out(world, "forget"),
        "retain-trained": told(world, "core", seed, 1, TOLD),
        "retain-heldout": [row for n, row in enumerate(held_out(world, "core")) if n % 3 == 0],
        "absent-heldout": held_out(world, "absent"),
    }
    for name, rows in suites.items():
        _jsonl(directory / f"{name}.jsonl", rows)
        private = "private = true\n" if name.startswith("forget") else ""
        found[name] = _suite(directory, name, "cloze", f"{name}.jsonl", private)
    (directory / "text.txt").write_text(world.unseen_text)
    found["text"] = _suite(directory, "text", "perplexity", "text.txt", "")
    return found


def _jsonl(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _suite(directory: Path, name: str, kind: str, data: str, more: str) -> Path:
    path = directory / f"{name}.toml"
    path.write_text(f'name = "{name}"\nkind = "{kind}"\ndata = "{data}"\n{more}')
    return path


def documents_without(names: Sequence[str], name: str = "facts") -> list[str]:
    """The training documents that mention none of these people."""
    lines = (MATERIAL / "data" / name / "train.txt").read_text().splitlines()
    return [line for line in lines if not any(person in line for person in names)]
