"""`--engine`: real launchers end in one commit with the curve of one process, and what stops them leaves a run that goes on."""

from __future__ import annotations

import os
import random
import signal
from importlib.util import find_spec

import pytest

from mlc.ops.engine import slurm
from mlc.ops.engine.job import WorkersFailed
from mlc.ops.update.train import Update
from mlc.policies import engines, lifecycle
from mlc.policies.engines import Choice, parse_engine
from mlc.policies.runs import Runs
from mlc.registry.errors import BadParameter, NeedsExtra
from mlc.tests.factories import WORDS

STEPS = 8
CLOSE = 1e-4  # nats, fp32


@pytest.fixture
def op(tmp_path):
    generator, path = random.Random(0), tmp_path / "new.txt"
    path.write_text(" ".join(generator.choice(WORDS) for _ in range(900)), encoding="utf-8")
    return Update(data=str(path), steps=STEPS, batch=3, seq_len=12, lr=1e-2, save_every=3)


def curve(outcome):
    return [loss for _, loss in outcome.commit.check["training"]["curve"]]


def assert_one_commit_like_that_of_one_process(repo, root, op, outcome, engine):
    kind, _, workers = engine.partition(":")
    assert (outcome.commit.environment["engine"], outcome.commit.environment["workers"]) == (kind, int(workers))
    assert outcome.commit.parents == (root,)
    assert repo.branches()["main"] == outcome.commit_id
    assert Runs(repo).list() == []
    alone = lifecycle.run(repo, op, ref=root, branch="alone", author="a")
    assert "engine" not in alone.commit.environment
    assert alone.commit.op == outcome.commit.op
    assert curve(outcome) == pytest.approx(curve(alone), abs=CLOSE)


def test_torchrun_survives_the_kill_of_a_worker_and_lands_one_commit(repo, root, op):
    def kill(phase, done, total, **values):
        if phase == "train" and done == 5:
            (place,) = repo.path.glob("runs/*/scratch/attempt-1/rank-1.pid")
            os.kill(int(place.read_text()), signal.SIGKILL)

    with pytest.raises(WorkersFailed, match=r"the 2 workers of --engine torchrun:2 ended after step [5-7] of 8") as caught:
        lifecycle.run(repo, op, author="a", engine="torchrun:2", progress=kill)
    assert caught.value.exit_code == 8
    (info,) = Runs(repo).list()
    assert (info.step in (3, 6), info.active, info.engine) == (True, False, "torchrun:2")
    assert repo.branches()["main"] == root

    outcome = lifecycle.run(repo, None, resume="latest", author="a")  # on the engine that it was started with

    assert outcome.commit.parents == (root,)
    assert_one_commit_like_that_of_one_process(repo, root, op, outcome, "torchrun:2")


def test_workers_that_cannot_start_are_told_with_the_reason(repo, root, op, monkeypatch):
    monkeypatch.setattr(engines, "ENTRY", "mlc.policies.nothing")
    with pytest.raises(WorkersFailed, match=r"could not start: .*No module named mlc.policies.nothing") as caught:
        lifecycle.run(repo, op, author="a", engine="torchrun:1")
    assert caught.value.exit_code == 8
    assert repo.branches()["main"] == root
    assert [info.step for info in Runs(repo).list()] == [None]


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
def test_ray_lands_one_commit(repo, root, op, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    outcome = lifecycle.run(repo, op, author="a", engine="ray:2")
    assert_one_commit_like_that_of_one_process(repo, root, op, outcome, "ray:2")


@pytest.mark.skipif(find_spec("submitit") is None, reason="needs the extra `slurm`")
def test_the_tasks_of_a_submitted_job_land_one_commit(repo, root, op, monkeypatch):
    monkeypatch.setattr(engines, "launcher", lambda choice: slurm.Slurm("local"))
    outcome = lifecycle.run(repo, op, author="a", engine="slurm:2")
    assert_one_commit_like_that_of_one_process(repo, root, op, outcome, "slurm:2")


# --- what is said before anything runs ---


@pytest.mark.parametrize("word", ["local:2", "torchrun", "torchrun:", "torchrun:0", "ray:x", "ray:-1", "mpi:2", "", "torchrun:9999999"])
def test_an_engine_that_is_none_is_refused(word):
    with pytest.raises(BadParameter, match="--engine"):
        parse_engine(word)


def test_engines_are_named_as_they_are_typed():
    words = ["local", "torchrun:2", "ray:16", "slurm:1"]
    assert [str(parse_engine(word)) for word in words] == words
    assert parse_engine("slurm") == Choice("slurm", 1)


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"protect": "ewc"}, "--protect ewc"),
        ({"ema": "dynamic"}, "--ema dynamic"),
        ({"renew_embeddings": 4}, "--renew-embeddings"),
        ({"reweight": "linupper"}, "--reweight linupper"),
    ],
)
def test_an_option_that_needs_one_process_is_named(repo, root, op, more, flag):
    with pytest.raises(BadParameter, match=f"--engine torchrun:2: {flag} ") as caught:
        lifecycle.run(repo, Update(**{**op.params(), **more}), author="a", engine="torchrun:2")
    assert caught.value.exit_code == 2
    assert Runs(repo).list() == []


def test_what_is_not_installed_is_said_with_the_line_that_installs_it(repo, root, op, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    for engine, extra in (("ray:2", "ray"), ("slurm:2", "slurm")):
        with pytest.raises(NeedsExtra) as caught:
            lifecycle.run(repo, op, author="a", engine=engine)
        assert caught.value.exit_code == 8
        assert caught.value.hint == f'pip install "mlc-registry[{extra}]"'
    assert Runs(repo).list() == []


def test_a_run_is_not_lost_by_a_misspelt_engine(repo, root, op):
    with Runs(repo).begin(op="update", params=op.params(), start=root, branch="main", old=root, seed=0, author="a", message="") as run:
        pass
    with pytest.raises(BadParameter, match="--engine is local"):
        lifecycle.run(repo, None, resume=run.id, author="a", engine="torchrnu:2")
    assert [info.id for info in Runs(repo).list()] == [run.id]


def test_a_worker_sees_whether_its_conductor_lives(repo, root, op):
    from mlc.ops.engine.worker import _conducted

    with Runs(repo).begin(op="update", params=op.params(), start=root, branch="main", old=root, seed=0, author="a", message="") as run:
        assert _conducted(run.place / "lock")
    assert not _conducted(run.place / "lock")
    assert not _conducted(run.place / "nothing")
