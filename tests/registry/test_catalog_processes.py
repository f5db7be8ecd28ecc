"""The catalog between processes: readers while others write, and writers that are killed at any moment."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from mlc.registry.catalog.behaviour import predictions
from mlc.registry.catalog.queries import log
from mlc.registry.maintenance.fsck import fsck
from mlc.registry.repository import Repository
from mlc.tests.registry.history import dump
from mlc.tests.registry.real import add

WRITER = """
import sys
from pathlib import Path
from mlc.registry.catalog import predictions
from mlc.registry.repository import Repository
from mlc.tests.registry.real import add, evaluate

predictions.SLICE = 4
repo = Repository.open(Path(sys.argv[1]))
branch, tip = sys.argv[2], repo.resolve("main")
print("ready", flush=True)
for step in range(int(sys.argv[3])):
    tip = add(repo, {}, tip, branch=branch, config=f"{branch} {step}", message=f"{branch} {step}")
    evaluate(repo, tip, [True] * 10)
    repo.catalog.load_predictions(repo)
    assert repo.warnings == [], repo.warnings
    print(tip, flush=True)
"""

READER = """
import json, sys, time
from pathlib import Path
from mlc.registry.catalog.queries import log, refs
from mlc.registry.repository import Repository

print("ready", flush=True)
counts, slowest, stop = [], 0.0, Path(sys.argv[2])
while not stop.exists() or len(counts) < 3:
    repo = Repository.open(Path(sys.argv[1]))
    began = time.monotonic()
    rows = log(repo, None)
    slowest = max(slowest, time.monotonic() - began)
    assert repo.warnings == []
    counts.append(len(rows))
print(json.dumps({"counts": counts, "slowest": slowest}), flush=True)
"""


def started(script: str, *arguments: object) -> subprocess.Popen:
    """A child that has finished its imports."""
    child = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.fixture
def repo(tmp_path):
    repo = Repository.init(tmp_path / "work")
    add(repo, {}, message="start")
    return repo


def test_readers_see_finished_states_while_two_processes_write(repo, tmp_path):
    stop = tmp_path / "stop"
    readers = [started(READER, repo.root, stop) for _ in range(2)]
    writers = [started(WRITER, repo.root, branch, 5) for branch in ("left", "right")]
    acknowledged = [line for writer in writers for line in writer.communicate()[0].split()]
    stop.touch()
    told = [json.loads(reader.communicate()[0]) for reader in readers]
    assert [child.returncode for child in (*writers, *readers)] == [0, 0, 0, 0]
    assert {row.commit for row in log(repo, None)} >= set(acknowledged)
    assert len(acknowledged) == 10
    for reader in told:
        assert reader["counts"] == sorted(reader["counts"])
        assert reader["counts"][-1] == 11
        assert reader["slowest"] < 10
    assert not list((repo.path / "quarantine").iterdir())
    assert fsck(repo, 1).findings == ()


def test_a_writer_killed_at_any_moment_leaves_a_catalog_that_catches_up(repo, monkeypatch):
    monkeypatch.setattr("mlc.registry.catalog.predictions.SLICE", 4)  # as the writer has it
    chance, acknowledged = random.Random(4), []
    for round_ in range(5):
        child = started(WRITER, repo.root, f"b{round_}", 100)
        acknowledged.append(child.stdout.readline().strip())
        time.sleep(chance.uniform(0.0, 0.1))
        child.send_signal(signal.SIGKILL)
        acknowledged += child.communicate()[0].split("\n")[:-1]
        fresh = Repository.open(repo.root)
        assert {row.commit for row in log(fresh, None)} >= set(acknowledged)
    fresh = Repository.open(repo.root)
    for (number,) in fresh.catalog.query(fresh, "select evaluation from measurements").rows:
        assert len(predictions(fresh, number)) == 10
    grown = dump(fresh)
    fresh.catalog.rebuild(fresh)
    assert dump(fresh) == grown
    assert fsck(fresh, 1).clean
    assert not [p for p in (fresh.path / "quarantine").iterdir() if p.name.startswith("catalog")]
