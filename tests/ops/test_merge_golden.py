"""Every output of mergekit 0.1.5 that is kept with the methods, through the whole operation: the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mlc.ops.merge.merge import Merge
from mlc.tests.ops.fakes import MemoryView
from mlc.tests.ops.merging import golden_place, run_of

CASES = (
    "linear", "linear_nonorm", "task_arithmetic", "ties", "ties_nonorm", "ties_gradient", "slerp", "nuslerp", "multislerp", "karcher",
    "model_stock", "model_stock_filter", "dare_linear", "dare_ties", "della", "breadcrumbs", "sce", "passthrough_scale",
)  # fmt: skip
CLOSE = ("multislerp", "karcher")  # iterated in float32: 1e-6, or one unit in the last place of bfloat16
CHOOSING = ("ties", "ties_nonorm", "della", "breadcrumbs", "sce")  # where equals may be told apart
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "vocab_size": 32}
# Where equals are told apart, or a sum runs over a whole tensor, other processors may take another order.
ORDERED = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    place = golden_place()
    manifest = json.loads((place / "manifest.json").read_text())
    return {case["file"].removesuffix(".safetensors"): case for case in manifest["cases"]}


@pytest.fixture(scope="module")
def versions() -> dict[str, dict[str, MemoryView]]:
    place, files = golden_place(), {"config.json": json.dumps(CONFIG).encode()}
    return {
        dtype: {name: MemoryView(load_file(place / dtype / f"{name}.safetensors"), files) for name in ("base", "m1", "m2")}
        for dtype in ("float32", "bfloat16")
    }


def written(directory: Path, config: dict[str, Any]) -> str:
    path = directory / "merge.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return str(path)


def result(case: dict[str, Any], known: dict[str, MemoryView], tmp_path: Path, *, parity: bool = True) -> MemoryView:
    op = Merge(config=written(tmp_path, case["config"]), parity=parity)
    return known["m1"].after(op.apply(known["m1"], run_of(known, seed=case["seed"] or 0)))


def test_the_list_of_cases_is_the_whole_manifest(cases):
    assert set(cases) == {f"{dtype}/{name}" for dtype in ("float32", "bfloat16") for name in CASES}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_a_merge_has_the_bits_of_mergekit(cases, versions, tmp_path, dtype: str, name: str):
    case = cases[f"{dtype}/{name}"]
    found, wanted = result(case, versions[dtype], tmp_path), load_file(golden_place() / case["file"])
    assert set(found.names()) == set(wanted)
    for tensor, right in wanted.items():
        mine = found.tensor(tensor)
        if name in CLOSE:
            tolerance = 1e-6 if dtype == "float32" else 2**-8
            assert torch.allclose(mine.double(), right.double(), rtol=tolerance, atol=1e-9), tensor
        elif ORDERED or name in ("task_arithmetic", "passthrough_scale"):
            assert mine.equal(right), tensor
        elif name not in CHOOSING:
            assert torch.allclose(mine.double(), right.double(), rtol=1e-5 if dtype == "float32" else 2**-6, atol=1e-6), tensor


@pytest.mark.parametrize(
    "name", ["linear", "linear_nonorm", "task_arithmetic", "ties", "ties_nonorm", "ties_gradient", "slerp", "model_stock"]
)
def test_without_parity_float32_stays_within_a_rounding_of_mergekit(cases, versions, tmp_path, name: str):
    case = cases[f"float32/{name}"]
    found, wanted = result(case, versions["float32"], tmp_path, parity=False), load_file(golden_place() / case["file"])
    assert all(torch.allclose(found.tensor(n), wanted[n], rtol=1e-6, atol=1e-7) for n in wanted)
