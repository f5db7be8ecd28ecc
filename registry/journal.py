"""The journal: what happened, one line per event, each line bound to the one before it. Appending a line is the commit point.

    <8 hex digits: length of the JSON> <canonical JSON>\\n          seq, prev, txid, time, author, body, hash

`hash` covers `prev` and the rest of the record, so no line can be changed, dropped or moved unseen. `seal` names the last line that
was acknowledged and where it ends; reading starts there, so that nothing but a full check costs more as history grows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from . import fs
from .errors import CorruptRecord
from .journal_lines import BadLine, JournalRecord, encode_line, follows, make_record, parse_line
from .journal_seal import EMPTY, Place, decode_seal, encode_seal
from .records import Json

SEGMENT_BYTES = 64 << 20  # a segment that has reached this size gets no further line
_BLOCK = 1 << 16

__all__ = ["Journal", "JournalRecord", "utc_now"]


def utc_now() -> str:
    """The present as records write it: UTC, ISO 8601 with microseconds and Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class _Bad(Exception):
    """Where a scan met a line that is no record or does not follow."""

    def __init__(self, segment: int, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.segment, self.offset, self.reason = segment, offset, reason


class Journal:
    """The segments and the seal of one registry. Reading needs no lock; appending needs the `write` lock, which the caller holds."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._appended: Place | None = None

    # --- reading ---------------------------------------------------------------------------------------------

    def head(self) -> tuple[int, str]:
        """(seq, hash) of the last record; (0, "") when there is none. Cost does not depend on the length of history."""
        place, _ = self._tail(self.read_seal())
        return place.seq, place.hash

    def records(self, after_seq: int = 0) -> Iterator[JournalRecord]:
        """Stream the records after `after_seq`, oldest first, hashes and chain checked. Raises CorruptRecord."""
        seal = self.read_seal()
        start = self._find_place(after_seq, seal)
        if start is None:
            return
        last = start
        try:
            for record, place in self._walk(start):
                last = place
                yield record
        except _Bad as bad:
            if seal is None or not seal.covers_up_to(bad.segment, bad.offset):
                raise self._corrupt(bad) from None
        if seal is not None and last.seq < seal.seq:
            raise CorruptRecord(f"the journal ends at record {last.seq}, but {seal.seq} were acknowledged", hint="mlc fsck")

    def backward(self) -> Iterator[JournalRecord]:
        """The records, newest first: for questions about the recent past. Each record's own hash is checked."""
        place, _ = self._tail(self.read_seal())
        for segment in range(place.segment, 0, -1):
            end = place.end if segment == place.segment else self._size(segment)
            with self._path(segment).open("rb") as file:
                for line in _lines_back(file.fileno(), end):
                    yield self._parse(line, segment)

    def with_text(self, needle: str) -> Iterator[JournalRecord]:
        """The records whose line contains `needle`, newest first; the others are not parsed (10 MB take about 10 ms)."""
        sought = needle.encode()
        place, _ = self._tail(self.read_seal())
        for segment in range(place.segment, 0, -1):
            data = self._path(segment).read_bytes()
            end = place.end if segment == place.segment else len(data)
            while (found := data.rfind(sought, 0, end)) >= 0:
                start = data.rfind(b"\n", 0, found) + 1
                yield self._parse(data[start : data.index(b"\n", found) + 1], segment)
                end = start

    def find(self, txid: str, kind: str | None = None) -> JournalRecord | None:
        """The last record that this transaction wrote (of this kind), or None."""
        found = (record for record in self.with_text(f'"txid":"{txid}"') if record.txid == txid)
        return next((record for record in found if kind in (None, record.body.get("kind"))), None)

    def hash_of(self, seq: int) -> str | None:
        """The hash of record `seq`; None when there is no such record."""
        place = self._find_place(seq, self.read_seal())
        return place.hash if place is not None else None

    def verify(self) -> tuple[int, str]:
        """Check every line, the chain and the seal; returns the head. Raises CorruptRecord."""
        seal, last = self.read_seal(), (0, "")
        if seal is None:
            raise CorruptRecord("the seal of the journal is missing or damaged", hint="mlc fsck")
        for record in self.records():
            last = record.seq, record.hash
            if record.seq == seal.seq and record.hash != seal.hash:
                raise CorruptRecord(f"journal record {record.seq} is not the one that was sealed", hint="mlc fsck")
        return last

    # --- writing: under the write lock -----------------------------------------------------------------------

    def append(self, body: dict[str, Json], *, txid: str, author: str, time: str) -> JournalRecord:
        """Write one record durably: the commit point. `seal` is to follow. Raises OSError; then the record does not exist."""
        place, bad = self._tail(self.read_seal())
        if bad is not None:
            self._cut(bad)
        record = make_record(place.seq + 1, place.hash, body, txid=txid, author=author, time=time)
        line = encode_line(record)
        segment, at = self._room(place)
        fd = os.open(self._path(segment), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fs.append_durable(fd, line, at=at)
        finally:
            os.close(fd)
        self._appended = Place(record.seq, record.hash, segment, at, at + len(line))
        return record

    def seal(self) -> None:
        """Remember the record just appended as acknowledged."""
        if self._appended is not None:
            fs.replace_text(self.directory / "seal", encode_seal(self._appended))

    def create(self) -> None:
        """The empty first segment of a new journal."""
        fs.make_dir(self.directory)
        fs.write_new(self._path(1), b"")
        fs.fsync_dir(self.directory)

    def recover(self) -> list[str]:
        """Cut a torn last line beyond the seal (its bytes go to quarantine) and bring the seal up to date.

        Returns one sentence for each thing repaired. Raises CorruptRecord when what was acknowledged is damaged.
        """
        seal = self.read_seal()
        if seal is not None:
            self._check_sealed(seal)
        place, bad = self._tail(seal)
        said = []
        if bad is not None:
            self._cut(bad)
            said.append(f"an unfinished journal record after {place.seq} was cut off and kept in quarantine")
        if place != (seal or EMPTY):
            self._appended = place
            self.seal()
            if seal is None:
                said.append("the seal of the journal was missing or damaged and was written again")
        return said

    # --- places ----------------------------------------------------------------------------------------------

    def read_seal(self) -> Place | None:
        """What was last sealed; None when the seal is missing or damaged."""
        try:
            return decode_seal((self.directory / "seal").read_bytes())
        except FileNotFoundError:
            return None

    def _tail(self, seal: Place | None) -> tuple[Place, _Bad | None]:
        """Where the last good record ends, looking only behind the seal; and what stands after it, if that is no record."""
        place = seal or EMPTY
        try:
            for _, there in self._walk(place):
                place = there
        except _Bad as bad:
            if seal is None:  # nothing tells an unfinished line from a damaged one
                raise self._corrupt(bad) from None
            return place, bad
        return place, None

    def _walk(self, start: Place) -> Iterator[tuple[JournalRecord, Place]]:
        """Records after a place, with the place of each. Raises _Bad at the first line that is no record or does not follow."""
        place, segment, offset = start, start.segment, start.end
        while True:
            try:
                file = self._path(segment).open("rb")
            except FileNotFoundError:
                if segment == start.segment:
                    raise CorruptRecord(f"journal segment {segment} is missing", hint="mlc fsck") from None
                return
            with file:
                if os.fstat(file.fileno()).st_size < offset:
                    raise CorruptRecord(f"journal segment {segment} is shorter than what was acknowledged", hint="mlc fsck")
                file.seek(offset)
                for line in file:
                    try:
                        record = parse_line(line)
                    except BadLine as fault:
                        raise _Bad(segment, offset, str(fault)) from None
                    if not follows(record, place.seq, place.hash):
                        raise _Bad(segment, offset, f"record {record.seq} does not follow record {place.seq}")
                    place = Place(record.seq, record.hash, segment, offset, offset + len(line))
                    yield record, place
                    offset = place.end
            segment, offset = segment + 1, 0

    def _find_place(self, seq: int, seal: Place | None) -> Place | None:
        """Where record `seq` stands, by bisection; None when there is no such record yet."""
        if seq <= 0:
            return EMPTY
        if seal is not None and seq >= seal.seq:
            if seq == seal.seq:
                return seal
            return next((place for record, place in self._walk_good(seal) if record.seq == seq), None)
        return self._bisect(seq)

    def _walk_good(self, start: Place) -> Iterator[tuple[JournalRecord, Place]]:
        with contextlib.suppress(_Bad):
            yield from self._walk(start)

    def _bisect(self, seq: int) -> Place | None:
        segments = self.segments()
        while len(segments) > 1 and self._record_at(segments[-1], 0)[0].seq > seq:
            segments.pop()
        if not segments:
            return None
        segment = segments[-1]
        low, high = 0, self._size(segment)  # record `seq` starts in [low, high)
        while low < high:
            record, start, end = self._record_at(segment, (low + high) // 2)
            if record.seq == seq:
                return Place(seq, record.hash, segment, start, end)
            low, high = (end, high) if record.seq < seq else (low, start)
        return None

    def _record_at(self, segment: int, offset: int) -> tuple[JournalRecord, int, int]:
        """The record whose line covers byte `offset`, and where that line begins and ends."""
        with self._path(segment).open("rb") as file:
            start = 0
            position = offset
            while position > 0:
                low = max(0, position - _BLOCK)
                block = os.pread(file.fileno(), position - low, low)
                if (found := block.rfind(b"\n")) >= 0:
                    start = low + found + 1
                    break
                position = low
            file.seek(start)
            line = file.readline()
        return self._parse(line, segment), start, start + len(line)

    # --- steps -----------------------------------------------------------------------------------------------

    def segments(self) -> list[int]:
        """Numbers of the segments that hold something, in order."""
        names = sorted(path.stem for path in self.directory.glob("[0-9]" * 8 + ".log") if path.stat().st_size)
        return [int(name) for name in names]

    def _path(self, segment: int) -> Path:
        return self.directory / f"{segment:08d}.log"

    def _size(self, segment: int) -> int:
        return self._path(segment).stat().st_size

    def _room(self, place: Place) -> tuple[int, int]:
        """The segment and offset for the next line; makes a new segment when the last is full."""
        if place.end < SEGMENT_BYTES:
            return place.segment, place.end
        fresh = self._path(place.segment + 1)
        if not fresh.exists():
            fs.write_new(fresh, b"")
            fs.fsync_dir(self.directory)
        return place.segment + 1, 0

    def _check_sealed(self, seal: Place) -> None:
        if seal.seq == 0:
            return
        with self._path(seal.segment).open("rb") as file:
            line = os.pread(file.fileno(), seal.end - seal.start, seal.start)
        record = self._parse(line, seal.segment)
        if (record.seq, record.hash) != (seal.seq, seal.hash):
            raise CorruptRecord(f"journal record {seal.seq} is not the one that was sealed", hint="mlc fsck")

    def _cut(self, bad: _Bad) -> None:
        path = self._path(bad.segment)
        torn = path.read_bytes()[bad.offset :]
        if self._good_after(bad, torn):
            raise self._corrupt(bad)
        place = self.directory.parent / "quarantine"
        fs.make_dir(place)
        with contextlib.suppress(FileExistsError):  # cut before, and died before the truncation was durable
            fs.write_new(place / f"journal-{bad.segment:08d}-{bad.offset}-{utc_now().replace(':', '')}.torn", torn)
        fs.fsync_dir(place)
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fs.truncate(fd, bad.offset)
        finally:
            os.close(fd)

    def _good_after(self, bad: _Bad, torn: bytes) -> bool:
        """Whether any whole record stands after a bad one: then it is damage, and no unfinished write."""
        if self._path(bad.segment + 1).exists() and self._size(bad.segment + 1):
            return True
        for line in torn.split(b"\n")[1:]:
            with contextlib.suppress(BadLine):
                parse_line(line + b"\n")
                return True
        return False

    def _parse(self, line: bytes, segment: int) -> JournalRecord:
        try:
            return parse_line(line)
        except BadLine as fault:
            raise CorruptRecord(f"journal segment {segment} is damaged: {fault}", hint="mlc fsck") from fault

    def _corrupt(self, bad: _Bad) -> CorruptRecord:
        return CorruptRecord(f"journal segment {bad.segment} is damaged at byte {bad.offset}: {bad.reason}", hint="mlc fsck")


def _lines_back(fd: int, end: int) -> Iterator[bytes]:
    """Lines of a file up to byte `end`, last first."""
    rest = b""
    while end > 0:
        low = max(0, end - _BLOCK)
        rest = os.pread(fd, end - low, low) + rest
        end = low
        first = 0 if low == 0 else rest.find(b"\n") + 1  # what comes before may begin in the block before
        yield from (line + b"\n" for line in reversed(rest[first:].split(b"\n")[:-1]))
        rest = rest[:first] if low else b""
