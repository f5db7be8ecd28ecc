"""What merges keep: every method on real siblings and on forks that learnt other people, and running merges in many orders.

`python -P tests/benchmarks/merges.py [siblings|facts|chains|memory ...] [--forks FOLDER] [--out FILE]`. The siblings are a story model
and two fine-tunes of it; the forks are trained here (forks.py), each on a text or on people of its own. Numbers are nats per token,
perplexities on held-out text, and recall of facts in training wordings. A flip is a next token that a parent predicted on its own text, or
a question about its own people that it answered, and the merge does not.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlc.ops.data.items import read_items
from mlc.ops.merge.chain import Opcm, state_of
from mlc.ops.merge.stored import Informed
from mlc.ops.models import load_model, load_tokenizer
from mlc.tests.benchmarks.forks import MATERIAL, WINDOW, WINDOWS, Shelf, base_of, fact_forks, text_forks
from mlc.tests.ops.fakes import MemoryRun, MemoryView
from mlc.tests.ops.merging import merged

RECORDS = 48  # of each version's own data, for the means that ask for it
TABLE: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "slerp .5": {"method": "slerp", "t": 0.5},
    "nuslerp": {"method": "nuslerp", "weights": (0.5, 0.5)},
    "multislerp": {"method": "multislerp"},
    "karcher": {"method": "karcher"},
    **{
        f"{method} {lam:g}": {"method": method, "base": "base", "weights": (1.0, 1.0), "lam": lam}
        for method in ("task_arithmetic",)
        for lam in (0.3, 0.5, 1.0)
    },
    **{
        name: {"method": name, "base": "base", "density": (0.5,), "weights": (0.5, 0.5)}
        for name in ("ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")
    },
    "sce": {"method": "sce", "base": "base"},
    "model_stock": {"method": "model_stock", "base": "base"},
}


class Judge:
    """Scores a version on texts with one model whose weights are exchanged."""

    def __init__(self, view: MemoryView) -> None:
        self.model, self.tokenizer = load_model(view), load_tokenizer(view)
        self.model.eval()

    def windows(self, text: str) -> Tensor:
        """Token rows `[windows, WINDOW]`, spread over the text."""
        ids = torch.tensor(self.tokenizer(text)["input_ids"])
        rows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
        return rows[torch.linspace(0, len(rows) - 1, min(WINDOWS, len(rows))).long()]

    def _put(self, view: Any) -> None:
        self.model.load_state_dict({name: view.tensor(name) for name in view.names()}, strict=False)
        self.model.tie_weights()

    @torch.no_grad()
    def score(self, view: Any, rows: Tensor) -> tuple[float, Tensor]:
        """(nats per token, whether each next token was predicted)."""
        self._put(view)
        logits = self.model(rows).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        return float(loss), logits.argmax(-1) == rows[:, 1:]

    @torch.no_grad()
    def answers(self, view: Any, asked: list[dict[str, Any]]) -> Tensor:
        """Whether each question is answered: every token of the answer is the likeliest one."""
        self._put(view)
        right = torch.zeros(len(asked), dtype=torch.bool)
        begin = [len(self.tokenizer(row["prompt"])["input_ids"]) for row in asked]
        ids = [self.tokenizer(f"{row['prompt']} {row['answer']}")["input_ids"] for row in asked]
        for width in sorted({len(one) for one in ids}):
            places = [i for i, one in enumerate(ids) if len(one) == width]
            rows = torch.tensor([ids[i] for i in places])
            hit = self.model(rows).logits[:, :-1].argmax(-1) == rows[:, 1:]
            for i, line in zip(places, hit, strict=True):
                right[i] = bool(line[begin[i] - 1 :].all())
        return right


# --- the table -------------------------------------------------------------------------------------------


def siblings(_: Shelf) -> dict[str, Any]:
    """Perplexity on each text and negative flips against each sibling, for every method."""
    names = {"base": "stories260k", "oz": "stories260k-oz", "shakespeare": "stories260k-tinyshakespeare"}
    known, data = {name: base_of(folder) for name, folder in names.items()}, MATERIAL / "data"
    judge = Judge(known["base"])
    texts = {"base": "tinystories/sample.txt", "oz": "oz/oz-heldout.txt", "shakespeare": "tinyshakespeare/heldout.txt"}
    rows = {name: judge.windows((data / path).read_text(encoding="utf-8")) for name, path in texts.items()}
    own = {name: judge.score(known[name], rows[name])[1] for name in names}

    def line(view: Any) -> dict[str, Any]:
        told = {}
        for text, held in rows.items():
            loss, right = judge.score(view, held)
            told[text] = {"perplexity": round(math.exp(loss), 2), "nfr": _lost(own[text], right)}
        return told

    told = {"oz": "oz/oz-train.txt", "shakespeare": "tinyshakespeare/train.txt"}
    read = {name: (data / path).read_text(encoding="utf-8") for name, path in told.items()}
    records = {name: [{"text": text[at * 900 :][:300]} for at in range(RECORDS)] for name, text in read.items()}
    return {name: line(make()) for name, make in results(known, ["oz", "shakespeare"], records).items()}


def facts(shelf: Shelf) -> dict[str, Any]:
    """Recall of the people of the base and of each fork, flips against each parent, and perplexity on ordinary text, for every method."""
    base = base_of("facts-small")
    known, asked = fact_forks(shelf, base)
    known = {"base": base, **known}
    judge, text = Judge(base), (MATERIAL / "data" / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")
    rows = judge.windows(text[int(len(text) * 0.96) :])  # no training saw it
    own = {name: judge.answers(view, asked[name]) for name, view in known.items()}

    def line(view: Any) -> dict[str, Any]:
        told: dict[str, Any] = {"text": {"perplexity": round(math.exp(judge.score(view, rows)[0]), 2)}}
        for name, questions in asked.items():
            right = judge.answers(view, questions)
            told[name] = {"recall": round(float(right.float().mean()), 4), "nfr": _lost(own[name], right)}
        return told

    pair = [name for name in known if name != "base"]
    records = {name: asked[name][:: len(asked[name]) // RECORDS] for name in pair}
    return {name: line(make()) for name, make in results(known, pair, records).items()}


def informed(known: dict[str, MemoryView], pair: list[str], records: dict[str, list[dict[str, Any]]], method: str) -> MemoryView:
    """The mean by statistics of records of each version's own data."""
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f"{at}.jsonl" for at in range(len(pair))]
        for file, name in zip(files, pair, strict=True):
            file.write_text("".join(json.dumps(row) + "\n" for row in records[name]), encoding="utf-8")
        run = MemoryRun(scratch=Path(place))
        run.versions = known
        op = Informed(tuple(pair), method, tuple(map(str, files)), tuple(read_items(str(file), "retain").digest for file in files))
        return known[pair[0]].after(op.apply(known[pair[0]], run))


def results(known: dict[str, MemoryView], pair: list[str], records: dict[str, list[dict[str, Any]]]) -> dict[str, Callable[[], Any]]:
    """Every version and every merge of the pair, made when it is asked for."""
    made: dict[str, Callable[[], Any]] = {name: lambda view=view: view for name, view in known.items()}
    made |= {name: lambda chosen=chosen: merged(known, *pair, **chosen) for name, chosen in TABLE.items()}
    one = pair[0]
    made["nearswap"] = lambda: merged(known, *pair, method="nearswap", t=0.001)
    made[f"slerp .5, base and {one}"] = lambda: merged(known, "base", one, method="slerp", t=0.5)
    made |= {method: lambda method=method: informed(known, pair, records, method) for method in ("fisher", "regmean")}
    return made | {name: lambda options=options: chain(known, pair, **options)[0] for name, options in CHAINS.items()}


def _lost(before: Tensor, after: Tensor) -> float:
    return round(float((before & ~after).float().mean()), 4)


# --- chains ----------------------------------------------------------------------------------------------


CHAINS: dict[str, dict[str, Any]] = {"opcm": {}, "opcm alpha 0.5": {"alpha": 0.5}, "opcm shared": {"shared": True}}


def chain(known: dict[str, Any], order: list[str], **options: Any) -> tuple[MemoryView, tuple[float, ...]]:
    """OPCM, one operation per model; `options`: alpha and shared."""
    running, state, views = order[0], (), dict(known)
    for step, model in enumerate(order[1:]):
        with tempfile.TemporaryDirectory() as place:
            run = MemoryRun(scratch=Path(place))
            run.versions = views
            op = Opcm((running, model), "base", state=state, deltas=False, **options)
            result = views[running].after(op.apply(views[running], run))
        state, running = state_of(run.records), f"step{step}"
        views[running] = result
    return views[running], state


def ties(known: dict[str, Any], order: list[str]) -> MemoryView:
    """Continual TIES: the running merge and the next model, density .2, factor .3."""
    views = dict(known)
    running = order[0]
    for step, model in enumerate(order[1:]):
        views["now"] = merged(views, running, model, method="ties", base="base", density=(0.2,), weights=(1.0, 1.0), lam=0.3)
        running = f"step{step}"
        views[running] = views.pop("now")
    return views[running]


def summed(known: dict[str, Any], names: list[str], factor: float | None) -> MemoryView:
    """base + factor x the sum of the task vectors; without a factor, at their mean norm."""
    base = known["base"]
    total = {n: sum((known[m].tensor(n).double() - base.tensor(n).double() for m in names), torch.zeros(())) for n in base.names()}
    if factor is None:
        norms = [norm({n: known[m].tensor(n).double() - base.tensor(n).double() for n in base.names()}) for m in names]
        factor = statistics.mean(norms) / norm(total)
    return MemoryView({n: (base.tensor(n).double() + factor * total[n]).to(base.tensor(n).dtype) for n in base.names()}, {})


def norm(tensors: dict[str, Tensor]) -> float:
    """L2 over all tensors."""
    return math.sqrt(sum(float(x.square().sum()) for x in tensors.values()))


def chains(shelf: Shelf, count: int = 8, steps: int = 100, orders: int = 10) -> dict[str, Any]:
    """Mean improvement in nats over the forks' texts, by method and order."""
    base = base_of("stories260k")
    forks, texts = text_forks(shelf, base, count, steps)
    known, judge = {"base": base, **forks}, Judge(base)
    held = {name: judge.windows(text) for name, text in texts.items()}
    names = list(held)
    before = {name: judge.score(base, rows)[0] for name, rows in held.items()}

    def gain(view: Any) -> float:
        return statistics.mean(before[name] - judge.score(view, rows)[0] for name, rows in held.items())

    turns = [random.Random(seed).sample(names, count) for seed in range(orders)]
    by_order = {name: [gain(chain(known, order, **options)[0]) for order in turns] for name, options in CHAINS.items()}
    by_order["continual ties"] = [gain(ties(known, order)) for order in turns]
    free = {"running mean": summed(known, names, 1 / count), "norm-matched sum": summed(known, names, None)}
    free |= {f"continual task arithmetic {factor:g}": summed(known, names, factor) for factor in (0.2, 0.3)}
    found: dict[str, Any] = {name: {"mean": round(gain(view), 4)} for name, view in free.items()}
    for name, gains in by_order.items():
        mean = statistics.mean(gains)
        found[name] = {"mean": round(mean, 4), "sd": round(statistics.pstdev(gains), 4), "gains": [round(g, 4) for g in gains]}
    found["each fork on its own text"] = {"mean": round(statistics.mean(before[n] - judge.score(known[n], held[n])[0] for n in names), 4)}
    found["scale"] = [round(chain(known, names[:n])[1][0], 3) for n in range(2, count + 1)]
    said = {"forks": count, "steps": steps, "orders": orders, "training_cpu_s": round(shelf.seconds, 1), "nats": found}
    return said | {"against": _against(found)}


def _against(nats: dict[str, Any]) -> dict[str, float]:
    """What the chain is asked for: ratios of the mean improvement, and the spread over orders."""
    opcm = nats["opcm"]["mean"]
    others = ("running mean", "continual task arithmetic 0.3", "continual ties", "continual task arithmetic 0.2", "norm-matched sum")
    return {name: round(opcm / nats[name]["mean"], 4) for name in others} | {"sd over mean": round(nats["opcm"]["sd"] / opcm, 4)}


# --- memory ----------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
import torch
import transformers
from mlc.ops.catalog import load
from mlc.policies.merging import merge
from mlc.registry.repository import Repository
def kib(word):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(word))
torch.set_num_threads(1)
torch.linalg.svd(torch.randn(64, 64))
repo, revs, anonymous = Repository.open(Path(sys.argv[1])), sys.argv[2:], 0
def progress(*_, **__):
    global anonymous
    anonymous = max(anonymous, kib("RssAnon"))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins here; a child's rusage would begin at its parent's
before, held = kib("VmRSS"), kib("RssAnon")
made = merge(repo, revs, {"method": "opcm"}, author="t", branch="-".join(revs), progress=progress).commit
print(kib("VmHWM") - before, anonymous - held, sum(len(repo.blob(record.digest)) for record in made.artifacts), len(made.check["opcm"]))
"""


def memory(_: Shelf) -> dict[str, Any]:
    """Peak memory of folding the 2nd and the 16th version (of 2 million parameters) into a chain, and of 15 at once; above the imports.

    Also what the commit keeps. `anonymous`: without mapped files, of which the system keeps as much as it has room for.
    """
    from mlc.policies.lifecycle import commit_directory, import_model
    from mlc.policies.merging import merge
    from mlc.registry.repository import Repository
    from mlc.tests.factories import tiny_model

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        root, repo = Path(place), Repository.init(Path(place) / "work")
        base = MemoryView.of(tiny_model(root / "base", "llama", layers=4, hidden_size=192, intermediate_size=576, vocab_size=2048))
        files = {f.path: base.file(f.path) or b"" for f in base.files()}
        (repo.root / "policies").mkdir(exist_ok=True)
        (repo.root / "policies" / "rules.toml").write_text('[[rule]]\nid = "loose"\nmetric = "delta.max_abs"\nmax = 100\n')
        start = import_model(repo, root / "base", author="t").commit_id
        for i in range(1, 17):
            draw = torch.Generator().manual_seed(i)
            moved = {n: base.tensor(n) + 0.01 * torch.randn(base.entry(n).shape, generator=draw) for n in base.names()}
            commit_directory(repo, MemoryView(moved, files).save(root / f"m{i}"), ref=start, branch=f"m{i}", author="t")
        merge(repo, [f"m{i}" for i in range(1, 16)], {"method": "opcm"}, author="t", branch="long")
        cases = {"2nd": ("m1", "m2"), "16th": ("long", "m16"), "15 at once": tuple(f"m{i}" for i in range(1, 17))}
        for name, revs in cases.items():
            words = [sys.executable, "-P", "-W", "ignore", "-c", CHILD, str(repo.root), *revs]
            peak, anonymous, kept, state = map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
            sizes = {"peak_mib": round(peak / 1024, 1), "anonymous_mib": round(anonymous / 1024, 1)}
            found[name] = {**sizes, "artifact_mib": round(kept / 2**20, 1), "state_numbers": state}
            sys.stderr.write(f"{name} {found[name]}\n")
    keys = ("peak_mib", "anonymous_mib")
    ratios = {f"{name} over 2nd": {key: round(found[name][key] / found["2nd"][key], 4) for key in keys} for name in ("16th", "15 at once")}
    return found | ratios


PARTS = {"siblings": siblings, "facts": facts, "chains": chains, "memory": memory}


def main() -> None:
    """Run the parts that are named, print them, and write them as they come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--forks", type=Path, default=None, help="a folder of trained forks")
    parser.add_argument("--out", type=Path, default=None)
    words = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = json.loads(words.out.read_text()) if words.out and words.out.exists() else {}
    for name in words.parts or PARTS:
        document[name] = PARTS[name](Shelf(words.forks))
        if words.out:
            words.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
