"""What operations made and want again: Fisher sums, covariances, sampled text. Kept by kind and key, also when refused.

A new artifact is a file in `.mlc/runs/artifacts` at once, so that a killed run does not compute it twice. The commit
that used it carries it into the object store; from then on the file is only a pointer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..registry import fs
from ..registry.errors import IntegrityError
from ..registry.ids import Digest, blob_digest, record_digest
from ..registry.records import ArtifactRecord, canonical

if TYPE_CHECKING:
    from ..registry.repository import Repository
    from ..registry.transaction import Transaction


class ArtifactStore:
    """Artifacts of one repository. An index entry is named by the digest of (kind, key), the bytes by their own."""

    def __init__(self, repo: Repository) -> None:
        self.repo = repo
        self.path = repo.path / "runs" / "artifacts"

    def get(self, kind: str, key: str, compute: Callable[[], bytes]) -> tuple[bytes, ArtifactRecord]:
        """The bytes and their record; computed and kept when absent or damaged."""
        found = self.find(kind, key)
        if found is None:
            data = compute()
            found = data, self._keep(kind, key, data)
        return found

    def find(self, kind: str, key: str) -> tuple[bytes, ArtifactRecord] | None:
        """What is kept under this kind and key, verified; None when there is nothing sound."""
        try:
            digest = Digest(json.loads(self._index(kind, key).read_text(encoding="utf-8"))["digest"])
            data = self._read(digest)
        except (OSError, ValueError, KeyError, TypeError, IntegrityError):
            return None
        if blob_digest(data) != digest:
            return None
        return data, ArtifactRecord(kind, key, digest, len(data))

    def adopt(self, records: Iterable[ArtifactRecord]) -> None:
        """Let these artifacts, which a commit carries, be found by kind and key: also in a registry where they were not made."""
        for record in records:
            if self.repo.objects.has(record.digest) and not self._index(record.kind, record.key).is_file():
                self._point(record)

    def carry(self, tx: Transaction, records: list[ArtifactRecord]) -> None:
        """Put the bytes of these artifacts among the objects of a transaction."""
        for record in records:
            if not self.repo.objects.has(record.digest):
                tx.put_blob((self.path / record.digest).read_bytes())

    def release(self, records: list[ArtifactRecord]) -> None:
        """After the commit: the object store has the bytes, so the files go."""
        for record in records:
            if self.repo.objects.has(record.digest):
                (self.path / record.digest).unlink(missing_ok=True)

    def _keep(self, kind: str, key: str, data: bytes) -> ArtifactRecord:
        digest = blob_digest(data)
        with fs.faults_in_words(self.path):
            fs.make_dir(self.path)
            target = self.path / digest
            target.unlink(missing_ok=True)  # a damaged one
            fs.write_new(target, data)
        record = ArtifactRecord(kind, key, digest, len(data))
        self._point(record)
        return record

    def _point(self, record: ArtifactRecord) -> None:
        with fs.faults_in_words(self.path):
            fs.make_dir(self.path)
            fs.replace_text(self._index(record.kind, record.key), canonical(record.to_json()).decode())

    def _index(self, kind: str, key: str) -> Path:
        return self.path / f"{record_digest('mlc.artifact.v1', canonical([kind, key]))}.json"

    def _read(self, digest: Digest) -> bytes:
        if self.repo.objects.has(digest):
            return self.repo.objects.blob(digest)
        return (self.path / digest).read_bytes()
