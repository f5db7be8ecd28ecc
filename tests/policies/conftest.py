"""A registry with a tiny model in it, and rules that are easy to break."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlc.tests.factories import tiny_model

STRICT = """
[[rule]]
id = "hands-off"
metric = "delta.max_abs"
max = 0.5
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A two-layer model directory, made once."""
    import torch

    torch.set_num_threads(1)
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def rules(repo):
    """Write a policy file beside the registry; the built-in policy holds until then."""

    def write(text: str, name: str = "rules.toml") -> Path:
        path = repo.root / "policies" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def settings(repo):
    """Write mlc.toml."""

    def write(text: str) -> Path:
        path = repo.root / "mlc.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def strict(rules):
    """A policy that refuses any step of a weight over 0.5."""
    return rules(STRICT)


@pytest.fixture
def root(repo, tiny):
    """The id of the import that stands on main."""
    from mlc.policies import lifecycle

    return lifecycle.import_model(repo, tiny, author="tester").commit_id
