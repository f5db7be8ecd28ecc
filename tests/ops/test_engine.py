"""The local engine: what rides along is saved with the run, and a stopped run ends with the bits of one that was not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlc.ops.data.mixing import Mixture, Source
from mlc.ops.engine import LocalEngine, TrainSettings
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
