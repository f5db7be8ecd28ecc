"""kill -9 at random moments of `mlc commit` and `mlc update`: what was acknowledged stays, fsck is clean, --resume finishes.

python -P tests/benchmarks/kills.py [KILLS] [SEED]
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlc.tests.factories import tiny_model

MLC = [sys.executable, "-P", "-m", "mlc"]
WORDS = "the river stone near amber harbour speaks north of the lamp in south one two red blue was opens sells is on a "


def answer(place: Path, *words: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """One command that must end with one of `codes`."""
    done = subprocess.run([*MLC, *words, "--json"], cwd=place, capture_output=True, text=True)
    if done.returncode not in codes:
        raise SystemExit(f"mlc {' '.join(words)} ended with {done.returncode}: {done.stderr[-800:]}")
    return json.loads(done.stdout) if done.stdout.strip() else {}


def killed(place: Path, words: list[str], after: float) -> tuple[bool, str | None]:
    """Start a command, kill it after `after` seconds; (was it killed, the commit it had acknowledged)."""
    process = subprocess.Popen([*MLC, *words, "--json"], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        out, _ = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    acknowledged = json.loads(out)["commit"]["id"] if out.strip() else None
    return process.returncode == -9, acknowledged


def main(kills: int = 60, seed: int = 0) -> dict[str, Any]:
    """Half of the kills hit commits, half updates. Raises SystemExit at the first broken promise."""
    chance = random.Random(seed)
    report = {"commit": 0, "update": 0, "finished_before": 0, "acknowledged": 0, "resumed": 0, "fsck_clean": 0}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        models = [tiny_model(place / f"m{n}", seed=n) for n in range(2)]
        (place / "text.txt").write_text(WORDS * 100)
        answer(place, "init")
        root = answer(place, "import", str(models[0]))["commit"]["id"]
        learn = [
            "update",
            root,
            "--data",
            "text.txt",
            "--steps",
            "40",
            "--seq-len",
            "16",
            "--batch",
            "4",
            "--save-every",
            "5",
            "--lr",
            "1e-3",
        ]
        times: dict[str, float] = {}
        for verb, words in (("update", [*learn, "--branch", "first"]), ("commit", ["commit", str(models[1])])):
            start = time.perf_counter()
            answer(place, *words)
            times[verb] = time.perf_counter() - start
        known: set[str] = set()
        while report["commit"] + report["update"] < kills:
            verb = "commit" if report["commit"] <= report["update"] else "update"
            name = f"b{chance.randrange(1 << 40):x}"  # each update starts from the import, so that each has something to learn
            words = ["commit", str(models[chance.randrange(2)]), "-m", name] if verb == "commit" else [*learn, "--branch", name]
            was_killed, commit = killed(place, words, chance.uniform(0.3, 1.05) * times[verb])
            report[verb if was_killed else "finished_before"] += 1
            if commit:
                known.add(commit)
                report["acknowledged"] += 1
            fsck = answer(place, "fsck", "--level", "2")
            if not fsck["clean"]:
                raise SystemExit(f"fsck is not clean after a kill of {verb}: {fsck['findings']}")
            report["fsck_clean"] += 1
            if verb == "update" and was_killed and answer(place, "runs")["runs"]:
                known.add(answer(place, "update", "--resume")["commit"]["id"])
                report["resumed"] += 1
            logged = {c["id"] for c in answer(place, "log", "--all")["commits"]}
            if known - logged:
                raise SystemExit(f"acknowledged commits are gone: {sorted(known - logged)}")
        if not answer(place, "fsck", "--level", "3")["clean"]:
            raise SystemExit("fsck --level 3 is not clean at the end")
        return {**report, "kills": kills, "commits": len(known), "seconds": {k: round(v, 2) for k, v in times.items()}}


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:])), indent=1))
