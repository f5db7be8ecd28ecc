"""Levels 2 and 3: the bytes of every object, and every tensor rebuilt."""

from __future__ import annotations

from typing import Any

from ..errors import IntegrityError
from ..objects.layout import ObjectInfo
from .findings import Notes

Sample = tuple[int, int] | None


def check_content(repo: Any, notes: Notes, sample: Sample) -> None:
    """Level 2: every pack against its id, which covers every byte of every object as it was written and proven then.

    A pack that fails is searched for the objects that are damaged. With a sample, each chosen object is read by itself: its stored
    bytes against their checksum, a blob's content against its name. That tensors decode to their names is proven at level 3.
    """
    packs = {pack: [info for info in _records(repo, pack) if chosen(info.digest, sample)] for pack in repo.objects.packs()}
    total = sum(info.stored_size for infos in packs.values() for info in infos)
    notes.objects, notes.bytes = sum(map(len, packs.values())), total
    done = 0
    for pack, infos in packs.items():
        if sample is not None or not repo.objects.pack_sound(pack):
            before = len(notes.findings)
            for info in infos:
                _check_object(repo, notes, info)
            if sample is None and len(notes.findings) == before:
                notes.fault(2, "pack", pack, "its bytes are not those it is named by; the objects in it are whole")
        done += sum(info.stored_size for info in infos)
        notes.step("content", done, total)


def check_tensors(repo: Any, notes: Notes, sample: Sample) -> None:
    """Level 3: every tensor decoded through its chain and compared with its name."""
    tensors = {info.digest: info for pack in repo.objects.packs() for info in _records(repo, pack) if info.kind == "tensor"}
    wanted = [digest for digest in tensors if chosen(digest, sample)]
    total = sum(tensors[digest].raw_size for digest in wanted)
    notes.bytes = total
    done = 0
    for digest in wanted:
        try:
            repo.objects.tensor_bytes(digest)
        except IntegrityError as fault:
            notes.error(3, "object", digest, fault)
        done += tensors[digest].raw_size
        notes.step("tensors", done, total)


def chosen(digest: str, sample: Sample) -> bool:
    """Whether a digest belongs to the n-th of t parts; equal digests always fall into the same part."""
    return sample is None or int(digest[:12], 16) % sample[1] == sample[0] - 1


def _check_object(repo: Any, notes: Notes, info: ObjectInfo) -> None:
    if not repo.objects.sound(info):
        notes.fault(2, "object", info.digest, f"its stored bytes are damaged (pack {info.pack})")
    elif info.kind == "blob":
        try:
            repo.objects.blob(info.digest)
        except IntegrityError as fault:
            notes.error(2, "object", info.digest, fault)


def _records(repo: Any, pack: str) -> list[ObjectInfo]:
    try:
        return list(repo.objects.pack_set.records(pack))
    except IntegrityError:
        return []  # said at level 1
