"""Harm done to a registry on purpose, and what a fresh look at it finds."""

from __future__ import annotations

from mlc.registry.maintenance.fsck import fsck
from mlc.registry.repository import Repository


def faults(repo, level):
    """(kind, object) of each fault that a fresh look finds."""
    return [(f.kind, f.object) for f in fsck(Repository.open(repo.root), level).findings if f.severity == "fault"]


def kinds(repo, level):
    return {kind for kind, _ in faults(repo, level)}


def remarks(repo, level):
    return [(f.kind, f.object) for f in fsck(Repository.open(repo.root), level).findings if f.severity == "remark"]


def flip(path, offset=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if offset is None else offset] ^= 0x10
    path.write_bytes(data)


def cut(path, share=0.5):
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))


def state(repo):
    """Every file of the registry but the lock files, by content."""
    return {
        p.relative_to(repo.path).as_posix(): p.read_bytes() for p in sorted(repo.path.rglob("*")) if p.is_file() and "locks" not in p.parts
    }


def pack_of(repo, digest):
    info = repo.objects.info(digest)
    return repo.objects.pack_set.path(info.pack), info
