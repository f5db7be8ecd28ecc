"""The kinds of suites: which fields a row has, which metrics come out, which settings belong to one kind alone. A table, no code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """What one kind of suite needs and yields. The first metric is the default one."""

    fields: tuple[str, ...]
    metrics: tuple[str, ...]
    templated: str | None = None  # the field that `template` may compose
    keys: tuple[str, ...] = ()  # settings that not every kind takes
    judged: bool = True  # its answers are right or wrong, so that two versions can be compared by flips
    language: bool = True  # a causal language model answers it (else a class head, or an encoder)


WRITING = ("max_tokens", "stop")

KINDS: dict[str, Kind] = {
    "cloze": Kind(("prompt", "answer"), ("accuracy", "logprob"), "prompt"),
    "choice": Kind(("prompt", "choices", "index"), ("accuracy", "accuracy_norm", "logprob"), "prompt"),
    "perplexity": Kind(("text",), ("perplexity", "nll", "bits_per_byte"), "text", ("seq_len",), judged=False),
    "classify": Kind(("text", "image", "label"), ("accuracy", "logprob"), "text", language=False),
    "pairs": Kind(("good", "bad"), ("accuracy", "logprob")),
    "generate": Kind(("prompt", "reference"), ("exact_match", "f1", "rouge_l", "rouge_l_f1"), "prompt", WRITING),
    "truth": Kind(
        ("prompt", "answer", "paraphrased_answer", "perturbed_answer"),
        ("accuracy", "probability", "truth_ratio", "truth_ratio_forget", "rouge_l"),
        "prompt",
        ("options", "rouge", *WRITING),
    ),
    "membership": Kind(("text", "prompt", "answer", "member"), ("auc_minkpp", "auc_mink", "auc_loss", "auc_zlib"), "prompt", judged=False),
    "retrieval": Kind(("query", "gallery", "relevance"), ("accuracy", "cmc5", "map"), language=False),
    "utility": Kind((), ("utility",), keys=("parts",), judged=False),
}
DEFAULT_SEQ_LEN = 128  # tokens of a perplexity window, BOS included
DEFAULT_MAX_TOKENS = 200  # what greedy decoding may write, as TOFU has it
