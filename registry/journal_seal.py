"""The seal: one small file that names the last acknowledged record and where it lies, with a digest of its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from .ids import record_digest
from .records import canonical


@dataclass(frozen=True, slots=True)
class Place:
    """A record of the journal and the bytes [start, end) of its segment that hold it."""

    seq: int
    hash: str
    segment: int
    start: int
    end: int

    def covers_up_to(self, segment: int, offset: int) -> bool:
        """Whether nothing acknowledged stands at or after that byte."""
        return (segment, offset) >= (self.segment, self.end)


EMPTY = Place(0, "", 1, 0, 0)  # before the first record


def encode_seal(place: Place) -> str:
    """One line of JSON."""
    fields = asdict(place)
    return canonical({**fields, "digest": _digest(fields)}).decode() + "\n"


def decode_seal(data: bytes) -> Place | None:
    """The inverse of `encode_seal`; None for anything damaged."""
    try:
        fields = json.loads(data)
        digest = fields.pop("digest")
        return Place(**fields) if digest == _digest(fields) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _digest(fields: dict[str, str | int]) -> str:
    return record_digest("mlc.seal.v1", canonical(fields))
