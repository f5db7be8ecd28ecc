"""`make bench`: every figure that the project claims, measured on this machine in one run. Ratios, never bare seconds.

Each bench_*.py beside this file has a `main()` that returns a JSON value; this script runs them one after the other and
prints one document (and writes it to the path given as the only argument).
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent


def load(path: Path) -> ModuleType:
    """Import one benchmark file by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(only: list[str]) -> dict[str, Any]:
    """Run the benchmarks (all, or those whose name contains one of `only`)."""
    sys.path.insert(0, str(HERE))
    results: dict[str, Any] = {"machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}}
    for path in sorted(HERE.glob("bench_*.py")):
        if only and not any(word in path.stem for word in only):
            continue
        sys.stderr.write(f"{path.stem} ...\n")
        results[path.stem.removeprefix("bench_")] = load(path).main()
    return results


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:]), indent=1))
