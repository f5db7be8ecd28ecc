"""Edits of the wider fact model (see wider.py): a hundred at once, ten batches one after the other, one of a hundred taken back.

    python tests/benchmarks/wide_edits.py PLACE --seeds 0,1 --out FILE.json

PLACE is what `wider.py` wrote. Every edit is a commit of a registry made for it, through the functions behind `mlc edit`, `mlc revert
--fact` and `mlc rollback`. A hundred facts are about a hundred people and learnt from their prompt and WORDINGS training wordings; what is
asked of the result are wordings that nobody trained on. Beside it the same matrices are fine-tuned on the same rows until as many facts
landed. Ten batches of ten are written without memory of the earlier keys, with it, and by AlphaEdit; a batch that the gate refuses is
accepted against it, to see what it was right about. The file is written anew after every row, so that a run can be followed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from mlc.ops.data.facts import Fact, read_facts
from mlc.ops.edit import keep
from mlc.ops.edit.covariance import ordinary_rows
from mlc.ops.edit.edit import Edit
from mlc.ops.edit.measure import asked_of, bench_of, figures, preferences, retained, rivals, unchanged
from mlc.ops.edit.prompts import Prompter, collate, groups_of
from mlc.ops.edit.site import Editable, editable, inner_width
from mlc.ops.engine.local import mean_loss
from mlc.ops.evaluate.coder import Coder
from mlc.ops.models import load_model, load_tokenizer
from mlc.policies import lifecycle
from mlc.policies.promote import accept
from mlc.policies.runs import Runs
from mlc.policies.unedit import revert_facts
from mlc.registry.errors import CheckFailed, GateRefused, MlcError
from mlc.registry.repository import Repository
from mlc.tests.benchmarks.bench_edit import read_plainly

NAME, WORDINGS = "facts-wide", 3
WAYS = {"no memory": {"memory": False}, "memory": {}, "alphaedit": {"method": "alphaedit"}}
RATES, TOGETHER, MOST = (1e-3, 3e-4), 16, 400  # of fine-tuning: rates tried, subjects in a batch, steps


# --- the facts -----------------------------------------------------------------------------------------------


def draw(place: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows of a fact file about as many people."""
    data = place / "data" / NAME
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    said = json.loads((data / "templates.json").read_text(encoding="utf-8"))
    rng = random.Random(seed)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["subject"], []).append(row)
    chosen = [rng.choice(by_name[name]) for name in rng.sample(sorted(by_name), count)]
    return [_row(row, said[row["relation"]]["train"], rng) for row in chosen]


def _row(row: dict[str, Any], trained: list[str], rng: random.Random) -> dict[str, Any]:
    others = [t.replace("{s}", "{}") for t in trained if t.replace("{s}", "{}") != row["prompt_template"]]
    return {
        "id": str(row["id"]),
        "subject": row["subject"],
        "relation": row["relation"],
        "prompt": row["prompt_template"],
        "target_new": row["alternatives"][0],
        "target_true": row["object"],
        "wordings": rng.sample(others, WORDINGS),
        "paraphrases": row["paraphrases"],
        "neighbourhood": [{"prompt": n["prompt"], "answer": n["object"]} for n in row["neighbourhood"]],
    }


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """The rows as a fact file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --- what is measured ----------------------------------------------------------------------------------------


class Asked:
    """The same questions to the model before and to any model after."""

    def __init__(self, view: Any, facts: tuple[Fact, ...], rows: torch.Tensor) -> None:
        self.coder, self.rows, self.facts = Coder(load_tokenizer(view)), rows, facts
        module = load_model(view, dtype=torch.float32)
        bench = bench_of(module, self.coder, "before")
        self.asked = asked_of(facts, bench)
        self.was, self.loss = figures(self.asked, bench), mean_loss(module, rows)
        known = [(p, f.target_true) for f in facts for p in f.paraphrases]
        own = [(f.question, f.target_true) for f in facts]
        self.known, self.own = (_greedy(bench, pairs) for pairs in (known, own))

    def of(self, module: Any) -> dict[str, float | None]:
        """Rates of a module; `held_out_share` relative to what the model manages before."""
        bench = bench_of(module, self.coder, "after")
        now = figures(self.asked, bench)
        found = {
            "efficacy": now.efficacy,
            "exact_match": now.exact_match,
            "held_out": now.paraphrase_exact,
            "held_out_before": self.known,
            "held_out_share": (now.paraphrase_exact or 0.0) / self.known,
            "paraphrase_preferred": now.paraphrase,
            "recall_before": self.own,
            "neighbourhood": now.neighbourhood,
            "other_subjects": retained(self.was.right_neighbours, now.right_neighbours),
            "same_subject": unchanged(self.was.kept_answers, now.kept_answers),
            "perplexity_ratio": math.exp(mean_loss(module, self.rows) - self.loss),
        }
        return {k: None if v is None else round(v, 4) for k, v in found.items()}


def _greedy(bench: Any, pairs: list[tuple[str, str]]) -> float:
    from mlc.ops.evaluate.bench import TokenRow

    with torch.no_grad():
        said = bench.likelihoods([TokenRow(c, a, "") for c, a in bench.text.split(pairs)])
    return sum(s.greedy for s in said) / len(said)


# --- the rows of the table -----------------------------------------------------------------------------------


class Bench:
    """One seed: a registry with the model, a hundred facts, and what was found so far."""

    def __init__(self, place: Path, folder: Path, count: int, seed: int, options: dict[str, Any]) -> None:
        self.repo = Repository.init(folder / "registry")
        self.root = lifecycle.import_model(self.repo, place / "models" / NAME, author="bench").commit_id
        self.rows, self.folder, self.seed, self.options = draw(place, count, seed), folder, seed, options
        self.path = write(folder / "facts.jsonl", self.rows)
        self.facts = read_facts(self.path).facts
        self.before = self.repo.view(self.root)
        self.commit: Any = None
        self.asked: Asked | None = None
        self.deltas: dict[str, Any] = {}

    def run(self, op: Edit, **where: Any) -> tuple[str, dict[str, Any], str | None]:
        """(commit id, check values, who refused it)."""
        try:
            done = lifecycle.run(self.repo, op, author="bench", seed=self.seed, **where)
        except GateRefused as fault:
            commit = self.repo.resolve(fault.details["commit"])
            return commit, dict(self.repo.commit(commit).check or {}), "gate"
        assert done.commit_id is not None
        self.deltas[done.commit_id] = done.deltas
        return done.commit_id, dict(done.check or {}), None

    def hundred(self) -> dict[str, Any]:
        """All facts at once."""
        began = time.process_time()
        try:
            commit, check, refused = self.run(Edit(facts=self.path, **self.options), ref=self.root, branch="hundred")
        except CheckFailed as fault:
            return {"refused": fault.message, "check": fault.details.get("check"), "cpu_seconds": _since(began)}
        spent = _since(began)
        self.commit = commit
        view = self.repo.view(commit)
        found = self.questions().of(load_model(view, dtype=torch.float32))
        more = {k: check[k] for k in ("layers", "write_fraction", "drift", "capacity_used")}
        return {**found, **more, "refused": refused, "cpu_seconds": spent}

    def questions(self) -> Asked:
        """What is asked, with the ordinary text that the edit was measured on."""
        if self.asked is None:
            with Runs(self.repo).begin(
                op="x", params={}, start=self.commit, branch="x", old=self.commit, seed=0, author="bench", message=""
            ) as run:
                family, _ = editable(self.before)
                rows = ordinary_rows(self.options.get("covariance"), self.before, run, inner_width(family, self.before))
                run.finish()
            self.asked = Asked(self.before, self.facts, rows[:: max(1, len(rows) // 32)][:32])
        return self.asked

    def finetuned(self, layers: list[int], target: float) -> list[dict[str, Any]]:
        """The same matrices by gradient steps on the same rows, until as many facts landed; one line per rate."""
        return [{"rate": rate, **self._finetuned(layers, target, rate)} for rate in RATES]

    def _finetuned(self, layers: list[int], target: float, rate: float) -> dict[str, Any]:
        began, asked = time.process_time(), self.questions()
        model = Editable(self.before)
        groups = groups_of(self.facts, Prompter(asked.coder, None), self._prefixes())
        weights = [model.out(layer).weight for layer in layers]
        for weight in weights:
            weight.requires_grad_(True)
        optimiser, rng, best = torch.optim.Adam(weights, lr=rate), random.Random(self.seed), 0.0
        order: list[int] = []
        for step in range(1, MOST + 1):
            if len(order) < TOGETHER:
                order = rng.sample(range(len(groups)), len(groups))
            chosen, order = [groups[i] for i in order[:TOGETHER]], order[TOGETHER:]
            optimiser.zero_grad(set_to_none=True)
            _answers(model, chosen).backward()
            optimiser.step()
            if step % 10 == 0:
                with torch.no_grad():
                    pairs = [(f, f.target_true or "") for f in self.facts]
                    best = sum(p > 0.5 for p in preferences(pairs, bench_of(model.module, asked.coder, "tune"))) / len(pairs)
                if best >= target:
                    break
        model.module.requires_grad_(False)
        return {**asked.of(model.module), "steps": step, "cpu_seconds": _since(began)}

    def _prefixes(self) -> list[str]:
        _, about = keep.unpack(self._kept(keep.KEYS))
        return list(about["prefixes"])

    def _kept(self, kind: str) -> bytes:
        record = next(a for a in self.repo.commit(self.commit).artifacts if a.kind == kind)
        return self.repo.blob(record.digest)

    def payload(self) -> dict[str, Any]:
        """Bytes of the stored change over bytes of its factors in fp32, and whether a plain processor reads every byte."""
        tensors, _ = keep.unpack(self._kept(keep.FACTORS))
        factors = sum(t.numel() * 4 for t in tensors.values())
        stored = sum(d.bytes_stored for d in self.deltas[self.commit] if d.codec != "ref")
        return {
            "factor_bytes": factors,
            "stored_bytes": stored,
            "ratio": round(stored / factors, 4),
            **read_plainly(self.repo.root, self.commit),
        }

    def taken_back(self, number: int) -> dict[str, Any]:
        """One fact of all goes, the others stay; afterwards everything goes, to the bit."""
        began = time.process_time()
        gone = self.facts[number].id
        try:
            done = revert_facts(self.repo, self.commit, (gone,), ref=self.commit, branch=f"without-{number}", author="bench")
        except MlcError as fault:
            return {"fact": gone, "refused": fault.message, "check": fault.details.get("check")}
        check, spent = dict(done.check or {}), _since(began)
        module = load_model(self.repo.view(done.commit_id), dtype=torch.float32)
        answers = {k: check[k] for k in ("restored", "efficacy_before", "efficacy", "others")}
        back = lifecycle.rollback(self.repo, self.root, ref=f"without-{number}", author="bench").commit
        exact = back.snapshot == self.repo.commit(self.root).snapshot
        whole = {k: v for k, v in self.questions().of(module).items() if k in ("neighbourhood", "other_subjects")}
        return {"fact": gone, **answers, **whole, "rollback_bit_exact": exact, "cpu_seconds": spent}

    def _written(self, rows: list[dict[str, Any]], name: str, way: str, where: dict[str, Any]) -> tuple[Path, Any]:
        """One batch as a commit, without the facts that the model answers so already: there is nothing to write for them."""
        while True:
            path = write(self.folder / name, rows)
            try:
                return path, self.run(Edit(facts=path, **{**self.options, **WAYS[way], "on_conflict": "old"}), **where)
            except MlcError as fault:
                line = fault.details.get("line")
                if line is None or "already answers" not in fault.message:
                    raise
                rows = [row for at, row in enumerate(rows, 1) if at != line]

    def batches(self, way: str, parts: int) -> dict[str, Any]:
        """`parts` commits one after the other; efficacy of the first one's facts, and of all earlier ones, after each."""
        began, branch = time.process_time(), way.replace(" ", "-")
        size, first, lines = len(self.rows) // parts, None, []
        for number in range(parts):
            rows, where = (
                self.rows[number * size : (number + 1) * size],
                {"ref": branch} if number else {"ref": self.root, "branch": branch},
            )
            try:
                path, (commit, check, refused) = self._written(rows, f"{branch}-{number}.jsonl", way, where)
                if refused:
                    accept(self.repo, commit, waive=["earlier-edits"], reason="to see", author="bench")
            except MlcError as fault:
                lines.append({"batch": number + 1, "refused": fault.message})
                break
            first = first or self._first(path)
            module = load_model(self.repo.view(commit), dtype=torch.float32)
            line = {
                "batch": number + 1,
                "facts": check["requested"],  # fewer than asked where earlier batches made the model answer so by chance
                "fresh": check["efficacy"],
                "first": round(first(module), 4),
                "earlier": check["earlier_efficacy"],
                "neighbourhood": check["neighbourhood"],
                "perplexity_ratio": round(math.exp(check["text_loss_after"] - check["text_loss_before"]), 4),
                "refused": refused,
            }
            lines.append(line)
        refusals = [line["batch"] for line in lines if line.get("refused")]
        last = lines[-1]
        return {
            "way": way,
            "first_batch_after_the_last": last.get("first"),
            "all_earlier": last.get("earlier"),
            "first_refusal": refusals[0] if refusals else None,
            "batches": lines,
            "cpu_seconds": _since(began),
        }

    def _first(self, path: str) -> Callable[[Any], float]:
        facts, coder = read_facts(path).facts, Coder(load_tokenizer(self.before))
        other = rivals(facts, bench_of(load_model(self.before, dtype=torch.float32), coder, "rivals"))
        pairs = list(zip(facts, other, strict=True))
        return lambda module: sum(p > 0.5 for p in preferences(pairs, bench_of(module, coder, "first"))) / len(pairs)


def _answers(model: Editable, groups: list[Any]) -> torch.Tensor:
    """Mean loss of the new answers, through every block."""
    rows = [(row, weight / len(row.places)) for group in groups for row, weight in group.asked]
    batch = collate([row for row, _ in rows])
    weight = torch.tensor([w for row, w in rows for _ in row.places]) / len(groups)
    logprobs = model.logits(batch).log_softmax(-1)
    return -(weight * logprobs.gather(1, batch.targets[:, None])[:, 0]).sum()


def _since(began: float) -> float:
    return round(time.process_time() - began, 1)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("place", type=Path)
    ask.add_argument("--seeds", default="0,1")
    ask.add_argument("--edits", type=int, default=100)
    ask.add_argument("--batches", type=int, default=10)
    ask.add_argument("--parts", default="hundred,revert,payload,finetune,batches")
    ask.add_argument("--options", default="{}", help="options of the edit, as JSON")
    ask.add_argument("--out", type=Path)
    given = ask.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []

    def tell(part: str, seed: int, row: dict[str, Any]) -> None:
        found.append({"part": part, "seed": seed, **row})
        print(json.dumps(found[-1]), flush=True)
        if given.out:
            given.out.write_text(json.dumps(found, indent=1))

    for seed in map(int, given.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(given.place, Path(folder), given.edits, seed, json.loads(given.options))
            _all(bench, given.parts.split(","), given.batches, lambda part, row, seed=seed: tell(part, seed, row))


def _all(bench: Bench, parts: list[str], batches: int, tell: Callable[[str, dict[str, Any]], None]) -> None:
    made = bench.hundred()
    tell("hundred", made)
    if bench.commit is not None:
        if "revert" in parts:
            for number in (0, len(bench.facts) // 2):
                tell("revert", bench.taken_back(number))
        if "payload" in parts:
            tell("payload", bench.payload())
        if "finetune" in parts:
            for row in bench.finetuned(made["layers"], made["efficacy"]):
                tell("finetune", row)
    if "batches" in parts:
        for way in WAYS:
            tell("batches", bench.batches(way, batches))


if __name__ == "__main__":
    main()
