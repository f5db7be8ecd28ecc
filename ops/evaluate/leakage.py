"""What a model gives away about texts it may have seen: membership scores with their AUC, and memorisation.

Pure functions on log-probabilities, and at the end the same for the rows of an unlearning task.

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
from typing import TYPE_CHECKING

from .predictions import mean

if TYPE_CHECKING:
    from torch import nn

    from ..unlearn.language import LanguageTask
    from ..unlearn.task import Rows, Task

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


def privleak(found: float, reference: float = 0.5) -> float | None:
    """MUSE's percentage (Shi et al., 2024, arXiv 2407.06460) of two AUCs: 0 is ideal, near -100 still a member, far above 0 overdone.

    `reference` is the AUC of a model retrained without the data. MUSE counts the AUC the other way round, which is undone here. None
    for a reference of 1.
    """
    return None if reference == 1.0 else 100.0 * (reference - found) / (1.0 - reference)


def extracted(right: Sequence[bool]) -> float:
    """Extraction strength: 1 - k/T, where from token k on (from 0) every token is the model's first choice; 0.0 when the last is not.

    The reference code gives 1/T for that too, which is what "only the last" gets; here they differ.
    """
    tokens = len(right)
    k = tokens
    while k and right[k - 1]:
        k -= 1
    return 1.0 - k / tokens if tokens else 0.0


def memorised(right: Sequence[bool]) -> float:
    """Exact memorisation: the share of tokens that are the model's first choice after the true ones before them; 0.0 for none."""
    return sum(right) / len(right) if right else 0.0


# --- on the rows of a task ---------------------------------------------------------------------------------


def membership(task: Task, module: nn.Module, forget: Rows, holdout: Rows) -> dict[str, float | None]:
    """AUC of forget rows against rows never trained on: `auc_loss`, and for language models `auc_zlib`, `auc_mink`, `auc_minkpp` too.

    One score per record, whatever number of rows it was cut into.
    """
    language = _language(task)
    if language is None:
        losses = [task.measure(module, rows).losses for rows in (forget, holdout)]
        return {"auc_loss": _ranked([[-loss for loss in side] for side in losses])}
    sides = [[membership_scores(*record) for record in _records(language, module, rows)] for rows in (forget, holdout)]
    return {f"auc_{attack}": _ranked([[scores[attack] for scores in side] for side in sides]) for attack in ATTACKS}


def extraction_strength(task: Task, module: nn.Module, rows: Rows) -> float | None:
    """Mean over the records; None for classifiers, which write nothing, and for no rows."""
    language = _language(task)
    return None if language is None else mean(extracted(stats.right) for stats, _ in _records(language, module, rows))


def exact_memorisation(task: Task, module: nn.Module, rows: Rows) -> float | None:
    """Mean over the records; None for classifiers and for no rows."""
    language = _language(task)
    return None if language is None else mean(memorised(stats.right) for stats, _ in _records(language, module, rows))


def token_stats(task: LanguageTask, module: nn.Module, rows: Rows) -> list[TokenStats]:
    """The scored tokens of each row, in the order of the rows; fp32 log-softmax, no gradients."""
    import torch

    from ..unlearn.task import batches
    from .bench import statistics

    found: dict[int, TokenStats] = {}
    with torch.no_grad():
        for chosen in batches(rows, range(len(rows))):
            logits, _, targets = task.scored_logits(module, rows, chosen)
            found |= zip(chosen, statistics(logits, targets, [rows.scored[i] for i in chosen]), strict=True)
    return [found[i] for i in range(len(rows))]


def _language(task: Task) -> LanguageTask | None:
    from ..unlearn.language import LanguageTask

    return task if isinstance(task, LanguageTask) else None


def _records(task: LanguageTask, module: nn.Module, rows: Rows) -> list[tuple[TokenStats, str]]:
    """(tokens, text) of each record that the rows came from; a text's windows are put together again."""
    found: dict[int, tuple[TokenStats, str]] = {}
    for i, stats in enumerate(token_stats(task, module, rows)):
        text = task.coder.decode(rows.inputs[i][-rows.scored[i] :])
        before = found.get(rows.owner[i])
        found[rows.owner[i]] = (stats, text) if before is None else (before[0] + stats, before[1] + text)
    return list(found.values())


def _ranked(sides: Sequence[Sequence[float]]) -> float | None:
    members, strangers = sides
    return auc([*members, *strangers], [True] * len(members) + [False] * len(strangers))
