"""The front door between directories and snapshots: look, store, change, write back.

scan(path)        -> Source      what a directory or file holds; no tensor is read
scan_converted(p) -> Source      the same, with pickles converted in a locked child process
ingest(tx, ...)   -> Snapshot    every byte into the store
rebuild(tx, ...)  -> Snapshot    a parent plus an operation's changes
build_adapter(..) -> Snapshot    adapter tensors and files on top of a base
export(repo, ...) -> files       the directory again, byte for byte
"""

from __future__ import annotations

from .export import MAX_SHARD_SIZE, ExportedFile, export
from .ingest import ingest
from .limits import Limits
from .rebuild import build_adapter, rebuild
from .source import Source, scan, scan_converted

__all__ = ["MAX_SHARD_SIZE", "ExportedFile", "Limits", "Source", "build_adapter", "export", "ingest", "rebuild", "scan", "scan_converted"]
