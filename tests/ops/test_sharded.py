"""Training on several processes: the curve of one, states that any number of processes goes on from, and failures in words."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from mlc.ops.engine import presence
from mlc.ops.engine.atoms import Pieces, write_pieces
from mlc.ops.engine.child import Child
from mlc.ops.engine.job import Patience, WorkersFailed, first_words
from mlc.ops.engine.presence import ABANDONED, Presence, end, over, present
from mlc.ops.engine.saving import Saver
from mlc.ops.engine.sharded import shared, span
from mlc.ops.update.train import Update
from mlc.registry.errors import CheckFailed, CorruptRecord
from mlc.registry.owners import _start
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import Killed, MemoryRun, MemoryView
from mlc.tests.ops.forked import Deserted, Forked, spread

SMALL = {"steps": 8, "batch": 4, "seq_len": 12, "lr": 1e-2, "save_every": 3}
CLOSE = 1e-4  # nats, fp32


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.set_num_threads(1)
    return MemoryView.of(tiny_model(tmp_path_factory.mktemp("llama"), layers=2))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    generator, path = random.Random(0), tmp_path_factory.mktemp("text") / "new.txt"
    path.write_text(" ".join(generator.choice(WORDS) for _ in range(900)), encoding="utf-8")
    return path


def update(text, **more):
    return Update(**{"data": str(text), **SMALL, **more})


def curve(run):
    return [loss for _, loss in run.records["training"]["curve"]]


def assert_like_one_process(op, view, run, after):
    alone = MemoryRun(seed=run.seed)
    whole = view.after(op.apply(view, alone), adapter=op.output_kind() == "adapter")
    assert curve(run) == pytest.approx(curve(alone), abs=CLOSE)
    assert set(after.names()) == set(whole.names())
    for name in whole.names():
        assert torch.allclose(after.tensor(name).float(), whole.tensor(name).float(), atol=1e-3), name


@pytest.mark.parametrize(
    ("workers", "more"),
    [
        (2, {"batch": 3, "grad_accum": 2, "weight_decay": 0.1, "clip": 0.1}),  # rows that do not divide; a norm that is clipped
        (3, {"batch": 2, "replay": ("self:0.5",)}),  # a worker without a row; divergences
        (2, {"protect": "spu", "weight_decay": 0.1}),
        (2, {"expand": 1, "where": "1", "blend": 0.5}),
        (2, {"adapter": "lora:3"}),
    ],
)
def test_several_workers_have_the_curve_of_one(llama, text, tmp_path, workers, more):
    run, op = MemoryRun(seed=3, scratch=tmp_path), update(text, **more)
    after = spread(op, llama, run, workers)
    assert_like_one_process(op, llama, run, after)
    if "spu" in more.values():
        still = [n for n in llama.names() if "mlp" not in n]
        assert {n: after.entry(n).digest for n in still} == {n: llama.entry(n).digest for n in still}


def test_what_trials_choose_is_trained_by_several_workers(llama, text, tmp_path):
    """The trials run where the conductor is; workers find what came of them."""
    run, op = MemoryRun(seed=3, scratch=tmp_path), update(text, auto=True, steps=60, batch=48, seq_len=16, lr=3e-3)
    after = spread(op, llama, run, 2)
    assert run.records["auto"]["choice"] == run.records["auto"]["rows"][0]["name"] or run.records["auto"]["options"]
    assert_like_one_process(op, llama, run, after)
    assert sum(kind == "autopilot" for kind, _ in run.artifacts) == 1


@pytest.mark.parametrize("then", [0, 1, 2, 3])  # 0: this process
def test_a_worker_that_is_killed_leaves_a_run_that_goes_on_with_any_number_of_them(llama, text, tmp_path, then):
    run, op = MemoryRun(seed=1, scratch=tmp_path), update(text, decay="wsd", warmup=0.0)
    with pytest.raises(WorkersFailed, match=r"2 workers .* ended after step 5 of 8: .*; the state after step 3 is kept") as caught:
        spread(op, llama, run, 2, kill=(0, 5))
    assert caught.value.exit_code == 8
    assert "mlc update --resume test" in caught.value.hint
    assert (run.state[0], run.state[1]) == (3, {})
    after = spread(op, llama, run, then) if then else llama.after(op.apply(llama, run))
    assert len(curve(run)) == 8
    assert [done for phase, done, _, _ in run.steps if phase == "train"][-5:] == [4, 5, 6, 7, 8]
    assert_like_one_process(op, llama, run, after)
    assert run.records["stable"]["step"] == 7


def test_what_one_process_saved_goes_on_with_two(llama, text, tmp_path):
    run, op = MemoryRun(seed=1, scratch=tmp_path, die_after=7), update(text)
    with pytest.raises(Killed):
        llama.after(op.apply(llama, run))
    run.die_after = None
    assert_like_one_process(op, llama, run, spread(op, llama, run, 2))


def test_a_loss_that_is_no_number_is_said_as_by_one_process(llama, text, tmp_path):
    run = MemoryRun(scratch=tmp_path)
    with pytest.raises(CheckFailed, match=r"no longer a number at step \d+ of 8; .* is kept, and nothing was committed"):
        spread(update(text, lr=1e30, clip=0.0, warmup=0.0), llama, run, 2)
    assert run.state is not None


# --- waiting has an end, and nobody is left behind ---


def test_workers_whose_launcher_is_killed_are_ended_and_the_run_goes_on_to_the_same_bytes(llama, text, tmp_path):
    op = update(text, steps=100, save_every=10)
    run = MemoryRun(seed=1, scratch=tmp_path)
    launcher = Deserted(op, llama, run)
    with pytest.raises(
        WorkersFailed, match=r"ended after step \d+ of 100: what started them was killed \(SIGKILL\); the state after"
    ) as caught:
        spread(op, llama, run, 2, launcher=launcher)
    assert caught.value.exit_code == 8
    assert caught.value.hint.startswith("mlc update --resume test")
    assert present(tmp_path / "attempt-1") == set()
    launcher.status |= {rank: os.waitpid(pid, 0)[1] for rank, pid in launcher.pids.items() if rank not in launcher.status}
    assert {os.waitstatus_to_exitcode(status) for status in launcher.status.values()} <= {ABANDONED, 1}  # 1: the other one was gone
    assert run.state[0] < 100

    (tmp_path / "apart").mkdir()
    apart = MemoryRun(seed=1, scratch=tmp_path / "apart")
    assert spread(op, llama, run, 2).digests() == spread(op, llama, apart, 2).digests()


def test_a_worker_that_gives_no_sign_of_life_ends_the_attempt(llama, text, tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "BEAT", 0.1)
    run, op = MemoryRun(seed=1, scratch=tmp_path), update(text)
    stopped = Forked(op, llama, run, (1, 5), way=signal.SIGSTOP)
    with pytest.raises(
        WorkersFailed, match=r"worker 1 gave no sign of life for \d+ s, \[engine\] silence allows no more; the state after step 3"
    ):
        spread(op, llama, run, 2, launcher=stopped, patience=Patience(120.0, 120.0, 3.0))
    assert all(os.WIFSIGNALED(status) or os.WIFEXITED(status) for status in stopped.status.values())
    assert run.state[0] == 3


def test_who_still_works_for_a_conductor_that_was_killed_is_ended_by_the_next_one(llama, text, tmp_path, monkeypatch):
    monkeypatch.setattr("mlc.ops.engine.spread.end", partial(end, parting=0.1))
    before = tmp_path / "attempt-1"
    before.mkdir()
    left = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)", str(before / "job.json")])
    try:
        while not present(before):
            time.sleep(0.01)
        spread(update(text, steps=2), llama, MemoryRun(scratch=tmp_path), 1)
        assert left.wait(10) == -signal.SIGKILL
    finally:
        left.kill(), left.wait()


class Nobody:
    """A launcher that starts nothing. `queue`: the looks at which its job still waits for its turn."""

    def __init__(self, queue: int = 0) -> None:
        self.queue, self.stopped = queue, False

    def start(self, job, path):
        return self

    def poll(self):
        return None

    def queued(self):
        self.queue -= 1
        return self.queue >= 0

    def stop(self):
        self.stopped = True

    def words(self):
        return ""


@pytest.mark.parametrize(
    ("launcher", "patience", "reason"),
    [
        (Nobody(), Patience(0.2, 120.0, 120.0), "0 of 2 came within 0 s, [engine] start allows no more"),
        (Nobody(queue=10_000), Patience(0.01, 0.2, 120.0), "they were queued for 0 s, [engine] queue allows no more"),
        (Nobody(queue=10), Patience(0.2, 120.0, 120.0), "0 of 2 came within 0 s, [engine] start allows no more"),
    ],
)
def test_workers_that_never_come_are_not_waited_for_for_ever(llama, text, tmp_path, monkeypatch, launcher, patience, reason):
    monkeypatch.setattr(presence, "BEAT", 0.01)
    with pytest.raises(WorkersFailed, match=re.escape(f"could not start: {reason}")) as caught:
        spread(update(text), llama, MemoryRun(scratch=tmp_path), 2, launcher=launcher, patience=patience)
    assert caught.value.hint == "mlc update --resume test --engine local"
    assert launcher.stopped


def test_silence_is_measured_by_the_conductors_clock(tmp_path):
    now = [0.0]
    seen = Presence(tmp_path, 2, Patience(50.0, 100.0, 10.0), lambda: now[0])

    def after(seconds, *touched):
        now[0] += seconds
        for rank in touched:
            path = tmp_path / f"rank-{rank}.json"
            path.touch()
            os.utime(path, ns=(int(now[0]), int(now[0]) + 1))  # years behind our clock
        return seen.fault(lambda: False)

    assert not seen.came
    assert after(40) == ""
    assert after(5, 0) == ""
    assert seen.came
    assert after(6, 0) == "1 of 2 came within 51 s, [engine] start allows no more"
    assert [after(5, 0, 1), after(8, 0), after(2.5, 0)] == [
        "",
        "",
        "worker 1 gave no sign of life for 10 s, [engine] silence allows no more",
    ]
    assert after(3, 0, 1) == ""


def test_processes_that_only_look_at_an_attempt_are_left_alone(tmp_path):
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    (folder / "words").touch()
    reader = subprocess.Popen(["tail", "-f", str(folder / "words")])
    starting = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)", str(folder / "job.json")])
    try:
        while not present(folder):
            time.sleep(0.01)
        assert present(folder) == {starting.pid}
        end(folder, parting=0.1)
        assert starting.wait(10) == -signal.SIGKILL
        assert reader.poll() is None
        assert over(folder)
    finally:
        reader.kill(), starting.kill()
        reader.wait(), starting.wait()


def test_a_child_that_is_killed_takes_its_own_along(tmp_path):
    """`Child` leads a group; whoever is left of it when it dies is ended before its number can be anybody else's."""
    code = "import subprocess, time, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    child = Child([sys.executable, "-S", "-c", code], tmp_path / "words")
    while not (text := child.words()).strip():
        time.sleep(0.01)
    assert child.poll() is None
    os.kill(child._process.pid, signal.SIGKILL)
    while (ended := child.poll()) is None:
        time.sleep(0.01)
    assert ended == -signal.SIGKILL
    until = time.monotonic() + 10
    while _start(int(text)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _start(int(text))
    child.stop()


# --- parts ---


@pytest.mark.parametrize("rows", [0, 1, 5, 8])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_row_belongs_to_one_worker(rows, workers):
    spans = [span(rows, rank, workers) for rank in range(workers)]
    assert [i for first, last in spans for i in range(first, last)] == list(range(rows))
    assert [len(part) for part in torch.arange(rows).chunk(workers)] == [b - a for a, b in spans if b > a] or not rows


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_shares_of_a_batch_sum_to_one_and_hold_every_row_once(rows):
    from mlc.ops.data.mixing import Batch

    batch = Batch(torch.arange(rows * 2).view(rows, 2), tuple(range(rows)))
    parts = [shared(batch, rank, 3) for rank in range(3)]
    assert sum(share for _, share in parts) == pytest.approx(1)
    assert sorted(s for part, share in parts if share for s in part.source) == list(range(rows))
    assert all(len(part.ids) == len(part.source) >= 1 for part, _ in parts)


def test_pieces_are_read_by_any_rows_and_a_gap_is_said(tmp_path):
    whole = torch.randn(5, 3)
    for rank in range(3):
        first, last = span(5, rank, 3)
        loose = {"t.w": torch.tensor(4.0)} if rank == 0 else {}
        write_pieces(tmp_path, rank, {"param.w": whole[first:last], **loose}, {"param.w": (first, last, (5, 3))})
    pieces = Pieces(tmp_path)
    assert torch.equal(pieces.whole("param.w"), whole)
    assert pieces.whole("t.w") == 4
    for first in range(6):
        for last in range(first, 6):
            assert torch.equal(pieces.rows("param.w", first, last), whole[first:last])
    (tmp_path / "rank-00001.safetensors").unlink()
    with pytest.raises(CorruptRecord, match=re.escape("lacks rows 2 to 5 of param.w")):
        Pieces(tmp_path).whole("param.w")


def test_what_is_saved_are_the_bytes_of_the_step_whatever_happens_to_the_tensor_meanwhile():
    from threading import Event

    go, written = Event(), []

    def slow(step, tensors, meta):
        go.wait(10)
        written.append((step, tensors["w"].tolist(), meta["losses"]))

    saver, w, losses = Saver(slow), torch.zeros(2), [1.0]
    saver.save(1, {"w": w}, {"losses": losses})
    w.fill_(7.0)
    losses.append(2.0)
    go.set()
    saver.save(2, {"w": w}, {"losses": losses})
    w.fill_(9.0)
    saver.join()
    assert written == [(1, [0.0, 0.0], [1.0]), (2, [7.0, 7.0], [1.0, 2.0])]


def test_a_state_that_could_not_be_written_is_an_error_of_the_run():
    def full(step, tensors, meta):
        raise OSError("no space")

    saver = Saver(full)
    saver.save(1, {}, {})
    with pytest.raises(OSError, match="no space"):
        saver.join()
    saver.join()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("W1121 x torch/run.py: note\n/usr/bin/python: No module named 'nothing'\n", "/usr/bin/python: No module named 'nothing'"),
        (
            "[rank1]: Traceback (most recent call last):\n[rank1]:   File x\n[rank1]: ValueError: no such thing\n",
            "ValueError: no such thing",
        ),
        ("*****\nslurmstepd: out of time\n", "slurmstepd: out of time"),
        ("2026 ERROR services.py:1 -- Failed\nException: The node timed out.\n", "Exception: The node timed out."),
        ("", "they wrote nothing"),
    ],
)
def test_the_reason_is_found_in_what_workers_wrote(text, reason):
    assert first_words(text) == reason
