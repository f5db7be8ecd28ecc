"""The sums of a merge: defined to the bit, the same through Triton (in its interpreter), and what the formulas say on small numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlc.kernels import exact
from mlc.kernels.merge import NEVER, elect_sum, task_sum, weighted_sum


@pytest.fixture(scope="module")
def twins() -> dict[str, list[str]]:
    """What the child process found for each kernel: the cases in which a twin differs from its reference."""
    child = Path(__file__).with_name("merge_child.py")
    done = subprocess.run([sys.executable, "-P", str(child)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["weighted_sum", "task_sum", "elect_sum"])
def test_the_triton_twin_gives_the_same_bits_as_the_torch_body(twins, name: str):
    assert twins[name] == []


def test_a_processor_without_vectors_gives_the_same_bits():
    child = Path(__file__).with_name("merge_child.py")
    found = [
        subprocess.run(
            [sys.executable, "-P", str(child), "bits"], capture_output=True, text=True, timeout=300, check=True, env={**os.environ, **more}
        ).stdout
        for more in ({}, {"ATEN_CPU_CAPABILITY": "default"})
    ]
    assert found[0] == found[1] != ""


def test_a_weighted_sum_is_products_and_sums_one_after_the_other():
    xs = [torch.randn(70, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    steps = exact.add(exact.add(exact.scale(xs[0], 0.6), exact.scale(xs[1], 0.7)), exact.scale(xs[2], -0.1))
    assert weighted_sum(*xs, weights=[0.6, 0.7, -0.1]).equal(steps)


def test_a_task_sum_is_differences_products_and_sums_one_after_the_other():
    base, x, y = (torch.randn(70, generator=torch.Generator().manual_seed(i)) for i in range(3))
    steps = exact.add(exact.scale(exact.sub(x, base), 0.6), exact.scale(exact.sub(y, base), 0.7))
    assert task_sum(base, x, y, weights=[0.6, 0.7], factor=0.8).equal(exact.add(base, exact.scale(steps, 0.8)))


def test_no_bit_depends_on_the_size_of_the_steps(monkeypatch: pytest.MonkeyPatch):
    base, x, y = (torch.randn(1001, generator=torch.Generator().manual_seed(i)) for i in range(3))
    trims = {"low": [0.5, NEVER], "last": [700, -1]}
    whole = elect_sum(base, x, y, weights=[0.5, 1.0], **trims), weighted_sum(x, y, weights=[0.5, 1.0], total=3.0)
    monkeypatch.setattr("mlc.kernels.exact._chunk", lambda: 64)
    parts = elect_sum(base, x, y, weights=[0.5, 1.0], **trims), weighted_sum(x, y, weights=[0.5, 1.0], total=3.0)
    assert all(a.equal(b) for a, b in zip(whole, parts, strict=True))


def test_the_sign_of_the_sum_wins_a_tie_goes_to_plus_and_zeros_do_not_count():
    base = torch.zeros(4)
    a, b = torch.tensor([1.0, 1.0, 0.0, -3.0]), torch.tensor([3.0, -1.0, 2.0, 1.0])
    none: dict = {"low": [NEVER] * 2, "last": [-1] * 2}
    assert elect_sum(base, a, b, weights=[1.0, 1.0], **none).tolist() == [2.0, 1.0, 2.0, -3.0]
    assert elect_sum(base, a, b, weights=[1.0, 1.0], normalize=False, factor=0.5, **none).tolist() == [2.0, 0.5, 1.0, -1.5]


def test_a_trim_keeps_what_is_greater_and_the_first_of_the_equals():
    delta = torch.tensor([1.0, -2.0, 1.0, 0.5, -1.0])
    assert elect_sum(torch.zeros(5), delta, weights=[1.0], low=[1.0], last=[2], vectors=True).tolist() == [1.0, -2.0, 1.0, 0.0, 0.0]


def test_a_negative_zero_stays():
    zero = torch.tensor([-0.0], dtype=torch.bfloat16)
    assert torch.signbit(weighted_sum(zero, zero, weights=[0.5, 0.5]))


@pytest.mark.parametrize(
    ("tensors", "weights"),
    [((), ()), ((torch.zeros(2),), (1.0, 2.0)), ((torch.zeros(2), torch.zeros(3)), (1, 1)), ((torch.zeros(2, dtype=torch.int8),), (1,))],
)
def test_what_cannot_be_summed_is_refused(tensors, weights):
    with pytest.raises(ValueError, match="summed"):
        weighted_sum(*tensors, weights=weights)


def test_models_and_their_task_vectors_give_the_same(monkeypatch: pytest.MonkeyPatch):
    base, x, y = (torch.randn(1001, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3))
    trims = {"weights": [0.5, 1.0], "low": [0.5, NEVER], "last": [700, -1]}
    vectors = [z.float() - base.float() for z in (x, y)]
    assert elect_sum(base, x, y, **trims).equal(elect_sum(base, *vectors, vectors=True, **trims))


def test_what_is_no_number_is_not_lost():
    base, x = torch.zeros(3), torch.tensor([float("nan"), 1.0, 2.0])
    merged = elect_sum(base, x, -x, weights=[1.0, 2.0], low=[1.5, NEVER], last=[-1, -1])
    assert torch.isnan(merged[0])
    assert merged[1:].tolist() == [-1.0, -2.0]
