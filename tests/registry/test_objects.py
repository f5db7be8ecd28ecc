"""The object store: bytes by digest, verified on every read; deltas, keyframes, and packs that other processes write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlc.registry import delta
from mlc.registry.errors import CorruptRecord, MissingObject, ShapeMismatch
from mlc.registry.ids import Digest, blob_digest, tensor_digest
from mlc.registry.objects import ObjectStore
from mlc.registry.objects.writer import PackWriter


def raw(x: torch.Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(torch.bfloat16)


def tuned(base: torch.Tensor, seed: int = 1, size: float = 3e-6) -> torch.Tensor:
    step = torch.randn(base.shape, generator=torch.Generator().manual_seed(seed)) * size
    return (base.float() + step).to(base.dtype)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "objects").mkdir()
    (tmp_path / "tmp").mkdir()
    return ObjectStore(tmp_path / "objects")


def writer(store: ObjectStore) -> PackWriter:
    return store.new_pack(store.directory.parent / "tmp")


def put(store: ObjectStore, x: torch.Tensor, base: Digest | None = None) -> Digest:
    pack = writer(store)
    digest = pack.add_tensor("BF16", x.shape, raw(x), base).digest
    pack.finish()
    return digest


# --- in and out --------------------------------------------------------------------------------------------


def test_blobs_and_tensors_come_back_by_digest(store: ObjectStore):
    pack, x = writer(store), weights(30, 40)
    text, empty = pack.add_blob(b"a readme, " * 50), pack.add_blob(b"")
    info = pack.add_tensor("BF16", (30, 40), raw(x))
    assert pack.finish() == store.packs()[0]
    assert (store.blob(text), store.blob(empty), bytes(store.tensor_bytes(info.digest))) == (b"a readme, " * 50, b"", raw(x))
    assert text == blob_digest(b"a readme, " * 50)
    assert info.digest == tensor_digest("BF16", (30, 40), [raw(x)])
    assert store.info(text).codec == "zstd"
    assert {i.kind for i in store.iter_infos()} == {"blob", "tensor"}


def test_nothing_is_visible_before_finish_and_everything_after(store: ObjectStore):
    pack = writer(store)
    digest = pack.add_blob(b"new")
    assert pack.has(digest)
    assert not store.has(digest)
    pack.finish()
    assert store.has(digest)
    assert list((store.directory.parent / "tmp").iterdir()) == []


def test_an_empty_pack_is_no_pack(store: ObjectStore):
    pack = writer(store)
    assert pack.finish() is None
    assert store.packs() == []


def test_an_aborted_pack_leaves_nothing(store: ObjectStore):
    pack = writer(store)
    digest = pack.add_blob(b"gone")
    pack.abort()
    assert not pack.has(digest)
    assert pack.finish() is None
    assert list((store.directory.parent / "tmp").iterdir()) == []


def test_a_known_object_is_not_written_again(store: ObjectStore):
    put(store, weights(5, 5))
    pack = writer(store)
    assert pack.add_tensor("BF16", (5, 5), raw(weights(5, 5))).codec == store.info(next(store.iter_infos()).digest).codec
    assert pack.finish() is None


def test_a_tensor_may_be_a_delta_of_one_in_the_same_unfinished_pack(store: ObjectStore):
    pack, base = writer(store), weights(80, 80)
    first = pack.add_tensor("BF16", (80, 80), raw(base))
    second = pack.add_tensor("BF16", (80, 80), raw(tuned(base)), first.digest)
    assert second.base == first.digest
    pack.finish()
    assert bytes(store.tensor_bytes(second.digest)) == raw(tuned(base))


def test_stored_bytes_lie_aligned(store: ObjectStore):
    pack = writer(store)
    for text in (b"1", b"22", b"333"):
        pack.add_blob(text)
    pack.finish()
    assert all(info.offset % 64 == 0 for info in store.iter_infos())


def test_bytes_of_a_wrong_length_are_refused(store: ObjectStore):
    with pytest.raises(ShapeMismatch, match="3 bytes cannot be a F32 tensor"):
        writer(store).add_tensor("F32", (1,), b"abc")


def test_what_is_not_there_is_named(store: ObjectStore):
    absent = blob_digest(b"absent")
    for question in (store.info, store.blob, store.tensor_bytes, store.payload):
        with pytest.raises(MissingObject, match=absent):
            question(absent)
    assert not store.has(Digest("no digest"))


def test_a_blob_is_not_a_tensor(store: ObjectStore):
    pack = writer(store)
    blob, tensor = pack.add_blob(b"text"), pack.add_tensor("BF16", (2,), b"abcd").digest
    pack.finish()
    with pytest.raises(CorruptRecord, match="not a blob"):
        store.blob(tensor)
    with pytest.raises(CorruptRecord, match="not a tensor"):
        store.tensor_bytes(blob)


# --- chains ------------------------------------------------------------------------------------------------


def test_chains_stay_at_most_eight_deltas_deep(store: ObjectStore):
    x = weights(100, 100)
    digests, base = [put(store, x)], x
    for step in range(20):
        base = tuned(base, seed=step + 1, size=1e-6)
        digests.append(put(store, base, digests[-1]))
    depths = [store.info(digest).depth for digest in digests]
    assert max(depths) == delta.MAX_DEPTH
    assert depths[:9] == list(range(9))
    assert bytes(store.tensor_bytes(digests[-1])) == raw(base)


def test_a_keyframe_comes_when_the_deltas_of_a_chain_outgrow_it(store: ObjectStore):
    x = weights(100, 100)
    digests, base = [put(store, x)], x
    for step in range(8):
        base = tuned(base, seed=step + 1, size=2e-4)
        digests.append(put(store, base, digests[-1]))
    keyframe = store.info(digests[0]).stored_size
    for digest in digests:
        info = store.info(digest)
        assert info.path_size <= keyframe
        assert info.path_size == sum(link.stored_size for link in store.chain(digest)[:-1])
    assert max(store.info(digest).depth for digest in digests) < 8


def test_a_base_of_another_type_or_shape_is_no_base(store: ObjectStore):
    base = put(store, weights(10, 20))
    pack = writer(store)
    assert pack.add_tensor("BF16", (20, 10), raw(weights(10, 20, seed=2)), base).base is None
    assert pack.add_tensor("F16", (10, 20), raw(weights(10, 20, seed=2)), base).base is None
    assert pack.add_tensor("BF16", (10, 20), raw(weights(10, 20, seed=2)), blob_digest(b"absent")).base is None


def test_a_range_reads_only_what_it_needs(store: ObjectStore):
    x = weights(50, 50)
    digest = put(store, x)
    assert bytes(store.tensor_range(digest, 100, 260)) == raw(x)[100:260]


# --- several processes -------------------------------------------------------------------------------------


def test_a_pack_written_by_another_process_is_found(store: ObjectStore):
    put(store, weights(4, 4))
    other = ObjectStore(store.directory)
    assert not store.has(blob_digest(b"from elsewhere"))
    pack = writer(other)
    pack.add_blob(b"from elsewhere")
    pack.finish()
    assert store.blob(blob_digest(b"from elsewhere")) == b"from elsewhere"


def test_many_packs_in_one_tick_of_the_clock_are_all_found(store: ObjectStore):
    reader = ObjectStore(store.directory)
    for step in range(30):
        pack = writer(store)
        digest = pack.add_blob(b"%d" % step)
        pack.finish()
        assert reader.has(digest)


def test_bytes_stay_readable_when_their_pack_is_removed(store: ObjectStore):
    noise = torch.randint(0, 256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pack = writer(store)
    digest = pack.add_tensor("U8", (5000,), raw(noise)).digest
    name = pack.finish()
    held = store.tensor_bytes(digest)
    assert held.readonly
    store.pack_set.path(name or "").unlink()
    store.pack_set.forget(name or "")
    assert bytes(held) == raw(noise)
    with pytest.raises(MissingObject):
        store.tensor_bytes(digest)


# --- quarantine --------------------------------------------------------------------------------------------


def test_an_object_in_quarantine_is_missing_until_it_is_put_again(store: ObjectStore):
    x = weights(20, 20)
    digest = put(store, x)
    store.quarantine(digest)
    assert not store.has(digest)
    assert not ObjectStore(store.directory).has(digest)
    assert put(store, x) == digest
    assert bytes(store.tensor_bytes(digest)) == raw(x)
    assert len(store.packs()) == 1  # the same bytes make the same pack


# --- the light start ---------------------------------------------------------------------------------------


def test_blobs_need_neither_torch_nor_numpy(tmp_path: Path):
    script = """
import sys, pathlib
from mlc.registry.objects import ObjectStore
place = pathlib.Path(sys.argv[1]); store = ObjectStore(place)
pack = store.new_pack(place); digest = pack.add_blob(b"text" * 100); pack.finish()
assert store.blob(digest) == b"text" * 100
print(sorted({"torch", "numpy", "pyarrow", "duckdb"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-P", "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
