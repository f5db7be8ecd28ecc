"""Can the order of a training run be read back? `mlc provenance` on a story model that read a book once, and on versions that did not.

`python -P tests/benchmarks/provenance.py [--seeds 0 1] [--steps N] [--batch N] [--seq-len N] [--lr X] [--out FILE]`.
Per seed: the model of 260,000 parameters reads rows of Oz once each, rate held to the end (A). Descendants: A, and A trained further on
Shakespeare. Unrelated: the parent trained on the very same rows in another order (twin), and on Shakespeare. Each is tested against A's
order with two references: A's parent, and a second model that read the same rows in a third order. Wanted: p < 1e-6 and p > 0.01.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mlc.ops.update.train import Update
from mlc.policies import lifecycle
from mlc.registry.errors import GateRefused
from mlc.registry.repository import Repository
from mlc.tests.benchmarks.walk import MATERIAL

OZ, SHAKESPEARE = (str(MATERIAL / "data" / name) for name in ("oz/oz-train.txt", "tinyshakespeare/train.txt"))
FURTHER = 25  # steps of the descendant's further training


def asked(root: Path, *words: str) -> Any:
    """What the program says under --json."""
    from mlc.cli.app import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main([*words, "-R", str(root), "--json"])
    if code:
        raise SystemExit(f"mlc {' '.join(words)} ended with {code}")
    return json.loads(out.getvalue())


def made(repo: Repository, ref: str, branch: str, seed: int, **options: Any) -> str:
    """An update on a branch of its own, accepted or not; its commit."""
    try:
        outcome = lifecycle.run(repo, Update(decay="constant", **options), ref=ref, branch=branch, seed=seed)
    except GateRefused as refusal:
        outcome = refusal.details["outcome"]
    return str(outcome.commit_id)


def table(root: Path, seed: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Every version against the order of A, with both references."""
    repo = Repository.init(root)
    lifecycle.import_model(repo, MATERIAL / "models" / "stories260k")
    run = made(repo, "main", "a", seed, data=OZ, **options)
    versions = {
        "A": ("descendant", run),
        "A, then Shakespeare": ("descendant", made(repo, "a", "further", seed, data=SHAKESPEARE, **{**options, "steps": FURTHER})),
        "twin (other order)": ("unrelated", made(repo, "main", "twin", seed + 1000, data=OZ, **options)),
        "Shakespeare alone": ("unrelated", made(repo, "main", "play", seed, data=SHAKESPEARE, **options)),
    }
    references = {"parent": (), "third order": ("--reference", made(repo, "main", "third", seed + 2000, data=OZ, **options))}
    rows = []
    for name, (kind, commit) in versions.items():
        for reference, words in references.items():
            found = asked(root, "provenance", run, commit, "--data", OZ, *words)
            holds = found["p"] < 1e-6 if kind == "descendant" else found["p"] > 0.01
            told = {k: found[k] for k in ("rows", "times_seen", "rho", "p", "p_permutation", "loss_suspect", "loss_reference")}
            rows.append({"seed": seed, "version": name, "kind": kind, "against": reference, "holds": holds, **told})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table, for people."""
    print(f"{'seed':>4}  {'version':22}{'kind':12}{'reference':13}{'rows':>6}{'rho':>9}{'p':>11}{'p perm':>9}  ")
    for r in rows:
        print(
            f"{r['seed']:>4}  {r['version']:22}{r['kind']:12}{r['against']:13}{r['rows']:>6}{r['rho']:>+9.4f}{r['p']:>11.2e}"
            f"{r['p_permutation']:>9.4f}  {'holds' if r['holds'] else 'MISSES'}"
        )


def main() -> None:
    """Run the seeds that were asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    options = {"steps": given.steps, "batch": given.batch, "seq_len": given.seq_len, "lr": given.lr, "save_every": 0}
    report: dict[str, Any] = {"options": options, "rows": []}
    for seed in given.seeds:
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            report["rows"] += table(Path(folder), seed, options)
        report[f"seconds_{seed}"] = round(time.process_time() - started, 1)
        if given.out:
            given.out.write_text(json.dumps(report, indent=1))
    show(report["rows"])


if __name__ == "__main__":
    main()
