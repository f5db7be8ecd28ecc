"""Refs: names for commits. The journal says where each one is; small text files mirror it, so that reading needs no database.

    refs/heads/main   refs/tags/v1   refs/aliases/champion      one commit id and a newline each
    refs/seq                                                    the last journal record that the mirror contains

The mirror may lag (it is written after the commit point); whoever reads it adds the journal's tail in memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import fs
from .errors import BadParameter, CorruptRecord, RefMoved
from .ids import CommitId, RefName, is_digest, short
from .journal import Journal
from .records import RefUpdate

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


class RefStore:
    """The refs of one registry. Reading takes no lock and answers with one finished state."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self.directory = Path(directory)
        self._journal = journal

    # --- reading ---------------------------------------------------------------------------------------------

    def all(self) -> dict[RefName, CommitId]:
        """Every ref by full name, sorted."""
        # The order matters: seq, then the files, then the journal. What a writer changes in between is in the tail.
        seq = self.mirrored()
        refs = dict(self._files()) if seq else {}
        for update in self._moves_after(seq):
            refs[RefName(update.name)] = update.new
        return {name: refs[name] for name in sorted(refs) if refs[name] is not None}  # type: ignore[misc]

    def read(self, name: str) -> CommitId | None:
        """Where one ref is; None when it does not exist."""
        seq = self.mirrored()
        value = self._file(RefName(name)) if seq else None
        for update in self._moves_after(seq):
            value = update.new if update.name == name else value
        return value

    def mirrored(self) -> int:
        """The journal record up to which the mirror is complete; 0 when the mirror cannot be used."""
        try:
            return max(0, int((self.directory / "seq").read_text(encoding="ascii")))
        except (OSError, ValueError):
            return 0

    def reflog(self, name: str) -> list[Move]:
        """Every move of a ref, oldest first."""
        found = self._journal.with_text(f'"name":"{check_name(name)}"')
        moves = [
            Move(record.seq, record.time, record.author, update.old, update.new, record.body.get("reason") or record.body["kind"])
            for record in found
            for update in map(RefUpdate.from_json, record.refs)
            if update.name == name
        ]
        return moves[::-1]

    # --- writing: under the write lock -----------------------------------------------------------------------

    def check(self, updates: Iterable[RefUpdate]) -> None:
        """Compare: raises RefMoved when a ref is not where an update expects it, BadRefName for a name that cannot be."""
        updates, refs = list(updates), None
        if len({update.name for update in updates}) < len(updates):
            raise BadRefName("a ref is moved twice in one step")
        for update in updates:
            refs = self.all() if refs is None else refs
            present = refs.get(check_name(update.name))
            if present != update.old:
                raise RefMoved(
                    f"{shown_name(update.name)} is at {_shown(present)}, not at {_shown(update.old)}: somebody moved it meanwhile",
                    hint="look at `mlc log`, then try again", ref=update.name, expected=update.old, actual=present,
                )  # fmt: skip
            if present is None and update.new is not None:
                _check_room(update.name, [name for name in refs if not any(u.name == name and u.new is None for u in updates)])

    def mirror(self, seq: int) -> None:
        """Bring the files up to the journal's record `seq`. Interrupted anywhere, it can be done again."""
        before = self.mirrored()
        if before >= seq:
            return
        if not before:
            self._rewrite()
        latest = {update.name: update.new for update in self._moves_after(before)}
        for name in sorted(latest, key=lambda name: latest[name] is not None):  # removals first: x may make room for x/y
            self._put(RefName(name), latest[name])
        fs.replace_text(self.directory / "seq", f"{self._journal.head()[0]}\n")

    def _rewrite(self) -> None:
        """Drop files that the journal does not know."""
        known = {update.name for update in self._moves_after(0) if update.new is not None}
        for name, _ in list(self._files()):
            if name not in known:
                fs.remove(self.directory / name)

    def _put(self, name: RefName, commit: CommitId | None) -> None:
        path = self.directory / check_name(name)
        if commit is None:
            fs.remove(path)
            for parent in list(path.relative_to(self.directory).parents)[:-2]:  # empty folders would stand in the way of a ref called so
                try:
                    (self.directory / parent).rmdir()
                except OSError:
                    break
            return
        fs.make_dir(path.parent)
        fs.replace_text(path, f"{commit}\n")

    # --- steps -----------------------------------------------------------------------------------------------

    def _moves_after(self, seq: int) -> Iterator[RefUpdate]:
        for record in self._journal.records(seq):
            yield from map(RefUpdate.from_json, record.refs)

    def _files(self) -> Iterator[tuple[RefName, CommitId]]:
        for kind in KINDS:
            for folder, _, files in os.walk(self.directory / kind):
                for file in files:
                    name = RefName(Path(folder, file).relative_to(self.directory).as_posix())
                    if not file.startswith(".") and (commit := self._file(name)):
                        yield name, commit

    def _file(self, name: RefName) -> CommitId | None:
        try:
            text = (self.directory / name).read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        if not is_digest(text.strip()):
            raise CorruptRecord(
                f"the mirror of {name} is damaged", hint="remove .mlc/refs/seq: the next write restores the mirror from the journal"
            )
        return CommitId(text.strip())


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
