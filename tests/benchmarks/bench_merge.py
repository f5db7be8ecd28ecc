"""Two bf16 Llamas of 490 MB merged by mlc (committed and hashed) and by mergekit 0.1.5: CPU-seconds less the imports, and memory.

Twice: with models that were imported whole (the yardstick), and with forks that are stored as deltas of their base, as forks are. Each
run is a process of its own on a fresh copy of the registry; ours and theirs take turns, and figures are medians. mergekit is installed
into an environment of its own in MLC_BENCH_CACHE (default ~/.cache/mlc-bench), where it stays; when the package index cannot be reached
its side is left out and the reason is given. MLC_BENCH_MERGE=SCALE shrinks the models (1 is the full size), MLC_BENCH_RUNS is the number
of runs (3), MLC_BENCH_MERGEKIT names an environment that has mergekit already, or `none`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

MERGEKIT = ("mergekit==0.1.5", "torch>=2.10,<2.14")
BOUNDS = {"linear": 0.25, "ties": 0.125}  # our CPU-seconds over theirs
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 14, "vocab_size": 32000}
METHODS = {"linear": {"merge_method": "linear"}, "ties": {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.5}}}

# One process: what is imported is loaded and told apart, then one merge is made, committed and hashed.
OURS = """
import resource, sys, time
from pathlib import Path
import torch, safetensors.torch, yaml, numpy, pydantic, zstandard, zoneinfo, duckdb, pyarrow.compute
import mlc.policies.schemas, mlc.registry.catalog.console, mlc.registry.catalog.insertion, mlc.registry.objects.making
import mlc.registry.recovery, mlc.registry.transaction
import mlc.registry.delta.chooser, mlc.registry.delta.derivation, mlc.registry.delta.distance
from mlc.policies.merging import merge
from mlc.registry.repository import Repository
import mlc.ops.merge.stream, mlc.policies.runs
def used():  # the peak from the kernel's record of this program: getrusage's survives exec, and is then the parent's
    now = resource.getrusage(resource.RUSAGE_SELF)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return now.ru_utime + now.ru_stime, int(peak.split()[1]) * 1024
torch.set_num_threads(int(sys.argv[3]))
before, began = used(), time.perf_counter()
repo = Repository.open(Path(sys.argv[1]))
options = {"method": sys.argv[2], **({"density": (0.5,), "base": "base"} if sys.argv[2] == "ties" else {})}
made = merge(repo, ("one", "two"), options, author="bench", branch=sys.argv[4])
after = used()
import json
print(json.dumps({"cpu_s": after[0] - before[0], "wall_s": time.perf_counter() - began, "imports_cpu_s": before[0],
                  "imports_bytes": before[1], "peak_bytes": after[1], "snapshot": made.commit.snapshot,
                  "bytes_stored": sum(d.bytes_stored for d in made.deltas)}))
"""
THEIRS = """
import resource, sys, time, json
import torch, transformers, safetensors.torch, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
def used():  # the peak from the kernel's record of this program: getrusage's survives exec, and is then the parent's
    now = resource.getrusage(resource.RUSAGE_SELF)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return now.ru_utime + now.ru_stime, int(peak.split()[1]) * 1024
torch.set_num_threads(int(sys.argv[3]))
before, began = used(), time.perf_counter()
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
run_merge(config, sys.argv[2], MergeOptions(lazy_unpickle=True, copy_tokenizer=False))
after = used()
print(json.dumps({"cpu_s": after[0] - before[0], "wall_s": time.perf_counter() - began, "imports_cpu_s": before[0],
                  "imports_bytes": before[1], "peak_bytes": after[1]}))
"""


def models(place: Path, scale: float) -> dict[str, Any]:
    """A base and two siblings, random bf16 weights; returns what the benchmark says of their size."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    width = max(64, int(SHAPE["hidden_size"] * scale) // 64 * 64)
    inner, layers = width * 11 // 4, max(1, round(SHAPE["num_hidden_layers"] * scale))
    words = max(256, int(SHAPE["vocab_size"] * scale))
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=width // 64, vocab_size=words,
        tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    shapes = {"model.embed_tokens.weight": (words, width), "lm_head.weight": (words, width), "model.norm.weight": (width,)}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{n}_proj.weight": (width, width) for n in "qkvo"}
        shapes |= {f"{at}mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")} | {f"{at}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{at}{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
    generator = torch.Generator().manual_seed(0)
    base = {name: (0.02 * torch.randn(shape, generator=generator)).bfloat16() for name, shape in shapes.items()}
    for name in ("base", "one", "two"):
        (place / name).mkdir(parents=True)
        config.save_pretrained(place / name)
        moved = base if name == "base" else {n: (x + 0.002 * torch.randn(x.shape, generator=generator)).bfloat16() for n, x in base.items()}
        save_file(moved, place / name / "model.safetensors", metadata={"format": "pt"})
    sizes = [x.numel() * 2 for x in base.values()]
    return {"model_bytes": sum(sizes), "largest_tensor_bytes": max(sizes), "layers": layers, "width": width}


def registry(place: Path, kind: str) -> Path:
    """The three models under version control: each imported whole, or the siblings as children of the base (`forks`)."""
    from mlc.policies import lifecycle
    from mlc.registry.repository import Repository

    repo = Repository.init(place / kind)
    (repo.root / "policies").mkdir(exist_ok=True)
    (repo.root / "policies" / "none.toml").write_text('[[rule]]\nid = "none"\nmetric = "delta.tensors_changed"\nmin = 0\n')
    root = lifecycle.import_model(repo, place / "base", branch="base", author="bench").commit_id
    for name in ("one", "two"):
        if kind == "whole":
            lifecycle.import_model(repo, place / name, branch=name, author="bench")
        else:
            lifecycle.commit_directory(repo, place / name, ref=root, branch=name, author="bench")
    return repo.root


def measured(python: str, program: str, *words: str | Path | int) -> dict[str, Any]:
    """What one process says of itself. Raises RuntimeError with the end of what it complained about."""
    done = subprocess.run([python, "-P", "-c", program, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def other_python() -> tuple[str | None, str]:
    """(an interpreter that has mergekit, "") or (None, why not)."""
    if (named := os.environ.get("MLC_BENCH_MERGEKIT")) == "none":
        return None, "not asked for"
    if named is not None:
        return str(Path(named) / "bin" / "python"), ""
    cache = Path(os.environ.get("MLC_BENCH_CACHE") or Path.home() / ".cache" / "mlc-bench") / "mergekit-0.1.5"
    python = str(cache / "bin" / "python")
    if Path(python).exists() and subprocess.run([python, "-c", "import mergekit.merge"], capture_output=True, check=False).returncode == 0:
        return python, ""
    venv.create(cache, with_pip=True, clear=True)
    asked = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *MERGEKIT]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired:
        return None, "the package index did not answer in a quarter of an hour"
    return (python, "") if done.returncode == 0 else (None, f"mergekit could not be installed: {done.stderr.strip()[-300:]}")


def ours(root: Path, name: str, threads: int) -> dict[str, Any]:
    """One merge in a copy of the registry: what is stored already would be stored for nothing."""
    copy = root.with_name(f"{root.name}-copy")
    shutil.copytree(root, copy)
    try:
        return measured(sys.executable, OURS, copy, name, threads, "merged")
    finally:
        shutil.rmtree(copy)


def theirs(place: Path, python: str, name: str) -> dict[str, Any]:
    """The same merge by mergekit, in one thread."""
    weights = [{"model": str(place / n), "parameters": {"weight": 0.5}} for n in ("one", "two")]
    said = {**METHODS[name], "models": weights, "dtype": "bfloat16"}
    if "base_model" in said:
        said["base_model"] = str(place / "base")
    config, out = place / f"{name}.json", place / f"out-{name}"  # JSON is YAML
    config.write_text(json.dumps(said), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    return measured(python, THEIRS, config, out, 1)


def compared(place: Path, roots: dict[str, Path], python: str | None, name: str, runs: int) -> dict[str, Any]:
    """One method on both sides, in turns; ours with two threads, too, which must give the same snapshot."""
    mine: dict[str, list[dict[str, Any]]] = {kind: [] for kind in roots}
    other: list[dict[str, Any]] = []
    for _ in range(runs):
        for kind, root in roots.items():
            mine[kind].append(ours(root, name, 1))
        if python is not None:
            other.append(theirs(place, python, name))
    found: dict[str, Any] = {}
    for kind, root in roots.items():
        two = ours(root, name, 2)
        found[kind] = {
            **_summary(mine[kind]),
            "bytes_stored": mine[kind][0]["bytes_stored"],
            "two_threads": _summary([two]),
            "same_bytes_with_two_threads": {run["snapshot"] for run in mine[kind]} == {two["snapshot"]},
        }
    found["same_bytes_from_deltas"] = len({run["snapshot"] for kind in mine for run in mine[kind]}) == 1
    if other:
        found["mergekit"] = _summary(other)
        for kind in roots:
            found[kind]["cpu_ratio"] = round(found[kind]["cpu_s"] / found["mergekit"]["cpu_s"], 3)
        found["holds"] = found["whole"]["cpu_ratio"] <= BOUNDS[name] if "whole" in found else None
    return found


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    cpu = [run["cpu_s"] for run in runs]
    return {
        "cpu_s": round(statistics.median(cpu), 2),
        "cpu_s_range": [round(min(cpu), 2), round(max(cpu), 2)],
        "imports_cpu_s": round(statistics.median(run["imports_cpu_s"] for run in runs), 2),
        "above_imports_mib": round(max(run["peak_bytes"] - run["imports_bytes"] for run in runs) / 2**20),
    }


def table(found: dict[str, Any]) -> str:
    """The figures as people read them."""
    lines = [
        f"{'merge':8}{'stored as':12}{'CPU s':>8}{'range':>16}{'of mergekit':>13}{'bound':>8}{'MiB above imports':>19}{'2 threads':>11}"
    ]
    for name in METHODS:
        rows = [(kind, found[name][kind]) for kind in ("whole", "forks", "mergekit") if kind in found[name]]
        for kind, row in rows:
            ratio, bound = row.get("cpu_ratio", ""), BOUNDS[name] if kind == "whole" else ""
            same = {True: "same bytes", False: "DIFFER", None: ""}[row.get("same_bytes_with_two_threads")]
            span = "-".join(map(str, row["cpu_s_range"]))
            figures = f"{row['cpu_s']:8}{span:>16}{ratio:>13}{bound:>8}{row['above_imports_mib']:>19}"
            lines.append(f"{name:8}{kind:12}{figures}{same:>12}")
    lines.append(
        f"memory bound: {found['memory_bound_mib']} MiB above the imports" + (f"; mergekit: {found['why']}" if "why" in found else "")
    )
    return "\n".join(lines)


def main(scale: float | None = None, runs: int | None = None) -> dict[str, Any]:
    """CPU ratios (ours over mergekit's), memory above the imports, and whether threads change a byte."""
    scale = float(os.environ.get("MLC_BENCH_MERGE", "1")) if scale is None else scale
    runs = int(os.environ.get("MLC_BENCH_RUNS", "3")) if runs is None else runs
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        said = models(place, scale)
        roots = {kind: registry(place, kind) for kind in ("whole", "forks")}
        python, why = other_python()
        found = {**said, "runs": runs, "memory_bound_mib": 400 + round(4 * said["largest_tensor_bytes"] / 2**20)}
        found |= {name: compared(place, roots, python, name, runs) for name in METHODS}
        return found if python else {**found, "why": why}


if __name__ == "__main__":
    result = main()
    sys.stderr.write(table(result) + "\n")
    print(json.dumps(result, indent=1))
