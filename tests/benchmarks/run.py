"""`make bench`: every figure that the project claims, measured on this machine in one run. Ratios, never bare seconds.

    python -P tests/benchmarks/run.py [--full] [--json FILE] [NAME ...]

Each bench_*.py beside this file is a process of its own that prints JSON; NAME picks those whose name contains it. One that fails, or that
lacks what it needs (optional material, the package index), is told as such and the others go on. Without --full the slow ones take fewer
sizes and runs, so that all are through in about ten minutes on a quiet machine of two cores. Standard error has a table, standard output
(or FILE) the whole document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
QUICK = {"storage": ["--size", "demo", "--runs", "3"], "edit": ["--facts", "20"]}  # options of a short run
QUICK_ENVIRONMENT = {"MLC_BENCH_RUNS": "1"}
LONGEST = 1800  # seconds of one benchmark
WIDTH = 72


def measured(path: Path, full: bool) -> tuple[Any, float]:
    """What one benchmark prints, or {"failed": why}; and its wall time in seconds."""
    name, began = path.stem.removeprefix("bench_"), time.perf_counter()
    command = [sys.executable, "-P", str(path), *([] if full else QUICK.get(name, []))]
    environment = {**({} if full else QUICK_ENVIRONMENT), **os.environ}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LONGEST, check=False)
        found = documents(done.stdout) if done.returncode == 0 else {"failed": (done.stderr.strip().splitlines() or ["without a word"])[-1]}
    except subprocess.TimeoutExpired:
        found = {"failed": f"took longer than {LONGEST} s"}
    except ValueError:
        found = {"failed": "printed no JSON"}
    return found, time.perf_counter() - began


def documents(text: str) -> Any:
    """The JSON documents in `text`: the one, or all in a list. Raises ValueError."""
    found, place, decoder = [], 0, json.JSONDecoder()
    while place < len(text.rstrip()):
        while text[place].isspace():
            place += 1
        value, place = decoder.raw_decode(text, place)
        found.append(value)
    if not found:
        raise ValueError("nothing was printed")
    return found[0] if len(found) == 1 else found


def figures(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every figure of a document with its path, short lists on one line."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from figures(inner, f"{path} · {key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for number, inner in enumerate(value, 1):
            yield from figures(inner, f"{path} · {number}" if path else str(number))
    else:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Run the benchmarks (all, or those whose name contains one of the words given) and print their figures as they come."""
    parser = argparse.ArgumentParser(description="every figure that the project claims")
    parser.add_argument("only", nargs="*", metavar="NAME")
    parser.add_argument("--full", action="store_true", help="all sizes and runs")
    parser.add_argument("--json", type=Path, help="write the document here instead of to standard output")
    asked = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}}
    for path in sorted(HERE.glob("bench_*.py")):
        if asked.only and not any(word in path.stem for word in asked.only):
            continue
        name = path.stem.removeprefix("bench_")
        found, seconds = measured(path, asked.full)
        results[name] = found
        sys.stderr.write(f"\n{name}  ({seconds:.0f} s)\n")
        for key, figure in figures(found):
            sys.stderr.write(f"  {key:<{WIDTH}}  {figure}\n")
        sys.stderr.flush()
    text = json.dumps(results, indent=1)
    if asked.json is None:
        print(text)
    else:
        asked.json.write_text(text + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    failed = [name for name, found in main(sys.argv[1:]).items() if isinstance(found, dict) and "failed" in found]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
