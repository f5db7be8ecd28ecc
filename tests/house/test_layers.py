"""The laws of the house that code can check: imports go down only, the light start, every room in the wheel."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("kernels", "registry", "ops", "policies", "cli")
SOURCES = sorted(p for floor in FLOORS for p in (ROOT / floor).rglob("*.py"))


def imported_floors(path: Path) -> set[str]:
    """The floors of ours that a module imports, at any depth of its code."""
    package = ("mlc", *path.relative_to(ROOT).with_suffix("").parts)
    if path.name == "__init__.py":
        package = (*package[:-1], "__init__")
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = list(package[: len(package) - node.level]) if node.level else []
            base = prefix + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {parts[1] for parts in names if len(parts) > 1 and parts[0] == "mlc" and parts[1] in FLOORS}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path):
    floor = path.relative_to(ROOT).parts[0]
    above = {other for other in imported_floors(path) if FLOORS.index(other) > FLOORS.index(floor)}
    assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)} from a floor above its own"


def test_only_the_cli_reads_the_environment_prints_or_exits():
    offenders = []
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            reads = isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} and getattr(node.value, "id", "") == "os"
            prints = isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"print", "exit", "input"}
            if reads or prints:
                offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert offenders == []


def test_only_the_catalog_speaks_to_duckdb_and_only_fs_makes_bytes_durable():
    duckdb, syncs = [], []
    for path in SOURCES:
        place, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
        if "import duckdb" in text and place.parts[:2] != ("registry", "catalog"):
            duckdb.append(str(place))
        if ("os.fsync(" in text or "os.fdatasync(" in text) and place != Path("registry/fs.py"):
            syncs.append(str(place))
    assert duckdb == []
    assert syncs == []


def test_every_package_is_listed_for_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {"mlc"} | {".".join(("mlc", *p.parent.relative_to(ROOT).parts)) for p in SOURCES}
    assert listed == present


@pytest.mark.parametrize(
    "module",
    ["mlc", "mlc.registry.repository", "mlc.ops.base", "mlc.ops.catalog", "mlc.ops.evaluate.flips", "mlc.policies.gate", "mlc.cli.app"],
)
def test_the_way_to_the_light_commands_imports_nothing_heavy(module: str):
    heavy = "('torch', 'transformers', 'numpy', 'pyarrow', 'duckdb', 'pydantic', 'safetensors', 'huggingface_hub')"
    code = f"import sys, importlib; importlib.import_module({module!r}); print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_benchmark_can_be_started():
    """`make bench` keeps the scripts' own folder out of the path: they know each other by the package's name."""
    names = sorted(p.stem for p in (ROOT / "tests" / "benchmarks").glob("*.py"))
    code = f"import importlib\nfor name in {names!r}: importlib.import_module('mlc.tests.benchmarks.' + name)"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert len(names) > 20
    assert result.returncode == 0, result.stderr
