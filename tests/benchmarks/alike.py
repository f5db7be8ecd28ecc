"""How alike the keys of one subject and of different subjects are, plainly and as ordinary text weighs directions: where the limit lies.

    python -m mlc.tests.benchmarks.alike --models facts-small,facts-deep,stories260k --subjects 60

A key of an edit is a mean over contexts. The same subject is asked twice with contexts that have nothing in common (another edit, other
wordings); different subjects share words of their names or not. Prints one JSON object per model and block: quantiles of the cosine.
Needs the optional material.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

from mlc.tests.benchmarks.edits import DATA, MATERIAL, world

NEAREST, FARTHEST = (0.5, 0.9, 0.99, 1.0), (0.0, 0.01, 0.1, 0.5)


def asked(model: str, count: int) -> dict[str, list[str]]:
    """Subject -> templates with one `{}`, for `count` subjects: the fact worlds' own, or CounterFact's names for any other model."""
    rng = random.Random(0)
    found: dict[str, list[str]] = {}
    if model in DATA:
        rows, templates = world(model)
        for row in rows:
            found.setdefault(row["subject"], []).extend(t.replace("{s}", "{}") for t in templates[row["relation"]]["train"])
    else:
        from mlc.ops.data.facts import read_facts

        facts = read_facts(MATERIAL / "data" / "counterfact" / "counterfact-2000.jsonl").facts
        prompts = sorted({f.prompt for f in facts})
        found = {f.subject: rng.sample(prompts, 12) for f in facts}
    return {name: rng.sample(found[name], 12) for name in rng.sample(sorted(found), min(count, len(found)))}


def measure(model: str, count: int, layers: list[int] | None = None) -> list[dict[str, Any]]:
    """One line per block."""
    import torch

    from mlc.ops.edit.covariance import moments, ordinary_rows
    from mlc.ops.edit.prompts import Prompter
    from mlc.ops.edit.site import Editable
    from mlc.ops.edit.solve import memit_metric
    from mlc.ops.edit.targets import observe
    from mlc.ops.evaluate.coder import Coder
    from mlc.ops.models import load_tokenizer
    from mlc.tests.ops.fakes import MemoryRun, MemoryView

    view, run = MemoryView.of(MATERIAL / "models" / model), MemoryRun()
    editable = Editable(view)
    prompter, subjects = Prompter(Coder(load_tokenizer(view)), None), asked(model, count)
    text = MATERIAL / "data" / "wikitext-2" / "valid.txt"
    rows = ordinary_rows(str(text), view, run, editable.weight(0).shape[1])
    lines = []
    for layer in layers if layers is not None else range(editable.count):
        metric = memit_metric(moments(editable, [layer], rows, run)[layer].matrix)
        seen = [prompter.row(t, s) for s, templates in subjects.items() for t in templates]
        keys = observe(editable, seen, keys=(layer,)).keys[layer].double().view(len(subjects), 12, -1)
        first, second = keys[:, :6].mean(1).T, keys[:, 6:].mean(1).T
        words = [set(s.split()) for s in subjects]
        shares = torch.tensor([[i != j and bool(a & b) for j, b in enumerate(words)] for i, a in enumerate(words)])
        line: dict[str, Any] = {"model": model, "layer": layer, "subjects": len(subjects), "ridge": metric.ridge > 0}
        for name, spread in (("plain", lambda x: x), ("metric", metric.spread)):
            a, b = spread(first), spread(second)
            cosine = first.T @ b / ((first * a).sum(0).sqrt()[:, None] * (second * b).sum(0).sqrt()[None])
            other = cosine.masked_fill(torch.eye(len(words), dtype=torch.bool), -1.0)
            line[name] = {
                "same": _quantiles(cosine.diagonal(), FARTHEST),
                "different": _quantiles(other[~torch.eye(len(words), dtype=torch.bool)], NEAREST),
                "a word in common": _quantiles(other[shares], NEAREST),
                "nearest other": _quantiles(other.max(1).values, NEAREST),
            }
        lines.append(line)
    return lines


def _quantiles(values: Any, at: tuple[float, ...]) -> dict[str, float]:
    return {f"{q:g}": round(values.quantile(q).item(), 3) for q in at} if len(values) else {}


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--models", default="facts-small,facts-deep,stories260k")
    ask.add_argument("--subjects", type=int, default=60)
    ask.add_argument("--layers", help="blocks, such as 0,1 (default: all)")
    given = ask.parse_args()
    layers = [int(n) for n in given.layers.split(",")] if given.layers else None
    for model in given.models.split(","):
        for line in measure(model, given.subjects, layers):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
