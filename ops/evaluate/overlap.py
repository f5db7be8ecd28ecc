"""How much of a reference a generated text holds: exact match, token F1, ROUGE-L. Pure functions on texts.

ROUGE-L here takes words as they are. The `rouge-score` package reduces them to Porter stems first (an option there, on in TOFU's
code) and drops everything but a-z and 0-9: numbers differ a little where only an ending does, and for texts that are not ASCII.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """One text against one reference; all shares in [0, 1]. `rouge_l` is the recall, which TOFU reports; `rouge_l_f1` MUSE's."""

    exact: bool
    f1: float
    rouge_l: float
    rouge_l_f1: float


def overlap(text: str, reference: str) -> Overlap:
    """Compare a generated text with its reference."""
    recall, precision = rouge_l(text, reference)
    return Overlap(normalised(text) == normalised(reference), token_f1(text, reference), recall, _harmonic(recall, precision))


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks: SQuAD's normal form (Rajpurkar et al., 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())


def token_f1(text: str, reference: str) -> float:
    """F1 of the two bags of words in normal form; where one of them is empty, 1.0 if both are."""
    got, wanted = normalised(text).split(), normalised(reference).split()
    if not got or not wanted:
        return float(got == wanted)
    shared = sum((Counter(got) & Counter(wanted)).values())
    return _harmonic(shared / len(wanted), shared / len(got))


def rouge_l(text: str, reference: str) -> tuple[float, float]:
    """(recall, precision): the longest common subsequence of words over the reference's words and over the text's (Lin, 2004)."""
    got, wanted = _WORD.findall(text.lower()), _WORD.findall(reference.lower())
    common = longest_common(got, wanted)
    return (common / len(wanted) if wanted else 0.0, common / len(got) if got else 0.0)


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence; a row of the table is one whole number (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(a) - row.bit_count()


def _harmonic(x: float, y: float) -> float:
    return 2 * x * y / (x + y) if x + y else 0.0
