"""What the tests of merging share: small versions, siblings of one base, and the outputs of mergekit that are kept with the methods."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlc.ops.base import Change, SetTensor
from mlc.ops.merge.merge import Merge
from mlc.tests.conftest import ROOT
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView


def golden_place() -> Path:
    """Where mergekit's outputs lie: beside the material, or a skip that says where it was looked for."""
    material = Path(os.environ.get("MLC_MATERIAL", ROOT.parent / "shared" / "material"))
    place = material.parent / "methods" / "golden"
    if not (place / "manifest.json").is_file():
        pytest.skip(f"no outputs of mergekit at {place}; set MLC_MATERIAL to the folder beside methods/")
    return place


def sibling(view: MemoryView, seed: int, size: float = 0.05) -> MemoryView:
    """The same model with noise on every tensor: a fine-tune that did not learn anything."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in view.names():
        x = view.tensor(name)
        tensors[name] = (x.float() + size * torch.randn(x.shape, generator=generator)).to(x.dtype) if x.is_floating_point() else x
    return MemoryView(tensors, {f.path: view.file(f.path) or b"" for f in view.files()})


def family(
    directory: Path, count: int = 3, *, dtype: str = "float32", layers: int = 2, kind: str = "llama", **changes: Any
) -> dict[str, Any]:
    """A base and siblings of it: `base`, `m1`, `m2`, ..."""
    base = MemoryView.of(tiny_model(directory / kind, kind, layers=layers, dtype=dtype, **changes))
    return {"base": base} | {f"m{i}": sibling(base, i) for i in range(1, count + 1)}


def run_of(versions: dict[str, Any], **more: Any) -> MemoryRun:
    """A run that knows these versions."""
    run = MemoryRun(**more)
    run.versions = versions
    return run


def merged(versions: dict[str, Any], *ingredients: str, seed: int = 0, threads: int = 1, **options: Any) -> MemoryView:
    """The result of merging `ingredients` with these options."""
    op = Merge(ingredients=ingredients, **options)
    view = versions[ingredients[0]]
    return view.after(op.apply(view, run_of(versions, seed=seed, threads=threads)))


def sets(changes: Iterable[Change]) -> dict[str, SetTensor]:
    """The tensors that are set, by name."""
    return {change.name: change for change in changes if isinstance(change, SetTensor)}


def apart(a: MemoryView, b: MemoryView) -> float:
    """The largest difference of any two entries, float64."""
    return max(float((a.tensor(n).double() - b.tensor(n).double()).abs().max()) for n in a.names())
