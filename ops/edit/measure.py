"""The numbers of an edit: efficacy, paraphrases, neighbourhood (CounterFact's definitions), greedy exact match, and what else changed.

All comparisons are of mean negative log-likelihoods per token, in nats; a rate is a mean over a fact's prompts, then over facts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.facts import Fact
from ..evaluate.bench import Bench, Likelihood, TokenRow
from ..evaluate.coder import Coder
from .prompts import SORT

TOKENS = 8192  # in one batch
Pair = tuple[str, str]  # prompt, answer


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a model before and after: per fact the rival answer, and the questions whose answers are to stay."""

    facts: tuple[Fact, ...]
    rivals: tuple[str, ...]  # what the new answer is compared with: the true answer, or what the model said before
    kept: tuple[tuple[str, ...], ...]  # per fact: other questions about its subject


@dataclass(frozen=True, slots=True)
class Figures:
    """The rates of one model; None where the file gives nothing to measure. `landed` is efficacy fact by fact."""

    efficacy: float
    exact_match: float
    paraphrase: float | None
    paraphrase_exact: float | None
    neighbourhood: float | None
    landed: tuple[bool, ...]
    right_neighbours: tuple[bool, ...]  # greedy answers to neighbourhood prompts that are right
    kept_answers: tuple[int, ...]  # first token of the answer to every kept question

    @property
    def score(self) -> float:
        """Harmonic mean of efficacy, paraphrase and neighbourhood, of those that were measured."""
        return harmonic([v for v in (self.efficacy, self.paraphrase, self.neighbourhood) if v is not None])


def harmonic(values: Sequence[float]) -> float:
    """n / sum(1/v); 0 as soon as one of them is."""
    return len(values) / sum(1 / v for v in values) if values and all(v > 0 for v in values) else 0.0


def bench_of(model: Any, coder: Coder, phase: str, progress: Any = None) -> Bench:
    """A bench over a module in fp32."""
    return Bench(model, coder, TOKENS, phase, progress)


@torch.no_grad()
def asked_of(facts: Sequence[Fact], bench: Bench) -> Asked:
    """The questions, with the present answers of `bench` where a fact names no true one."""
    questions = {f.kind: f.prompt for f in sorted(facts, key=lambda f: (f.kind, f.prompt))}
    edited: dict[str, set[str]] = {}
    for fact in facts:
        edited.setdefault(fact.subject, set()).add(fact.kind)
    kept = []
    for fact in facts:
        others = [t for kind, t in questions.items() if kind not in edited[fact.subject]] or [SORT]
        kept.append(tuple(t.replace("{}", fact.subject) for t in others))
    return Asked(tuple(facts), tuple(rivals(facts, bench)), tuple(kept))


def rivals(facts: Sequence[Fact], bench: Bench) -> list[str]:
    """Each fact's true answer, or the greedy answer of the model, as long as the new one is."""
    unknown = [f for f in facts if f.target_true is None]
    said = dict(zip([f.id for f in unknown], _greedy(unknown, bench), strict=True))
    return [f.target_true if f.target_true is not None else said[f.id] for f in facts]


def _greedy(facts: Sequence[Fact], bench: Bench) -> list[str]:
    coder = bench.text
    split = coder.split([(f.question, f.target_new) for f in facts])
    rows, lengths = [list(context) for context, _ in split], [len(answer) for _, answer in split]
    starts = [len(row) for row in rows]
    for step in range(max(lengths, default=0)):
        live = [i for i, n in enumerate(lengths) if step < n]
        for i, token in zip(live, bench.next_tokens([rows[i] for i in live]), strict=True):
            rows[i].append(token)
    # An answer of blanks or special tokens alone leaves no text; any other text will do as a rival then.
    return [coder.decode(row[start:]).strip() or "the" for row, start in zip(rows, starts, strict=True)]


@torch.no_grad()
def present(facts: Sequence[Fact], bench: Bench) -> list[bool]:
    """Whether each fact's new answer is what the model says already."""
    return [x.greedy for x in _likelihoods(bench, [(f.question, f.target_new) for f in facts])]


@torch.no_grad()
def figures(asked: Asked, bench: Bench) -> Figures:
    """Measure one model."""
    facts = asked.facts
    new = _likelihoods(bench, [(f.question, f.target_new) for f in facts])
    old = _likelihoods(bench, [(f.question, r) for f, r in zip(facts, asked.rivals, strict=True)])
    sizes = (
        _sizes(bench, [(f.question, f.target_new) for f in facts]),
        _sizes(bench, [(f.question, r) for f, r in zip(facts, asked.rivals, strict=True)]),
    )
    landed = tuple(_prefers(a, n, b, m) for a, n, b, m in zip(new, sizes[0], old, sizes[1], strict=True))
    wordings = [[(p, f.target_new) for p in f.paraphrases] for f in facts]
    others = [[(p, r) for p in f.paraphrases] for f, r in zip(facts, asked.rivals, strict=True)]
    preferred, exact = _compare(bench, wordings, others)
    right = [[(p, a) for p, a in f.neighbourhood] for f in facts]
    wrong = [[(p, f.target_new) for p, _ in f.neighbourhood] for f in facts]
    spared, answered = _compare(bench, right, wrong)
    prompts = [q for questions in asked.kept for q in questions]
    contexts = [bench.text.prefix + ids or bench.text.start for ids in bench.text.encode(prompts)]
    return Figures(
        efficacy=sum(landed) / len(landed),
        exact_match=sum(x.greedy for x in new) / len(new),
        paraphrase=_rate(preferred),
        paraphrase_exact=_rate(exact),
        neighbourhood=_rate(spared),
        landed=landed,
        right_neighbours=tuple(x for row in answered for x in row),
        kept_answers=tuple(bench.next_tokens(contexts)),
    )


@torch.no_grad()
def preferences(asked: Sequence[tuple[Fact, str]], bench: Bench) -> list[float]:
    """For each fact and its rival answer: p(new) / (p(new) + p(rival)), with p the exponential of the mean log-likelihood per token."""
    new, old = [(f.question, f.target_new) for f, _ in asked], [(f.question, rival) for f, rival in asked]
    a, b = ([x.logprob / n for x, n in zip(_likelihoods(bench, pairs), _sizes(bench, pairs), strict=True)] for pairs in (new, old))
    return [1 / (1 + math.exp(min(700.0, y - x))) for x, y in zip(a, b, strict=True)]


def _compare(bench: Bench, ours: list[list[Pair]], theirs: list[list[Pair]]) -> tuple[list[list[bool]], list[list[bool]]]:
    """Per fact and prompt: whether our answer is the likelier one, and whether it is what greedy decoding says."""
    flat_a, flat_b = [p for row in ours for p in row], [p for row in theirs for p in row]
    a, b = _likelihoods(bench, flat_a), _likelihoods(bench, flat_b)
    n, m = _sizes(bench, flat_a), _sizes(bench, flat_b)
    wins = [_prefers(*x) for x in zip(a, n, b, m, strict=True)]
    greedy, preferred, exact, at = [x.greedy for x in a], [], [], 0
    for row in ours:
        preferred.append(wins[at : at + len(row)])
        exact.append(greedy[at : at + len(row)])
        at += len(row)
    return preferred, exact


def _prefers(a: Likelihood, n: int, b: Likelihood, m: int) -> bool:
    return a.logprob / n > b.logprob / m


def _rate(rows: list[list[bool]]) -> float | None:
    means = [sum(row) / len(row) for row in rows if row]
    return sum(means) / len(means) if means else None


def _sizes(bench: Bench, pairs: Sequence[Pair]) -> list[int]:
    return [len(answer) for _, answer in bench.text.split(pairs)]


def _likelihoods(bench: Bench, pairs: Sequence[Pair]) -> list[Likelihood]:
    split = bench.text.split(pairs)
    # An answer that leaves no token (a rival of special signs) counts as the prompt's own last token: never the likelier one by chance.
    rows = [TokenRow(c, a, "") if a else TokenRow(c[:-1] or c, c[-1:], "") for c, a in split]
    return bench.likelihoods(rows) if rows else []


def unchanged(before: Sequence[Any], after: Sequence[Any]) -> float | None:
    """Share of equal answers; None for none."""
    return sum(a == b for a, b in zip(before, after, strict=True)) / len(before) if before else None


def retained(before: Sequence[bool], after: Sequence[bool]) -> float | None:
    """Of what was right before, the share that is still right."""
    kept = [now for was, now in zip(before, after, strict=True) if was]
    return sum(kept) / len(kept) if kept else None
