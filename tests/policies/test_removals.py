"""Random histories of adding and removing ingredients in a real registry; and what a plain sum costs to store, in sixteen bits too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mlc.policies import lifecycle
from mlc.policies.merging import merge
from mlc.registry.repository import Repository
from mlc.tests.benchmarks.removals import laid, methods, sequences
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryView
from mlc.tests.ops.merging import sibling
from mlc.tests.policies.test_merging import LOOSE, READ


def test_every_method_ends_where_the_merge_without_the_ingredient_ends(tmp_path):
    told = sequences(laid(tmp_path), len(methods()), seed=1)
    assert told["removals"] >= len(methods())
    assert {"opcm", "linear", "ties", "dare_ties", "sparse_soup", "karcher", "sce", "model_stock"} <= set(told["by_method"])


@pytest.mark.parametrize(
    "options",
    [
        {"weights": (0.3, 0.7)},
        {"weights": (0.1, 0.2, 0.7)},
        {"method": "task_arithmetic", "lam": 0.8, "weights": (0.3, 0.4)},
        {"method": "task_arithmetic", "normalize": True},
    ],
)
def test_a_plain_sum_of_sixteen_bit_models_is_a_recipe_read_back_without_vector_instructions(tmp_path, options):
    repo = Repository.init(tmp_path / "work")
    (repo.root / "policies").mkdir(exist_ok=True)
    (repo.root / "policies" / "rules.toml").write_text(LOOSE, encoding="utf-8")
    place = tiny_model(tmp_path / "base", layers=6, dtype="bfloat16")
    root, base = lifecycle.import_model(repo, place, author="t").commit_id, MemoryView.of(place)
    count = len(options.get("weights", (1, 1)))
    for seed, name in enumerate("abc"[:count], 1):
        lifecycle.commit_directory(repo, sibling(base, seed).save(tmp_path / name), ref=root, branch=name, author="t")
    made = merge(repo, tuple("abc"[:count]), options, author="t")
    assert base.tensor("model.norm.weight").dtype == torch.bfloat16
    assert {delta.codec for delta in made.deltas} <= {"derived", "ref"}
    assert sum(delta.bytes_stored for delta in made.deltas) <= 4096 - 512  # the rest is for the recipe that they share
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-P", "-c", READ, str(repo.root), made.commit_id]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr  # every tensor that is read is verified by its digest
    assert answer.stdout.split()[0] in ("DEFAULT", "NO")
