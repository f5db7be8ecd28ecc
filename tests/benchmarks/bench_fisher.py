"""Exact per-sample Fisher: hooks against a loop over samples and against `torch.func.vmap(grad)`, on a 4-layer Llama of width 256.

All contenders run in this process in turn, on the same 480 sequences sorted by length; the figure is the median over rounds of the ratio
of processor seconds within a round, because the machine may be shared. `vmap` gets the batch size at which it does best here. Sequences
are as long as the facts of the test material (5 to 12 tokens, with a vocabulary of its size), and in a second setting 10 to 40 tokens:
there the loop needs only twice the time of an ordinary backward pass, below which no exact method can go.

Memory is the peak of torch's allocations (the profiler's records) over the longest batch, the importance itself included, plus the
parameters; it is set against the parameters and what a backward pass of that batch allocates when only one weight asks for a gradient.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from mlc.kernels.dampen import dampen
from mlc.ops.unlearn.importance import importance

VOCABULARY, SAMPLES, BATCH, ROUNDS = 2048, 480, 32, 3
LENGTHS = {"facts": (5, 12), "long": (10, 40)}  # tokens of a sequence, at least and at most


class Setting:
    """A model with tied embeddings, sequences, and the score of a sequence: the mean negative log-likelihood of its tokens."""

    def __init__(self, lengths: tuple[int, int]) -> None:
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=256,
                intermediate_size=704,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                tie_word_embeddings=True,
                max_position_embeddings=128,
            )
        ).eval()
        drawn = torch.randint(lengths[0], lengths[1] + 1, (SAMPLES,)).sort().values
        self.rows = [torch.randint(1, VOCABULARY, (int(n),)) for n in drawn]

    def batches(self, size: int) -> list[list[int]]:
        """Neighbours in length together."""
        return [list(range(i, min(i + size, SAMPLES))) for i in range(0, SAMPLES, size)]

    def padded(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """Ids and labels `[B, T]`; a causal model needs no mask for padding on the right."""
        ids = nn.utils.rnn.pad_sequence([self.rows[i] for i in chosen], batch_first=True)
        labels = nn.utils.rnn.pad_sequence([self.rows[i] for i in chosen], batch_first=True, padding_value=-100)
        return ids, labels

    def scores(self, chosen: list[int]) -> Tensor:
        """One mean NLL per sequence, `[B]`."""
        ids, labels = self.padded(chosen)
        return nll(self.model(input_ids=ids, use_cache=False).logits, labels)


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of each row, `[B]`, from logits `[B, T, V]`."""
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
    return losses.sum(1) / (labels[:, 1:] != -100).sum(1)


def by_hooks(s: Setting) -> dict[str, Tensor]:
    """Ours."""
    return importance(s.model, s.scores, s.batches(BATCH))


def by_loop(s: Setting) -> dict[str, Tensor]:
    """One backward pass per sample."""
    sums = {name: torch.zeros_like(p) for name, p in s.model.named_parameters()}
    for i in range(SAMPLES):
        s.model.zero_grad(set_to_none=True)
        s.scores([i]).sum().backward()
        for name, p in s.model.named_parameters():
            sums[name].addcmul_(p.grad, p.grad)  # type: ignore[arg-type]  # every parameter has a gradient
    s.model.zero_grad(set_to_none=True)
    return {name: value.div_(SAMPLES) for name, value in sums.items()}


def by_vmap(s: Setting, size: int, limit: int | None = None) -> dict[str, Tensor]:
    """`vmap` over `grad`, `size` samples at a time (of the first `limit` batches, in the middle of the lengths)."""
    parameters = {name: p.detach() for name, p in s.model.named_parameters()}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def score(p: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        logits = torch.func.functional_call(s.model, p, (), {"input_ids": ids[None], "use_cache": False}).logits
        losses = F.cross_entropy(logits[0, :-1], labels[1:], reduction="sum", ignore_index=-100)
        return losses / (labels[1:] != -100).sum()

    each = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0, 0))
    plan = s.batches(size)
    middle = len(plan) // 2
    for chosen in plan if limit is None else plan[middle : middle + limit]:
        gradients = each(parameters, *s.padded(chosen))
        for name, g in gradients.items():
            sums[name] += g.square_().sum(0)
    return {name: value.div_(SAMPLES) for name, value in sums.items()}


def plain_pass(s: Setting) -> None:
    """An ordinary gradient of the whole data, batch by batch: what training would cost."""
    s.model.zero_grad(set_to_none=True)
    for chosen in s.batches(BATCH):
        s.scores(chosen).sum().backward()
    s.model.zero_grad(set_to_none=True)


def end_to_end(s: Setting) -> None:
    """SSD without loading and storing: the importance of everything, that of a forget set of the same size, and the dampening."""
    every, few = by_hooks(s), by_hooks(s)
    for name, p in s.model.named_parameters():
        dampen(p.detach(), few[name], every[name], 2.0, 1.0)


def seconds(work: Callable[[], Any]) -> float:
    """Processor seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def best_batch(s: Setting) -> int:
    """The batch size at which vmap needs least time per sample, measured on 32 samples each."""
    cost = {}
    for size in (2, 4, 8, 16, 32):
        by_vmap(s, size, 1)
        cost[size] = min(seconds(lambda size=size: by_vmap(s, size, 32 // size)) for _ in range(2))
    return min(cost, key=lambda size: cost[size])


def worst_error(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The greatest error as a share of its tensor's greatest element."""
    return max(float((found[n] - right[n]).abs().amax() / right[n].amax()) for n in right)


def peak(work: Callable[[], Any]) -> int:
    """Bytes that torch holds at most during `work` beyond what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    held = most = 0
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]  # it has run
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def memory(s: Setting) -> dict[str, Any]:
    """Peaks over the longest batch, and over parameters + activations."""
    longest = s.batches(BATCH)[-1]
    parameters = sum(p.numel() * p.element_size() for p in s.model.parameters())
    s.model.requires_grad_(False)
    anchor = next(s.model.parameters()).requires_grad_(True)  # activations alone: no other weight gets a gradient
    activations = peak(lambda: s.scores(longest).sum().backward())
    anchor.grad = None
    s.model.requires_grad_(True)
    training = peak(lambda: s.scores(longest).sum().backward())
    s.model.zero_grad(set_to_none=True)
    ours = peak(lambda: importance(s.model, s.scores, [longest]))
    mib = 1 << 20
    return {
        "parameters_mib": round(parameters / mib, 1),
        "activations_mib": round(activations / mib, 1),
        "training_pass_mib": round(training / mib, 1),
        "ours_mib": round(ours / mib, 1),
        "over_parameters_and_activations": round((parameters + ours) / (parameters + activations), 2),
    }


def measure(lengths: tuple[int, int], threads: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """All figures at one number of threads."""
    torch.set_num_threads(threads)
    s = Setting(lengths)
    size = best_batch(s)
    found, right = by_hooks(s), by_loop(s)
    contenders = (lambda: by_hooks(s), lambda: by_loop(s), lambda: by_vmap(s, size), lambda: plain_pass(s), lambda: end_to_end(s))
    taken = [[seconds(work) for work in contenders] for _ in range(rounds)]
    return {
        "hooks_cpu_s": round(statistics.median(r[0] for r in taken), 2),
        "loop_over_hooks": round(statistics.median(r[1] / r[0] for r in taken), 2),
        "vmap_over_hooks": round(statistics.median(r[2] / r[0] for r in taken), 2),
        "vmap_batch": size,
        "loop_over_plain_pass": round(statistics.median(r[1] / r[3] for r in taken), 2),
        "ssd_over_two_plain_passes": round(statistics.median(r[4] / (2 * r[3]) for r in taken), 2),
        "worst_error": float(f"{worst_error(found, right):.1e}"),
    }


def main() -> dict[str, Any]:
    """Ratios at one and two threads, and memory."""
    warnings.filterwarnings("ignore", message=".*batching rule.*")  # vmap says that it is slow here; that is what is measured
    result: dict[str, Any] = {f"facts_threads_{n}": measure(LENGTHS["facts"], n) for n in (1, 2)}
    result["long_threads_1"] = measure(LENGTHS["long"], 1, 1)
    return {**result, "memory": {name: memory(Setting(lengths)) for name, lengths in LENGTHS.items()}}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
