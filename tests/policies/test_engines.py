"""`--engine`: real launchers end in one commit with the curve of one process, and what stops them leaves a run that goes on."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest

from mlc.ops.engine import slurm
from mlc.ops.engine.job import Patience, WorkersFailed
from mlc.ops.engine.presence import present
from mlc.ops.engine.slurm import Submitted
from mlc.ops.engine.spread import SpreadEngine
from mlc.ops.update.train import Update
from mlc.policies import engines, lifecycle
from mlc.policies.engines import Choice, parse_engine
from mlc.policies.runs import Runs
from mlc.registry.errors import BadParameter, BadRecipe, Interrupted, NeedsExtra
from mlc.registry.locks import is_held
from mlc.registry.owners import Owner
from mlc.tests.cli.running import ok, run_cli
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
            (place,) = repo.path.glob("runs/*/scratch/attempt-1/rank-1.json")
            os.kill(Owner.decode(place.read_text()).pid, signal.SIGKILL)

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


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
needs_submitit = pytest.mark.skipif(find_spec("submitit") is None, reason="needs the extra `slurm`")
REAL = ["torchrun:2", pytest.param("slurm:2", marks=needs_submitit), pytest.param("ray:2", marks=needs_ray)]


@pytest.fixture
def launchers(monkeypatch, tmp_path):
    """Ray with a home of its own, and tasks on this machine where Slurm would have them."""
    own = engines.launcher
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engines, "launcher", lambda choice: slurm.Slurm("local") if choice.kind == "slurm" else own(choice))


@pytest.mark.parametrize("engine", REAL[1:])
def test_other_launchers_land_one_commit(repo, root, op, launchers, engine):
    outcome = lifecycle.run(repo, op, author="a", engine=engine)
    assert_one_commit_like_that_of_one_process(repo, root, op, outcome, engine)


# --- the kill of what schedules ---


@pytest.fixture
def words(repo, root, op):
    """What is typed for a run that is long enough to be killed in the middle of it."""
    options = {"data": op.data, "steps": 150, "batch": 3, "seq-len": 12, "lr": 0.01, "save-every": 10}
    return ("update", *(f"--{name}={value}" for name, value in options.items()), "-R", str(repo.root))


def scheduler(folder):
    """The child of this process that starts the workers of an attempt: it has the attempt's folder among its arguments."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and os.fsencode(folder) in (place / "cmdline").read_bytes():
                return int(place.name)
    raise AssertionError(f"nobody starts the workers of {folder}")


def until(met, seconds=240.0):
    """Wait until something holds, and return it."""
    end = time.monotonic() + seconds
    while not (found := met()) and time.monotonic() < end:
        time.sleep(0.02)
    assert found
    return found


def attempt(repo):
    """The folder of an attempt that has saved a state."""
    return next((p.parent / "scratch" / "attempt-1" for p in repo.path.glob("runs/*/state.safetensors")), None)


def assert_it_goes_on_to_what_it_would_have_become(repo, root, words, engine):
    (info,) = Runs(repo).list()
    assert (info.active, info.engine) == (False, engine)
    assert 0 < info.step < 150
    assert repo.branches() == {"main": root}
    resumed = ok("update", "--resume", "-R", repo.root)["commit"]
    assert resumed["parents"] == [root]
    whole = ok(*words, root, "--branch", "whole", "--engine", engine)["commit"]
    assert resumed["snapshot"] == whole["snapshot"]
    assert Runs(repo).list() == []


@pytest.mark.parametrize("engine", REAL)
def test_a_killed_scheduler_is_noticed_and_the_run_goes_on(repo, root, words, launchers, engine):
    def kill():
        os.kill(scheduler(until(lambda: attempt(repo))), signal.SIGKILL)

    killer = Thread(target=kill)
    killer.start()
    answer = run_cli(*words, "--engine", engine, "--json")
    killer.join()
    assert (answer.code, answer.out) == (8, "")
    workers = re.escape(f"the 2 workers of --engine {engine}")
    reason = r"what started them was killed \(SIGKILL\); the state after step \d+ is kept\."
    assert re.fullmatch(rf"{workers} ended after step \d+ of 150: {reason}", answer.error["message"]), answer
    assert answer.error["hint"].startswith(f"mlc update --resume {Runs(repo).list()[0].id}")
    assert present(attempt(repo)) == set()
    assert_it_goes_on_to_what_it_would_have_become(repo, root, words, engine)


def below(pid):
    """Everything that a process has started: number -> the line of its command."""
    found, parents = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(place.name)] = (place / "cmdline").read_bytes().decode()
    children = {pid}
    while more := {p for p, parent in parents.items() if parent in children} - children:
        children |= more
    return {p: found[p] for p in children if p in found}


@needs_ray
@pytest.mark.parametrize("process", ["raylet/raylet", "gcs/gcs_server"])
def test_a_killed_ray_is_noticed_and_the_run_goes_on(repo, root, words, launchers, process):
    def kill():
        started = below(scheduler(until(lambda: attempt(repo))))
        os.kill(next(pid for pid, line in started.items() if process in line.split("\0")[0]), signal.SIGKILL)

    killer = Thread(target=kill)
    killer.start()
    answer = run_cli(*words, "--steps=4000", "--lr=1e-5", "--engine", "ray:2", "--json")
    killer.join()
    assert answer.code == 8, answer
    assert "of 4000" in answer.error["message"]
    assert present(attempt(repo)) == set()
    assert ok("update", "--resume", "--engine", "local", "-R", repo.root)["commit"]["parents"] == [root]


PROGRAM = """
import sys
from mlc.cli.app import main
from mlc.ops.engine import slurm
from mlc.policies import engines
own = engines.launcher
engines.launcher = lambda choice: slurm.Slurm("local") if choice.kind == "slurm" else own(choice)
raise SystemExit(main(sys.argv[1:]))
"""  # the program, with tasks on this machine where Slurm would have them


@pytest.mark.parametrize("engine", REAL)
def test_workers_of_a_killed_conductor_end_and_the_run_goes_on(repo, root, words, launchers, engine):
    conductor = subprocess.Popen([sys.executable, "-P", "-c", PROGRAM, *words, "--engine", engine], stderr=subprocess.DEVNULL)
    try:
        folder = until(lambda: conductor.poll() is not None or attempt(repo))
        assert isinstance(folder, Path)  # else it has ended by itself
        assert present(folder)
    finally:
        conductor.kill()
        conductor.wait()
    until(lambda: not present(folder), 60.0)  # though nobody told them
    assert_it_goes_on_to_what_it_would_have_become(repo, root, words, engine)


# --- what is said before anything runs ---


@pytest.mark.parametrize("word", ["local:2", "torchrun", "torchrun:", "torchrun:0", "ray:x", "ray:-1", "mpi:2", "", "torchrun:9999999"])
def test_an_engine_that_is_none_is_refused(word):
    with pytest.raises(BadParameter, match="--engine"):
        parse_engine(word)


def test_engines_are_named_as_they_are_typed():
    words = ["local", "torchrun:2", "ray:16", "slurm:1"]
    assert [str(parse_engine(word)) for word in words] == words
    assert parse_engine("slurm") == Choice("slurm", 1)


@pytest.mark.parametrize("more", [(), ("--resume",), ("--compat-with", "nobody", "--compat-data", "none.jsonl")])
def test_a_misspelt_engine_is_told_before_a_missing_commit(tmp_path, more):
    ok("init", tmp_path)
    answer = run_cli("update", "--data=none.txt", *more, "--engine", "torchrnu:2", "-R", tmp_path, "--json")
    assert answer.code == 2
    assert answer.error["message"] == "--engine is local, torchrun:N, ray:N or slurm, not 'torchrnu:2'."


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
    with Runs(repo).begin(op="update", params=op.params(), start=root, branch="main", old=root, seed=0, author="a", message="") as run:
        assert is_held(run.place / "lock")
    assert not is_held(run.place / "lock")
    assert not is_held(run.place / "nothing")


def test_how_long_workers_are_waited_for_is_a_setting(repo, root, op, settings, monkeypatch):
    settings("[engine]\nsilence = 7\n")
    told = []
    monkeypatch.setattr(SpreadEngine, "train", lambda self, *_, **__: told.append(self.patience) or exec("raise KeyboardInterrupt"))
    with pytest.raises(Interrupted):
        lifecycle.run(repo, op, author="a", engine="torchrun:2")
    assert told == [Patience(600.0, 86_400.0, 7.0)]
    settings("[engine]\nsilence = 0\n")
    with pytest.raises(BadRecipe, match="silence"):
        lifecycle.run(repo, op, author="a", engine="torchrun:2")


# --- what a scheduler says ---


class Said:
    """A job of a scheduler that says these words, one after the other."""

    def __init__(self, *states):
        self.states, self.forced = list(states), 0

    @property
    def state(self):
        return self.states[0]

    def done(self, force_check=False):
        self.forced += force_check
        if len(self.states) > 1:
            self.states.pop(0)
        return self.state not in ("PENDING", "RUNNING", "UNKNOWN")

    def stderr(self):
        return None

    def cancel(self, check=True):
        raise FileNotFoundError("scancel")


def test_a_job_is_followed_by_what_its_scheduler_says(tmp_path):
    now = [0.0]
    job = Submitted(Said("PENDING", "PENDING", "RUNNING", "COMPLETED"), lambda: now[0] > 5, lambda: now[0])
    assert [(job.poll(), job.queued()) for _ in range(2)] == [(None, True), (None, False)]
    assert job.poll() is None  # the work of other nodes is not to be seen yet
    now[0] = 6.0
    assert job.poll() == 0
    lost = Submitted(Said("COMPLETED"), lambda: False, lambda: now[0])
    assert lost.poll() is None
    now[0] += slurm.SHOWN + 1
    assert lost.poll() == 0  # what is missing then is said by who wants it


def test_a_scheduler_is_asked_once_a_minute():
    now = [0.0]
    job = Said("RUNNING")
    followed = Submitted(job, lambda: False, lambda: now[0])
    for _ in range(200):
        assert followed.poll() is None
        now[0] += 1.0
    assert job.forced == 3


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED by 0", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"])
def test_a_job_that_a_scheduler_ended_is_told_in_its_words(state):
    job = Submitted(Said(state), lambda: False)
    assert job.poll() == 1
    assert job.words() == f"the scheduler says {state.split()[0]}"


def test_a_scheduler_that_does_not_answer_stops_nobody_from_stopping():
    Submitted(Said("UNKNOWN"), lambda: False).stop()
