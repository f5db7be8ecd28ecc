"""The diagonal Fisher of a linear map against its definition, and the Triton twins of all unlearning kernels in Triton's interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlc.kernels import fisher
from mlc.kernels.fisher import fisher_diag


@pytest.fixture(scope="module")
def twins() -> dict[str, list[str]]:
    """What the child process found for each kernel: the cases in which a twin differs from its reference."""
    child = Path(__file__).with_name("unlearn_child.py")
    done = subprocess.run([sys.executable, "-P", str(child)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("kernel", ["fisher", "dampen", "select"])
def test_the_triton_twin_agrees_with_the_torch_body(twins, kernel: str):
    assert twins[kernel] == []


def defined(x: torch.Tensor, delta: torch.Tensor, absolute: bool) -> torch.Tensor:
    """The definition in float64, every sample's gradient held whole."""
    gradients = torch.einsum("bto,bti->boi", delta.double(), x.double())
    return (gradients.abs() if absolute else gradients.square()).sum(0)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (4, 1, 9, 5), (3, 7, 5, 3), (6, 13, 31, 700), (2, 5, 1, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_it_is_the_sum_over_samples_of_the_squared_gradient(shape: tuple[int, int, int, int], dtype: torch.dtype, absolute: bool):
    b, t, ins, outs = shape
    generator = torch.Generator().manual_seed(3)
    x, delta = torch.randn(b, t, ins, generator=generator).to(dtype), torch.randn(b, t, outs, generator=generator).to(dtype)
    found, right = fisher_diag(x, delta, absolute), defined(x, delta, absolute)
    assert found.dtype == torch.float32
    assert float((found - right).abs().amax()) <= 1e-6 * float(right.amax())


def test_positions_are_added_before_they_are_squared():
    x, delta = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[3.0], [-3.0]]])
    assert fisher_diag(x, delta).item() == 0
    assert fisher_diag(x.transpose(0, 1), delta.transpose(0, 1)).item() == 18


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0), (0, 1, 2, 2)], ids=str)
def test_nothing_gives_zeros(shape: tuple[int, int, int, int]):
    b, t, ins, outs = shape
    assert fisher_diag(torch.ones(b, t, ins), torch.ones(b, t, outs)).equal(torch.zeros(outs, ins))


def test_views_that_are_not_contiguous_are_read_right():
    generator = torch.Generator().manual_seed(4)
    x, delta = torch.randn(3, 8, 5, generator=generator).transpose(1, 2), torch.randn(5, 3, 6, generator=generator).transpose(0, 1)
    assert fisher_diag(x, delta).equal(fisher_diag(x.contiguous(), delta.contiguous()))


def test_no_more_than_the_working_buffer_is_held_beside_the_result():
    """Every tensor that is made on the way is counted: the gradients of all samples would be 24 times the weight."""
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.untyped_storage().nbytes() // 4)
            return out

    outs, ins = 1024, 640
    x, delta = torch.ones(24, 3, ins), torch.ones(24, 3, outs)
    with Watch():
        fisher_diag(x, delta)
    assert sorted({s for s in sizes if s not in (outs * ins, delta.numel(), x.numel())})[-1] <= fisher.WORK < outs * ins


@pytest.mark.parametrize(
    ("x", "delta"),
    [(torch.ones(2, 3), torch.ones(2, 3)), (torch.ones(2, 3, 4), torch.ones(2, 4, 4)), (torch.ones(1, 1, 1).int(), torch.ones(1, 1, 1))],
)
def test_shapes_and_types_that_do_not_fit_are_refused(x: torch.Tensor, delta: torch.Tensor):
    with pytest.raises(ValueError, match="inputs"):
        fisher_diag(x, delta)
