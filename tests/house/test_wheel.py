"""The built wheel, not only the checkout: everything the program reads at run time travels with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tracked files, with the environment's own setuptools."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    build = [sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place / "dist"), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((place / "dist").glob("*.whl"))


def test_the_wheel_holds_code_sql_policies_and_the_demo_model_and_no_tests(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {n for n in names if n.startswith("mlc/")}
    expected = {
        "mlc/__main__.py", "mlc/registry/catalog/schema.sql", "mlc/policies/default.toml", "mlc/cli/app.py",
        "mlc/kernels/_triton/planes.py", "mlc/cli/demo/model/model.safetensors", "mlc/cli/demo/model/tokenizer.json",
    }  # fmt: skip
    assert expected <= package
    assert not [n for n in package if n.startswith(("mlc/tests/", "mlc/docs/", "mlc/.venv/", "mlc/build/"))]
    assert all(n.startswith("mlc") for n in names)


def test_the_installed_wheel_starts_a_registry_away_from_the_checkout(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = "import mlc, sys; print(mlc.__file__)"
    found = subprocess.run([sys.executable, "-P", "-c", where], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.startswith(str(site))
    started = subprocess.run(
        [sys.executable, "-P", "-m", "mlc", "init", "registry"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert started.returncode == 0, started.stderr
    assert (tmp_path / "registry" / ".mlc" / "format").is_file()
