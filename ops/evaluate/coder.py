"""Text to token ids and back, as evaluation needs it: where a prompt ends and its answer begins, whatever the merges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...registry.errors import Incompatible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Coder:
    """A tokenizer seen through the few things that scorers ask of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.prefix = self._prefix()
        self.unknown = _one(tokenizer.unk_token_id)
        self.end = _one(tokenizer.eos_token_id)

    def _prefix(self) -> list[int]:
        """What the tokenizer itself sets in front of a text (BOS, often nothing)."""
        bare, full = self.encode(["a"])[0], self.tokenizer("a", verbose=False)["input_ids"]
        for i in range(len(full) if bare else 0):
            if full[i : i + len(bare)] == bare:
                return list(full[:i])
        return []

    @property
    def start(self) -> list[int]:
        """What the first token of a text is conditioned on: the prefix, else BOS, else the end-of-text token.

        Raises Incompatible for a tokenizer that has none of them.
        """
        if self.prefix:
            return self.prefix
        for token in (_one(self.tokenizer.bos_token_id), self.end):
            if token is not None:
                return [token]
        raise Incompatible(
            "this tokenizer has no token that begins a text", hint="name a bos_token in tokenizer_config.json and record the change"
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, nothing set around them."""
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]] if texts else []

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def split(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """(context ids, answer ids) of each (prompt, answer).

        Prompt and answer are tokenised together and the answer begins where the tokens first differ from those of the prompt
        alone: a token that merges across the border belongs to the answer, as greedy decoding would have to write it. The blank
        between them is written with the answer, as lm-eval does. An answer that leaves no token gives an empty list.
        """
        whole, heads = [], []
        for prompt, answer in pairs:
            head = prompt.rstrip()
            gap = prompt[len(head) :] or ("" if not head or answer[:1].isspace() else " ")
            heads.append(head)
            whole.append(head + gap + answer)
        split = []
        for full, alone in zip(self.encode(whole), self.encode(heads), strict=True):
            border = _common(full, alone)
            context = (self.prefix + full[:border]) or self.start
            split.append((context, full[border:]))
        return split


def _one(token: Any) -> int | None:
    """A special token's id, or None where the tokenizer has none."""
    return token if isinstance(token, int) else None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
