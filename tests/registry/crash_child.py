"""Writers that tests kill. As a module: small commits for tests. As a script: a process that forks writers on demand.

Forking from a process that has imported everything costs milliseconds; starting Python with torch would cost seconds a kill.
Script protocol, one line each way: `KIND ARGUMENT...` on stdin; `pid N` and the writers' acknowledgements on stdout.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mlc.registry import fs
from mlc.registry.errors import RefMoved
from mlc.registry.ids import CommitId
from mlc.registry.records import Commit, FileEntry, OperationRecord, RefUpdate, Snapshot, TensorDelta, TensorEntry
from mlc.registry.repository import Repository

ELEMENTS = 64


def tensor_of(number: int) -> bytes:
    """The bytes of the tensor that commit `number` holds."""
    return b"".join((number * 1000 + i).to_bytes(4, "little") for i in range(ELEMENTS))


def commit_of(repo: Repository, tx: Any, number: int, parents: tuple[CommitId, ...], message: str) -> Commit:
    """A commit of one tensor and one file, put and not yet made history."""
    before = repo.snapshot(repo.commit(parents[0]).snapshot).tensors[0].digest if parents else None
    digest = tx.put_tensor("I32", (ELEMENTS,), tensor_of(number), base=before, reference=before)
    header = tx.put_blob(b"header of the one file")
    entry = FileEntry("model.safetensors", 22 + 4 * ELEMENTS, "0" * 64, "weights", header, ("w",))
    snapshot = Snapshot((TensorEntry("w", "I32", (ELEMENTS,), digest),), (entry,))
    tx.put_snapshot(snapshot)
    return Commit(parents, snapshot.id, OperationRecord("test", 1, {"number": number}), "tester", "2026-01-01T00:00:00.000000Z", message)


def add_commit(repo: Repository, number: int, branch: str = "main", *, txid: str | None = None, message: str = "") -> CommitId:
    """One whole commit on a branch, from its first object to the acknowledgement."""
    with repo.ingest(txid) as tx:
        old = repo.refs.read(f"heads/{branch}")
        commit = commit_of(repo, tx, number, (old,) if old else (), message or f"{branch} {number}")
        target = commit.snapshot
        delta = TensorDelta("w", None, tx.info(repo_digest(tx, target, number)).digest, "raw", 4 * ELEMENTS, 4 * ELEMENTS)
        return tx.commit(commit, refs=[RefUpdate(f"heads/{branch}", old, commit.id)], reason="test", deltas=[delta])


def repo_digest(tx: Any, _: str, number: int) -> Any:
    """The digest of the tensor of commit `number`."""
    from mlc.registry.ids import tensor_digest

    return tensor_digest("I32", (ELEMENTS,), [tensor_of(number)])


class NoCatalog:
    """Stands in for the catalog where a test is about something else: DuckDB costs more than all the rest of a commit."""

    def apply(self, repo: Repository, records: Any = ()) -> None: ...

    def load_predictions(self, repo: Repository, evaluation: int | None = None) -> None: ...


def open_quick(path: Path) -> Repository:
    """A repository without a catalog and without syncs: a killed process loses nothing that the kernel has."""
    repo = Repository.open(path)
    repo.__dict__["catalog"] = NoCatalog()
    fs._sync = lambda fd: None
    return repo


# --- the script ------------------------------------------------------------------------------------------


def say(*words: object) -> None:
    """One line on stdout, in one write, so that lines of several writers never mix."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def strike(path: str, at: str, action: str) -> None:
    """One commit during which the fault happens; `done` if it was acknowledged all the same."""
    repo = open_quick(Path(path))
    fs.FAULTS = fs.FaultPlan(int(at), action)  # type: ignore[arg-type]
    say("done", add_commit(repo, 1))


def write_for_ever(path: str, branch: str) -> None:
    """Commit after commit on a branch of its own, each acknowledged after it returned."""
    repo = Repository.open(Path(path))
    number = int(time.time() * 1000) % 1_000_000
    while True:
        number += 1
        say("ack", branch, add_commit(repo, number, branch), number)


def write_some(path: str, branch: str, first: str, count: str) -> None:
    """`count` commits on a branch that others move too: who comes late tries again."""
    repo = Repository.open(Path(path))
    for number in range(int(first), int(first) + int(count)):
        while True:
            try:
                say("ack", branch, add_commit(repo, number, branch), number)
                break
            except RefMoved:
                continue


def hold(path: str, lock: str, way: str) -> None:
    """Hold a lock until killed."""
    from mlc.registry.locks import Locks

    with getattr(Locks(Path(path)), way)(lock):
        say("held")
        signal.pause()


class Zygote:
    """The forking process, seen from the test."""

    def __init__(self, *, light: bool = False) -> None:
        command = [sys.executable, "-P", "-m", "mlc.tests.registry.crash_child", *(["light"] if light else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.lines: list[list[str]] = []

    def spawn(self, kind: str, *arguments: object) -> int:
        """Fork a writer; returns its pid."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, (kind, *arguments))) + "\n")
        self.process.stdin.flush()
        return int(self.until("pid")[1])

    def until(self, word: str) -> list[str]:
        """The next line that begins with `word`; other lines are kept in `lines`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.split()
            if words and words[0] == word:
                return words
            self.lines.append(words)
        raise EOFError(f"the forking process ended before it said {word!r}")

    def wait(self) -> dict[int, int]:
        """Wait for all writers to end; returns how, by pid (negative: the signal)."""
        assert self.process.stdin is not None
        self.process.stdin.write("wait\n")
        self.process.stdin.flush()
        ended = self.until("ended")[1:]
        return {int(pid): int(code) for pid, _, code in (word.partition(":") for word in ended)}

    def close(self) -> None:
        """End it and everything that it forked."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()


def load_everything() -> None:
    """Import what a commit imports, so that forked writers need not."""
    import duckdb
    import torch

    import mlc.registry.catalog.catalog
    import mlc.registry.delta.chooser
    import mlc.registry.objects.writer  # noqa: F401

    assert duckdb
    torch.set_num_threads(1)


def main() -> None:
    """Serve: fork what is asked for, say who it is, and at `wait` how all ended."""
    if "light" not in sys.argv:
        load_everything()
    children: list[int] = []
    for line in sys.stdin:
        kind, *arguments = line.split()
        if kind == "wait":
            codes = [(pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) for pid in children]
            children.clear()
            say("ended", *(f"{pid}:{code}" for pid, code in codes))
            continue
        pid = os.fork()
        if pid == 0:
            {"strike": strike, "write_for_ever": write_for_ever, "write_some": write_some, "hold": hold}[kind](*arguments)
            os._exit(0)
        children.append(pid)
        say("pid", pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
