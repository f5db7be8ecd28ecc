"""The main job on real weights, command by command, as a user types it: the numbers behind docs/evidence.md.

Runs `mlc` as a separate process for every step on the optional material (stories260k and the Oz text) in a fresh
registry, and returns what the commands said under --json. Nothing here knows an expected outcome: the report says
what happened, and the reader compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MATERIAL = Path(os.environ.get("MLC_MATERIAL", ROOT.parent / "shared" / "material"))


class Registry:
    """A registry directory and the command line on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.mlc("init")

    def mlc(self, *arguments: str) -> dict[str, Any]:
        """Run one command; returns its JSON document, exit code and wall seconds."""
        start = time.perf_counter()
        command = [sys.executable, "-P", "-m", "mlc", *arguments, "--json"]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True)
        document = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode not in (0, 4, 5, 10):
            raise SystemExit(f"mlc {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return {"exit": done.returncode, "seconds": round(time.perf_counter() - start, 1), "json": document, "stderr": done.stderr}

    def suites(self, **kinds: tuple[str, Path, str]) -> None:
        """Write one suite file each (kind, data, extra TOML) and name them in mlc.toml."""
        folder = self.directory / "suites"
        folder.mkdir(exist_ok=True)
        for name, (kind, data, extra) in kinds.items():
            (folder / f"{name}.toml").write_text(f'name = "{name}"\nkind = "{kind}"\ndata = "{data.resolve()}"\n{extra}')
        listed = ", ".join(f'"suites/{name}.toml"' for name in kinds)
        settings = self.directory / "mlc.toml"
        text = "\n".join(line for line in settings.read_text().splitlines() if not line.startswith("suites"))
        settings.write_text(text.replace("[eval]", f"[eval]\nsuites = [{listed}]") + "\n")


def sha256_tree(directory: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a directory."""
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.rglob("*")) if p.is_file()}


def metrics(result: dict[str, Any]) -> dict[str, Any]:
    """suite -> metrics of the commit in a command's answer."""
    return result["json"]["commit"]["metrics"]


def stories_walk(directory: Path, *, seed: int = 0) -> dict[str, Any]:
    """stories260k -> Oz: refused, accepted with replay (full and expanded), diff, rollback, exports."""
    data, source = MATERIAL / "data", MATERIAL / "models" / "stories260k"
    registry = Registry(directory)
    registry.suites(
        tinystories=("perplexity", data / "tinystories" / "sample.txt", ""),
        oz=("perplexity", data / "oz" / "oz-heldout.txt", ""),
        blimp=("pairs", data / "blimp" / "blimp-30-each.jsonl", 'fields = { good = "sentence_good", bad = "sentence_bad" }\n'),
    )
    text = str(data / "oz" / "oz-train.txt")
    report: dict[str, Any] = {"seed": seed}
    imported = registry.mlc("import", str(source))
    root = imported["json"]["commit"]
    report["import"] = {"seconds": imported["seconds"], "metrics": root["metrics"], "snapshot": root["snapshot"]}
    seeded = ("--seed", str(seed))
    for name, arguments in {
        "plain": (),
        "replay": ("--replay", "self:0.5"),
        "expanded": (root["id"], "--branch", "expanded", "--expand", "1", "--replay", "self:0.5"),
    }.items():
        done = registry.mlc("update", *arguments, "--data", text, *seeded)
        commit = done["json"]["commit"]
        report[name] = {
            "exit": done["exit"], "seconds": done["seconds"], "metrics": commit["metrics"], "id": commit["id"],
            "failed_rules": [r["sentence"] for r in commit["verdict"]["rules"] if r["outcome"] == "fail"],
            "check": commit["check"], "delta": commit["delta"],
        }  # fmt: skip
    report["diff"] = registry.mlc("diff", root["id"], "main", "--flips", "--suite", "blimp", "--limit", "5")["json"]["suites"]["blimp"]
    back = registry.mlc("rollback", root["id"], "-m", "back to the import")
    report["rollback"] = {"equal": back["json"]["commit"]["snapshot"] == root["snapshot"], "snapshot": back["json"]["commit"]["snapshot"]}
    versions = {"import": root["id"], "replay": report["replay"]["id"], "expanded": report["expanded"]["id"]}
    report["exports"] = exports(registry, versions, source)
    report["fsck"] = registry.mlc("fsck", "--level", "3")["json"]["clean"]
    return report


def exports(registry: Registry, revs: dict[str, str], source: Path) -> dict[str, Any]:
    """Export every version and compare each file's SHA-256: the import with its source, the others with a second road.

    The second road for a made version: import the export into another registry and compare the snapshot ids.
    """
    found = {}
    other = Registry(registry.directory / "other")
    for name, rev in revs.items():
        target = registry.directory / f"export-{name}"
        answer = registry.mlc("export", rev, str(target))["json"]
        written = sha256_tree(target)
        equal = {f["path"]: f["sha256"] for f in answer["files"]} == written
        if name == "import":
            equal = equal and written == sha256_tree(source)
        again = other.mlc("import", str(target), "--branch", name)["json"]["commit"]["snapshot"]
        found[name] = {"files": len(written), "sha256_equal": equal, "snapshot_equal": again == answer["snapshot"]}
    return found


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(stories_walk(Path(place), seed=int(sys.argv[1]) if len(sys.argv) > 1 else 0), indent=1))
