"""`make evidence`: run what the documents claim and write docs/evidence.md from the answers. Takes about half an hour on two cores.

Every table comes from a fresh run on this machine; parts that need the optional material say so when they are left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import insertion  # noqa: E402  (beside this script)
import run as bench  # noqa: E402
import walk  # noqa: E402

TARGET = HERE.parents[1] / "docs" / "evidence.md"


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def walk_section(seeds: list[int]) -> str:
    """stories260k -> Oz over several seeds."""
    if not (walk.MATERIAL / "models").is_dir():
        return "Left out: the optional material is not here (`MLC_MATERIAL`).\n"
    rows, facts = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as place:
            report = walk.stories_walk(Path(place) / "work", seed=seed)
        before = report["import"]["metrics"]
        for arm in ("plain", "replay", "expanded"):
            after = report[arm]["metrics"]
            ratio = {s: after[s]["perplexity"] / before[s]["perplexity"] for s in ("oz", "tinystories")}
            outcome = "refused (exit 4)" if report[arm]["exit"] == 4 else f"accepted (exit {report[arm]['exit']})"
            stored = report[arm]["delta"]
            rows.append([
                seed, arm, outcome, f"{ratio['oz']:.3f}x", f"{ratio['tinystories']:.3f}x", f"{100 * after['blimp']['accuracy']:.1f} %",
                f"{stored['bytes_stored'] / stored['bytes_logical']:.2f}" if stored["bytes_logical"] else "-", report[arm]["seconds"],
            ])  # fmt: skip
        flips = report["diff"]
        facts.append(
            f"- seed {seed}: import {before['tinystories']['perplexity']:.2f} on TinyStories, {before['oz']['perplexity']:.2f} on Oz; "
            f"BLiMP flips {flips['negative_flips']} lost, {flips['positive_flips']} won of {flips['n']} "
            f"(McNemar p {flips['mcnemar_p']:.2g}); rollback reaches the imported snapshot: {report['rollback']['equal']}; "
            f"exports equal by SHA-256: {all(e['sha256_equal'] and e['snapshot_equal'] for e in report['exports'].values())}; "
            f"fsck level 3 clean: {report['fsck']}"
        )
    head = ["seed", "update", "gate", "Oz perplexity", "TinyStories perplexity", "BLiMP", "stored / raw", "seconds"]
    return table(head, rows) + "\n\n" + "\n".join(facts) + "\n"


def insertion_section() -> str:
    """New blocks change nothing at insertion, and leave old tensors alone."""
    rows = [[r["model"], r["positions"], r["max_logit_difference"], r["old_tensors_unchanged"]] for r in insertion.main()]
    return table(["model", "new blocks at", "largest logit difference", "old tensors unchanged after training"], rows) + "\n"


def main(seeds: list[int]) -> None:
    """Write docs/evidence.md."""
    sections = {
        "New text on real weights": "`stories260k` and 150 steps on *The Wonderful Wizard of Oz*; perplexities as ratios to the import.\n\n"
        + walk_section(seeds),
        "Insertion of blocks": insertion_section(),
        "Benchmarks": "One run of `make bench`; ratios of medians, measured side by side.\n\n```json\n"
        + json.dumps(bench.main([]), indent=1)
        + "\n```\n",
    }
    text = "# Evidence\n\nWritten by `make evidence`; edit the script, not this page.\n"
    TARGET.write_text(text + "".join(f"\n## {title}\n\n{body}" for title, body in sections.items()), encoding="utf-8")


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
