"""Codecs: what goes in comes out to the bit, the right one is chosen, and damaged bytes cannot lead a reader astray."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.registry import delta
from mlc.registry.delta import against, alone, blocks, buffers, chooser, crew, forecast, frames
from mlc.registry.delta.decode import decode_range
from mlc.registry.delta.dtypes import CODECS, WORDS, byte_size, torch_name
from mlc.registry.errors import BadParameter, CorruptRecord, ShapeMismatch

NAMES = {code: name for name, code in CODECS.items()}


def raw(x: torch.Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def weights(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def tuned(base: torch.Tensor, seed: int = 1, size: float = 1e-4) -> torch.Tensor:
    """A fine-tune's neighbour: every element takes a small step of its own."""
    step = torch.randn(base.shape, generator=torch.Generator().manual_seed(seed)) * size
    return (base.float() + step).to(base.dtype)


def stored(word: str, target: torch.Tensor, base: torch.Tensor | None = None) -> tuple[str, bytes]:
    """Codec and stored bytes of a tensor, checked to come back."""
    source = None if base is None else raw(base)
    coded = delta.encode(word, target.shape, raw(target), None if source is None else lambda a, b: source[a:b])
    payload = b"".join(coded.chunks)
    assert bytes(back(word, target, coded, payload, source)) == raw(target)
    return NAMES[coded.codec], payload


def back(word: str, target: torch.Tensor, coded: chooser.Encoded, payload: bytes, source: bytes | None) -> np.ndarray:
    return part_of(word, target, coded, payload, source, slice(0, target.numel() * target.element_size()))


def part_of(word: str, target: torch.Tensor, coded: chooser.Encoded, payload: bytes, source: bytes | None, wanted: slice) -> np.ndarray:
    read_base = lambda a, b: (source or b"")[a:b]  # noqa: E731
    return decode_range(memoryview(payload), word, target.shape, coded.codec, coded.blocked, wanted, read_base)


def samples() -> list[tuple[str, str, torch.Tensor, torch.Tensor | None]]:
    base = weights(96, 128)
    low_rank = (base.float() + torch.outer(torch.linspace(1, 2, 96), torch.linspace(-1, 1, 128)) * 1e-3).to(torch.bfloat16)
    few = base.clone()
    few[::7, ::31] = 1.0
    return [
        ("constant", "F32", torch.ones(50), None),
        ("planes", "BF16", base, None),
        ("sparse", "BF16", few, base),
        ("dense", "BF16", tuned(base), base),
        ("dense", "BF16", tuned(base, size=1e-5), base),  # as integers
        ("forecast", "BF16", low_rank, base),
    ]


# --- round trips -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(data=st.data(), word=st.sampled_from(sorted(WORDS.values())), kind=st.sampled_from(["alone", "sparse", "dense", "equal", "other"]))
def test_every_type_and_kind_of_change_survives(data, word: str, kind: str):
    count = 4 * data.draw(st.integers(0, 75))
    seed = np.random.default_rng(data.draw(st.integers(0, 1000)))
    base = seed.integers(0, 2 if word == "BOOL" else 256, byte_size(word, (count,)), dtype=np.uint8)
    target = base.copy()
    if kind == "sparse":
        target[:1] ^= 1
    elif kind == "dense":
        target ^= seed.integers(0, 2, len(base), dtype=np.uint8)
    elif kind == "other":
        target = seed.integers(0, 2 if word == "BOOL" else 256, len(base), dtype=np.uint8)
    coded = delta.encode(word, (count,), target.tobytes(), None if kind == "alone" else lambda a, b: base[a:b])
    payload, whole = memoryview(b"".join(coded.chunks)), slice(0, len(target))
    decoded = decode_range(payload, word, (count,), coded.codec, False, whole, lambda a, b: base[a:b])
    assert decoded.tobytes() == target.tobytes()


@pytest.mark.parametrize("word", ["F64", "F32", "F16", "BF16"])
def test_floats_of_more_than_one_segment_survive_with_their_oddities(word: str):
    dtype = getattr(torch, torch_name(word))
    base = weights(alone.SEGMENT + 1000, dtype=dtype)
    target = tuned(base)
    target[:4] = torch.tensor([float("nan"), float("inf"), -0.0, 0.0]).to(dtype)
    base[-3:] = torch.tensor([float("-inf"), float("nan"), -0.0]).to(dtype)
    assert stored(word, target)[0] == "planes"
    assert stored(word, target, base)[0] == "dense"


# --- choices -----------------------------------------------------------------------------------------------


def test_one_value_throughout_takes_a_few_bytes():
    assert stored("F32", torch.zeros(100_000)) == ("constant", bytes(4))
    assert stored("BF16", torch.full((300, 300), float("nan"), dtype=torch.bfloat16))[0] == "constant"


def test_noise_is_stored_raw():
    noise = torch.randint(0, 256, (50_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert stored("U8", noise) == ("raw", raw(noise))


def test_weights_alone_take_two_thirds_in_bf16_and_less_than_85_percent_in_fp32():
    codec, payload = stored("BF16", weights(400, 1000))
    assert codec == "planes"
    assert len(payload) < 0.67 * 800_000
    assert len(stored("F32", weights(400, 1000, dtype=torch.float32))[1]) < 0.85 * 1_600_000


def test_few_changes_are_sparse_and_small():
    base = weights(500, 400)
    target = base.clone()
    target.view(-1)[::101] *= 1.5
    codec, payload = stored("BF16", target, base)
    assert codec == "sparse"
    assert len(payload) < 0.03 * 400_000


def test_a_normal_fine_tune_takes_less_than_a_quarter():
    base = weights(500, 800)
    codec, payload = stored("BF16", tuned(base), base)
    assert codec == "dense"
    assert len(payload) < 0.25 * 800_000


def test_a_light_change_takes_less_than_a_bit_per_weight():
    base = weights(500, 800)
    codec, payload = stored("BF16", tuned(base, size=3e-6), base)
    assert codec == "dense"
    assert 8 * len(payload) < 0.7 * 400_000


def test_an_update_of_low_rank_is_forecast():
    base = weights(512, 700)
    generator = torch.Generator().manual_seed(5)
    update = torch.randn(512, 3, generator=generator) @ torch.randn(3, 700, generator=generator) * 1e-4
    target = (base.float() + update + torch.randn(512, 700, generator=generator) * 3e-5).to(torch.bfloat16)
    codec, payload = stored("BF16", target, base)
    assert codec == "forecast"
    plain = against.encode_dense(target.view(-1), lambda part: base.view(-1)[part])
    assert len(payload) < 0.9 * len(b"".join(plain))


def test_a_forecast_is_not_tried_where_a_base_is_not_finite():
    base, target = weights(128, 128), weights(128, 128, seed=2)
    base[0, 0] = float("inf")
    assert forecast.fit(target.view(-1), base.view(-1), 128) is None


def test_a_base_that_does_not_help_is_left_alone():
    assert stored("BF16", weights(300, 300), weights(300, 300, seed=9))[0] == "planes"
    fp32 = weights(300, 300, dtype=torch.float32)
    assert stored("F32", tuned(fp32, size=0.01), fp32)[0] == "planes"


def test_fitting_a_forecast_leaves_the_global_seed_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    forecast.fit(tuned(weights(128, 128)).view(-1), weights(128, 128).view(-1), 128)
    assert torch.get_rng_state().equal(before)


# --- blocks ------------------------------------------------------------------------------------------------


def test_tensors_over_64_mib_are_cut_into_rows_of_16_mib():
    assert blocks.block_sizes("F32", (1 << 12, 1 << 12)) == [64 << 20]
    sizes = blocks.block_sizes("BF16", (40_000, 3000))  # 6,000 bytes a row, 2,796 rows a block
    assert set(sizes[:-1]) == {2796 * 6000}
    assert sum(sizes) == 40_000 * 3000 * 2
    assert blocks.block_sizes("F32", (2, 1 << 24)) == [16 << 20] * 8  # rows longer than a block are cut as well


def test_a_tensor_of_many_blocks_reads_its_base_block_by_block(monkeypatch):
    monkeypatch.setattr(blocks, "WHOLE", 4000)
    monkeypatch.setattr(blocks, "BLOCK", 2000)
    base = weights(60, 100)
    target = tuned(base)
    target[20:40] = base[20:40]
    source, asked = raw(base), []
    coded = delta.encode("BF16", target.shape, raw(target), lambda a, b: asked.append((a, b)) or source[a:b])
    assert asked == [(i * 2000, (i + 1) * 2000) for i in range(6)]
    assert coded.blocked
    assert coded.uses_base
    payload = b"".join(coded.chunks)
    assert back("BF16", target, coded, payload, source).tobytes() == raw(target)
    for wanted in (slice(3990, 8010), slice(3991, 8009), slice(0, 1), slice(5, 5)):
        assert part_of("BF16", target, coded, payload, source, wanted).tobytes() == raw(target)[wanted]


@pytest.mark.parametrize(("codec", "word", "target", "base"), samples(), ids=lambda x: x if isinstance(x, str) else "")
def test_a_range_is_read_with_just_the_part_of_the_base_it_needs(monkeypatch, codec, word, target, base):
    monkeypatch.setattr(alone, "SEGMENT", 1000)
    source, asked = raw(base) if base is not None else b"", []
    coded = delta.encode(word, target.shape, raw(target), (lambda a, b: source[a:b]) if source else None)
    payload, size = memoryview(b"".join(coded.chunks)), len(raw(target))
    assert NAMES[coded.codec] == codec
    for wanted in (slice(0, size), slice(size // 3, size // 2), slice(size - 3, size)):
        asked.clear()
        read_base = lambda a, b: asked.append(b - a) or source[a:b]  # noqa: E731
        part = decode_range(payload, word, target.shape, coded.codec, False, wanted, read_base)
        assert part.tobytes() == raw(target)[wanted]
        assert sum(asked) <= wanted.stop - wanted.start + 2 * 2000  # at most a segment more at either end


@pytest.mark.parametrize(
    "table",
    [b"", b"\1\0\0\0", blocks.write_table([(0, 11, 10)]) + bytes(10), blocks.write_table([(0, 10, 11)]) + bytes(10),
     blocks.write_table([(0, 10, 10)]) + bytes(11), blocks.write_table([(0, 0, 0), (0, 10, 10)]) + bytes(10), b"\xff" * 4 + bytes(50)],
)  # fmt: skip
def test_a_table_of_blocks_that_cannot_be_is_refused(table: bytes):
    with pytest.raises(CorruptRecord):
        blocks.read_table(memoryview(table), 10)


# --- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "word", "target", "base"), samples(), ids=lambda x: x if isinstance(x, str) else "")
def test_flipped_bits_and_cuts_are_refused_or_harmless_to_the_reader(codec, word, target, base):
    source = raw(base) if base is not None else None
    coded = delta.encode(word, target.shape, raw(target), (lambda a, b: source[a:b]) if source else None)
    payload = b"".join(coded.chunks)
    assert NAMES[coded.codec] == codec
    random = np.random.default_rng(0)
    places = [*range(0, min(len(payload), 60)), *random.integers(0, len(payload), 60)]
    for place in places:
        flipped = bytearray(payload)
        flipped[place] ^= 1 << int(random.integers(8))
        for damaged in (bytes(flipped), payload[:place]):
            try:
                decoded = back(word, target, coded, damaged, source)
            except CorruptRecord:
                continue
            assert len(decoded) == len(raw(target))  # what is wrong in it, the digest will say


def test_a_frame_that_declares_another_size_takes_no_memory():
    bomb = frames.compress(bytes(1 << 20))
    with pytest.raises(CorruptRecord, match="another size"):
        frames.decompress(bomb, 10)
    with pytest.raises(CorruptRecord):
        frames.decompress(bomb + b"x", 1 << 20)


def test_unknown_types_and_impossible_shapes_are_refused():
    with pytest.raises(BadParameter, match="F7"):
        delta.encode("F7", (1,), b"")
    with pytest.raises(BadParameter, match="limit"):
        delta.encode("F32", (1 << 30, 1 << 30), b"")
    with pytest.raises(BadParameter, match="limit"):
        delta.encode("F32", (1,) * 9, b"")


# --- distances ---------------------------------------------------------------------------------------------


def test_statistics_count_bits_and_measure_values():
    reference, target = torch.tensor([3.0, 4.0, 0.0, float("inf")]), torch.tensor([3.0, 4.5, -0.0, float("inf")])
    assert delta.stats("F32", raw(target), raw(reference)) == {"nnz": 2, "l2": 0.5, "rel_l2": 0.1, "max_abs": 0.5}


def test_statistics_of_an_unchanged_and_of_an_empty_tensor_are_zero():
    zero = {"nnz": 0, "l2": 0.0, "rel_l2": 0.0, "max_abs": 0.0}
    assert delta.stats("BF16", raw(weights(9)), raw(weights(9))) == zero
    assert delta.stats("BF16", b"", b"") == zero


def test_a_change_to_nan_has_no_norm():
    found = delta.stats("F32", raw(torch.tensor([float("nan"), 1.0])), raw(torch.tensor([0.0, 1.0])))
    assert found == {"nnz": 1, "l2": None, "rel_l2": None, "max_abs": None}


def test_integers_are_compared_as_values():
    target, reference = torch.tensor([1, -3], dtype=torch.int8), torch.tensor([1, 1], dtype=torch.int8)
    assert delta.stats("I8", raw(target), raw(reference)) == {"nnz": 1, "l2": 4.0, "rel_l2": 4 / 2**0.5, "max_abs": 4.0}
    with pytest.raises(ShapeMismatch):
        delta.stats("I8", b"12", b"1")


# --- threads -----------------------------------------------------------------------------------------------


def test_segments_coded_side_by_side_give_the_bytes_of_one_thread(monkeypatch):
    target = weights(3 * alone.SEGMENT + 5)
    together = [bytes(chunk) for chunk in alone.encode_planes(target)]
    monkeypatch.setattr(crew, "_processors", lambda: 1)
    assert [bytes(chunk) for chunk in alone.encode_planes(target)] == together


def test_a_fault_in_one_segment_is_raised(monkeypatch):
    monkeypatch.setattr(crew, "_processors", lambda: 2)
    payload = b"".join(alone.encode_planes(weights(2 * alone.SEGMENT)))
    out = torch.empty(2 * alone.SEGMENT, dtype=torch.bfloat16)
    with pytest.raises(CorruptRecord):
        alone.decode_planes(memoryview(payload[:-500] + bytes(500)), len(out), 1, slice(0, len(out)), out)


def test_a_forked_child_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(crew, "_processors", lambda: 2)
    assert crew.each(abs, [-1, -2]) == [1, 2]
    monkeypatch.setattr(crew.os, "getpid", lambda: -1)  # as after a fork
    assert crew.each(abs, [-3, -4]) == [3, 4]
    assert len(crew._POOLS) > 1
    crew._POOLS.pop(-1).shutdown()


def test_work_within_work_does_not_wait_for_itself(monkeypatch):
    monkeypatch.setattr(crew, "_processors", lambda: 2)
    inner = lambda n: sum(crew.each(lambda k: k * n, range(20)))  # noqa: E731
    assert crew.each(inner, range(50)) == [190 * n for n in range(50)]


def test_rows_longer_than_a_segment_are_forecast_and_read_in_ranges(monkeypatch):
    monkeypatch.setattr(alone, "SEGMENT", 150)
    monkeypatch.setattr(crew, "_processors", lambda: 4)
    base = weights(70, 400)
    target = (base.float() + torch.outer(torch.linspace(1, 2, 70), torch.linspace(-1, 1, 400)) * 1e-3).to(torch.bfloat16)
    assert stored("BF16", target, base)[0] == "forecast"


def test_large_memory_is_used_again_when_nobody_holds_it(monkeypatch):
    monkeypatch.setattr(buffers, "STEADY", 1000)
    monkeypatch.setattr(buffers, "KEPT", 10_000)
    assert buffers._spare is None  # outside nothing is kept
    with buffers.recycling():
        first = buffers.memory(2000)
        place, view = first.ctypes.data, buffers.borrow(first[10:20], torch.uint8)
        del first
        assert buffers.memory(2000).ctypes.data != place  # a view of it is left
        del view
        assert buffers.memory(1900).ctypes.data == place
        assert len(buffers.memory(20_000)) == 20_000  # too large to be kept
        held = [buffers.memory(2000) for _ in range(9)]
        assert len({x.ctypes.data for x in held}) == 9
        assert sum(map(len, buffers._spare)) <= 10_000
    assert buffers._spare is None
