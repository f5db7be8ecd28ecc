"""Packs on disk: every flipped bit and every cut is an IntegrityError or harmless, and ten thousand packs are searched through one file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlc.registry import fs
from mlc.registry.delta.dtypes import WORDS, byte_size
from mlc.registry.errors import CorruptRecord, HashMismatch, IntegrityError
from mlc.registry.ids import Digest, blob_digest
from mlc.registry.objects import ObjectInfo, ObjectStore, layout, packs
from mlc.registry.objects.midx import MultiIndex


def raw(x: torch.Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(torch.bfloat16)


def fill(directory: Path) -> dict[Digest, bytes]:
    """Two packs with blobs, tensors of every codec and chains across both; returns what every digest stands for."""
    (directory / "objects").mkdir()
    store, known = ObjectStore(directory / "objects"), {}
    base, other = weights(64, 96), weights(64, 96, seed=7)
    step = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)) * 1e-4
    low_rank = torch.outer(torch.linspace(1, 2, 64), torch.linspace(-1, 1, 96)) * 1e-3
    few = base.clone()
    few[::9, ::9] = 1.0

    def tensor(pack, x: torch.Tensor, origin: Digest | None = None) -> Digest:
        info = pack.add_tensor("BF16", x.shape, raw(x), origin)
        known[info.digest] = raw(x)
        return info.digest

    pack = store.new_pack(directory)
    for text in (b"", b"short", b"a long text " * 100):
        known[pack.add_blob(text)] = text
    first = tensor(pack, base)
    tensor(pack, torch.zeros(5, 5, dtype=torch.bfloat16))
    tensor(pack, torch.randint(0, 256, (500,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).view(torch.bfloat16))
    pack.finish()
    pack = store.new_pack(directory)
    second = tensor(pack, (base.float() + step).to(torch.bfloat16), first)
    tensor(pack, few, first)
    tensor(pack, (base.float() + low_rank).to(torch.bfloat16), first)
    tensor(pack, ((base.float() + step).to(torch.bfloat16).float() + step * 0.03).to(torch.bfloat16), second)
    tensor(pack, other, first)
    pack.finish()
    assert {info.codec for info in store.iter_infos()} == {"raw", "zstd", "constant", "planes", "sparse", "dense", "forecast"}
    return known


def read(store: ObjectStore, digest: Digest) -> bytes:
    return store.blob(digest) if store.info(digest).kind == "blob" else bytes(store.tensor_bytes(digest))


def outcomes(directory: Path, known: dict[Digest, bytes]) -> list[bool]:
    """For each object: True when it reads right, False when an IntegrityError was raised. Anything else fails the test."""
    store, found = ObjectStore(directory / "objects"), []
    for digest, expected in known.items():
        try:
            assert read(store, digest) == expected
            found.append(True)
        except IntegrityError:
            found.append(False)
    return found


# --- damage ------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_an_error_or_changes_nothing(tmp_path: Path):
    known, chance, spoiled = fill(tmp_path), random.Random(0), 0
    for path in sorted((tmp_path / "objects").glob("pack-*")):
        whole = path.read_bytes()
        places = {*range(0, len(whole), max(1, len(whole) // 60)), *range(max(0, len(whole) - 90), len(whole), 3)}
        for place in sorted(places):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            spoiled += not all(outcomes(tmp_path, known))
        path.write_bytes(whole)
    assert spoiled > 40  # most places of a pack are payload
    assert all(outcomes(tmp_path, known))


def test_a_cut_anywhere_is_an_error_or_changes_nothing(tmp_path: Path):
    known = fill(tmp_path)
    for path in sorted((tmp_path / "objects").glob("pack-*")):
        whole = path.read_bytes()
        for length in sorted({0, 1, 7, 8, 63, 64, len(whole) - 1, len(whole) - 33, *range(0, len(whole), len(whole) // 25 + 1)}):
            path.write_bytes(whole[:length])
            found = outcomes(tmp_path, known)
            assert path.suffix == ".pack" or all(found)  # a lost index is read from its pack
        path.unlink()
        found = outcomes(tmp_path, known)
        assert all(found) if path.suffix == ".idx" else not all(found)
        path.write_bytes(whole)
    assert all(outcomes(tmp_path, known))


def test_a_pack_cut_while_it_is_mapped_is_an_error_and_no_crash(tmp_path: Path):
    known = fill(tmp_path)
    store = ObjectStore(tmp_path / "objects")
    assert [read(store, digest) for digest in known] == list(known.values())
    for pack in store.packs():
        with open(store.pack_set.path(pack), "r+b") as file:
            file.truncate(100)
    late = [info.digest for info in store.iter_infos() if info.offset + info.stored_size > 100]
    for digest in late:
        with pytest.raises(IntegrityError):
            read(store, digest)


def test_the_error_names_the_object_whose_bytes_are_damaged(tmp_path: Path):
    fill(tmp_path)
    store = ObjectStore(tmp_path / "objects")
    child = next(info for info in store.iter_infos() if info.depth == 2)
    keyframe = store.chain(child.digest)[-1]
    path = store.pack_set.path(keyframe.pack)
    data = bytearray(path.read_bytes())
    data[keyframe.offset + 200] ^= 1  # a mantissa byte, stored raw: nothing but the digest can notice
    path.write_bytes(data)
    fresh = ObjectStore(tmp_path / "objects")
    with pytest.raises(HashMismatch, match=f"object {keyframe.digest} is damaged") as caught:
        fresh.tensor_bytes(child.digest)
    assert caught.value.details["damaged"] == keyframe.digest
    assert not fresh.sound(keyframe)
    assert fresh.sound(child)
    assert not fresh.pack_sound(keyframe.pack)


def test_a_damaged_base_is_not_built_upon(tmp_path: Path):
    fill(tmp_path)
    store = ObjectStore(tmp_path / "objects")
    keyframe = next(info for info in store.iter_infos() if info.codec == "planes" and info.shape == (64, 96))
    path = store.pack_set.path(keyframe.pack)
    data = bytearray(path.read_bytes())
    data[keyframe.offset + 200] ^= 1
    path.write_bytes(data)
    pack = ObjectStore(tmp_path / "objects").new_pack(tmp_path)
    x = (weights(64, 96).float() * 1.001).to(torch.bfloat16)
    assert pack.add_tensor("BF16", (64, 96), raw(x), keyframe.digest).base is None


def test_whole_packs_have_the_digest_they_are_named_by(tmp_path: Path):
    fill(tmp_path)
    store = ObjectStore(tmp_path / "objects")
    assert all(store.pack_sound(pack) for pack in store.packs())
    assert all(store.sound(info) for info in store.iter_infos())


def test_a_pack_without_an_index_and_with_a_damaged_table_answers_nothing(tmp_path: Path):
    known = fill(tmp_path)
    for path in (tmp_path / "objects").glob("*.idx"):
        path.write_bytes(b"rubbish")
    for path in (tmp_path / "objects").glob("*.pack"):
        path.write_bytes(path.read_bytes()[:-1])
    assert not any(outcomes(tmp_path, known))
    with pytest.raises(CorruptRecord, match="and its index are damaged"):
        list(ObjectStore(tmp_path / "objects").iter_infos())


# --- records -----------------------------------------------------------------------------------------------

DIGESTS = st.binary(min_size=32, max_size=32).filter(any).map(lambda raw: Digest(raw.hex()))


@st.composite
def infos(draw) -> ObjectInfo:
    dtype = draw(st.sampled_from(sorted(WORDS.values())))
    shape = tuple(draw(st.lists(st.integers(0, 15).map(lambda n: 4 * n), max_size=8)))
    if byte_size(dtype, (4,)) < 4 and not shape:
        shape = (4,)
    base = draw(st.none() | DIGESTS)
    small = st.integers(0, 1 << 40)
    return ObjectInfo(
        digest=draw(DIGESTS), kind="tensor", dtype=dtype, shape=shape, raw_size=byte_size(dtype, shape), stored_size=draw(small),
        base=base, depth=draw(st.integers(1, 8)) if base else 0, codec=draw(st.sampled_from(["raw", "planes", "dense"])), pack="p",
        offset=draw(small), checksum=draw(DIGESTS), path_size=draw(small), blocked=draw(st.booleans()),
    )  # fmt: skip


@given(info=infos())
def test_a_record_survives_its_encoding(info: ObjectInfo):
    assert layout.parse_record(layout.pack_record(info), "p") == info


def test_the_format_of_a_record_is_pinned():
    info = ObjectInfo(
        digest=Digest("11" * 32), kind="tensor", dtype="BF16", shape=(2, 3), raw_size=12, stored_size=7, base=Digest("22" * 32), depth=1,
        codec="dense", pack="p", offset=64, checksum="33" * 32, path_size=7,
    )  # fmt: skip
    assert layout.pack_record(info).hex() == (
        "11" * 32 + "22" * 32 + "33" * 32 + "4000000000000000" + "0700000000000000" + "0c00000000000000" + "0700000000000000"
        "01" + "04" + "05" + "01" + "02" + "00" + "0000" + "0200000000000000" + "0300000000000000" + "00" * 48
    )  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value"), [(112, 1), (129, 99), (130, 99), (131, 0), (132, 9), (132, 3), (133, 2), (134, 1), (136, 3), (128, 2)]
)
def test_a_record_that_contradicts_itself_is_refused(place: int, value: int):
    info = ObjectInfo(
        digest=Digest("11" * 32), kind="tensor", dtype="BF16", shape=(2, 3), raw_size=12, stored_size=7, base=Digest("22" * 32), depth=1,
        codec="dense", pack="p", offset=64, checksum="33" * 32,
    )  # fmt: skip
    record = bytearray(layout.pack_record(info))
    record[place] = value
    with pytest.raises(CorruptRecord):
        layout.parse_record(bytes(record), "p")


# --- many packs --------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path, monkeypatch) -> tuple[Path, list[Digest]]:
    """A hundred packs of two blobs each, the later half written without touching the multi-pack index."""
    monkeypatch.setattr(fs, "_sync", lambda fd: None)
    place = tmp_path / "objects"
    place.mkdir()
    digests = []
    for step in range(100):
        pack = ObjectStore(place).new_pack(tmp_path)
        digests += [pack.add_blob(b"blob %d" % step), pack.add_blob(b"other %d" % step)]
        pack.finish()
    return place, digests


def test_a_lookup_among_many_packs_opens_few_files(many, monkeypatch):
    place, digests = many
    assert (place / "midx").exists()
    store, opened = ObjectStore(place), []
    honest = packs.PackSet._table
    monkeypatch.setattr(packs.PackSet, "_table", lambda self, pack: opened.append(pack) or honest(self, pack))
    assert store.has(digests[0])
    assert len(set(opened)) == 1  # found through the multi-pack index
    assert not store.has(blob_digest(b"absent"))
    assert len(set(opened)) <= 1 + packs.UNCOVERED


def test_the_index_of_many_packs_may_vanish_lag_or_lie(many):
    place, digests = many
    whole = (place / "midx").read_bytes()
    covered = MultiIndex.parse(whole)
    assert covered is not None
    assert len(covered.packs) > 60
    chance = random.Random(1)
    versions = [None, b"", whole[:50], whole[:-1]]
    for place_of_flip in [0, 9, 17, 30, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(25))]:
        flipped = bytearray(whole)
        flipped[place_of_flip] ^= 1 << chance.randrange(8)
        versions.append(bytes(flipped))
    for version in versions:
        (place / "midx").unlink(missing_ok=True)
        if version is not None:
            (place / "midx").write_bytes(version)
        store = ObjectStore(place)
        assert all(store.has(digest) for digest in digests)
        assert store.blob(digests[5]) == b"other 2"
        assert not store.has(blob_digest(b"absent"))


def test_a_pack_that_is_gone_is_no_longer_answered_by_the_index(many):
    place, digests = many
    store = ObjectStore(place)
    pack = store.info(digests[0]).pack
    store.pack_set.path(pack).unlink()
    store.pack_set.path(pack, "idx").unlink()
    assert not ObjectStore(place).has(digests[0])
    assert ObjectStore(place).has(digests[2])


def test_a_failing_disk_leaves_no_visible_pack(tmp_path: Path):
    (tmp_path / "objects").mkdir()
    (tmp_path / "tmp").mkdir()

    def commit() -> None:
        pack = ObjectStore(tmp_path / "objects").new_pack(tmp_path / "tmp")
        pack.add_blob(b"text" * 100)
        pack.finish()

    for call in range(1, 7):  # create, write, fsync, then the index: create, write, fsync
        fs.FAULTS = fs.FaultPlan(call, "enospc")
        try:
            with pytest.raises(OSError, match="space"):
                commit()
        finally:
            fs.FAULTS = None
        assert ObjectStore(tmp_path / "objects").packs() == []
    commit()
    assert len(ObjectStore(tmp_path / "objects").packs()) == 1


def mapped_mib(folder: Path) -> float:
    """MiB of the files of a folder that count as this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = words[-1].startswith(str(folder))
        elif inside and words[0] == "Rss:":
            found += int(words[1])
    return found / 1024


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what is mapped is read from /proc")
@pytest.mark.parametrize("side", [128, 1024])
def test_what_was_read_does_not_stay_in_this_process_whether_payloads_are_small_or_large(tmp_path: Path, side: int):
    store, draw, names = ObjectStore(tmp_path / "objects"), torch.Generator().manual_seed(0), []
    (tmp_path / "objects").mkdir()
    for _ in range(8):  # some packs, 26 MiB of payloads
        pack = store.new_pack(tmp_path)
        for _ in range(20 * 8 * 128 * 128 // (side * side)):
            x = (0.02 * torch.randn(side, side, generator=draw)).bfloat16()
            names.append(pack.add_tensor("BF16", (side, side), x.view(torch.uint8).numpy().tobytes()).digest)
        pack.finish()
    store = ObjectStore(tmp_path / "objects")
    stored = sum(store.info(name).stored_size for name in names) / 2**20
    assert stored > 20
    peak = 0.0
    for number, name in enumerate(names):
        store.tensor_bytes(name)
        if number % 10 == 0:
            peak = max(peak, mapped_mib(tmp_path))
    assert max(peak, mapped_mib(tmp_path)) < 9
