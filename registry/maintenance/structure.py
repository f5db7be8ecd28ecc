"""Level 1: packs and their indexes, the whole journal, every record it names, the mirror of the refs, and the catalog.

History is replayed once, into a catalog in memory, by the very projection that wrote the one on disk; what the replay reads is
looked at closely on the way. Afterwards the two catalogs must agree, table by table.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from ..catalog.checksums import Checksum, loaded_checksums, object_checksum, table_checksums
from ..catalog.connection import Damaged, applied, duckdb_error, memory, one_line, reader
from ..catalog.projection import project
from ..errors import IntegrityError
from ..ids import record_digest
from ..objects.layout import ObjectInfo, parse_index, parse_trailer
from ..objects.midx import MultiIndex
from ..records import canonical
from .findings import Notes
from .inspection import InspectingSource, Inventory, fold

BATCH = 2000  # journal records of one transaction of the replay
PATIENCE = (0.0, 0.05, 0.2)  # seconds; a writer may be at work in what is compared


def check_structure(repo: Any, notes: Notes, *, journal_ends: bool) -> None:
    """Level 1. Without a readable end of the journal, only packs are checked."""
    inventory = Inventory(repo.objects)
    packs = repo.objects.packs()
    for done, pack in enumerate(packs):
        _check_pack(repo, notes, pack, inventory)
        notes.step("packs", done + 1, len(packs))
    for info in inventory.objects.values():
        if info.base is not None and (sentence := inventory.chain_fault(info)):
            notes.fault(1, "object", info.digest, sentence)
    _check_midx(repo, notes)
    notes.objects, notes.bytes = len(inventory.objects), inventory.stored
    if journal_ends:
        _check_history(repo, notes, inventory)


# --- packs -----------------------------------------------------------------------------------------------


def _check_pack(repo: Any, notes: Notes, pack: str, inventory: Inventory) -> None:
    """Pack and index tell the same table, and every payload lies within the pack."""
    packs = repo.objects.pack_set
    table = index = None
    try:
        table = bytes(parse_trailer(memoryview(packs.mapped(pack)), pack))
    except IntegrityError as fault:
        notes.error(1, "pack", pack, fault)
    try:
        index = bytes(parse_index(packs.path(pack, "idx").read_bytes(), pack))
    except FileNotFoundError:
        notes.fault(1, "index", pack, "the index of this pack is missing; the pack itself holds the same table")
    except IntegrityError as fault:
        notes.error(1, "index", pack, fault)
    if table is not None and index is not None and table != index:
        notes.fault(1, "index", pack, "the index is not that of this pack")
    try:
        for info in packs.records(pack):
            inventory.add(info)
            _check_place(notes, packs, info)
    except IntegrityError as fault:
        notes.error(1, "pack", pack, fault)


def _check_place(notes: Notes, packs: Any, info: ObjectInfo) -> None:
    try:
        packs.payload(info)
    except IntegrityError as fault:
        notes.error(1, "object", info.digest, fault)


def _check_midx(repo: Any, notes: Notes) -> None:
    path = repo.objects.directory / "midx"
    if path.exists():
        index = MultiIndex.load(path)
        if index is None or not index.sound():
            notes.fault(1, "index", "objects/midx", "the index over all packs is damaged; without it the packs are asked themselves")


# --- history ---------------------------------------------------------------------------------------------


def _check_history(repo: Any, notes: Notes, inventory: Inventory) -> None:
    source = InspectingSource(repo, notes, inventory)
    with memory() as replayed:
        try:
            project(replayed, source, _watched(repo, notes, source), BATCH)
        except IntegrityError as fault:
            notes.error(1, "journal", "journal", fault)
            return
        for name, commit in source.refs.items():
            if commit not in source.commits:
                notes.fault(1, "ref", name, f"it points to {commit}, which is no commit of this history")
        rows = {number: found for number, digest in source.evaluations if (found := _predictions(notes, replayed, source, digest))}
        _check_mirror(repo, notes, source)
        _check_catalog(repo, notes, replayed, rows)
    _remark_leftovers(repo, notes, source)


def _watched(repo: Any, notes: Notes, source: InspectingSource) -> Iterator[Any]:
    """The journal's records, each looked at before it is projected."""
    seal = repo.journal.read_seal()
    for record in repo.journal.records():
        if seal is not None and record.seq == seal.seq and record.hash != seal.hash:
            notes.fault(1, "journal", "journal", f"record {record.seq} is not the one that was sealed")
        source.look_at(record)
        notes.step("history", record.seq, max(seal.seq if seal else 0, record.seq))
        yield record


def _predictions(notes: Notes, connection: Any, source: InspectingSource, digest: str) -> Checksum | None:
    try:
        return object_checksum(connection, source.predictions(digest), digest)
    except IntegrityError as fault:
        notes.error(1, "object", digest, fault)
        return None


def _check_mirror(repo: Any, notes: Notes, source: InspectingSource) -> None:
    """The ref files say what the journal said when they were last written."""
    wrong: list[str] = []
    for wait in PATIENCE:
        time.sleep(wait)
        mirrored, head = repo.refs.mirrored(), repo.journal.head()[0]
        wrong = _mirror_differences(repo, source, mirrored) if 0 < mirrored <= head else ["seq"]
        if not wrong:
            if mirrored < head:
                notes.remark(1, "mirror", "refs/seq", f"the ref files stand at record {mirrored}, the journal at {head}")
            return
    for name in wrong:
        notes.fault(1, "mirror", f"refs/{name}", "the file does not say what the journal says")


def _mirror_differences(repo: Any, source: InspectingSource, upto: int) -> list[str]:
    """Names of files below `refs` that do not say where the refs were as of record `upto`."""
    refs: dict[str, str] = source.refs
    if upto != source.last:
        refs = {}
        for record in itertools.takewhile(lambda record: record.seq <= upto, repo.journal.records()):
            fold(refs, record.body)
    root = repo.path / "refs"
    paths = [path for kind in ("heads", "tags", "aliases") for path in (root / kind).rglob("*")]
    files = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    here = {path.relative_to(root).as_posix(): path.read_text(encoding="ascii", errors="replace") for path in files}
    there = {name: f"{commit}\n" for name, commit in refs.items()}
    here["seq"] = (root / "seq").read_text(encoding="ascii", errors="replace")
    there["seq"] = f"{upto} {record_digest('mlc.refs.v1', canonical(refs))}\n"
    return sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))


# --- the catalog -----------------------------------------------------------------------------------------


def _check_catalog(repo: Any, notes: Notes, replayed: Any, predictions: dict[int, Checksum]) -> None:
    """Every table on disk against the replay. A catalog that lags is no fault (level 0 says so); one that tells otherwise is."""
    path = repo.path / "catalog.duckdb"
    if not path.exists():
        return
    try:
        with repo.locks.shared("catalog"), reader(path) as connection:
            state = applied(connection)
            here, rows = table_checksums(connection), loaded_checksums(connection)
    except Damaged:
        return  # said at level 0
    except duckdb_error() as fault:
        notes.fault(1, "catalog", path.name, f"{one_line(fault)}: mlc reindex")
        return
    if state[:2] != applied(replayed)[:2]:
        return  # said at level 0
    expected = table_checksums(replayed)
    for table in sorted(here.keys() | expected.keys()):
        if here.get(table) != expected.get(table):
            counts = [str(found[0]) if found else "no" for found in (here.get(table), expected.get(table))]
            sentence = f"table {table} has {counts[0]} rows where a replay gives {counts[1]}, or other ones: mlc reindex"
            notes.fault(1, "catalog", path.name, sentence)
    for number in sorted(rows.keys() & predictions.keys()):
        if rows[number] != predictions[number]:
            notes.fault(1, "catalog", path.name, f"the predictions of evaluation {number} are not those of its object: mlc reindex")


def _remark_leftovers(repo: Any, notes: Notes, source: InspectingSource) -> None:
    """What no journal record names: a writer died before its commit point, or is at work. gc takes it."""
    for pack in repo.objects.packs():
        if pack not in source.packs:
            notes.remark(1, "scratch", pack, "no record of history names this pack")
    for path in sorted(repo.commits_dir.glob("*.json")):
        if path.stem not in source.commits:
            notes.remark(1, "scratch", path.name, "no record of history names this commit")
