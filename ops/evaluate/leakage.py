"""What a model gives away about texts it may have seen: membership scores with their AUC, and memorisation. Pure functions.

Scores are higher the more a text looks like a member. AUC 1 means that members are clearly recognised, 0.5 is the ideal, and far
below 0.5 is a leak as well: an answer that a model avoids points at what was taken out.
Sources: Min-K% (Shi et al., 2023, arXiv 2310.16789), Min-K%++ (Zhang et al., 2024, arXiv 2404.02936), loss and zlib attacks (Carlini
et al., 2021), extraction strength (Carlini et al., 2023) and exact memorisation (Tirumala et al., 2022) as OpenUnlearning has them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

LOWEST = 0.4  # share of the tokens that Min-K% looks at
ATTACKS = ("loss", "zlib", "mink", "minkpp")


@dataclass(frozen=True, slots=True)
class TokenStats:
    """One sequence's scored tokens, in order; four lists of one length.

    logprobs: nats of each true token. means, deviations: of the log-probability under the model's own distribution there.
    right: the model's first choice is the true token.
    """

    logprobs: list[float]
    means: list[float]
    deviations: list[float]
    right: list[bool]

    def __add__(self, other: TokenStats) -> TokenStats:
        """Two parts of one text, one after the other."""
        parts = zip(*((s.logprobs, s.means, s.deviations, s.right) for s in (self, other)), strict=True)
        return TokenStats(*(a + b for a, b in parts))


def membership_scores(stats: TokenStats, text: str) -> dict[str, float]:
    """The four attacks on one text of at least one token, by name of ATTACKS; higher is more like a member."""
    standard = [(x - mu) / sigma for x, mu, sigma in zip(stats.logprobs, stats.means, stats.deviations, strict=True)]
    logprob = math.fsum(stats.logprobs) / len(stats.logprobs)
    return {
        "loss": logprob,
        "zlib": logprob / len(zlib.compress(text.encode())),
        "mink": lowest_mean(stats.logprobs),
        "minkpp": lowest_mean(standard),
    }


def lowest_mean(values: Sequence[float], share: float = LOWEST) -> float:
    """The mean of the lowest `share` of the values, at least one of them: Min-K% of log-probabilities, Min-K%++ of standardised ones."""
    count = max(1, int(share * len(values)))
    return math.fsum(sorted(values)[:count]) / count


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """P(a member scores above a stranger), ties count half; None without members, without strangers, or with a score that is no number.

    Infinities are ordered as numbers are.
    """
    members = sum(labels)
    strangers = len(labels) - members
    if not members or not strangers or any(math.isnan(score) for score in scores):
        return None
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    ranks = start = 0  # ranks are doubled, so that halves stay whole
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        ranks += (start + end + 1) * sum(labels[i] for i in order[start:end])
        start = end
    return (ranks - members * (members + 1)) / (2 * members * strangers)


def extraction_strength(right: Sequence[bool]) -> float:
    """1 - k/T, where from token k on (from 0) every token is the model's first choice; 0.0 when the last is not.

    The reference code gives 1/T for that too, which is what "only the last" gets; here they differ.
    """
    tokens = len(right)
    k = tokens
    while k and right[k - 1]:
        k -= 1
    return 1.0 - k / tokens if tokens else 0.0


def exact_memorisation(right: Sequence[bool]) -> float:
    """The share of tokens that are the model's first choice after the true ones before them; 0.0 for none."""
    return sum(right) / len(right) if right else 0.0
