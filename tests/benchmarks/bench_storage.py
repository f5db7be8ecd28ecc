"""Storage measured: how short a real fine-tune becomes, and how fast a verified model comes back. Prints JSON.

    python -P tests/benchmarks/bench_storage.py [--size demo|40m|all] [--text FILE] [--runs 5]

A Llama with random weights is trained for 20 AdamW steps at 2e-5 on text (a file, or sentences made up here). Its weights before and after,
in bf16 and in fp32, are stored as keyframe and delta. Rates are megabytes of tensors per second of wall time; `blake3` is
the rate of reading and hashing a file of the same bytes on one thread. Medians over the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from blake3 import blake3

from mlc.registry.objects import ObjectInfo, ObjectStore

STEPS, RATE, BATCH, LENGTH = 20, 2e-5, 4, 128
SIZES = {
    "demo": {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "40m": {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
}
WORDS = {torch.bfloat16: "BF16", torch.float32: "F32"}
State = dict[str, torch.Tensor]


def token_stream(text: Path | None, vocabulary: int) -> torch.Tensor:
    """Token ids `[n]`: words numbered as they appear, from a file or from sentences drawn with Zipf's law."""
    if text is not None:
        seen: dict[str, int] = {}
        return torch.tensor([seen.setdefault(word, len(seen)) % vocabulary for word in text.read_text(encoding="utf-8").split()])
    generator = torch.Generator().manual_seed(0)
    weight = 1.0 / torch.arange(1, vocabulary + 1)
    return torch.multinomial(weight, 2 * STEPS * BATCH * LENGTH, replacement=True, generator=generator)


def fine_tune(config: dict[str, int], text: Path | None) -> tuple[State, State]:
    """Weights before and after the training, in float32."""
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, tie_word_embeddings=True, max_position_embeddings=LENGTH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    ids, before = token_stream(text, config["vocab_size"]), weights(model)
    for step in range(STEPS):
        start = step * BATCH * LENGTH % (len(ids) - BATCH * LENGTH)
        batch = ids[start : start + BATCH * LENGTH].view(BATCH, LENGTH)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, weights(model)


def weights(model: torch.nn.Module) -> State:
    """A copy of every parameter, tied ones once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def raw(x: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def seconds(action: Callable[[], object], runs: int) -> float:
    """Median wall time of an action."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(before: State, after: State, dtype: torch.dtype, runs: int, scratch: Path) -> dict[str, float | int | dict[str, int]]:
    """Store `before` alone and `after` against it; ratios of raw bytes, and rates in MB/s."""
    store = ObjectStore(scratch / "objects")
    store.directory.mkdir()
    old, new = ({name: (tuple(x.shape), raw(x.to(dtype))) for name, x in state.items()} for state in (before, after))
    size, stored, rates = sum(len(data) for _, data in old.values()), {}, {}
    for label, tensors in (("keyframe", old), ("delta", new)):
        pack, start = store.new_pack(scratch), time.perf_counter()
        bases = {} if label == "keyframe" else {name: info.digest for name, info in stored["keyframe"].items()}
        stored[label] = {name: pack.add_tensor(WORDS[dtype], *tensor, bases.get(name)) for name, tensor in tensors.items()}
        pack.finish()
        rates[f"{label}_in"] = size / 1e6 / (time.perf_counter() - start)
    target, whole = scratch / "restored", b"".join(data for _, data in old.values())
    memory_rate = size / 1e6 / seconds(lambda: blake3(whole).digest(), runs)
    target.write_bytes(whole)
    hash_rate = size / 1e6 / seconds(lambda: blake3(target.read_bytes()).digest(), runs)
    for label, infos in stored.items():
        rates[f"{label}_out"] = size / 1e6 / seconds(lambda infos=infos: restore(store, infos, target), runs)
    ratios = {f"{label}_ratio": sum(i.stored_size for i in infos.values()) / size for label, infos in stored.items()}
    over = {f"{label}_out_over_blake3": rates[f"{label}_out"] / hash_rate for label in stored}
    codecs: dict[str, int] = {}
    for info in stored["delta"].values():
        codecs[info.codec] = codecs.get(info.codec, 0) + info.raw_size
    return {"raw_bytes": size, **ratios, **rates, "blake3": hash_rate, "blake3_in_memory": memory_rate, **over, "delta_codecs": codecs}


def restore(store: ObjectStore, infos: dict[str, ObjectInfo], target: Path) -> None:
    """Decode, verify and write every tensor to one file."""
    with open(target, "wb") as file:
        for info in infos.values():
            file.write(store.tensor_bytes(info.digest))


def main(arguments: Sequence[str] = ()) -> dict[str, object]:
    """Measure; returns a report per size and dtype."""
    parser = argparse.ArgumentParser(description="payload ratios and restore rates of the registry's storage")
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all")
    parser.add_argument("--text", type=Path, help="a text file to train on; made-up sentences without it")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    report = {}
    for name, config in SIZES.items():
        if options.size not in (name, "all"):
            continue
        before, after = fine_tune(config, options.text)
        for dtype, word in WORDS.items():
            with tempfile.TemporaryDirectory() as scratch:
                report[f"{name}_{word.lower()}"] = measure(before, after, dtype, options.runs, Path(scratch))
    return report


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:]), indent=1))
