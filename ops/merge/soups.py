"""Soups whose ingredients are chosen by a score: the greedy soup. The score is given by the caller, who knows how to measure.

Wortsman et al., 2203.05482, recipe 1. The mean of the chosen is an ordinary merge by `soup`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tasting:
    """One step of a greedy soup: what was tried, its score, and whether it stayed."""

    members: tuple[str, ...]
    score: float
    kept: bool


def greedy_soup(names: Sequence[str], score: Callable[[tuple[str, ...]], float]) -> tuple[tuple[str, ...], list[Tasting]]:
    """The members of the greedy soup, in the order in which they came in, and what was tried.

    score: of the uniform mean of the versions named, greater is better; asked once for each alone and once for each that is tried on top.
    A member stays when the score does not fall (ties stay, as in the authors' code). Equal scores are taken in the order of `names`.
    Raises ValueError for no names or a name given twice.
    """
    if not names or len(set(names)) != len(names):
        raise ValueError("a soup needs ingredients, each once")
    alone = {name: score((name,)) for name in names}
    first, *rest = sorted(names, key=lambda name: -alone[name])
    tried = [Tasting((name,), alone[name], name == first) for name in names]
    members, best = (first,), alone[first]
    for name in rest:
        candidate = (*members, name)
        value = score(candidate)
        kept = value >= best
        tried.append(Tasting(candidate, value, kept))
        if kept:
            members, best = candidate, value
    return members, tried
