"""Fixtures shared by all floors: where the optional test material lies, and a fresh registry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def material() -> Path:
    """The folder of real models and data, or a skip that says where it was looked for."""
    place = Path(os.environ.get("MLC_MATERIAL", ROOT.parent / "shared" / "material"))
    if not (place / "models").is_dir():
        pytest.skip(f"no test material at {place}; set MLC_MATERIAL to the folder that holds models/ and data/")
    return place


@pytest.fixture
def repo(tmp_path: Path):
    """An empty registry in a fresh directory."""
    from mlc.registry.repository import Repository

    return Repository.init(tmp_path / "work")
