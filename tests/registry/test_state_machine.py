"""Any sequence of moves, with a failing disk in between: the registry always agrees with a dictionary."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlc.registry import fs
from mlc.registry.errors import RefMoved
from mlc.registry.ids import CommitId
from mlc.registry.records import RefUpdate
from mlc.registry.repository import Repository
from mlc.registry.undo import NothingToUndo
from mlc.tests.registry.crash_child import open_quick

NAMES = st.sampled_from(["heads/main", "heads/side", "tags/v1", "aliases/champion"])
COMMITS = st.sampled_from([CommitId(digit * 64) for digit in "abcdef"])
FAULTS = st.none() | st.tuples(st.integers(1, 22), st.sampled_from(["eio", "enospc", "short"]))
State = dict[str, CommitId]


class Registry(RuleBasedStateMachine):
    """The registry on disk beside a model of it: refs, what can be undone, what can be redone, the number of records."""

    def __init__(self) -> None:
        super().__init__()
        self.sync, self.place = fs._sync, Path(tempfile.mkdtemp(prefix="mlc-machine-"))
        self.refs: State = {}
        self.past: list[State] = []
        self.future: list[State] = []
        self.records = 1

    def teardown(self) -> None:
        fs._sync, fs.FAULTS = self.sync, None
        shutil.rmtree(self.place)

    @initialize()
    def make(self) -> None:
        self.repo = open_quick(Repository.init(self.place).path)

    def attempt(self, fault: tuple[int, str] | None, work) -> bool:
        """Whether `work` was done; a disk that fails may stop it, and then nothing may have happened."""
        fs.FAULTS = fs.FaultPlan(*fault) if fault else None  # type: ignore[arg-type]
        try:
            work()
            self.records += 1
            return True
        except (fs.DiskFull, fs.DiskFault):
            assert fault is not None
            assert fault[1] != "short"
            return False
        finally:
            fs.FAULTS = None

    def moved(self, after: State) -> None:
        self.past.append(self.refs)
        self.refs = after
        self.future.clear()

    @rule(moves=st.dictionaries(NAMES, COMMITS, min_size=1, max_size=3), fault=FAULTS)
    def move(self, moves: dict[str, CommitId], fault: tuple[int, str] | None) -> None:
        updates = [RefUpdate(name, self.refs.get(name), new) for name, new in moves.items()]
        if self.attempt(fault, lambda: self.repo.move_refs(updates, reason="test", author="ada")):
            self.moved(self.refs | moves)

    @rule(name=NAMES, fault=FAULTS)
    def remove(self, name: str, fault: tuple[int, str] | None) -> None:
        update = RefUpdate(name, self.refs.get(name), None)
        if name in self.refs and self.attempt(fault, lambda: self.repo.move_refs([update], reason="test", author="ada")):
            self.moved({other: commit for other, commit in self.refs.items() if other != name})

    @rule(name=NAMES, old=COMMITS)
    def expect_wrongly(self, name: str, old: CommitId) -> None:
        if self.refs.get(name) != old:
            try:
                self.repo.move_refs([RefUpdate("tags/v9", None, old), RefUpdate(name, old, None)], reason="test", author="ada")
            except RefMoved:
                return
            raise AssertionError("a ref moved from where it was not")

    @rule(fault=FAULTS)
    def undo(self, fault: tuple[int, str] | None) -> None:
        self.step(self.repo.undo, self.past, self.future, fault)

    @rule(fault=FAULTS)
    def redo(self, fault: tuple[int, str] | None) -> None:
        self.step(self.repo.redo, self.future, self.past, fault)

    def step(self, work, come_from: list[State], go_to: list[State], fault: tuple[int, str] | None) -> None:
        try:
            done = self.attempt(fault, lambda: work("ada"))
        except NothingToUndo:
            assert not come_from
            return
        if done:
            go_to.append(self.refs)
            self.refs = come_from.pop()

    @rule(fault=FAULTS)
    def note(self, fault: tuple[int, str] | None) -> None:
        self.attempt(fault, lambda: self.repo.record({"kind": "note"}, author="ada"))

    @rule()
    def reopen(self) -> None:
        self.repo = open_quick(self.place)

    @rule(bytes_=st.binary(min_size=1, max_size=40))
    def die_while_appending(self, bytes_: bytes) -> None:
        with (self.repo.journal.directory / "00000001.log").open("ab") as file:
            file.write(b"000001ff {" + bytes_.replace(b"\n", b""))
        self.repo = open_quick(self.place)

    @rule(damage=st.sampled_from(["seq", "heads/main", "tags/v1"]), text=st.sampled_from(["", "rubbish", "f" * 64 + "\n"]))
    def damage_the_mirror(self, damage: str, text: str) -> None:
        (self.place / ".mlc" / "refs" / damage).write_text(text)
        self.repo = open_quick(self.place)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "repo"):
            return
        expected = dict(sorted(self.refs.items()))
        assert self.repo.refs.all() == expected
        other = Repository.open(self.place)
        assert other.refs.all() == expected
        assert other.journal.verify() == self.repo.journal.head()
        assert other.journal.head()[0] == self.records


Registry.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestRegistry = Registry.TestCase
