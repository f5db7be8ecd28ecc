"""Several corpora in one update: which ones, how often each is read, and what earlier updates on the same ones say about that.

`--data` is the first domain; `--mix` names the others and, where its weight is not to be 1, `--data` again. Shares are of what replay
leaves. Imports nothing that computes.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...registry.errors import BadParameter
from ..data.corpus import read_corpus
from ..data.mixing import tempered
from ..data.reweight import STRATEGIES
from ..data.skills import Graph, identity, read_graph
from .options import require

if TYPE_CHECKING:
    from ..base import History
    from .train import Update

POLICIES = ("fixed", "skillit", "learned")
TURNS = 6  # evaluations of a Skill-it run when nothing is said, the end included


@dataclass(frozen=True, slots=True)
class Domain:
    """One corpus and its weight beside the others."""

    path: str
    weight: float

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name


def parse_mix(items: Sequence[str]) -> tuple[Domain, ...]:
    """The corpora named by `--mix FILE:WEIGHT,...`; a weight that is left out is 1. Raises BadParameter."""
    found = tuple(_one(part.strip()) for item in items for part in item.split(",") if part.strip())
    places = [os.path.normpath(domain.path) for domain in found]
    if twice := next((p for p in places if places.count(p) > 1), None):
        raise BadParameter(f"--mix names {twice} twice", hint="name it once, with the whole weight")
    return found


def _one(item: str) -> Domain:
    head, colon, tail = item.rpartition(":")
    if not colon:
        return Domain(item, 1.0)
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not head or not (math.isfinite(weight) and weight > 0):
        raise BadParameter(f"--mix {item!r} is not FILE:WEIGHT with a positive weight", hint="for example: --mix b.txt:2,c.txt:1")
    return Domain(head, weight)


def domains(op: Update) -> tuple[Domain, ...]:
    """Every corpus that is learned, `--data` first."""
    named = parse_mix(op.mix)
    here = os.path.normpath(op.data)
    own = next((d.weight for d in named if os.path.normpath(d.path) == here), 1.0)
    return (Domain(op.data, own), *(d for d in named if os.path.normpath(d.path) != here))


def shares(op: Update, sizes: Sequence[int]) -> list[float]:
    """The share of each domain, sum 1: its weight, times size^(1/T) where a temperature is given. `sizes`: rows of each domain."""
    factors = tempered(sizes, op.mix_temperature) if op.mix_temperature is not None else [1.0] * len(sizes)
    weights = [domain.weight * factor for domain, factor in zip(domains(op), factors, strict=True)]
    return [weight / math.fsum(weights) for weight in weights]


def graph_of(op: Update) -> Graph:
    """Which domain helps which. Raises what `read_graph` raises."""
    named = domains(op)
    if op.mix_graph is None:
        return identity(len(named))
    names = [d.name for d in named]
    return read_graph(op.mix_graph, names if len(set(names)) == len(names) else [d.path for d in named])


def turning_every(op: Update) -> int:
    """Steps between two evaluations of a Skill-it run."""
    return op.mix_every or max(1, op.steps // TURNS)


def select_count(op: Update) -> int:
    """The N of `--select tarot:N`; 0 where nothing is selected. Raises BadParameter."""
    if op.select is None:
        return 0
    kind, _, tail = op.select.partition(":")
    if kind != "tarot" or not tail.isdigit() or int(tail) < 1:
        raise BadParameter(f"--select {op.select!r} is not tarot:N", hint="for example: --select tarot:500 --select-for wanted.txt")
    return int(tail)


def check_mixing(op: Update) -> None:
    """What `Update` checks about its data policies: values, and what cannot be combined. Raises BadParameter."""
    several, online = len(domains(op)) > 1, op.mix_policy == "skillit"
    require(op.mix_policy in POLICIES, f"--mix-policy is one of {', '.join(POLICIES)}, not {op.mix_policy!r}")
    require(several or not op.mix, "--mix names no corpus beside --data", "--mix b.txt:2,c.txt:1")
    require(several or op.mix_policy == "fixed", f"--mix-policy {op.mix_policy} needs several corpora", "--data a.txt --mix b.txt")
    require(several or op.mix_temperature is None, "--mix-temperature needs several corpora", "--data a.txt --mix b.txt")
    tau = op.mix_temperature
    require(tau is None or (math.isfinite(tau) and tau > 0), f"--mix-temperature must be a positive number, not {tau}")
    require(math.isfinite(op.mix_eta) and op.mix_eta >= 0, f"--mix-eta must not be negative, it is {op.mix_eta}")
    require(op.mix_window >= 1, f"--mix-window must be at least 1, not {op.mix_window}")
    require(op.mix_every is None or op.mix_every >= 1, f"--mix-every must be at least 1, not {op.mix_every}")
    require(online or op.mix_graph is None, "--mix-graph is for --mix-policy skillit", "--mix-policy skillit --mix-graph graph.json")
    if online:
        require(tau is None, "--mix-policy skillit sets the weights: --mix-temperature has no part in it", "leave one of the two out")
        require(not op.compat_with, "--mix-policy skillit cannot be combined with --compat-with", "--mix-policy fixed")
        require(op.begin == "weights", "--mix-policy skillit cannot go on --from stable", "--mix-policy fixed")
    count = select_count(op)
    require((count > 0) == (op.select_for is not None), "--select and --select-for go together", "--select tarot:500 --select-for f.txt")
    require(count == 0 or count >= op.batch, f"--select {op.select} is fewer than one batch of {op.batch}", "select more rows")
    require(op.reweight in STRATEGIES, f"--reweight is one of {', '.join(STRATEGIES)}, not {op.reweight!r}")
    r = op.reweight_r
    require(math.isfinite(r) and r > 0, f"--reweight-r must be a positive number, not {r}")
    require(op.reweight == "none" or op.batch > 1, "--reweight compares the rows of a batch: --batch must be at least 2", "--batch 8")


# --- weights from the record -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arm:
    """Weights that were tried (rounded to hundredths), what came of it on average, and in which commits."""

    weights: tuple[float, ...]
    reward: float
    commits: tuple[str, ...]


def learned(op: Update, past: History) -> Update:
    """The operation with the weights that served best in the updates of this registry on the same corpora.

    Raises BadParameter when there is no such update.
    """
    named = domains(op)
    tried = arms(past.recorded("update"), [read_corpus(d.path).record.digest for d in named])
    if not tried:
        raise BadParameter(
            f"no update in this registry was trained on these {len(named)} corpora: there is nothing to learn their weights from",
            hint="give weights, --mix FILE:WEIGHT,...; a few short updates with different ones on branches of their own are a record",
        )
    best = tried[0]
    mix = tuple(f"{d.path}:{max(w, 0.001):g}" for d, w in zip(named, best.weights, strict=True))
    return replace(op, mix=mix, mix_temperature=None, mix_from=best.commits)


def arms(record: Iterable[tuple[str, Mapping[str, Any]]], corpora: Sequence[str]) -> list[Arm]:
    """What was tried on exactly these corpora (digests), best first; `record`: (commit id, check) of updates."""
    found: dict[tuple[float, ...], list[tuple[str, float]]] = {}
    for commit, check in record:
        parts = {str(part.get("corpus")): part for part in check.get("domains") or ()}
        if set(parts) != set(corpora) or any(parts[c].get("share") is None for c in corpora):
            continue
        if (gain := reward(list(parts.values()), check.get("replay") or {})) is not None:
            found.setdefault(tuple(round(parts[c]["share"], 2) for c in corpora), []).append((commit, gain))
    made = [Arm(weights, math.fsum(g for _, g in own) / len(own), tuple(c for c, _ in own)) for weights, own in found.items()]
    return sorted(made, key=lambda arm: (-arm.reward, arm.weights))


def reward(parts: Sequence[Mapping[str, Any]], old: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Mean relative fall of the domains' held-out losses, less the mean relative rise of old texts' (a fall counts nothing).

    None where a loss is no number.
    """
    pairs = [(part.get("loss_before"), part.get("loss_after")) for part in (*parts, *old.values())]
    changes = [(a - b) / a for a, b in pairs if a and b is not None]
    if len(changes) < len(pairs):
        return None
    falls, rises = changes[: len(parts)], [min(0.0, change) for change in changes[len(parts) :]]
    return math.fsum(falls) / len(falls) + (math.fsum(rises) / len(rises) if rises else 0.0)
