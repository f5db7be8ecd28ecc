"""From a scanned source to a Snapshot: every byte is hashed as it is stored, one tensor in memory at a time.

A weight file becomes its verbatim header and its tensors; any other file becomes one blob.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..errors import BadInputFile
from ..records import FileEntry, Snapshot, TensorDelta, TensorEntry
from . import peft
from .names import shown
from .safetensors import Entry, read_header
from .source import Source
from .storing import Storing
from .walk import FoundFile, opened, read_exactly

if TYPE_CHECKING:
    from ..transaction import Transaction


def ingest(
    tx: Transaction, source: Source, *, bases: Snapshot | None = None, adapter_of: Snapshot | None = None
) -> tuple[Snapshot, list[TensorDelta], list[str]]:
    """Store everything a source holds; returns the snapshot, how each new tensor was stored, and warnings.

    `bases` is the parent: a tensor of the same name, type and shape there is what a new one is encoded against. `adapter_of` makes the
    result an adapter of that model. Raises BadInputFile when a file changed since the scan or holds what it must not; ShapeMismatch when
    the adapter does not fit; Incompatible for an element type that cannot be stored.
    """
    warnings = [*source.warnings]
    kind = _kind(source, adapter_of, warnings)
    storing = Storing(tx, bases)
    files: list[FileEntry] = []
    tensors: list[TensorEntry] = []
    with ThreadPoolExecutor(1, thread_name_prefix="sha256") as hashing:
        for file in source.files:
            if file.path in source.weights:
                entry, found = _weights(storing, file, source, hashing)
                tensors += found
            else:
                entry = _blob(tx, file)
            files.append(entry)
    base = adapter_of.id if adapter_of is not None else None
    snapshot = Snapshot(tuple(sorted(tensors, key=lambda t: t.name)), tuple(sorted(files, key=lambda f: f.path)), kind, base)
    tx.put_snapshot(snapshot)
    return snapshot, storing.deltas, warnings


def _kind(source: Source, adapter_of: Snapshot | None, warnings: list[str]):
    if source.adapter_config is None:
        if adapter_of is not None:
            raise BadInputFile(f"{source.root} is not a PEFT adapter: it has no adapter_config.json beside adapter_model.safetensors")
        return "model"
    if adapter_of is None:
        warnings.append(
            "this is a PEFT adapter without its base: it can be stored, not run; import it with --adapter-of REV to say what it sits on"
        )
    elif (reason := peft.unsupported(source.adapter_config)) is not None:
        warnings.append(f"the adapter is stored but cannot be merged into its base: {reason}")
    else:
        shapes = {entry.name: entry.shape for path in source.primary for entry in source.weights[path].entries}
        peft.plan_merge(source.adapter_config, shapes, {entry.name: entry.shape for entry in adapter_of.tensors})  # raises ShapeMismatch
    return "adapter"


def _weights(storing: Storing, file: FoundFile, source: Source, hashing: ThreadPoolExecutor) -> tuple[FileEntry, list[TensorEntry]]:
    with opened(file) as fd:
        header = read_header(fd, path=file.path, limits=source.limits)
        if header.raw != source.weights[file.path].raw:
            raise BadInputFile(f"{file.path} changed while it was imported", path=file.path, hint="wait until its writer has ended")
        sha256, found = hashlib.sha256(header.raw), []
        for entry in header.entries:
            data = read_exactly(fd, entry.size, len(header.raw) + entry.begin, file.path)
            hashed = hashing.submit(sha256.update, data)  # releases the GIL: hashing and coding run side by side
            try:
                _check_bools(entry, data, file.path)
                found.append(storing.put(entry.name, entry.dtype, entry.shape, memoryview(data)))
            finally:
                hashed.result()
    names = tuple(entry.name for entry in header.entries)
    digest = storing.tx.put_blob(header.raw)
    return FileEntry(file.path, len(header.raw) + header.data_size, sha256.hexdigest(), "weights", digest, names), found


def _blob(tx: Transaction, file: FoundFile) -> FileEntry:
    with opened(file) as fd:
        data = read_exactly(fd, file.size, 0, file.path)
    return FileEntry(file.path, len(data), hashlib.sha256(data).hexdigest(), "blob", tx.put_blob(memoryview(data)))


def _check_bools(entry: Entry, data: bytearray, path: str) -> None:
    # any other byte is undefined as a bool: two readers could disagree about the value
    if entry.dtype == "BOOL" and data.translate(None, b"\0\1"):
        raise BadInputFile(f"{path} has tensor {shown(entry.name)} of type BOOL with bytes other than 0 and 1", path=path)
