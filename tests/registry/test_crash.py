"""Writers that die at any moment: nothing acknowledged is lost, nothing is half there, and the next writer goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlc.registry import fs
from mlc.registry.errors import MissingObject, MlcError, NotFound
from mlc.registry.fs import DiskFault, DiskFull, FaultPlan
from mlc.registry.ids import CommitId
from mlc.registry.refs import RefStore
from mlc.registry.repository import Repository
from mlc.tests.registry.crash_child import NoCatalog, Zygote, add_commit, open_quick, tensor_of

KILLS = int(os.environ.get("MLC_KILLS", "20"))


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """The process that forks the writers to be killed."""
    served = Zygote()
    yield served
    served.close()


@pytest.fixture(autouse=True)
def _no_faults_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fs, "_sync", fs._sync)  # open_quick changes it
    yield
    fs.FAULTS = None


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one commit, to be copied."""
    place = tmp_path_factory.mktemp("start")
    repo = Repository.init(place)
    repo.__dict__["catalog"] = NoCatalog()
    add_commit(repo, 0)
    return place


def durable_calls(start: Path, place: Path) -> list[str]:
    """The durable calls of one commit, in order."""
    shutil.copytree(start, place)
    fs.FAULTS = FaultPlan(0)
    add_commit(open_quick(place), 1)
    seen, fs.FAULTS = fs.FAULTS.seen, None
    return seen


def number_at(repo: Repository, commit: CommitId) -> int:
    """The number of a commit, after its tensor was read and compared."""
    record = repo.commit(commit)
    entry = repo.snapshot(record.snapshot).tensors[0]
    number = record.op.params["number"]
    assert bytes(repo.objects.tensor_bytes(entry.digest)) == tensor_of(number)
    return number


def attempt(repo: Repository, plan: FaultPlan) -> tuple[CommitId | None, MlcError | None]:
    """One commit under a fault plan: its id, or the error that it ended with."""
    fs.FAULTS = plan
    try:
        return add_commit(repo, 1), None
    except MlcError as fault:
        return None, fault
    finally:
        fs.FAULTS = None


def check_whole(place: Path, acknowledged: CommitId | None) -> int:
    """Old or new and nothing between, for a reader and after recovery; returns the number of the tip. Then a commit succeeds."""
    reader = open_quick(place)
    seen = number_at(reader, reader.resolve("main"))
    repo = open_quick(place)
    repo.recover()
    tip = repo.resolve("main")
    assert number_at(repo, tip) == seen
    assert seen == 1 or acknowledged is None
    assert repo.journal.verify()[0] == 2 + seen
    for orphan in repo.commits_dir.glob("*.json"):
        if orphan.stem not in repo.journal.directory.joinpath("00000001.log").read_text():
            with pytest.raises(NotFound):
                repo.resolve(orphan.stem)
    following = add_commit(repo, 2)
    assert repo.commit(following).parents == (tip,)
    fresh = open_quick(place)
    assert fresh.resolve("main") == following
    assert fresh.refs.mirrored() == fresh.journal.verify()[0] == 3 + seen
    assert RefStore(place / "none", fresh.journal).all() == fresh.refs.all()
    return seen


@pytest.mark.parametrize("action", ["kill", "tear"])
def test_a_writer_killed_at_any_durable_call_leaves_the_old_or_the_new_state(start: Path, tmp_path: Path, zygote: Zygote, action: str):
    calls = durable_calls(start, tmp_path / "count")
    places = {k: tmp_path / str(k) for k in range(1, len(calls) + 1)}
    pids = {}
    for k, place in places.items():
        shutil.copytree(start, place)
        zygote.lines.clear()
        pids[zygote.spawn("strike", place / ".mlc", k, action)] = k
    assert set(zygote.wait().values()) == {-signal.SIGKILL}
    tips = [check_whole(place, None) for place in places.values()]
    switch = tips.index(1)  # from one call on, the commit is there: the append of the journal record is what made it so
    assert tips == [0] * switch + [1] * (len(tips) - switch)
    assert calls[switch - 1].startswith("write") or action == "kill"


@pytest.mark.parametrize(("action", "error"), [("enospc", DiskFull), ("eio", DiskFault), ("short", None)])
def test_a_failing_disk_is_one_clear_error_or_a_warning_and_never_half_a_commit(
    start: Path, tmp_path: Path, action: str, error: type[MlcError] | None
):
    calls = durable_calls(start, tmp_path / "count")
    outcomes = Counter()
    for k in range(1, len(calls) + 1):
        place = tmp_path / str(k)
        shutil.copytree(start, place)
        repo = open_quick(place)
        done, fault = attempt(repo, FaultPlan(k, action))
        assert (done is None) == (fault is not None)
        assert fault is None or (type(fault) is error and fault.hint)
        assert list((place / ".mlc" / "tmp").iterdir()) == list((place / ".mlc" / "pins").iterdir()) == []
        outcomes["warned" if repo.warnings else "acknowledged" if done else "refused"] += 1
        assert check_whole(place, done) == (1 if done else 0)
    if error is None:
        assert outcomes == {"acknowledged": len(calls)}
    else:
        assert outcomes["refused"] > 10
        assert outcomes["warned"] > 3


def test_writers_killed_at_random_moments_lose_nothing_that_was_acknowledged(tmp_path: Path, zygote: Zygote):
    """Two writers at a time, on branches of their own; the dice are seeded, the machine's timing is not."""
    repo, dice = Repository.init(tmp_path / "work"), random.Random(7)
    zygote.lines.clear()
    started = time.monotonic()
    zygote.spawn("write_some", repo.path, "a", 0, 3)
    zygote.wait()
    commit, kills = (time.monotonic() - started) / 3, 0  # seconds that a commit takes on this machine, now
    while kills < KILLS:
        writers = [zygote.spawn("write_for_ever", repo.path, branch) for branch in ("a", "b")]
        for pid in writers:
            time.sleep(dice.uniform(0, 2 * commit))
            os.kill(pid, signal.SIGKILL)
            kills += 1
        zygote.wait()
    acknowledged = [words for words in zygote.lines if words[0] == "ack"]
    assert len(acknowledged) > 3
    check_history(Repository.open(repo.root), acknowledged)
    add_commit(Repository.open(repo.root), 1, "a")


def test_two_writers_at_once_lose_nothing(tmp_path: Path, zygote: Zygote):
    repo = Repository.init(tmp_path / "work")
    zygote.lines.clear()
    for first in (0, 1000):
        zygote.spawn("write_some", repo.path, "main", first, 6)
    assert set(zygote.wait().values()) == {0}
    acknowledged = [words for words in zygote.lines if words[0] == "ack"]
    assert sorted(int(words[3]) for words in acknowledged) == [*range(6), *range(1000, 1006)]
    check_history(repo, acknowledged)
    commit, numbers = repo.resolve("main"), []
    while True:
        numbers.append(number_at(repo, commit))
        if not (parents := repo.commit(commit).parents):
            break
        commit = parents[0]
    assert sorted(numbers) == [*range(6), *range(1000, 1006)]


def check_history(repo: Repository, acknowledged: list[list[str]]) -> None:
    """The chain is whole and gap-free, and every acknowledged commit is in it, readable, once, and reachable from its branch."""
    repo.recover()
    head, _ = repo.journal.verify()
    records = list(repo.journal.records())
    assert [record.seq for record in records] == list(range(1, head + 1))
    commits = [record.body["commit"] for record in records if record.body["kind"] == "commit"]
    assert len(commits) == len(set(commits))
    for _, _, commit, number in acknowledged:
        assert commits.count(commit) == 1
        assert number_at(repo, CommitId(commit)) == int(number)
    for branch, tip in repo.branches().items():
        reachable, walk = set(), [tip]
        while walk:
            reachable.add(walk[-1])
            walk += repo.commit(walk.pop()).parents
        assert {commit for _, name, commit, _ in acknowledged if name == branch} <= reachable
    applied = repo.catalog.query(repo, "select max(seq) from journal").rows[0][0]
    assert applied == head


def test_a_retry_after_a_kill_gives_the_recorded_commit_and_no_second_one(start: Path, tmp_path: Path):
    shutil.copytree(start, tmp_path / "work")
    repo = open_quick(tmp_path / "work")
    first = add_commit(repo, 1, txid="import-42")
    again = add_commit(open_quick(tmp_path / "work"), 1, txid="import-42", message="another message, so another id")
    assert again == first
    assert repo.journal.head()[0] == 3
    with pytest.raises(MissingObject):
        repo.commit_bytes(CommitId("0" * 64))
