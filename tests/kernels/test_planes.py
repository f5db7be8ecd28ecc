"""Byte planes are exact for every bit pattern, and their Triton twins give the same bits (in Triton's interpreter, so no GPU is needed)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlc.kernels import planes
from mlc.kernels.planes import delta_planes, join_planes, split_planes, undelta_planes

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32", "uint64",
)  # fmt: skip


def bits(x: torch.Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def vector(dtype: torch.dtype, raw: bytes) -> torch.Tensor:
    data = torch.tensor(list(raw), dtype=torch.uint8)
    return (data & 1 if dtype is torch.bool else data).view(dtype)


@pytest.fixture(scope="module")
def twins() -> dict[str, list[str]]:
    """What the child process found for each type: the cases in which a twin differs from its reference."""
    child = Path(__file__).with_name("twin_child.py")
    done = subprocess.run([sys.executable, "-P", str(child), *DTYPES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", DTYPES)
def test_the_triton_twin_gives_the_same_bits_as_the_torch_body(twins, name: str):
    assert twins[name] == []


@given(data=st.data(), name=st.sampled_from(DTYPES))
def test_a_delta_applied_to_its_base_is_the_target_to_the_bit(data, name: str):
    dtype = getattr(torch, name)
    n = data.draw(st.integers(0, 20))
    target, base = (vector(dtype, data.draw(st.binary(min_size=n * dtype.itemsize, max_size=n * dtype.itemsize))) for _ in range(2))
    coded = delta_planes(target, base)
    assert coded.shape == (dtype.itemsize, n)
    assert bits(undelta_planes(coded, base)) == bits(target)


@given(data=st.data(), name=st.sampled_from(DTYPES))
def test_split_planes_join_to_the_same_bits(data, name: str):
    dtype = getattr(torch, name)
    n = data.draw(st.integers(0, 20))
    x = vector(dtype, data.draw(st.binary(min_size=n * dtype.itemsize, max_size=n * dtype.itemsize)))
    joined = join_planes(split_planes(x), dtype)
    assert joined.dtype == dtype
    assert bits(joined) == bits(x)


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_payloads_of_nan_signed_zero_and_infinities_survive(name: str):
    dtype = getattr(torch, name)
    width = planes.BITS[dtype.itemsize]
    top = torch.iinfo(width).max
    special = torch.tensor([0, -1, top, -top - 1, top - 5, 1, -2, top // 3], dtype=width).view(dtype)
    assert torch.isnan(special).any()
    for base in (special, special.flip(0), torch.zeros_like(special)):
        assert bits(undelta_planes(delta_planes(special, base), base)) == bits(special)
    assert bits(join_planes(split_planes(special), dtype)) == bits(special)


def test_a_step_across_zero_is_a_small_integer():
    target, base = torch.tensor([0.0, -1e-45, 1e-45]), torch.tensor([-0.0, 1e-45, -1e-45])
    assert delta_planes(target, base).tolist() == [[2, 5, 6], [0] * 3, [0] * 3, [0] * 3]  # zigzag of +1, -3, +3


def test_planes_are_little_endian_and_the_exponent_of_a_split_float_stands_alone():
    assert delta_planes(torch.tensor([0x0102], dtype=torch.int16), torch.tensor([0], dtype=torch.int16)).tolist() == [[4], [2]]
    low, high = split_planes(torch.tensor([-1.0], dtype=torch.bfloat16)).tolist()
    assert (low, high) == ([1], [127])  # sign below, mantissa zero; exponent 127 above


def test_views_that_are_not_contiguous_are_read_right():
    x, base = torch.arange(20, dtype=torch.float32)[::2], torch.arange(30, dtype=torch.float32)[::3]
    assert bits(undelta_planes(delta_planes(x, base), base)) == bits(x)
    assert bits(join_planes(split_planes(x), torch.float32)) == bits(x)


@pytest.mark.parametrize(
    ("target", "base"),
    [(torch.zeros(3), torch.zeros(4)), (torch.zeros(3), torch.zeros(3, dtype=torch.float16)), (torch.zeros(2, 2), torch.zeros(2, 2))],
)
def test_two_vectors_of_one_kind_are_asked_for(target: torch.Tensor, base: torch.Tensor):
    with pytest.raises(ValueError, match="two vectors of one dtype"):
        delta_planes(target, base)


def test_planes_of_another_width_are_refused():
    with pytest.raises(ValueError, match="planes of"):
        join_planes(torch.zeros(2, 5, dtype=torch.uint8), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_planes_are_joined_in_place_for_every_pattern_of_sixteen_bits(dtype: torch.dtype):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    low, high = split_planes(every)
    out = torch.zeros_like(every)
    planes.join_pair(low, high, out)
    assert bits(out) == bits(every)
    with pytest.raises(ValueError, match="two planes"):
        planes.join_pair(low[1:], high, out)
