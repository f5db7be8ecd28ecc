"""A run whose numbers broke off is kept, and goes on with what its operation lets change meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from mlc.ops.base import Change, Diverged, Operation, Plan, SetTensor
from mlc.policies import lifecycle
from mlc.policies.runs import Runs
from mlc.registry.errors import CheckFailed, StalePlan
from mlc.tests.policies.operations import NORM


@dataclass(frozen=True, slots=True)
class Steep(Operation):
    """Adds one per step and breaks off at the third, unless it was told to be slow by then."""

    name: ClassVar[str] = "steep"
    retunable: ClassVar[tuple[str, ...]] = ("slow",)
    slow: tuple[str, ...] = ()
    height: float = 1.0

    def plan(self, view: Any) -> Plan:
        return Plan("climb", (NORM,), steps=4)

    def apply(self, view: Any, run: Any) -> Iterator[Change]:
        import torch

        state = run.load_state()
        step, value = (state[0], state[1]["value"]) if state else (0, view.tensor(NORM))
        while step < 4:
            if step == 2 and not self.slow:
                run.save_state(step, {"value": value}, {})
                raise Diverged("no longer a number", hint="slower", step=3)
            step, value = step + 1, value + torch.full_like(value, self.height)
        yield SetTensor(NORM, value)


@dataclass(frozen=True, slots=True)
class Stubborn(Steep):
    """The same, with nothing to change."""

    name: ClassVar[str] = "stubborn"
    retunable: ClassVar[tuple[str, ...]] = ()


def broken(repo, op):
    with pytest.raises(CheckFailed) as caught:
        lifecycle.run(repo, op, author="a")
    return caught.value


def test_a_run_that_broke_off_is_kept_and_goes_on_slower_to_what_a_slow_run_would_have_been(repo, root):
    whole = lifecycle.run(repo, Steep(slow=("3:0.5",)), ref=root, branch="whole", author="a")
    fault = broken(repo, Steep())
    assert (fault.exit_code, fault.details["step"]) == (10, 3)
    assert repo.branches()["main"] == root
    info = Runs(repo).list()[0]
    assert (info.step, info.active) == (2, False)

    outcome = lifecycle.run(repo, Steep(slow=("3:0.5",)), resume=info.id, author="a")

    assert outcome.commit.snapshot == whole.commit.snapshot
    assert outcome.commit.op.params == {"slow": ("3:0.5",), "height": 1.0}
    assert Runs(repo).list() == []


def test_the_run_remembers_what_it_was_told_last(repo, root):
    broken(repo, Steep())
    info = Runs(repo).list()[0]
    Runs(repo).amended(info, {"slow": ["3:0.5"], "height": 1.0})
    assert Runs(repo).info(info.id).params == {"slow": ["3:0.5"], "height": 1.0}
    assert Runs(repo).info(info.id).step == 2


def test_nothing_else_may_change(repo, root):
    broken(repo, Steep())
    with pytest.raises(StalePlan, match="started with other options"):
        lifecycle.run(repo, Steep(slow=("3:0.5",), height=2.0), resume="latest", author="a")


def test_where_nothing_may_change_the_run_is_over(repo, root):
    broken(repo, Stubborn())
    assert Runs(repo).list() == []
