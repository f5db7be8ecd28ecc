"""`make evidence`: run what the documents claim and write docs/evidence.md from the answers. Takes half a day on two cores.

Every table comes from a fresh run on this machine; parts that need the optional material say so when they are left out. Answers are kept
as JSON in a folder; `python evidence.py --from FOLDER [--how TEXT]` writes the page from such a folder again and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlc.tests.benchmarks import chapters, digits, insertion, kills, retrain, unlearning, walk
from mlc.tests.benchmarks import run as bench

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / "docs" / "evidence.md"


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table without a line's end."""
    return chapters.table(head, rows).rstrip("\n")


def walk_section(reports: list[dict[str, Any]]) -> str:
    """stories260k -> Oz, one report per seed."""
    if not reports:
        return "Left out: the optional material is not here (`MLC_MATERIAL`).\n"
    rows, facts = [], []
    for report in reports:
        before, flips = report["import"]["metrics"], report["diff"]
        rows += [walk_row(report, arm) for arm in ("plain", "replay", "expanded")]
        facts.append(
            f"- seed {report['seed']}: the import has {before['tinystories']['perplexity']:.2f} on TinyStories and "
            f"{before['oz']['perplexity']:.2f} on Oz. BLiMP, import against replay: {flips['negative_flips']} flips lost, "
            f"{flips['positive_flips']} won of {flips['n']} (McNemar p {flips['mcnemar_p']:.2g}). "
            f"Rollback reaches the imported snapshot: {report['rollback']['equal']}. Exports equal by SHA-256, and imported again "
            f"the same snapshots: {all(e['sha256_equal'] and e['snapshot_equal'] for e in report['exports'].values())}. "
            f"fsck --level 3 clean: {report['fsck']}."
        )
    head = ["seed", "update", "gate", "Oz perplexity", "TinyStories perplexity", "BLiMP accuracy", "delta stored / raw", "seconds"]
    return table(head, rows) + "\n\n" + "\n".join(facts) + "\n"


def walk_row(report: dict[str, Any], arm: str) -> list[Any]:
    """One update as ratios to the import."""
    before, after, stored = report["import"]["metrics"], report[arm]["metrics"], report[arm]["delta"]
    oz, stories = (after[s]["perplexity"] / before[s]["perplexity"] for s in ("oz", "tinystories"))
    outcome = "refused (exit 4)" if report[arm]["exit"] == 4 else f"accepted (exit {report[arm]['exit']})"
    share = stored["bytes_stored"] / stored["bytes_logical"]
    accuracy = f"{100 * after['blimp']['accuracy']:.1f} %"
    return [report["seed"], arm, outcome, f"{oz:.3f}x", f"{stories:.3f}x", accuracy, f"{share:.2f}", report[arm]["seconds"]]


def insertion_section(results: list[dict[str, Any]]) -> str:
    """New blocks change nothing at insertion, and leave old tensors alone."""
    rows = []
    for result in results:
        kept = result["old_tensors_unchanged"]
        changed = f"{kept['old_tensors_unchanged']} (and {kept['new_tensors']} new)"
        rows.append([result["model"], result["positions"], result["copies_of"], result["max_logit_difference"], changed])
    return table(["model", "new block at", "copy of", "largest logit difference", "old tensors unchanged after training"], rows) + "\n"


def unlearning_section(reports: list[dict[str, Any]]) -> str:
    """Forgetting 20 of 200 people: one row per method, means over the seeds with the lowest and highest in brackets."""
    if not reports:
        return "Left out: the optional material is not here (`MLC_MATERIAL`).\n"
    head = ["method", "forget recall", "held-out wording", "retain recall", "held-out wording", "text perplexity", "membership AUC"]
    head += ["relearnt", "CPU s", "own check"]
    start = [report["rows"]["before"] for report in reports]
    rows = []
    for name in reports[0]["rows"]:
        found = [report["rows"][name] for report in reports if name in report["rows"]]
        if all("refused" in f for f in found):  # nothing was made that could be asked
            cost = over([f["cpu_seconds"] for f in found], digits=0)
            rows.append([name, *["-"] * 7, cost, f"0 of {len(found)}; best tries (forget/kept): {tries(found)}"])
            continue
        kept = [over([f[s] / b[s] for f, b in zip(found, start, strict=False)], "x") for s in ("retain-trained", "retain-heldout", "text")]
        forgot = [over([f[s] for f in found]) for s in ("forget-trained", "forget-heldout")]
        leaks = [over([f["mia"]["auc_loss"] for f in found]), over([f["relearn"]["rest_after"] for f in found])]
        cost = over([f["cpu_seconds"] for f in found], digits=0) if "cpu_seconds" in found[0] else ""
        rows.append([name, *forgot, *kept, *leaks, cost, checked(found)])
    return table(head, rows) + "\n"


def over(values: list[float], unit: str = "", digits: int = 3) -> str:
    """Mean, and the range when there are several."""
    mean = f"{sum(values) / len(values):.{digits}f}{unit}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def tries(found: list[dict[str, Any]]) -> str:
    """What the best strength of each refused search left of the forget set, and kept of the retain set."""
    said = [re.search(r"leaves ([\d.]+) .* keeps ([\d.]+)", f["refused"]) for f in found]
    return ", ".join(f"{m[1]}/{m[2]}" if m else "?" for m in said)


def checked(found: list[dict[str, Any]]) -> str:
    """How often the operation was satisfied with itself; otherwise it ends with exit 10 and commits nothing."""
    if not any("passed" in f or "refused" in f for f in found):
        return ""
    return f"{sum(f.get('passed', False) for f in found)} of {len(found)}"


def digits_section(report: dict[str, Any]) -> str:
    """How often one class was forgotten within the limits."""
    rows = [[*name.split("/"), passed] for name, passed in report["passed"].items()]
    return table(["model", "method", "seeds within the limits"], rows) + "\n"


def forgetting(seed: int) -> dict[str, Any]:
    """The table of one seed, with a reference retrained for it."""
    with tempfile.TemporaryDirectory() as place:
        retrain.retrain(Path(place) / "retrained", seed=seed)
        return unlearning.table(seed, [], Path(place) / "retrained")


def scripts(place: Path) -> dict[str, list[list[str]]]:
    """Chapter -> command lines, the last of which prints JSON or writes it to `place / chapter.json`."""
    forks, wide = str(place / "forks"), str(place / "wide")

    def out(name: str) -> list[str]:
        return ["--out", str(place / f"{name}.json")]

    found = {
        "edits": [["edits.py", *out("edits")]],
        "reverts": [["reverts.py", "--seeds", "31,32", *out("reverts")]],
        "wide": [["wider.py", wide, "0", "1000"], ["wide_edits.py", wide, "--seeds", "0,1", *out("wide")]],
        "merges": [["forks.py", forks], ["forks.py", forks, "people"], ["merges.py", "--forks", forks, *out("merges")]],
        "mergekit": [["bench_merge.py"]],
        "updates": [["updates.py", "--to", "oz", "shakespeare", "--seeds", "0", "1", *out("updates")]],
        "compat": [["compat.py", str(place / "compat.json")]],
        "cure": [["cure.py"]],
        "gates": [["gates.py"]],
        "provenance": [["provenance.py", *out("provenance")]],
    }
    return found | ({"embeddings": [["embeddings.py", os.environ["MLC_MINILM"], "1", "2"]]} if "MLC_MINILM" in os.environ else {})


def run_scripts(place: Path) -> None:
    """Run them, one after the other; what fails is left out of the page, and said on stderr."""
    for chapter, lines in scripts(place).items():
        for line in lines:
            done = subprocess.run([sys.executable, str(HERE / line[0]), *line[1:]], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                print(f"{chapter}: {line[0]} ended with {done.returncode}", file=sys.stderr)
                break
        else:
            target = place / f"{chapter}.json"
            if not target.is_file():
                target.write_text(done.stdout, encoding="utf-8")
    images = [run for model in ("cnn", "vit") for run in _printed("patches.py", model, "0,1,2")["runs"]]
    typos = [_printed("typos.py", str(seed), "swap,drop,double,updated,report", str(place / f"typos{seed}")) for seed in range(3)]
    (place / "patches.json").write_text(json.dumps({"digits": images, "typos": typos}), encoding="utf-8")


def _printed(script: str, *words: str) -> dict[str, Any]:
    return json.loads(subprocess.run([sys.executable, str(HERE / script), *words], stdout=subprocess.PIPE, text=True, check=True).stdout)


def read(place: Path) -> dict[str, Any]:
    """Every answer of the folder, by its file's name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(place.glob("*.json"))}


def gather(seeds: list[int], place: Path) -> dict[str, Any]:
    """Run everything."""
    reports = []
    if (walk.MATERIAL / "models").is_dir():
        for seed in seeds:
            with tempfile.TemporaryDirectory() as room:
                reports.append(walk.stories_walk(Path(room) / "work", seed=seed))
    here = (walk.MATERIAL / "models").is_dir()
    forgot = [forgetting(seed) for seed in seeds] if here else []
    classes = digits.table(list(range(5)), list(digits.MODELS), list(digits.METHODS)) if here else {"passed": {}}
    how = f"One run of `make evidence`, seeds {', '.join(map(str, seeds))}."
    found = {"how": how, "walks": reports, "unlearning": forgot, "digits": classes}
    found |= {"insertion": insertion.main(), "kills": kills.main(), "bench": bench.main([])}
    for name, answer in found.items():
        (place / f"{name}.json").write_text(json.dumps(answer), encoding="utf-8")
    if here:
        run_scripts(place)
    return read(place)


def document(found: dict[str, Any]) -> str:
    """The page."""
    killed = found["kills"]
    sections = {
        "New text on real weights": "`stories260k` and 150 steps on *The Wonderful Wizard of Oz*: as it comes, with `--replay self:0.5`, "
        "and with `--expand 1` beside it. Perplexities are ratios to the import.\n\n" + walk_section(found["walks"]),
        "Insertion of blocks": insertion_section(found["insertion"]),
        "Unlearning people": "`facts-small` knows 200 invented people; 20 are to be forgotten (`mlc unlearn`, 6 wordings of each fact, 2 "
        "of every other fact and 400 paragraphs of ordinary text to keep). Recall on training wordings that the files do not hold, and on "
        "wordings that no training saw; what must stay as ratios to before. Membership AUC by loss, against people never seen: 0.5 is "
        "ideal. Relearnt: recall on the other nine tenths after 20 steps on a tenth of the records. npo and simnpo with `--strength "
        "auto`, the other objectives at the usual rate. A row whose own check failed commits nothing (exit 10) and is shown all the "
        "same.\n\n" + unlearning_section(found["unlearning"]),
        "Unlearning a class": "One class of scikit-learn's digits, `--strength auto`: at most chance plus two points left of it (training "
        "and test images), at most one point of the others' test accuracy lost.\n\n" + digits_section(found["digits"]),
        "Killed in the middle": f"{killed['commit']} `kill -9` during `mlc commit` and {killed['update']} during `mlc update`, at random "
        f"moments: every one of the {killed['acknowledged']} acknowledged commits is there, `fsck --level 2` was clean "
        f"{killed['fsck_clean']} times, `--resume` finished {killed['resumed']} unfinished runs.\n",
        "Benchmarks": "The scripts of `make bench`: ratios of medians, both sides measured in one process.\n\n```json\n"
        + json.dumps(found["bench"], indent=1)
        + "\n```\n",
    }
    text = f"# Evidence\n\nWritten by `tests/benchmarks/evidence.py`; edit the script, not this page. {found['how']}\n"
    return text + "".join(f"\n## {title}\n\n{body}" for title, body in sections.items()) + "\n" + chapters.chapters(found)


def main() -> None:
    """Run and write, or only write."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("seeds", nargs="*", type=int, default=[0, 1, 2])
    ask.add_argument("--from", dest="folder", type=Path, help="answers of earlier runs")
    ask.add_argument("--how", help="how this edition was made, when it was not one run")
    given = ask.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = read(given.folder) if given.folder else gather(given.seeds, Path(temporary))
        TARGET.write_text(document(found | ({"how": given.how} if given.how else {})), encoding="utf-8")


if __name__ == "__main__":
    main()
