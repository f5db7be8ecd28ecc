"""Level 0: the ends of the journal, the refs, and how far the catalog is. Cost does not depend on the length of history."""

from __future__ import annotations

import os
from typing import Any

from ..catalog.connection import Damaged, applied, duckdb_error, one_line, reader
from ..errors import IntegrityError, NotFound
from ..journal_lines import BadLine, parse_line
from ..journal_seal import Place
from .findings import Notes

FORMAT = "mlc 1\n"


def check_ends(repo: Any, notes: Notes) -> bool:
    """Level 0. Returns whether the journal's end could be read at all."""
    _check_small_files(repo, notes)
    seal = _check_seal(repo, notes)
    try:
        head = repo.journal.head()
    except IntegrityError as fault:
        notes.error(0, "journal", "journal", fault)
        return False
    if seal is not None:
        _check_tail(repo, notes, seal)
    _check_refs(repo, notes)
    _check_catalog(repo, notes, head)
    return True


def _check_small_files(repo: Any, notes: Notes) -> None:
    if (repo.path / "format").read_text(encoding="utf-8", errors="replace") != FORMAT:
        notes.fault(0, "format", "format", "the file does not say `mlc 1`")
    try:
        repo.head()
        if not (repo.path / "HEAD").read_bytes().endswith(b"\n"):
            notes.fault(0, "head", "HEAD", "the file is cut short")
    except (IntegrityError, NotFound) as fault:
        notes.error(0, "head", "HEAD", fault)


def _check_seal(repo: Any, notes: Notes) -> Place | None:
    seal = repo.journal.read_seal()
    if seal is None:
        notes.fault(0, "seal", "journal/seal", "the seal is missing or damaged: nothing says where the acknowledged history ends")
        return None
    if seal.seq:
        record = None
        try:
            with open(repo.journal.directory / f"{seal.segment:08d}.log", "rb") as file:
                record = parse_line(os.pread(file.fileno(), seal.end - seal.start, seal.start))
        except (BadLine, FileNotFoundError):
            pass
        if record is None or (record.seq, record.hash) != (seal.seq, seal.hash):
            notes.fault(0, "journal", "journal", f"record {seal.seq} is not the one that was sealed")
    return seal


def _check_tail(repo: Any, notes: Notes, seal: Place) -> None:
    """What stands behind the sealed record: whole records (a seal may lag), or one that was never finished."""
    for segment in [number for number in repo.journal.segments() if number >= seal.segment]:
        with open(repo.journal.directory / f"{segment:08d}.log", "rb") as file:
            file.seek(seal.end if segment == seal.segment else 0)
            lines = file.readlines()
        good = [_is_record(line) for line in lines]
        if False in good:
            first = good.index(False)
            if True in good[first:]:
                notes.fault(0, "journal", f"journal/{segment:08d}.log", "a damaged record stands before whole ones, behind the seal")
            else:
                sentence = "an unfinished record stands at the end; the next write cuts it off and keeps it"
                notes.remark(0, "journal", f"journal/{segment:08d}.log", sentence)


def _is_record(line: bytes) -> bool:
    try:
        parse_line(line)
    except BadLine:
        return False
    return True


def _check_refs(repo: Any, notes: Notes) -> None:
    try:
        refs = repo.refs.all()
    except IntegrityError as fault:
        notes.error(0, "journal", "journal", fault)
        return
    for name, commit in refs.items():
        try:
            repo.commit_bytes(commit)
        except IntegrityError as fault:
            notes.fault(0, "ref", name, f"it points to a commit that cannot be read: {fault.message}")


def _check_catalog(repo: Any, notes: Notes, head: tuple[int, str]) -> None:
    """Only how far it is. A catalog that lags or is gone is made up for by whoever opens it next."""
    path = repo.path / "catalog.duckdb"
    if not path.exists():
        if head[0] > 1:
            notes.remark(0, "catalog", path.name, "there is none; the next question builds it")
        return
    try:
        with repo.locks.shared("catalog"), reader(path) as connection:
            state = applied(connection)
    except Damaged as fault:
        notes.error(0, "catalog", path.name, fault)
        return
    except duckdb_error() as fault:
        notes.fault(0, "catalog", path.name, f"{one_line(fault)}: mlc reindex")
        return
    seq, head_hash = repo.journal.head()  # again: it may have grown meanwhile
    if state.seq > seq or (state.seq == seq and state.head != head_hash):
        notes.fault(0, "catalog", path.name, f"it stands at record {state.seq} of another history; the journal at {seq}: mlc reindex")
    elif state.seq < seq:
        notes.remark(0, "catalog", path.name, f"it stands at record {state.seq}, the journal at {seq}; the next question catches up")
