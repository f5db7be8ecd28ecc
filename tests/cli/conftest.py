"""One small history, made once through the command line and copied for every test that wants to change it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlc.tests.cli.running import ok, run_cli
from mlc.tests.factories import facts_suite, tiny_model

TEXT = "the river is amber . the stone speaks . the harbour opens near the lamp .\n"


@dataclass(frozen=True)
class Work:
    """A registry with a history: `first` imported, `second` an accepted update of it, `refused` another one, for a branch `trial`."""

    root: Path
    first: str
    second: str
    refused: str


def lay(root: Path) -> Path:
    """A registry with a model directory, a suite and a text beside it."""
    assert run_cli("init", root, "-q").code == 0
    tiny_model(root / "model")
    facts_suite(root / "suites")
    (root / "new.txt").write_text(TEXT * 12, encoding="utf-8")
    settings = root / "mlc.toml"
    settings.write_text(settings.read_text().replace("suites = []", 'suites = ["suites/*.toml"]'), encoding="utf-8")
    return root


STRICT = '[[rule]]\nid = "frozen"\nmetric = "delta.tensors_changed"\nmax = 0\nnote = "nothing may move"\n'


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The history itself; not to be changed."""
    import torch

    torch.set_num_threads(1)
    root = lay(tmp_path_factory.mktemp("made") / "work")
    at = ("-R", root)
    first = ok("import", root / "model", "-m", "first", "--author", "Ada", *at)["commit"]["id"]
    train = ("--data", root / "new.txt", "--steps", "2", "--seq-len", "16", "--batch", "2", *at)
    second = ok("update", *train, "-m", "second")["commit"]["id"]
    (root / "policies" / "strict.toml").write_text(STRICT, encoding="utf-8")
    refused = run_cli("update", first, *train, "-m", "third", "--lr", "0.01", "--branch", "trial", "--json")
    assert refused.code == 4, refused
    return Work(root, first, second, refused.json["commit"]["id"])


@pytest.fixture
def work(made: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """A copy to change, with the current directory in it. Its policy refuses any change of weights."""
    root = tmp_path / "work"
    shutil.copytree(made.root, root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLC_REGISTRY", raising=False)
    monkeypatch.setenv("MLC_AUTHOR", "Grace <grace@example.org>")
    return Work(root, made.first, made.second, made.refused)


@pytest.fixture
def lenient(work: Work) -> Work:
    """The copy without the rule that refuses everything."""
    (work.root / "policies" / "strict.toml").unlink()
    return work
