"""Refs: names for commits. The journal says where each one is; small text files mirror it, so that reading needs no database.

    refs/heads/main   refs/tags/v1   refs/aliases/champion      one commit id and a newline each
    refs/seq                                                    the last journal record that the mirror contains, digest of the mirror

The mirror is written after the commit point and may lag, or be damaged by a power cut: it is never synced. Whoever reads it checks
its digest and adds the journal's tail; where it cannot be used, the journal is read as a whole, and the next writer mends the mirror.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import fs
from .errors import BadParameter, RefMoved
from .ids import CommitId, RefName, is_digest, record_digest, short
from .journal import Journal
from .records import Json, RefUpdate, canonical

KINDS = {"heads": "branch", "tags": "tag", "aliases": "alias"}
MAX_PARTS = 8
_PART = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


class BadRefName(BadParameter):
    """A name that no ref may have."""


@dataclass(frozen=True, slots=True)
class Move:
    """One line of a reflog."""

    seq: int
    time: str
    author: str
    old: CommitId | None
    new: CommitId | None
    reason: str


def check_name(name: str) -> RefName:
    """`name` (full: heads/main) if a ref may be called so. Raises BadRefName."""
    kind, _, rest = name.partition("/")
    if kind not in KINDS:
        raise BadRefName(f"{name!r} is not a full ref name", hint="heads/NAME, tags/NAME or aliases/NAME")
    if fault := _name_fault(rest):
        close = re.sub(r"[^a-z0-9._/-]+", "-", rest.lower()).strip("-./")
        hint = (
            f"for example {close!r}"
            if close != rest and close and not _name_fault(close)
            else "lower-case letters, digits, '.', '_', '-' and '/'"
        )
        raise BadRefName(f"a {KINDS[kind]} cannot be called {rest!r}: {fault}", hint=hint)
    return RefName(name)


def _name_fault(name: str) -> str | None:
    parts = name.split("/")
    if len(parts) > MAX_PARTS:
        return f"it has more than {MAX_PARTS} parts"
    if is_digest(name):
        return "it looks like a commit id"
    return next((fault for part in parts if (fault := _part_fault(part))), None)


def _part_fault(part: str) -> str | None:
    if part != part.lower() or not part.isascii():
        return "only lower-case ASCII letters are the same name on every system"
    if not _PART.fullmatch(part):
        return "each part is 1 to 64 of a-z, 0-9, '.', '_', '-' and begins with a letter or digit"
    if ".." in part or part.endswith((".lock", ".")):
        return "'..', a last '.' and '.lock' are reserved"
    return f"{part!r} is a device on some systems" if part.partition(".")[0] in _DEVICES else None


@dataclass(frozen=True, slots=True)
class _State:
    """All refs as of one journal record."""

    seq: int
    hash: str | None  # of that record; None when it was read from the mirror
    refs: dict[RefName, CommitId]


_NOTHING = _State(0, None, {})


class RefStore:
    """The refs of one registry. Reading takes no lock and answers with one finished state."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self.directory = Path(directory)
        self._journal = journal
        self._known: _State | None = None
        self._mirror_sound = False

    # --- reading ---------------------------------------------------------------------------------------------

    def all(self) -> dict[RefName, CommitId]:
        """Every ref by full name, sorted."""
        refs = self._state().refs
        return {name: refs[name] for name in sorted(refs)}

    def read(self, name: str) -> CommitId | None:
        """Where one ref is; None when it does not exist."""
        return self._state().refs.get(RefName(name))

    def mirrored(self) -> int:
        """The journal record up to which the mirror says it is complete; 0 when it says nothing."""
        return self._mark()[0]

    def reflog(self, name: str) -> list[Move]:
        """Every move of a ref, oldest first."""
        return list(self.moves(name))[::-1]

    def moves(self, name: str) -> Iterator[Move]:
        """The moves of a ref, newest first; the journal is read as far as it is asked."""
        check_name(name)
        for record in self._journal.with_text(f'"name":"{name}"'):
            for update in map(RefUpdate.from_json, record.refs):
                if update.name == name:
                    reason = record.body.get("reason") or record.body["kind"]
                    yield Move(record.seq, record.time, record.author, update.old, update.new, reason)

    def _state(self) -> _State:
        """The refs at the head of the journal: what is known, or the mirror, or nothing, and the moves since."""
        state = self._known or self._from_mirror() or _NOTHING
        if state.hash is not None and self._journal.hash_of(state.seq) != state.hash:
            state = self._from_mirror() or _NOTHING  # a record was read that its writer then took back
        seq, last, refs = state.seq, state.hash, dict(state.refs)
        for record in self._journal.records(state.seq):
            seq, last = record.seq, record.hash
            _apply(refs, record.refs)
        self._known = _State(seq, last, refs)
        return self._known

    def _from_mirror(self) -> _State | None:
        """The mirror, if its digest says that it is whole."""
        for wait in (0.003, 0.0):
            seq, digest = self._mark()
            if not seq or seq > self._journal.head()[0]:
                return None
            refs = self._files()
            if _digest(refs) == digest:
                self._mirror_sound = True
                return _State(seq, None, refs)
            time.sleep(wait)  # a writer may be at work in there
        return None

    def _mark(self) -> tuple[int, str]:
        try:
            seq, digest = (self.directory / "seq").read_text(encoding="ascii").split()
            return max(0, int(seq)), digest
        except (OSError, ValueError):
            return 0, ""

    def _files(self) -> dict[RefName, CommitId]:
        found = {}
        for kind in KINDS:
            for folder, _, files in os.walk(self.directory / kind):
                for file in files:
                    if not file.startswith("."):
                        path = Path(folder, file)
                        found[RefName(path.relative_to(self.directory).as_posix())] = _content(path)
        return found

    # --- writing: under the write lock -----------------------------------------------------------------------

    def check(self, updates: Iterable[RefUpdate]) -> None:
        """Compare: raises RefMoved when a ref is not where an update expects it, BadRefName for a name that cannot be."""
        updates, refs = list(updates), self._state().refs
        if len({update.name for update in updates}) < len(updates):
            raise BadRefName("a ref is moved twice in one step")
        for update in updates:
            present = refs.get(check_name(update.name))
            if present != update.old:
                raise RefMoved(
                    f"{shown_name(update.name)} is at {_shown(present)}, not at {_shown(update.old)}: somebody moved it meanwhile",
                    hint="look at `mlc log`, then try again",
                    ref=update.name,
                    expected=update.old,
                    actual=present,
                )
        gone = {update.name for update in updates if update.new is None}
        fresh = [update.name for update in updates if update.old is None and update.new is not None]
        for name in fresh:
            _check_room(name, [other for other in (*refs, *fresh) if other not in gone])

    def mirror(self) -> None:
        """Bring the files up to the journal. Interrupted anywhere, it can be done again."""
        before, _ = self._mark()
        state = self._state()
        if self._mirror_sound and before == state.seq:
            return
        changed = self._changed_since(before) if self._mirror_sound and before else {*self._files(), *state.refs}
        for name in sorted(changed, key=lambda name: name in state.refs):  # removals first: x may make room for x/y
            self._put(name, state.refs.get(name))
        fs.replace_text(self.directory / "seq", f"{state.seq} {_digest(state.refs)}\n", durable=False)
        self._mirror_sound = True

    def _changed_since(self, seq: int) -> set[RefName]:
        return {RefName(update["name"]) for record in self._journal.records(seq) for update in record.refs}

    def _put(self, name: RefName, commit: CommitId | None) -> None:
        path = self.directory / name
        if commit is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fs.replace_text(path, f"{commit}\n", durable=False)
            return
        fs.remove(path)
        for parent in list(path.relative_to(self.directory).parents)[:-2]:  # an empty folder x would stand in the way of a ref x
            try:
                (self.directory / parent).rmdir()
            except OSError:
                return


def _apply(refs: dict[RefName, CommitId], updates: Iterable[dict[str, Json]]) -> None:
    for update in updates:
        if update["new"] is None:
            refs.pop(RefName(update["name"]), None)
        else:
            refs[RefName(update["name"])] = CommitId(update["new"])


def _digest(refs: Mapping[RefName, CommitId]) -> str:
    return record_digest("mlc.refs.v1", canonical(refs))


def _content(path: Path) -> CommitId:
    try:
        return CommitId(path.read_text(encoding="ascii", errors="replace").strip())
    except OSError:
        return CommitId("")


def shown_name(name: str) -> str:
    """How people write a full name: main, v1, @champion."""
    kind, _, rest = name.partition("/")
    return f"@{rest}" if kind == "aliases" else rest


def _shown(commit: CommitId | None) -> str:
    return short(commit) if commit else "no commit"


def _check_room(name: str, present: list[str]) -> None:
    """Refuse x where x/y is, and x/y where x is: they would be a file and a folder of one name."""
    for other in present:
        if other.startswith(f"{name}/") or name.startswith(f"{other}/"):
            raise BadRefName(f"{shown_name(name)!r} cannot be beside {shown_name(other)!r}", hint="choose another name, or remove that one")
