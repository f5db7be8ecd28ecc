"""A parent snapshot plus an operation's changes is the next snapshot; or adapter tensors and files on top of a base.

Where names, types and shapes stay, a weight file keeps its header bytes. Where they do not, its header is written anew, as the library
would write it, with the metadata it had; a shard index follows. Changes are known by the name of their class, defined a floor above.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BadParameter, NotFound
from ..ids import SnapshotId
from ..records import FileEntry, Snapshot, TensorDelta, TensorEntry
from .configs import parse
from .names import bad_path, bad_tensor_name, clash, shown
from .safetensors import Header, parse_header, write_header
from .shards import ADAPTER_WEIGHTS, choose_primary, shard_maps, updated_indexes
from .storing import Running, Spool, Storing
from .torch_bytes import from_tensor, word_of

if TYPE_CHECKING:
    import torch

    from ..delta.derived import Derived
    from ..transaction import Transaction


def rebuild(tx: Transaction, parent: Snapshot, changes: Iterable[Any]) -> tuple[Snapshot, list[TensorDelta]]:
    """Apply SetTensor, CopyTensor, DropTensor and SetFile to `parent`; returns the new snapshot and a record per changed tensor.

    A new tensor goes into the file of the tensor it is based on, else into the last of the files a loader takes. One tensor is in memory
    at a time. Raises BadParameter for a name that cannot be stored, NotFound for a source or file that is not there.
    """
    with Spool(tx) as spool:
        edit = _Edit(tx, parent, spool)
        for change in changes:
            edit.apply(change)
        snapshot = edit.finish()
    tx.put_snapshot(snapshot)
    return snapshot, edit.storing.deltas


def build_adapter(
    tx: Transaction,
    base: SnapshotId,
    tensors: Mapping[str, torch.Tensor],
    files: Mapping[str, bytes],
    *,
    deltas: list[TensorDelta] | None = None,
) -> Snapshot:
    """An adapter snapshot on `base`: `tensors` in adapter_model.safetensors, `files` (adapter_config.json, ...) beside it.

    `deltas`, when given, receives a record per tensor. Raises BadParameter for unsafe names, Incompatible for a type that cannot be stored.
    """
    storing, plain = Storing(tx), {name: from_tensor(tensor) for name, tensor in tensors.items()}
    header = write_header([(_tensor_name(name), word, shape) for name, (word, shape, _) in plain.items()], {"format": "pt"})
    sha256, entries = hashlib.sha256(header.raw), []
    for entry in header.entries:
        data = plain[entry.name][2]
        sha256.update(data)
        entries.append(storing.put(entry.name, entry.dtype, entry.shape, data))
    stored = [_blob_entry(tx, path, data) for path, data in files.items()]
    weights = _weights_entry(tx, ADAPTER_WEIGHTS, header, sha256.hexdigest())
    snapshot = Snapshot(
        tuple(sorted(entries, key=lambda e: e.name)), tuple(sorted([*stored, weights], key=lambda f: f.path)), "adapter", base
    )
    tx.put_snapshot(snapshot)
    if deltas is not None:
        deltas += storing.deltas
    return snapshot


class _Edit:
    """The state of one rebuild: which tensor is where now, and where its new bytes wait to be hashed."""

    def __init__(self, tx: Transaction, parent: Snapshot, spool: Spool) -> None:
        self.tx, self.parent, self.spool, self.storing = tx, parent, spool, Storing(tx, parent)
        self.tensors = {entry.name: entry for entry in parent.tensors}
        self.files = {file.path: file for file in parent.files}
        self.origin = {name: file.path for file in parent.files for name in file.tensors}
        self.home = dict(self.origin)
        self.touched: set[str] = set()  # files set by the operation itself
        self.running: dict[str, Running] = {}  # weight files whose tensors have come in their order so far
        weights = [file.path for file in parent.files if file.kind == "weights"]
        self.default_home = choose_primary(weights, shard_maps(tx.repo.objects, parent))[-1]

    # --- changes ---------------------------------------------------------------------------------------------

    def apply(self, change: Any) -> None:
        match type(change).__name__:
            case "SetTensor":
                self._set(change.name, change.data, change.base, change.derived)
            case "CopyTensor":
                self._copy(change.name, change.source)
            case "DropTensor":
                self._known(change.name)
                self.tensors.pop(change.name, None)
                self.home.pop(change.name, None)
            case "SetFile":
                self._set_file(change.path, change.data)
            case other:
                raise TypeError(f"{other} is not a change")

    def _set(self, name: str, tensor: torch.Tensor, base: str | None, derived: Derived | None) -> None:
        if tensor.is_meta and derived is not None:
            word, shape = word_of(tensor), tuple(tensor.shape)
            if self._passes(_tensor_name(name), word, shape, base, derived):
                return
            tensor = self.tx.objects.derive(derived, word, shape)
        word, shape, data = from_tensor(tensor)
        entry = self.storing.put(_tensor_name(name), word, shape, data, base, derived)
        self.tensors[name] = entry
        self.home.setdefault(name, self.origin.get(base or name, self.default_home))
        if not self._running(self.home[name]).takes(entry, data):
            self.spool.keep(entry.digest, data)

    def _passes(self, name: str, word: str, shape: tuple[int, ...], base: str | None, derived: Derived) -> bool:
        """Whether a tensor that nobody has computed could be stored as its recipe; its bytes go by once, for its file's hash."""
        home = self.home.get(name) or self.origin.get(base or name, self.default_home)
        running = self._running(home)
        following, place = running.expects(name, word, shape), self.spool.begin()
        sha256 = running.sha256.copy()
        entry = self.storing.pass_on(name, word, shape, derived, sha256.update if following else self.spool.more)
        if entry is None:
            return False
        if following:
            running.took(entry, sha256)
        else:
            self.spool.end(entry.digest, place)
        self.tensors[name] = entry
        self.home.setdefault(name, home)
        return True

    def _running(self, path: str) -> Running:
        if path not in self.running:
            self.running[path] = Running(self._header(self.files[path]))
        return self.running[path]

    def _header(self, file: FileEntry) -> Header:
        return parse_header(self.tx.repo.objects.blob(file.digest), path=file.path, size=file.size)

    def _copy(self, name: str, source: str) -> None:
        entry = self._known(source)
        self.tensors[_tensor_name(name)] = dataclasses.replace(entry, name=name)
        self.home.setdefault(name, self.origin[source])
        self.storing.copied(self.tensors[name])

    def _known(self, name: str) -> TensorEntry:
        if name not in self.storing.before:
            raise NotFound(f"the parent has no tensor {shown(name)}", hint="mlc show REV --tensors lists them")
        return self.storing.before[name]

    def _set_file(self, path: str, data: bytes | None) -> None:
        if (fault := bad_path(path)) is not None:
            raise BadParameter(f"the file name {shown(path)} {fault}")
        known = self.files.get(path)
        if known is not None and known.kind == "weights":
            raise BadParameter(f"{shown(path)} is a weight file: it is changed tensor by tensor")
        self.touched.add(path)
        if data is not None:
            parse(path, data)  # a config that could not be imported must not be made either
            self.files[path] = _blob_entry(self.tx, path, data)
        elif self.files.pop(path, None) is None:
            raise NotFound(f"the parent has no file {shown(path)}")

    # --- the result ------------------------------------------------------------------------------------------

    def finish(self) -> Snapshot:
        names: dict[str, list[str]] = {}
        for name, path in self.home.items():
            names.setdefault(path, []).append(name)
        if not names:
            raise BadParameter("the operation drops every tensor of the model")
        for file in [file for file in self.files.values() if file.kind == "weights"]:
            if file.path not in names:
                del self.files[file.path]
            elif self._differs(file, names[file.path]):
                self.files[file.path] = self._rewritten(file, names[file.path])
        self._follow_indexes()
        if (both := clash(self.files)) is not None:
            raise BadParameter(f"{shown(both)} would be a file and a folder")
        tensors = tuple(self.tensors[name] for name in sorted(self.tensors))
        return dataclasses.replace(self.parent, tensors=tensors, files=tuple(self.files[path] for path in sorted(self.files)))

    def _differs(self, file: FileEntry, names: list[str]) -> bool:
        return set(names) != set(file.tensors) or any(self.tensors[name] != self.storing.before[name] for name in names)

    def _rewritten(self, file: FileEntry, names: list[str]) -> FileEntry:
        running = self._running(file.path)
        header = running.header
        now = {name: (name, self.tensors[name].dtype, self.tensors[name].shape) for name in names}
        if now != {entry.name: (entry.name, entry.dtype, entry.shape) for entry in header.entries}:
            header = write_header(now.values(), header.metadata)
        sha256, done = hashlib.sha256(header.raw), 0
        if header is running.header and all(self.tensors[entry.name] == entry for entry in running.seen):
            sha256, done = running.sha256, len(running.seen)
        for entry in header.entries[done:]:
            self.spool.read_into(sha256.update, self.tensors[entry.name].digest)
        return _weights_entry(self.tx, file.path, header, sha256.hexdigest())

    def _follow_indexes(self) -> None:
        shards = {file.path: file.tensors for file in self.files.values() if file.kind == "weights"}
        for path, data in updated_indexes(self.tx.repo.objects, self.parent, shards, self.tensors).items():
            if path in self.files and path not in self.touched:
                self.files[path] = _blob_entry(self.tx, path, data)


def _weights_entry(tx: Transaction, path: str, header: Header, sha256: str) -> FileEntry:
    names = tuple(entry.name for entry in header.entries)
    return FileEntry(path, len(header.raw) + header.data_size, sha256, "weights", tx.put_blob(header.raw), names)


def _blob_entry(tx: Transaction, path: str, data: bytes) -> FileEntry:
    if (fault := bad_path(path)) is not None:
        raise BadParameter(f"the file name {shown(path)} {fault}")
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest(), "blob", tx.put_blob(data))


def _tensor_name(name: str) -> str:
    if (fault := bad_tensor_name(name)) is not None:
        raise BadParameter(f"a tensor name {fault}: {shown(name)}")
    return name
