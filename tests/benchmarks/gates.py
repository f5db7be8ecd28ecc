"""How often the gate refuses by chance, and what it finds: thousands of simulated verdicts through the rules themselves.

`python gates.py [SIMULATIONS [SEED]]` prints JSON. Three kinds of worlds: A/A (nothing changed but noise) over one suite and over eight,
a planted fall over a quiet background, and the same fall over a loud one, where the gate has to say how many examples it needs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy

from mlc.ops.evaluate.flips import Counts, report
from mlc.policies.documents import parse_toml
from mlc.policies.facts import Comparison, Facts, SuiteFacts
from mlc.policies.gate import judge
from mlc.policies.rules.load import load_rules

ALPHA, N = 0.05, 2000
TESTED = f'[[rule]]\nid = "tested"\nmetric = "suite.*.accuracy"\ndrop_max = 0.0\ntest = "mcnemar"\nalpha = {ALPHA}\n'
RULES = load_rules(parse_toml(TESTED, "simulated.toml"))
SAYING = load_rules(parse_toml(TESTED + 'detect = 0.01\non_few = "pass"\n', "simulated.toml"))


def world(chance: numpy.random.Generator, negative: float, positive: float, suites: int) -> Facts:
    """`suites` measurements of N examples each, every example flipping by itself."""
    found = []
    for number in range(suites):
        lost = int(chance.binomial(N, negative))
        won = int(chance.binomial(N - lost, positive / (1 - negative)))
        flips = report(Counts(1600 - lost, lost, won, 400 - won, lost + won))
        found.append(
            SuiteFacts(f"s{number}", "cloze", N, {"accuracy": flips.acc_b}, 0.0, {"parent": Comparison({"accuracy": flips.acc_a}, flips)})
        )
    return Facts("update", suites=tuple(found))


def share_refused(chance: numpy.random.Generator, times: int, negative: float, positive: float, suites: int = 1) -> float:
    """Of `times` simulated candidates, how many the rule refuses."""
    return sum(judge(RULES, world(chance, negative, positive, suites)).outcome == "refused" for _ in range(times)) / times


def main(times: int = 10_000, seed: int = 1) -> dict[str, Any]:
    """The table: refusals under no change (to be at most ALPHA) and under a planted net regression of one point (to be at least 0.95)."""
    chance = numpy.random.default_rng(seed)
    rows = {
        "a/a, 0.2 % flips each way": share_refused(chance, times, 0.002, 0.002),
        "a/a, 1 % flips each way": share_refused(chance, times, 0.01, 0.01),
        "a/a, 5 % flips each way": share_refused(chance, times, 0.05, 0.05),
        "a/a, eight suites, 1 % flips each way": share_refused(chance, times // 4, 0.01, 0.01, 8),
        "1 point lost over 0.2 % flips": share_refused(chance, times, 0.012, 0.002),
        "1 point lost over 1 % flips": share_refused(chance, times, 0.02, 0.01),
    }
    loud = judge(SAYING, world(numpy.random.default_rng(seed), 0.01, 0.01, 1)).rules[0]
    return {"simulations": times, "seed": seed, "n": N, "alpha": ALPHA, "refused": rows, "at 1 % background the gate says": loud.sentence}


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:])), indent=1))
