"""What an update learns and what it forgets: every control of `update` on one model, at equal tokens, in one table.

`python -P tests/benchmarks/updates.py [--to oz shakespeare] [--seeds 0 1] [--only NAME ...] [--set NAME=OPTION:VALUE,...] [--out FILE]`.
A story model of 260,000 parameters learns one text after another, each in 150 steps of 8 rows of 128 tokens; each row of the table is one
update per text through the conductor, gate and measurement included, on branches of its own. New text and old text (stories) are held out;
forgetting is the rise of the old text's loss in nats per token since the start of the chain, `lost` that of the texts learned in between
since they were learned; a negative flip is a BLiMP pair that the start judged right and the child does not. There is
little old text to be had: `replay file` reads the first half of the story sample (some 600 tokens, over and over), and for those rows only
the forgetting on the second half (`held`) says anything; `own` is the rise on text that the model itself sampled under another seed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mlc.ops.evaluate.flips import compare
from mlc.ops.update.train import Update
from mlc.policies import lifecycle
from mlc.policies.measure import Bench, load_suites
from mlc.policies.outcome import Request
from mlc.registry.errors import GateRefused
from mlc.registry.repository import Repository
from mlc.tests.benchmarks.walk import MATERIAL

STEPS = 150
WANTED = 0.5, 1.10  # of the forgetting and of the new text's loss of full tuning without replay
TEXTS = {"oz": ("oz/oz-train.txt", "oz/oz-heldout.txt"), "shakespeare": ("tinyshakespeare/train.txt", "tinyshakespeare/heldout.txt")}


def ways(old: Path) -> dict[str, dict[str, Any]]:
    """Row -> options of `mlc update`. `old` is text like the one that the model was made from."""
    return {
        "full": {},
        **{f"replay file {r:.0%}": {"replay": (f"{old}:{r}",)} for r in (0.05, 0.25, 0.5)},
        **{f"replay sample {r:.0%}": {"replay": (f"sample:{r}",)} for r in (0.05, 0.25, 0.5)},
        **{f"self-distillation {r:.0%}": {"replay": (f"self:{r}",)} for r in (0.05, 0.25, 0.5)},
        "spu": {"protect": "spu"},
        "hle": {"protect": "hle"},
        "ewc": {"protect": "ewc"},
        "l2sp": {"protect": "l2sp"},
        "dynamic ema": {"ema": "dynamic"},
        "interpolation 0.5": {"blend": 0.5},
        "ade 1 block": {"expand": 1, "where": "importance"},
        "ade 3 blocks": {"expand": 3, "where": "importance"},
        "5 blocks": {"expand": 5},
        "ade 1 block + self 50%": {"expand": 1, "where": "importance", "replay": ("self:0.5",)},
        "5 blocks + sample 50%": {"expand": 5, "replay": ("sample:0.5",)},
        "5 blocks + self 50%": {"expand": 5, "replay": ("self:0.5",)},
        "ewc + self 25%": {"protect": "ewc", "replay": ("self:0.25",)},
        "autopilot": {"auto": True},
    }


class Ground:
    """A registry with the model, its suites, and the old texts."""

    def __init__(self, place: Path, texts: list[str]) -> None:
        stories = (MATERIAL / "data" / "tinystories" / "sample.txt").read_text(encoding="utf-8")
        parts = [part.strip() for part in stories.split("<|endoftext|>") if part.strip()]
        half = len(parts) // 2
        self.old, held, own = (place / name for name in ("old.jsonl", "held.jsonl", "own.jsonl"))
        write(self.old, parts[:half])
        write(held, parts[half:])
        self.texts = texts
        self.repo = Repository.init(place)
        lifecycle.import_model(self.repo, MATERIAL / "models" / "stories260k")
        write(own, sampled(self.repo))
        files = {
            **{text: ("perplexity", MATERIAL / "data" / TEXTS[text][1], "") for text in texts},
            "stories": ("perplexity", MATERIAL / "data" / "tinystories" / "sample.txt", ""),
            "held": ("perplexity", held, ""),
            "own": ("perplexity", own, ""),
            "blimp": ("pairs", MATERIAL / "data" / "blimp" / "blimp-30-each.jsonl", FIELDS),
        }
        for name, (kind, data, more) in files.items():
            (place / f"{name}.toml").write_text(f'name = "{name}"\nkind = "{kind}"\ndata = "{data.resolve()}"\n{more}')
        self.bench = Bench(self.repo, Request.of(self.repo))
        self.suites = {suite.name: suite for suite in load_suites([place / f"{name}.toml" for name in files])}
        self.before = self.measured(self.repo.commit(self.repo.resolve("main")).snapshot)

    def measured(self, snapshot: Any) -> dict[str, Any]:
        """Nats per token of each text, and the answers to BLiMP."""
        found = {name: self.bench.measure(snapshot, suite) for name, suite in self.suites.items()}
        return {
            **{name: math.log(one.metrics["perplexity"]) for name, one in found.items() if name != "blimp"},
            "blimp": self.bench.answers(found["blimp"]),
        }

    def chain(self, name: str, options: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        """One way of updating, text after text: a row for each."""
        rows: list[dict[str, Any]] = []
        parent, learned = "main", {}
        for text in self.texts:
            parent, row = self.step(name, options, seed, parent, text)
            nats = row.pop("nats")
            row["lost"] = sum(nats[other] - known for other, known in learned.items())
            learned[text] = nats[text]
            rows.append(row)
        return rows

    def step(self, name: str, options: dict[str, Any], seed: int, parent: str, text: str) -> tuple[str, dict[str, Any]]:
        """One update of `parent` on `text` and what became of it: (commit, row)."""
        started, branch = time.process_time(), f"row-{abs(hash((name, seed, text))):x}"
        data = str(MATERIAL / "data" / TEXTS[text][0])
        try:
            outcome = lifecycle.run(self.repo, Update(data=data, steps=STEPS, **options), ref=parent, branch=branch, seed=seed)
        except GateRefused as refusal:
            outcome = refusal.details["outcome"]
        seconds = time.process_time() - started
        commit = outcome.commit
        after, before = self.measured(commit.snapshot), self.before
        trained = commit.check["training"]["trained_parameters"]
        return outcome.commit_id, {
            "row": name,
            "seed": seed,
            "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
            "new_loss": after[text],
            "new_perplexity": math.exp(after[text]),
            "old_loss": after["stories"],
            "old_perplexity": math.exp(after["stories"]),
            "forgetting": after["stories"] - before["stories"],
            "forgetting_held": after["held"] - before["held"],
            "forgetting_own": after["own"] - before["own"],
            "negative_flips": compare(before["blimp"], after["blimp"]).nfr,
            "trained_share": trained / sum(math.prod(t.shape) for t in self.repo.snapshot(commit.snapshot).tensors),
            "stored_bytes": sum(d.bytes_stored for d in outcome.deltas),
            "artifact_bytes": sum(a.bytes for a in commit.artifacts),
            "accepted": outcome.ref_moved,
            "controls": commit.check.get("controls"),
            "chosen": (commit.check.get("auto") or {}).get("choice"),
            "seconds": round(seconds, 1),
            "nats": {key: value for key, value in after.items() if key != "blimp"},
        }


FIELDS = 'fields = { good = "sentence_good", bad = "sentence_bad" }\n'


def write(path: Path, texts: list[str]) -> None:
    """JSONL of texts."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def sampled(repo: Repository) -> list[str]:
    """64 texts that the model itself writes, under a seed that no row uses."""
    from mlc.ops.models import load_core_tokenizer, load_model
    from mlc.ops.update.replay import sample

    view = repo.view(repo.resolve("main"))
    core = load_core_tokenizer(view)
    rows = sample(load_model(view, dtype=torch.float32), 64, 128, core.token_to_id("<s>"), torch.Generator().manual_seed(987_654))
    return [core.decode(row[1:].tolist()) for row in rows]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, and whether a row holds what is wanted of replay: half the forgetting at a tenth more loss, against `full`."""
    names = list(dict.fromkeys(row["row"] for row in rows))
    numbers = ("new_loss", "new_perplexity", "old_loss", "old_perplexity", "forgetting", "forgetting_held", "forgetting_own", "lost",
               "negative_flips", "trained_share", "stored_bytes", "artifact_bytes", "seconds")  # fmt: skip
    made = []
    for name in names:
        own = [row for row in rows if row["row"] == name]
        made.append({"row": name, "seeds": len(own), **{n: sum(row[n] for row in own) / len(own) for n in numbers}})
    full = next((row for row in made if row["row"] == "full"), None)
    for row in made if full else ():
        row["loss_ratio"], row["forgetting_ratio"] = row["new_loss"] / full["new_loss"], row["forgetting"] / full["forgetting"]
        row["wanted"] = row["forgetting_ratio"] <= WANTED[0] and row["loss_ratio"] <= WANTED[1]
    for row in made:
        row["behind"] = behind(row, made)
    return made


def behind(row: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """By how much of its losses, new and old text, a row lies behind the front of all rows: 0 for a row that no other one beats in both."""
    return max(min(row["new_loss"] / other["new_loss"], row["old_loss"] / other["old_loss"]) for other in rows) - 1


def show(rows: list[dict[str, Any]]) -> None:
    """The table, for people."""
    head = (
        "row",
        "new nll",
        "x full",
        "new ppl",
        "old ppl",
        "forget",
        "x full",
        "held",
        "own",
        "lost",
        "flips",
        "share",
        "stored",
        "sec",
        "behind",
        "",
    )
    print(f"{head[0]:26}" + "".join(f"{h:>9}" for h in head[1:]))
    for r in rows:
        cells = [f"{r['new_loss']:.3f}", f"{r.get('loss_ratio', 0):.3f}", f"{r['new_perplexity']:.2f}", f"{r['old_perplexity']:.2f}",
                 f"{r['forgetting']:.3f}", f"{r.get('forgetting_ratio', 0):.2f}", f"{r['forgetting_held']:.3f}",
                 f"{r['forgetting_own']:.3f}", f"{r['lost']:.3f}",
                 f"{r['negative_flips']:.2%}", f"{r['trained_share']:.3f}",
                 f"{(r['stored_bytes'] + r['artifact_bytes']) / 1e6:.2f}M",
                 f"{r['seconds']:.0f}", f"{r['behind']:.1%}", "holds" if r.get("wanted") else ""]  # fmt: skip
        print(f"{r['row']:26}" + "".join(f"{c:>9}" for c in cells))


def extra(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME=OPTION:VALUE,...` as a row; values are JSON where they can be."""
    name, _, said = text.partition("=")
    options: dict[str, Any] = {}
    for part in filter(None, said.split(",")):
        key, _, value = part.partition(":")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = (value,) if key == "replay" else value
    return name, options


def main() -> None:
    """Run the rows that were asked for and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", nargs="+", default=["oz", "shakespeare"], choices=sorted(TEXTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--set", nargs="*", default=[], help="further rows: NAME=OPTION:VALUE,...")
    parser.add_argument("--out", type=Path, help="JSON, written after every row; what is there is kept")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(asked.out.read_text())["rows"] if asked.out and asked.out.is_file() else []
    known = {(row["row"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder), asked.to)
        chosen = {n: o for n, o in ways(ground.old).items() if asked.only is None or n in asked.only} | dict(map(extra, asked.set))
        for seed, (name, options) in ((seed, item) for seed in asked.seeds for item in chosen.items()):
            if (name, seed) in known:
                continue
            rows += [{"text": text, **row} for text, row in zip(asked.to, ground.chain(name, options, seed), strict=True)]
            if asked.out:
                asked.out.write_text(json.dumps(report(asked.to, rows), indent=1))
            print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
    for text, lines in report(asked.to, rows)["summary"].items():
        print(f"\n{text}, seeds {asked.seeds}")
        show(lines)


def report(texts: list[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows, and for each text their means over seeds."""
    return {"steps": STEPS, "rows": rows, "summary": {text: summary([row for row in rows if row["text"] == text]) for text in texts}}


if __name__ == "__main__":
    main()
