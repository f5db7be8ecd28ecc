"""The local engine: what rides along is saved with the run, and a stopped run ends with the bits of one that was not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlc.ops.base import Diverged
from mlc.ops.data.mixing import Mixture, Source
from mlc.ops.engine import LocalEngine, TrainSettings
from mlc.ops.engine.schedule import stable_steps
from mlc.registry.errors import StalePlan
from mlc.tests.ops.fakes import Killed, MemoryRun


class Tiny(nn.Module):
    """Two maps and nothing else."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.inner = nn.Parameter(torch.randn(6, 6, generator=generator))
        self.outer = nn.Parameter(torch.randn(6, generator=generator))

    def forward(self, ids):
        return (ids.float() @ self.inner).tanh() @ self.outer


def pull(module, batch):
    return (module(batch.ids) - 1).square().mean()


def rows():
    return Mixture([Source("data", torch.arange(60).view(10, 6) % 7, 1.0)], batch=2, seed=0)


def settings(**more):
    return TrainSettings(**{"steps": 12, "lr": 1e-2, "warmup": 2, "save_every": 4, **more})


class Sum:
    """A running sum of a parameter and its gradient, which takes the parameter's place at the end."""

    def __init__(self):
        self.total, self.calls = torch.zeros(6), []

    def after_step(self, module, done):
        assert module.outer.grad is not None
        self.calls.append(done)
        self.total = self.total + module.outer.detach() + module.outer.grad

    def state(self):
        return {"total": self.total}

    def load(self, tensors):
        self.total = tensors["total"].clone()

    def finish(self, module):
        with torch.no_grad():
            module.outer.copy_(self.total)


class Anew:
    """Draws a parameter anew once."""

    def __init__(self, at):
        self.at = at

    def after_step(self, module, done):
        if done != self.at:
            return ()
        with torch.no_grad():
            module.outer.zero_()
        return ("outer",)

    def state(self):
        return {}

    def load(self, tensors):
        assert tensors == {}

    def finish(self, module):
        pass


def trained(run, attached=(), **more):
    module = Tiny()
    LocalEngine().train(module, rows(), settings(**more), run, objective=pull, attached=attached)
    return module


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("make", [lambda: (Sum(),), lambda: (Sum(), Anew(3), Sum()), lambda: (Anew(7),)])
def test_what_rides_along_comes_back_after_a_kill(make):
    whole = trained(MemoryRun(), make())
    run = MemoryRun(die_after=10)
    with pytest.raises(Killed):
        trained(run, make())
    run.die_after = None
    assert equal(trained(run, make()), whole)


def test_riders_are_called_after_every_step_and_have_the_last_word_in_their_order():
    first, last = Sum(), Sum()
    module = trained(MemoryRun(), (first, last))
    assert first.calls == last.calls == list(range(1, 13))
    assert torch.equal(module.outer.detach(), last.total)
    assert not torch.equal(module.outer.detach(), trained(MemoryRun()).outer.detach())


def test_moments_of_what_was_drawn_anew_start_again():
    run = MemoryRun(die_after=4)
    with pytest.raises(Killed):
        trained(run, (Anew(3),))
    _, tensors, _ = run.state
    assert tensors["t.outer"] == 1
    assert tensors["t.inner"] == 4


def test_a_rider_cannot_move_what_a_mask_holds():
    module, start = Tiny(), Tiny()
    mask = torch.tensor([True, False] * 3)
    LocalEngine().train(module, rows(), settings(weight_decay=0.1), MemoryRun(), objective=pull, masks={"outer": mask}, attached=(Sum(),))
    assert torch.equal(module.outer[~mask], start.outer[~mask])
    assert (module.outer[mask] != start.outer[mask]).all()


# --- numbers that break off ---


class Cliff:
    """The usual loss, until the weights have gone too far."""

    def __init__(self, edge):
        self.edge = edge

    def __call__(self, module, batch):
        loss = pull(module, batch)
        return loss if module.inner.abs().max() < self.edge else loss * torch.nan


def test_the_state_before_a_loss_that_is_no_number_is_kept_and_a_slower_run_goes_on_from_it():
    fast = {"lr": 0.05, "warmup": 0, "decay": "constant"}
    run, cliff = MemoryRun(), Cliff(Tiny().inner.abs().max().item() + 0.1)
    with pytest.raises(Diverged, match=r"no longer a number at step 4 of 12") as caught:
        LocalEngine().train(Tiny(), rows(), settings(**fast), run, objective=cliff)
    assert caught.value.details == {"step": 4, "saved": 3}
    assert run.state[0] == 3
    with pytest.raises(Diverged, match="step 4"):
        LocalEngine().train(Tiny(), rows(), settings(**fast), run, objective=cliff)  # the same again ends the same
    with pytest.raises(StalePlan, match="--slow speaks of a step that is over"):
        LocalEngine().train(Tiny(), rows(), settings(**fast, slow=((3, 0.5),)), run, objective=pull)
    resumed, whole, slow = Tiny(), Tiny(), settings(**fast, slow=((4, 1e-6),))
    LocalEngine().train(resumed, rows(), slow, run, objective=pull)
    LocalEngine().train(whole, rows(), slow, MemoryRun(), objective=pull)
    assert equal(resumed, whole)
    assert not equal(whole, trained(MemoryRun(), **fast))


def test_a_loss_that_never_was_a_number_keeps_no_state():
    run = MemoryRun()
    with pytest.raises(Diverged, match=r"step 1 of 12$"):
        LocalEngine().train(Tiny(), rows(), settings(), run, objective=Cliff(0.0))
    assert run.state is None


def test_who_wants_no_states_is_left_none():
    run, cliff = MemoryRun(), Cliff(Tiny().inner.abs().max().item() + 0.1)
    with pytest.raises(Diverged) as caught:
        LocalEngine().train(Tiny(), rows(), settings(lr=0.05, warmup=0, decay="constant", save_every=0), run, objective=cliff)
    assert run.state is None
    assert "saved" not in caught.value.details


# --- the stable state ---


@pytest.mark.parametrize("decay", ["wsd", "infinite"])
def test_annealing_from_the_stable_state_ends_with_the_same_bits(decay):
    plan = {"steps": 40, "warmup": 4, "decay": decay, "keep_stable": True, "save_every": 0}
    whole = Tiny()
    outcome = LocalEngine().train(whole, rows(), settings(**plan), MemoryRun(), objective=pull)
    stable = outcome.stable
    assert stable.step == stable_steps(settings(**plan)) < 40
    assert stable.meta["batches"] == stable.step
    run = MemoryRun()  # as if it had been stopped there
    run.state = (stable.step, stable.tensors, {"rows": stable.meta["rows"], "losses": [0.0] * stable.step})
    annealed = Tiny()
    LocalEngine().train(annealed, rows(), settings(**plan), run, objective=pull)
    assert equal(annealed, whole)


def test_the_stable_state_survives_a_kill_behind_it():
    plan = {"steps": 40, "warmup": 4, "decay": "wsd", "keep_stable": True, "save_every": 38}
    whole = LocalEngine().train(Tiny(), rows(), settings(**plan), MemoryRun(), objective=pull).stable
    run = MemoryRun(die_after=39)
    with pytest.raises(Killed):
        LocalEngine().train(Tiny(), rows(), settings(**plan), run, objective=pull)
    run.die_after = None
    again = LocalEngine().train(Tiny(), rows(), settings(**plan), run, objective=pull).stable
    assert again.step == whole.step
    assert again.meta == whole.meta
    assert all(torch.equal(again.tensors[n], t) for n, t in whole.tensors.items())


def test_a_run_from_a_stable_state_is_the_run_that_never_stopped():
    constant = {"warmup": 0, "decay": "wsd", "keep_stable": True, "save_every": 0}
    first = LocalEngine().train(Tiny(), rows(), settings(steps=20, **constant), MemoryRun(), objective=pull).stable
    second = LocalEngine().train(Tiny(), rows(), settings(steps=20, **constant), MemoryRun(), objective=pull, start=first).stable
    assert second.meta["batches"] == 2 * first.step
    long = Tiny()  # as many steps in one go, at the same rate
    LocalEngine().train(long, rows(), settings(steps=2 * first.step, warmup=0, decay="constant"), MemoryRun(), objective=pull)
    assert all(torch.equal(p, second.tensors[f"param.{n}"]) for n, p in long.named_parameters())


def test_only_who_asks_is_given_a_stable_state():
    assert LocalEngine().train(Tiny(), rows(), settings(decay="wsd"), MemoryRun(), objective=pull).stable is None
    assert LocalEngine().train(Tiny(), rows(), settings(keep_stable=True), MemoryRun(), objective=pull).stable is None
