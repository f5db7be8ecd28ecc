"""A merge that is killed half-way, by the signal that nobody can catch, and taken up again: the same bytes, nothing computed twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlc.ops.merge import opcm, stream
from mlc.ops.merge.kept import Kept
from mlc.policies import lifecycle
from mlc.policies.merging import merge
from mlc.policies.runs import Runs
from mlc.policies.unmerging import unmerge
from mlc.registry.errors import RefNotFound
from mlc.registry.repository import Repository
from mlc.tests.ops.fakes import MemoryView
from mlc.tests.ops.merging import sibling

LOOSE = '[[rule]]\nid = "loose"\nmetric = "delta.max_abs"\nmax = 100\n'
DYING = """
import json, os, signal, sys
from pathlib import Path
import torch
from mlc.policies.merging import merge
from mlc.registry.repository import Repository
torch.set_num_threads(int(sys.argv[4]))
seen = 0
def progress(phase, done, total, **_):
    global seen
    seen += phase == "merge"
    if seen == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
options = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[2]).items()}
merge(Repository.open(Path(sys.argv[1])), ("a", "b", "c"), options, author="t", branch="killed", progress=progress)
"""


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory) -> Path:
    """A registry with three siblings on branches. Not to be changed."""
    place = tmp_path_factory.mktemp("resumed")
    found, base = Repository.init(place / "work"), MemoryView.of(tiny)
    (found.root / "policies").mkdir(exist_ok=True)
    (found.root / "policies" / "rules.toml").write_text(LOOSE, encoding="utf-8")
    root = lifecycle.import_model(found, tiny, author="t").commit_id
    for seed, name in enumerate("abc", 1):
        lifecycle.commit_directory(found, sibling(base, seed).save(place / name), ref=root, branch=name, author="t")
    return found.root


@pytest.fixture
def repo(made, tmp_path) -> Repository:
    """A copy of it."""
    return Repository.open(Path(shutil.copytree(made, tmp_path / "work")))


def kill_after(repo: Repository, options: str, count: int, threads: int = 1) -> None:
    """Start a merge of a, b and c in another process, and have it killed after so many tensors."""
    words = [sys.executable, "-P", "-W", "ignore", "-c", DYING, str(repo.root), options, str(count), str(threads)]
    ended = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with pytest.raises(RefNotFound):
        repo.resolve("killed")


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ('{"method": "ties", "density": [0.5]}', False),  # an election is stored as its recipe, like a sum
        ('{"method": "ties", "density": [0.5], "scope": "model"}', False),
        ('{"method": "dare_ties", "density": [0.5]}', True),
        ('{"method": "breadcrumbs_ties", "density": [0.5]}', True),
        ('{"method": "dare_linear", "density": [0.5], "rng": "mergekit"}', False),  # one generator, asked from the beginning
        ('{"method": "linear"}', None),  # a sum is computed by storage alone
    ],
)
def test_a_killed_merge_goes_on_with_the_same_bytes_and_computes_no_tensor_twice(repo, monkeypatch, options, kept):
    import json

    words = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(options).items()}
    whole = merge(repo, ("a", "b", "c"), words, author="t", branch="whole")
    kill_after(repo, options, 6)
    calls = []
    monkeypatch.setattr(stream.Job, "_merged", lambda *args, own=stream.Job._merged: calls.append(1) or own(*args))
    made = lifecycle.run(repo, None, resume=lifecycle.LATEST, author="t")
    assert made.commit.snapshot == whole.commit.snapshot
    assert repo.resolve("killed") == made.commit_id
    assert made.commit.parents == whole.commit.parents
    names = len(repo.view(made.commit_id).names())
    assert len(calls) == {True: names - 6, False: names, None: 0}[kept]
    assert Runs(repo).list() == []


def test_a_merge_by_two_threads_is_taken_up_by_one(repo):
    whole = merge(repo, ("a", "b", "c"), {"method": "ties", "density": (0.5,)}, author="t", branch="whole")
    kill_after(repo, '{"method": "ties", "density": [0.5]}', 3, threads=2)
    assert lifecycle.run(repo, None, resume=lifecycle.LATEST, author="t").commit.snapshot == whole.commit.snapshot


@pytest.mark.parametrize("count", [1, 12, 25])
def test_a_killed_chain_goes_on_from_the_last_version_that_it_absorbed(repo, monkeypatch, count):
    whole = merge(repo, ("a", "b", "c"), {"method": "opcm"}, author="t", branch="whole")
    before = []
    with monkeypatch.context() as patch:
        patch.setattr(opcm, "projected", lambda *args, own=opcm.projected: before.append(1) or own(*args))
        merge(repo, ("a", "b", "c"), {"method": "opcm"}, author="t", branch="counted")
    kill_after(repo, '{"method": "opcm"}', count)
    calls = []
    monkeypatch.setattr(opcm, "projected", lambda *args, own=opcm.projected: calls.append(1) or own(*args))
    made = lifecycle.run(repo, None, resume=lifecycle.LATEST, author="t")
    assert made.commit.snapshot == whole.commit.snapshot
    assert made.commit.artifacts == whole.commit.artifacts
    assert made.commit.check["opcm"] == whole.commit.check["opcm"]
    assert len(calls) <= len(before) // 2  # what the first version brought had been projected; of the second, all when it was the last


def test_the_latest_merge_is_meant_and_not_another_run(repo, monkeypatch):
    from mlc.cli.app import main

    monkeypatch.setenv("MLC_AUTHOR", "t")
    kill_after(repo, '{"method": "ties", "density": [0.5]}', 4)
    start = repo.resolve("main")
    other = {"params": {}, "seed": 0, "author": "t", "message": "", "start": start, "old": None}
    with Runs(repo).begin(op="update", branch="main", **other), Runs(repo).begin(op="merge", branch="", **other):
        pass
    assert main(["merge", "--resume", "a", "-R", str(repo.root)]) != 0  # no run of that name
    assert main(["merge", "main", "--resume", "-R", str(repo.root)]) == 2  # nothing is said beside it
    assert main(["merge", "--resume", "-R", str(repo.root), "-q"]) == 0
    assert repo.commit(repo.resolve("killed")).op.name == "merge"
    assert main(["merge", "--resume", "-R", str(repo.root)]) == 3
    assert {run.op for run in Runs(repo).list()} == {"update", "merge"}


def test_a_killed_removal_goes_on_when_it_is_asked_for_again(repo, monkeypatch):
    merge(repo, ("a", "b", "c"), {"method": "breadcrumbs_ties", "density": (0.5,)}, author="t", branch="all")
    anew = merge(repo, ("a", "c"), {"method": "breadcrumbs_ties", "density": (0.5,)}, author="t", branch="anew").commit
    text = DYING.replace(
        'merge(Repository.open(Path(sys.argv[1])), ("a", "b", "c"), options, author="t", branch="killed", ',
        ('from mlc.policies.unmerging import unmerge\nunmerge(Repository.open(Path(sys.argv[1])), "all", remove="b", author="t", '),
    )
    monkeypatch.setitem(globals(), "DYING", text)
    kill_after(repo, "{}", 6)
    calls = []
    monkeypatch.setattr(stream, "merge_tensor", lambda *args, own=stream.merge_tensor: calls.append(1) or own(*args))
    made = unmerge(repo, "all", remove="b", author="t").commit
    assert made.snapshot == anew.snapshot
    assert len(calls) == len(repo.view(made.id).names()) - 6
    assert Runs(repo).list() == []


def test_what_a_power_cut_left_of_a_tensor_is_not_a_tensor(tmp_path):
    data = torch.randn(7, 5).to(torch.bfloat16)
    Kept(tmp_path / "kept").write("x", data)
    assert Kept(tmp_path / "kept").read("x").equal(data)
    assert Kept(tmp_path / "kept").read("y") is None
    path = next((tmp_path / "kept").iterdir())
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", whole[:20], whole[:-70] + bytes(70)):
        path.write_bytes(damaged)
        assert Kept(tmp_path / "kept").read("x") is None
    empty = torch.empty(0, 3, dtype=torch.float16)
    Kept(tmp_path / "kept").write("none", empty)
    assert Kept(tmp_path / "kept").read("none").shape == (0, 3)
