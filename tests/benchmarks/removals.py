"""Random histories of merging eight versions and taking ingredients out again, in a real registry, by every method where that is defined.

`python -P tests/benchmarks/removals.py [SEQUENCES] [SEED]`. After each removal the snapshot is compared with that of the merge made
without the ingredient in the first place. Chains (opcm) grow by commits of one or two versions.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mlc.ops.merge.table import METHODS
from mlc.policies import lifecycle
from mlc.policies.merging import OPCM, merge
from mlc.policies.unmerging import unmerge
from mlc.registry.repository import Repository
from mlc.tests.ops.fakes import MemoryView

NAMES = tuple(f"m{i}" for i in range(1, 9))
SHAPES = {"a.weight": (6, 5), "b.weight": (4, 4), "norm.weight": (5,)}
LOOSE = '[[rule]]\nid = "loose"\nmetric = "delta.max_abs"\nmax = 100\n'
BRANCHES = ("built", "anew")


def laid(place: Path, dtype: torch.dtype = torch.float32) -> Repository:
    """A registry with a base of three small tensors on `main`, and eight forks of it on branches."""
    repo = Repository.init(place / "work")
    (repo.root / "policies").mkdir(exist_ok=True)
    (repo.root / "policies" / "rules.toml").write_text(LOOSE, encoding="utf-8")
    draw = torch.Generator().manual_seed(0)
    base = {name: torch.randn(*shape, generator=draw) for name, shape in SHAPES.items()}
    still = {name: (torch.rand(x.shape, generator=draw) > 0.3).float() for name, x in base.items()}  # a mask, for the sparse soup
    base = {name: x * still[name] for name, x in base.items()}
    root = lifecycle.import_model(repo, MemoryView(_cast(base, dtype), {}).save(place / "base"), author="t").commit_id
    for name in NAMES:
        moved = {n: x + 0.1 * torch.randn(*x.shape, generator=draw) * still[n] for n, x in base.items()}
        lifecycle.commit_directory(repo, MemoryView(_cast(moved, dtype), {}).save(place / name), ref=root, branch=name, author="t")
    return repo


def _cast(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: x.to(dtype) for name, x in tensors.items()}


def methods() -> list[dict[str, Any]]:
    """Every row of the table that merges more than two, with options; weights and densities are drawn where True."""
    found: list[dict[str, Any]] = [{"method": OPCM}]
    for method in METHODS.values():
        if method.most is not None:
            continue
        chosen: dict[str, Any] = {"method": method.name}
        if method.param("weight") is not None:
            chosen["weights"] = True
        if method.trim is not None:
            chosen["density"] = True
        if method.param("epsilon") is not None:
            chosen["settings"] = ("epsilon=0.05",)
        found.append(chosen)
    return [*found, {"method": "ties", "density": (0.5,), "scope": "model"}, {"method": "dare_ties", "density": (0.5,), "rng": "mergekit"}]


class Sequence:
    """One random history: what is in the merge, and how it is made."""

    def __init__(self, repo: Repository, chosen: dict[str, Any], seed: int) -> None:
        self.repo, self.chosen, self.chance, self.seed = repo, chosen, random.Random(seed), seed
        self.numbers = {name: round(self.chance.uniform(0.2, 0.8), 3) for name in NAMES}
        self.members = self.chance.sample(NAMES, self.chance.randint(3, 5))

    def run(self, steps: int = 3) -> int:
        """Merge, then add and remove; returns how many removals were compared. Raises AssertionError."""
        self.make("built", self.members)
        removed = 0
        for _ in range(steps):
            spare = [name for name in NAMES if name not in self.members]
            if len(self.members) < 3 or (spare and self.chance.random() < 0.25):
                self.add(self.chance.choice(spare))
                continue
            gone = self.chance.choice(self.members)
            self.members = [name for name in self.members if name != gone]
            left = unmerge(self.repo, "built", remove=gone, author="t").commit
            removed += 1
            assert left.snapshot == self.make("anew", self.members), (self.chosen, self.seed, self.members, gone)
        return removed

    def add(self, name: str) -> None:
        """One version more: by another link of a chain, else by the merge of all of them."""
        self.members = [*self.members, name]
        if self.chosen["method"] == OPCM:
            merge(self.repo, ("built", name), dict(self.chosen), author="t")
        else:
            self.make("built", self.members)

    def make(self, branch: str, members: list[str]) -> str:
        """The merge of `members` on a branch of that name; returns its snapshot."""
        if branch in self.repo.branches():
            lifecycle.remove_name(self.repo, "branch", branch, author="t")
        each = {key: tuple(self.numbers[m] for m in members) for key in ("weights", "density") if self.chosen.get(key) is True}
        return merge(self.repo, members, {**self.chosen, **each}, author="t", branch=branch, seed=self.seed).commit.snapshot


def sequences(repo: Repository, count: int, seed: int = 0, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Run so many; {method: removals compared}."""
    chosen, found = methods(), Counter[str]()
    for turn in range(count):
        one = chosen[turn % len(chosen)]
        found[one["method"]] += Sequence(repo, one, seed * 10_000 + turn).run()
        progress(turn)
    return {"sequences": count, "removals": sum(found.values()), "by_method": dict(sorted(found.items()))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = [int(word) for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(sequences(laid(Path(place)), *(words or [200])), indent=1))
