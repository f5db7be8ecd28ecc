"""The safetensors header: what the library writes we read and write alike, and what we accept the library reads to the same values."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.registry.errors import BadInputFile, Incompatible
from mlc.registry.formats.safetensors import BITS, Header, byte_size, parse_header, write_header
from mlc.registry.formats.torch_bytes import TORCH_NAMES, from_tensor, to_tensor

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_:/-]{0,8}(\.[a-z0-9]{1,6}){0,3}", fullmatch=True).filter(
    lambda name: (
        "//" not in name
        and not any(part.startswith("__") and part.endswith("__") for part in name.replace("/", ".").replace(":", ".").split("."))
    )
)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
words = st.sampled_from(sorted(BITS))
metadata = st.none() | st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.text(st.characters(exclude_categories=["Cs"])), max_size=3
)


@st.composite
def tensor_tables(draw):
    found = {}
    for name in draw(st.lists(names, max_size=6, unique=True)):
        word, shape = draw(words), draw(shapes)
        if word.startswith(("F4", "F6")):
            shape = (*shape, 4)  # whole bytes: four 6-bit values make three
        found[name] = (word, shape)
    return found


def whole(header: Header) -> bytes:
    return header.raw + bytes(i * 7 % 256 for i in range(header.data_size))


def triples(header: Header) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(entry.name, entry.dtype, entry.shape) for entry in header.entries]


def of_library(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in safetensors.deserialize(data)}


def of_ours(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    header = parse_header(data)
    body = data[len(header.raw) :]
    return {e.name: (e.dtype, e.shape, body[e.begin : e.end]) for e in header.entries}


@given(tensor_tables(), metadata)
def test_a_header_comes_back_from_its_bytes(table: dict, meta: dict | None):
    written = write_header([(name, *info) for name, info in table.items()], meta)
    read = parse_header(whole(written))
    assert read == written
    assert {name: (dtype, shape) for name, dtype, shape in triples(read)} == table


@given(tensor_tables(), metadata)
def test_the_library_reads_what_we_write_to_the_same_values(table: dict, meta: dict | None):
    data = whole(write_header([(name, *info) for name, info in table.items()], meta))
    assert of_library(data) == of_ours(data)


@settings(max_examples=400)
@given(tensor_tables(), st.data())
def test_whatever_we_accept_of_a_damaged_header_the_library_reads_to_the_same_values(table: dict, draw: st.DataObject):
    data = bytearray(whole(write_header([(name, *info) for name, info in table.items()], {"format": "pt"})))
    for _ in range(draw.draw(st.integers(1, 3))):
        place = draw.draw(st.integers(0, len(data) - 1))
        match draw.draw(st.sampled_from(["flip", "set", "cut", "insert", "repeat"])):
            case "flip":
                data[place] ^= 1 << draw.draw(st.integers(0, 7))
            case "set":
                data[place] = draw.draw(st.sampled_from(b'{}[]",:0123456789.-eE \\'))
            case "cut":
                del data[place : place + draw.draw(st.integers(1, 16))]
            case "insert":
                data[place:place] = draw.draw(st.binary(max_size=4))
            case "repeat":
                data[place:place] = data[place : place + 24]
        if not data:
            break
    try:
        ours = of_ours(bytes(data))
    except BadInputFile:
        return
    assert of_library(bytes(data)) == ours


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_and_never_crash(data: bytes):
    with contextlib.suppress(BadInputFile):
        parse_header(struct.pack("<Q", len(data)) + data)


def every_type() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    bits = {word: torch.randint(0, 256, (2, 16), dtype=torch.uint8) for word in TORCH_NAMES}
    bits["BOOL"] %= 2
    return {f"t.{word.lower()}": value.view(getattr(torch, TORCH_NAMES[word])) for word, value in bits.items()}


@pytest.mark.parametrize("meta", [None, {"format": "pt"}, {"a": 'quote " slash \\ line\n tab\t \x00\x1f\x7f ü 漢 \u2028 \U0001f9ea'}])
def test_our_header_is_byte_for_byte_the_library_s(meta: dict | None):
    tensors = {**every_type(), "empty": torch.zeros(0, 3), "scalar": torch.tensor(1.5), "Z": torch.ones(1), "a": torch.ones(1)}
    data = safetensors.torch.save(tensors, meta)
    plain = {name: from_tensor(tensor) for name, tensor in tensors.items()}
    ours = write_header([(name, word, shape) for name, (word, shape, _) in reversed(plain.items())], meta)
    assert ours.raw == data[: len(ours.raw)]
    assert ours.raw + b"".join(plain[entry.name][2] for entry in ours.entries) == data
    assert parse_header(data) == ours


@pytest.mark.parametrize("word", sorted(TORCH_NAMES))
def test_every_bit_pattern_survives_the_way_through_torch(word: str):
    tensor = every_type()[f"t.{word.lower()}"]
    name, shape, data = from_tensor(tensor)
    back = to_tensor(name, shape, data)
    assert name == word
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert bytes(from_tensor(back)[2]) == bytes(data)


def test_a_tensor_that_is_not_contiguous_or_is_conjugated_is_stored_as_it_reads():
    turned = torch.arange(6, dtype=torch.int32).reshape(2, 3).T
    assert to_tensor(*from_tensor(turned)).equal(turned)
    lazy = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj()
    assert to_tensor(*from_tensor(lazy)).equal(lazy.resolve_conj())


def test_a_contiguous_tensor_lends_its_own_memory():
    tensor = torch.zeros(4)
    data = from_tensor(tensor)[2]
    tensor[0] = 1.0
    assert struct.unpack("<4f", data) == (1.0, 0.0, 0.0, 0.0)


def test_tensors_that_safetensors_cannot_hold_are_refused():
    with pytest.raises(Incompatible, match="complex128"):
        from_tensor(torch.zeros(1, dtype=torch.complex128))
    with pytest.raises(Incompatible, match="sparse"):
        from_tensor(torch.eye(2).to_sparse())
    with pytest.raises(Incompatible, match="F6_E2M3"):
        to_tensor("F6_E2M3", (4,), b"123")


def test_an_offset_that_is_not_aligned_is_read_all_the_same():
    # the library writes the wide types first; a file of another origin may not
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}'
    data = struct.pack("<Q", len(text)) + text + b"\x07" + struct.pack("<f", 1.5)
    assert of_ours(data) == of_library(data)
    assert to_tensor("F32", (1,), memoryview(data)[-4:]).item() == 1.5


def test_entries_stand_in_the_order_of_their_bytes_whatever_the_order_of_the_text():
    text = json.dumps(
        {"b": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    ).encode()
    header = parse_header(struct.pack("<Q", len(text)) + text + b"\x01\x02")
    assert [entry.name for entry in header.entries] == ["a", "b"]
    assert header.raw == struct.pack("<Q", len(text)) + text


def test_sizes_in_bytes_of_types_narrower_than_a_byte():
    assert byte_size("F4", (3, 2)) == 3
    assert byte_size("F6_E3M2", (4,)) == 3
    assert byte_size("BF16", ()) == 2
    with pytest.raises(BadInputFile):
        byte_size("F4", (3,))
