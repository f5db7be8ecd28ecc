"""Locks: who waits for whom, among threads and processes, and what is said when it takes too long."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlc.registry.errors import Locked
from mlc.registry.locks import Locks
from mlc.registry.owners import Owner, myself
from mlc.tests.registry.crash_child import Zygote


@pytest.fixture
def locks(tmp_path: Path) -> Locks:
    return Locks(tmp_path)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    served = Zygote(light=True)
    yield served
    served.close()


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_sharers_go_in_together_and_a_writer_alone(locks: Locks):
    with locks.shared("catalog"):
        seen: list[str] = []

        def other() -> None:
            with locks.shared("catalog", timeout=1):
                seen.append("shared")
            try:
                with locks.exclusive("catalog", timeout=0.05):
                    seen.append("exclusive")
            except Locked:
                seen.append("locked")

        in_thread(other).join()
    assert seen == ["shared", "locked"]
    with locks.exclusive("catalog", timeout=0.05):
        pass


def test_another_process_that_holds_a_lock_is_named(tmp_path: Path, locks: Locks, zygote: Zygote):
    pid = zygote.spawn("hold", tmp_path, "write", "exclusive")
    zygote.until("held")
    with pytest.raises(Locked) as caught, locks.exclusive("write", timeout=0.05):
        pass
    assert f"process {pid} (" in caught.value.message
    assert caught.value.exit_code == 9
    assert caught.value.details["owner"]["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    zygote.wait()
    with locks.exclusive("write", timeout=0.05):  # it died with its process: nothing is stale
        assert locks.owner("write").pid == os.getpid()


def test_a_waiting_writer_keeps_new_readers_out(locks: Locks):
    """The turnstile: without it a stream of readers that overlap would keep the writer waiting for ever."""
    stop, order = threading.Event(), []

    def reader() -> None:
        while not stop.is_set():
            with locks.shared("catalog", timeout=5):
                time.sleep(0.01)

    readers = [in_thread(reader) for _ in range(4)]
    started = time.monotonic()
    with locks.exclusive("catalog", timeout=5):
        order.append("writer")
    waited = time.monotonic() - started
    stop.set()
    for thread in readers:
        thread.join()
    assert order == ["writer"]
    assert waited < 1.0


def test_a_writer_waiting_for_its_turn_to_write_does_not_stop_the_one_that_projects(locks: Locks):
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with locks.exclusive("write", timeout=5):
            pass

    with locks.exclusive("write"):
        thread = in_thread(second)
        waiting.wait()
        time.sleep(0.02)
        with locks.exclusive("catalog", timeout=2):
            pass
    thread.join()


def test_a_wait_that_was_given_up_takes_nothing_with_it(locks: Locks):
    release = threading.Event()

    def holder() -> None:
        with locks.exclusive("catalog"):
            release.wait(5)

    thread = in_thread(holder)
    while locks.owner("catalog") is None:
        time.sleep(0.001)
    for way in (locks.exclusive, locks.shared, locks.shared):
        with pytest.raises(Locked, match=r"the catalog lock was not free within 0\.02 s: process"), way("catalog", timeout=0.02):
            pass
    release.set()
    thread.join()
    with locks.exclusive("catalog", timeout=1):
        assert locks.owner("catalog").pid == os.getpid()
    assert locks.owner("catalog") is None


def test_nobody_is_overtaken_for_ever(locks: Locks):
    """Writers that come again and again, and readers that do: each gets its turn while the others are at it."""
    stop, counts = threading.Event(), {"shared": [0] * 3, "exclusive": [0] * 3}

    def visitor(way: str, number: int) -> None:
        while not stop.is_set():
            with getattr(locks, way)("catalog", timeout=5):
                time.sleep(0.002)
            counts[way][number] += 1

    threads = [in_thread(lambda way=way, n=n: visitor(way, n)) for way in counts for n in range(3)]
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert min(*counts["shared"], *counts["exclusive"]) >= 2


def test_a_thread_may_take_again_what_it_has(locks: Locks):
    with locks.exclusive("write"), locks.exclusive("write"), locks.shared("write"):
        assert locks.holds("write")
    assert not locks.holds("write")
    with locks.shared("catalog"), locks.shared("catalog"):
        pass
    with locks.exclusive("catalog", timeout=0.05):
        pass


def test_a_lock_out_of_order_is_a_bug_and_says_so(locks: Locks):
    with locks.shared("catalog"):
        with pytest.raises(RuntimeError, match="before catalog"), locks.exclusive("write"):
            pass
        with pytest.raises(RuntimeError, match="cannot become exclusive"), locks.exclusive("catalog"):
            pass
    with locks.shared("objects"), locks.exclusive("write"), locks.exclusive("catalog"):
        pass


def test_an_error_inside_lets_the_lock_go(locks: Locks):
    with pytest.raises(ZeroDivisionError), locks.exclusive("write"):
        raise ZeroDivisionError
    with locks.exclusive("write", timeout=0.05):
        pass


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # pytest-xdist has a thread of its own
def test_a_forked_child_holds_nothing_and_releases_nothing(locks: Locks):
    with locks.exclusive("write"):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with locks.exclusive("write", timeout=0.05):
                    code = 2
            except Locked:
                code = 0 if not locks.holds("write") else 3
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        seen = []

        def other() -> None:
            try:
                with locks.exclusive("write", timeout=0.05):
                    seen.append("got it")
            except Locked:
                seen.append("still held")

        in_thread(other).join()
        assert seen == ["still held"]


def test_an_owner_is_alive_only_as_the_same_process_of_the_same_boot():
    me = myself()
    assert me.alive
    assert Owner.decode(me.encode()) == me
    fields = {name: getattr(me, name) for name in Owner.__slots__}
    assert not Owner(**{**fields, "pid": 2**22 + 1}).alive
    assert not Owner(**{**fields, "start": "1"}).alive
    assert not Owner(**{**fields, "boot": "another"}).alive
    assert Owner(**{**fields, "host": "elsewhere", "pid": 1}).alive  # who knows
    assert Owner.decode("not json") is None
    assert Owner.decode('{"pid": 1}') is None
