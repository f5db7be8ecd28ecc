"""What a merge costs: sources are decoded once, memory does not grow with the model, and threads change no byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mlc.policies import lifecycle
from mlc.policies.merging import merge
from mlc.registry.delta import decode
from mlc.registry.repository import Repository

OPTIONS: dict[str, dict[str, Any]] = {"linear": {"method": "linear"}, "ties": {"method": "ties", "base": "base", "density": (0.5,)}}
CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from mlc.policies.merging import merge
from mlc.registry.repository import Repository
import mlc.registry.catalog.console, mlc.registry.catalog.insertion, mlc.policies.schemas, mlc.registry.delta.derivation
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10
before = peak()
method = {"method": "ties", "base": "base", "density": (0.5,)}
merge(Repository.open(Path(sys.argv[1])), ("one", "two"), method, author="t", branch="merged")
print(peak() - before)
"""


def siblings(place: Path, count: int, side: int, *, forked: bool = True) -> Repository:
    """A base and two models near it, of `count` bf16 matrices [side, side], under version control."""
    generator = torch.Generator().manual_seed(0)
    base = {f"w{i:03}": (0.02 * torch.randn(side, side, generator=generator)).bfloat16() for i in range(count)}
    repo = Repository.init(place / "registry")
    (repo.root / "policies").mkdir()
    (repo.root / "policies" / "none.toml").write_text('[[rule]]\nid = "none"\nmetric = "delta.tensors_changed"\nmin = 0\n')
    root = None
    for name in ("base", "one", "two"):
        moved = {n: x if name == "base" else (x + 0.002 * torch.randn(x.shape, generator=generator)).bfloat16() for n, x in base.items()}
        (place / name).mkdir()
        safetensors.torch.save_file(moved, place / name / "model.safetensors", metadata={"format": "pt"})
        if root is None or not forked:
            root = lifecycle.import_model(repo, place / name, branch=name, author="t").commit_id
        else:
            lifecycle.commit_directory(repo, place / name, ref=root, branch=name, author="t")
    return repo


@pytest.mark.parametrize("name", list(OPTIONS))
def test_two_threads_give_the_bytes_of_one_and_forks_those_of_models_imported_whole(tmp_path: Path, name: str):
    before, found = torch.get_num_threads(), []
    try:
        for number, (forked, threads) in enumerate([(True, 1), (True, 2), (False, 2)]):
            (place := tmp_path / str(number)).mkdir()
            torch.set_num_threads(threads)
            repo = siblings(place, 5, 200, forked=forked)
            merge(repo, ("one", "two"), OPTIONS[name], author="t", branch="merged")
            found.append(repo.commit(repo.resolve("merged")).snapshot)
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_each_source_of_a_merge_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repo, read = siblings(tmp_path, 3, 128, forked=False), []
    plain = decode.decode_range
    monkeypatch.setattr(decode, "decode_range", lambda *args: [read.append(args[1]), plain(*args)][1])
    outcome = merge(repo, ("one", "two"), OPTIONS["linear"], author="t", branch="merged")
    assert len(read) == 2 * 3
    assert {delta.codec for delta in outcome.deltas} == {"derived"}
    assert all(delta.rel_l2 is not None and delta.nnz for delta in outcome.deltas)


def test_what_was_spoilt_in_memory_is_no_source_and_what_is_stored_is_what_was_given(tmp_path: Path):
    from mlc.registry.delta.derived import LINEAR, Derived

    repo = siblings(tmp_path, 1, 64, forked=False)
    views = [repo.view(repo.resolve(name)) for name in ("one", "two")]
    digests = tuple(view.entry("w000").digest for view in views)
    held = [view.lent("w000") for view in views]
    held[0].view(torch.int16)[3, 5] ^= 1  # nobody may; somebody does
    mean = ((held[0].float() * 0.5) + (held[1].float() * 0.5)).bfloat16()
    data = mean.view(torch.uint8).numpy().data.cast("B")
    with repo.ingest() as tx:
        digest = tx.put_tensor("BF16", (64, 64), data, base=digests[0], derived=Derived(LINEAR, digests, (0.5, 0.5)))
        assert tx.info(digest).base is None  # neither a recipe over spoilt bytes nor a delta of them
        tx.seal()
    del held
    assert bytes(Repository.open(repo.root).objects.tensor_bytes(digest)) == bytes(data)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path):
    peaks = []
    for count in (6, 30):
        (place := tmp_path / str(count)).mkdir()
        repo = siblings(place, count, 1024)  # 2 MiB each
        done = subprocess.run([sys.executable, "-P", "-c", CHILD, str(repo.root)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(json.loads(done.stdout.strip().splitlines()[-1]))
    assert peaks[1] - peaks[0] < 30, peaks  # MiB; 24 more matrices of three models are 144
