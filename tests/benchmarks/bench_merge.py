"""Two bf16 Llamas of about 490 MB merged by mlc (committed and hashed) and by mergekit 0.1.5: CPU-seconds less the imports, and memory.

mergekit is installed into an environment of its own, in the temporary folder, when the package index can be reached; else its side is left
out and the reason is given. MLC_BENCH_MERGE=SCALE shrinks the models (1 is the full size), MLC_BENCH_MERGEKIT names an environment that
has mergekit already, or `none`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

MERGEKIT = "mergekit==0.1.5"
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 14, "vocab_size": 32000}
METHODS = {"linear": {"merge_method": "linear"}, "ties": {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.5}}}

# One process: what is imported is loaded and told apart, then one merge is made, committed and hashed.
OURS = """
import resource, sys, time
from pathlib import Path
import torch, safetensors.torch, yaml
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


def registry(place: Path) -> Path:
    """The three models under version control, the siblings as children of the base."""
    from mlc.policies import lifecycle
    from mlc.registry.repository import Repository

    repo = Repository.init(place / "registry")
    (repo.root / "policies").mkdir(exist_ok=True)
    (repo.root / "policies" / "none.toml").write_text('[[rule]]\nid = "none"\nmetric = "delta.tensors_changed"\nmin = 0\n')
    root = lifecycle.import_model(repo, place / "base", branch="base", author="bench").commit_id
    for name in ("one", "two"):
        lifecycle.commit_directory(repo, place / name, ref=root, branch=name, author="bench")
    return repo.root


def measured(python: str, program: str, *words: str | Path) -> dict[str, Any]:
    """What one process says of itself. Raises RuntimeError with the end of what it complained about."""
    done = subprocess.run([python, "-P", "-c", program, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def other_python(place: Path) -> tuple[str | None, str]:
    """(an interpreter that has mergekit, "") or (None, why not)."""
    if (named := os.environ.get("MLC_BENCH_MERGEKIT")) == "none":
        return None, "not asked for"
    if named is not None:
        return str(Path(named) / "bin" / "python"), ""
    venv.create(place / "mergekit", with_pip=True)
    python = str(place / "mergekit" / "bin" / "python")
    asked = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", MERGEKIT]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=1800, check=False)
    except subprocess.TimeoutExpired:
        return None, "the package index did not answer in half an hour"
    return (python, "") if done.returncode == 0 else (None, f"mergekit could not be installed: {done.stderr.strip()[-300:]}")


def compared(place: Path, root: Path, python: str | None, name: str) -> dict[str, Any]:
    """One method on both sides; ours with one thread and with two, which must give the same snapshot."""
    runs = {threads: measured(sys.executable, OURS, root, name, threads, f"{name}-{threads}") for threads in (1, 2)}
    ours = runs[1]
    found: dict[str, Any] = {
        "cpu_s": round(ours["cpu_s"], 2),
        "above_imports_mib": round((ours["peak_bytes"] - ours["imports_bytes"]) / 2**20, 1),
        "bytes_stored": ours["bytes_stored"],
        "same_bytes_with_two_threads": runs[1]["snapshot"] == runs[2]["snapshot"],
    }
    if python is not None:
        weights = [{"model": str(place / n), "parameters": {"weight": 0.5}} for n in ("one", "two")]
        said = {**METHODS[name], "models": weights, "dtype": "bfloat16"}
        if "base_model" in said:
            said["base_model"] = str(place / "base")
        config = place / f"{name}.json"  # JSON is YAML
        config.write_text(json.dumps(said), encoding="utf-8")
        theirs = measured(python, THEIRS, config, place / f"out-{name}", 1)
        found["mergekit_cpu_s"] = round(theirs["cpu_s"], 2)
        found["mergekit_above_imports_mib"] = round((theirs["peak_bytes"] - theirs["imports_bytes"]) / 2**20, 1)
        found["cpu_ratio"] = round(ours["cpu_s"] / theirs["cpu_s"], 3)
    return found


def main(scale: float | None = None) -> dict[str, Any]:
    """CPU ratios (ours over mergekit's), memory above the imports, and whether threads change a byte."""
    scale = float(os.environ.get("MLC_BENCH_MERGE", "1")) if scale is None else scale
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        said = models(place, scale)
        root = registry(place)
        python, why = other_python(place)
        found = {name: compared(place, root, python, name) for name in METHODS}
        return {**said, **found, **({} if python else {"mergekit": why})}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
