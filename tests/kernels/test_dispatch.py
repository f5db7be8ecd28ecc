"""Which road a kernel takes: the torch body unless a CUDA tensor arrives or the twin is forced."""

from __future__ import annotations

import sys

import pytest
import torch

from mlc.kernels import planes
from mlc.kernels.dispatch import accelerated, use_kernels


def test_tensors_of_the_cpu_never_import_the_twin():
    sys.modules.pop("mlc.kernels._triton.planes", None)
    planes.split_planes(torch.zeros(3))
    assert "mlc.kernels._triton.planes" not in sys.modules


def test_a_forced_road_holds_inside_its_block_only():
    @accelerated("no_such_twin")
    def double(x: torch.Tensor) -> torch.Tensor:
        return x + x

    x = torch.ones(2)
    with use_kernels("triton"):
        with pytest.raises(ModuleNotFoundError, match="no_such_twin"):
            double(x)
        with use_kernels("torch"):
            assert double(x).tolist() == [2, 2]
    assert double(x).tolist() == [2, 2]


def test_the_torch_body_stays_reachable():
    assert planes.split_planes.reference(torch.ones(1)).equal(planes.split_planes(torch.ones(1)))
    assert planes.split_planes.__doc__ == planes.split_planes.reference.__doc__


def test_an_unknown_road_is_refused():
    with pytest.raises(ValueError, match="auto, torch or triton"), use_kernels("cuda"):  # type: ignore[arg-type]
        pass
