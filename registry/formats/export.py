"""From a snapshot back to a directory, byte for byte: built beside the target, every file's SHA-256 compared, then renamed into place."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .. import fs
from ..errors import BadParameter, CorruptRecord, HashMismatch
from ..ids import Digest
from ..records import Snapshot
from .layouts import Layout, OutFile, as_imported, relayout
from .names import bad_path, shown

if TYPE_CHECKING:
    from ..objects.store import ObjectStore
    from ..repository import Repository

MAX_SHARD_SIZE = 5_000_000_000  # bytes, as huggingface-hub counts
AHEAD = 2  # tensors decoded while the one before is hashed and written


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One file that was written, with the SHA-256 of its content."""

    path: str
    bytes: int
    sha256: str


def export(
    repo: Repository,
    snapshot: Snapshot,
    target: Path,
    *,
    layout: Layout = "hf",
    link: Literal["auto", "copy", "hardlink", "reflink"] = "auto",
    max_shard_size: int = MAX_SHARD_SIZE,
) -> list[ExportedFile]:
    """Write `snapshot` as a new directory `target`; returns the files, sorted by path.

    `layout` hf gives back what was imported, byte for byte; single and shards lay the weights out anew. Every value of `link` copies: in
    a pack there is no file to link to. Raises BadParameter when the target holds something, HashMismatch when a file would not be what the
    snapshot promises; then nothing is left behind.
    """
    target = Path(target).absolute()
    _must_be_free(target)
    with repo.locks.shared("objects"):
        out = as_imported(snapshot) if layout == "hf" else relayout(repo.objects, snapshot, layout, max_shard_size)
        fresh = _fresh_beside(target)
        try:
            written = _write_all(repo.objects, snapshot, out, fresh)
            _into_place(fresh, target)
        except BaseException:  # also an interrupt: half a model must not be left lying about
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return written


def _must_be_free(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise BadParameter(f"{target} already exists and is not an empty directory", hint="name a new directory, or move that one away")


def _fresh_beside(target: Path) -> Path:
    fresh = target.parent / f".{target.name[:100]}.{secrets.token_hex(4)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
    except OSError as fault:
        raise BadParameter(
            f"{target.parent} cannot be written to: {os.strerror(fault.errno or 0)}", hint="name a directory you may write to"
        ) from None
    return fresh


def _into_place(fresh: Path, target: Path) -> None:
    try:
        fs.rename(fresh, target)  # replaces an empty directory and nothing else
    except OSError as fault:
        raise BadParameter(f"{target} cannot be put in place: {os.strerror(fault.errno or 0)}", hint="name a new directory") from None


def _write_all(objects: ObjectStore, snapshot: Snapshot, out: list[OutFile], fresh: Path) -> list[ExportedFile]:
    digests = {entry.name: entry.digest for entry in snapshot.tensors}
    with ThreadPoolExecutor(1, thread_name_prefix="export") as writer:
        return [_write_file(objects, digests, file, fresh, writer) for file in sorted(out, key=lambda file: file.path)]


def _write_file(objects: ObjectStore, digests: dict[str, Digest], file: OutFile, fresh: Path, writer: ThreadPoolExecutor) -> ExportedFile:
    if fault := bad_path(file.path):
        raise CorruptRecord(f"the snapshot has a file {shown(file.path)} whose name {fault}", hint="mlc fsck")
    path = fresh / file.path
    with fs.faults_in_words(fresh.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            sha256, size = _pour(fd, _parts(objects, digests, file), writer)
        finally:
            os.close(fd)
    if file.sha256 not in (None, sha256):
        for name in file.tensors:
            objects.tensor_bytes(digests[name])  # raises for the tensor that is damaged, by name
        raise HashMismatch(
            f"{file.path} would not be the file that was recorded: its SHA-256 is {sha256}", hint="mlc fsck --level 3", path=file.path
        )
    return ExportedFile(file.path, size, sha256)


def _parts(objects: ObjectStore, digests: dict[str, Digest], file: OutFile) -> Iterator[bytes | memoryview]:
    yield file.head if isinstance(file.head, bytes) else objects.blob(file.head)
    for name in file.tensors:
        if name not in digests:
            raise CorruptRecord(f"{file.path} lists tensor {shown(name)}, which the snapshot does not have", hint="mlc fsck")
        yield _tensor(objects, digests[name], proven=file.sha256 is not None)  # decoded while the one before is hashed and written


def _tensor(objects: ObjectStore, digest: Digest, *, proven: bool) -> memoryview:
    """The bytes of a tensor; `proven` says that the SHA-256 of its file will cover them, which makes a second hash here superfluous."""
    return objects.tensor_range(digest, 0, objects.info(digest).raw_size) if proven else objects.tensor_bytes(digest)


def _pour(fd: int, parts: Iterator[bytes | memoryview], writer: ThreadPoolExecutor) -> tuple[str, int]:
    sha256, size, pending = hashlib.sha256(), 0, deque[Future]()

    def consume(part: bytes | memoryview) -> None:
        sha256.update(part)
        view = memoryview(part).cast("B")
        while len(view):
            view = view[os.write(fd, view) :]

    try:
        for part in parts:
            size += len(part)
            pending.append(writer.submit(consume, part))
            while len(pending) > AHEAD:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
    finally:
        for future in pending:  # an error left some behind: the descriptor must outlive them
            if not future.cancel():
                future.exception()
    return sha256.hexdigest(), size
