"""One line of the journal: how a record is written, hashed, read back and distrusted. Nothing here opens a file."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .ids import record_digest
from .records import Json, canonical

DOMAIN = "mlc.journal.v1"
GENESIS = ""  # what the first record has for `prev`
_WIDTH = 8  # hex digits of the length


class BadLine(ValueError):
    """These bytes are no record: cut short, damaged, or not ours."""


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One event. `hash` binds it to `prev` and so to everything before it."""

    seq: int  # 1, 2, 3, ... without gaps
    prev: str
    txid: str
    time: str
    author: str
    body: dict[str, Json]
    hash: str

    @property
    def refs(self) -> list[dict[str, Json]]:
        """Its ref updates as JSON, empty when it moved none."""
        return self.body.get("refs") or []


def make_record(seq: int, prev: str, body: dict[str, Json], *, txid: str, author: str, time: str) -> JournalRecord:
    """A record with its hash."""
    rest = canonical({"seq": seq, "prev": prev, "txid": txid, "time": time, "author": author, "body": body})
    return JournalRecord(seq, prev, txid, time, author, body, _hash(prev, rest))


def encode_line(record: JournalRecord) -> bytes:
    """The bytes of a record in the journal, newline included."""
    data = canonical({slot: getattr(record, slot) for slot in JournalRecord.__slots__})
    return b"%0*x %s\n" % (_WIDTH, len(data), data)


def parse_line(line: bytes) -> JournalRecord:
    """The inverse of `encode_line`, with the record's own hash checked. Raises BadLine."""
    data = line[_WIDTH + 1 : -1]
    if line[-1:] != b"\n" or line[:_WIDTH] != b"%0*x" % (_WIDTH, len(data)) or line[_WIDTH : _WIDTH + 1] != b" ":
        raise BadLine("the line is cut short")
    try:
        record = JournalRecord(**json.loads(data))
    except (ValueError, TypeError) as fault:
        raise BadLine("the line is no record") from fault
    # Keys are sorted, so the hash stands after the body and before three plain values: the last match is the record's own.
    marker = b',"hash":"%s"' % str(record.hash).encode()
    before, found, after = data.rpartition(marker)
    if not found or _hash(str(record.prev), before + after) != record.hash:
        raise BadLine("the record does not have the hash it claims")
    return record


def follows(record: JournalRecord, seq: int, prev: str) -> bool:
    """Whether this is the record that comes after (seq, prev)."""
    return record.seq == seq + 1 and record.prev == prev


def _hash(prev: str, rest: bytes) -> str:
    return record_digest(DOMAIN, prev.encode() + b"\n" + rest)
