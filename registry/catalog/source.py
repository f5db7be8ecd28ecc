"""Where projection reads from: the objects and commits of a repository, as plain JSON, verified against their names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import CorruptRecord, HashMismatch, MissingObject
from ..ids import Digest, record_digest
from ..records import Json

if TYPE_CHECKING:
    from ..objects.layout import ObjectInfo


class Source(Protocol):
    """Where projection reads what a journal record names. Every method raises IntegrityError when bytes are missing or wrong."""

    def commit(self, commit: str) -> str: ...  # the canonical JSON
    def snapshot(self, snapshot: str) -> dict[str, Json]: ...
    def deltas(self, digest: str) -> list[dict[str, Json]]: ...
    def evaluation(self, digest: str) -> tuple[str, dict[str, Json]]: ...  # Evaluation.id and the record
    def predictions(self, digest: str) -> bytes: ...
    def pack(self, pack: str) -> Iterable[ObjectInfo]: ...


class RepositorySource:
    """Reads what journal records name. Raises MissingObject, HashMismatch or CorruptRecord."""

    def __init__(self, repo: Any) -> None:
        self._repo = repo
        self._commits = os.path.join(repo.path, "objects", "commits")

    def commit(self, commit: str) -> str:
        """A commit's canonical JSON, from its own file."""
        try:
            with open(f"{self._commits}/{commit}.json", "rb") as file:
                data = file.read()
        except OSError as fault:
            raise MissingObject(f"commit {commit} is not in the registry", hint="mlc fsck") from fault
        if record_digest("mlc.commit.v1", data) != commit:
            raise HashMismatch(f"commit {commit} does not hold the bytes of its name", hint="mlc fsck")
        return data.decode()

    def snapshot(self, snapshot: str) -> dict[str, Json]:
        return self._record("mlc.snapshot.v1", snapshot)

    def deltas(self, digest: str) -> list[dict[str, Json]]:
        return parse(self._blob(digest), f"delta list {digest}")

    def evaluation(self, digest: str) -> tuple[str, dict[str, Json]]:
        data = self._blob(digest)
        return record_digest("mlc.evaluation.v1", data), parse(data, f"evaluation {digest}")

    def predictions(self, digest: str) -> bytes:
        return self._blob(digest)

    def pack(self, pack: str) -> Iterable[ObjectInfo]:
        return self._repo.objects.pack_set.records(pack)

    def _blob(self, digest: str) -> bytes:
        return self._repo.objects.blob(Digest(digest))

    def _record(self, domain: str, digest: str) -> dict[str, Json]:
        """A record is stored as the very bytes its id is the digest of: domain, newline, canonical JSON."""
        return parse(self._blob(digest)[len(domain) + 1 :], digest)


def parse(data: str | bytes, what: str) -> Json:
    """JSON bytes of a record of ours. Raises CorruptRecord."""
    try:
        return json.loads(data)
    except ValueError as fault:
        raise CorruptRecord(f"{what} is not valid JSON", hint="mlc fsck") from fault
