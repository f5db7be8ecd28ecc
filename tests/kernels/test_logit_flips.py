"""Two versions' logits compared: against the definition in float64, at the edges, differentiated, and without holding a softmax."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlc.kernels import logit_flips as room
from mlc.kernels.logit_flips import Flips, divergence, logit_flips

INF = math.inf


@pytest.fixture(scope="module")
def twins() -> dict[str, list[str]]:
    """What the child process found: the cases in which a twin differs from its reference."""
    child = Path(__file__).with_name("flips_child.py")
    done = subprocess.run([sys.executable, "-P", str(child)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("kernel", ["logit_flips", "kl_gradient"])
def test_the_triton_twin_agrees_with_the_torch_body(twins, kernel: str):
    assert twins[kernel] == []


def defined(old: torch.Tensor, new: torch.Tensor, targets: torch.Tensor, tau: float) -> Flips:
    """The definition in float64, every softmax whole."""
    x, y = old.double(), new.double()
    p, q = (x / tau).log_softmax(-1), (y / tau).log_softmax(-1)
    kl = torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum(-1)
    surely = [z.log_softmax(-1).gather(1, targets[:, None])[:, 0] for z in (x, y)]
    others = [z.scatter(1, targets[:, None], -INF).amax(-1) for z in (x, y)]
    margins = [z.gather(1, targets[:, None])[:, 0] - other for z, other in zip((x, y), others, strict=True)]
    return Flips(x.argmax(-1), y.argmax(-1), kl, *surely, *margins)


@pytest.mark.parametrize("tau", [1.0, 100.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (130, 1023), (3, 70_001), (0, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_column_is_what_its_definition_says(shape: tuple[int, int], dtype: torch.dtype, tau: float):
    generator = torch.Generator().manual_seed(3)
    old, new = (torch.randn(shape, generator=generator).mul(5).to(dtype) for _ in range(2))
    targets = torch.randint(0, shape[1], shape[:1], generator=generator)
    found, right = logit_flips(old, new, targets, tau), defined(old, new, targets, tau)
    assert found.best_old.equal(right.best_old)
    assert found.best_new.equal(right.best_new)
    for name in Flips._fields[2:]:
        torch.testing.assert_close(getattr(found, name).double(), getattr(right, name), rtol=1e-5, atol=1e-5)


def test_of_equal_logits_the_lowest_index_is_chosen():
    z = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    found = logit_flips(z, z, torch.tensor([2]))
    assert (found.best_old.item(), found.best_new.item(), found.agree.item()) == (1, 1, True)
    assert found.margin_old.item() == 0  # chosen or not, the target is not ahead
    assert found.kl.item() == 0


def test_logits_of_minus_infinity_are_logits_like_others():
    old = torch.tensor([[0.0, -INF, 0.0], [0.0, -INF, 0.0], [0.0, 0.0, -INF], [-INF, -INF, -INF]])
    new = torch.tensor([[0.0, -INF, 0.0], [0.0, 0.0, 0.0], [0.0, -INF, -INF], [0.0, 0.0, 0.0]])
    found = logit_flips(old, new, torch.tensor([1, 0, 0, 0]))
    assert found.kl[:3].tolist() == pytest.approx([0.0, math.log(1.5), INF])
    assert found.kl[3].isnan()
    assert found.logprob_old[:2].tolist() == pytest.approx([-INF, -math.log(2)])
    assert found.margin_new[:3].tolist() == [-INF, 0.0, INF]


def test_a_weight_that_is_zero_in_fp32_makes_no_divergence_infinite():
    old, new = torch.tensor([[0.0, -200.0]]), torch.tensor([[0.0, -INF]])
    assert logit_flips(old, new, torch.tensor([0])).kl.item() == 0


def test_a_not_a_number_is_never_hidden():
    old, new = torch.tensor([[0.0, math.nan], [0.0, 1.0]]), torch.zeros(2, 2)
    found = logit_flips(old, new, torch.tensor([0, 0]))
    assert found.kl.isnan().tolist() == [True, False]
    assert found.logprob_old.isnan().tolist() == [True, False]
    assert not found.logprob_new.isnan().any()


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("shape", [(4, 9), (70, 1000)], ids=str)
def test_the_gradient_is_autograds_own(shape: tuple[int, int], tau: float):
    generator = torch.Generator().manual_seed(4)
    old, new = (torch.randn(shape, generator=generator).mul(3).requires_grad_() for _ in range(2))
    weights = torch.randn(shape[0], generator=generator)
    p, q = (old / tau).log_softmax(-1), (new / tau).log_softmax(-1)
    wanted = torch.autograd.grad(((p.exp() * (p - q)).sum(-1) * weights).sum(), (old, new))
    found = torch.autograd.grad((divergence(old, new, tau) * weights).sum(), (old, new))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_gradients_are_right_by_finite_differences_too():
    generator = torch.Generator().manual_seed(5)
    old, new = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator).requires_grad_()
    divergence(old, new, 2.0).sum().backward()
    for i in range(5):
        step = torch.zeros(2, 5)
        step[:, i] = 0.05
        slope = (divergence(old, new.detach() + step, 2.0) - divergence(old, new.detach() - step, 2.0)) / 0.1
        torch.testing.assert_close(new.grad[:, i], slope, rtol=2e-3, atol=2e-4)


def test_equal_versions_have_no_divergence_and_no_gradient():
    z = torch.randn(6, 300, generator=torch.Generator().manual_seed(6))
    new = z.clone().requires_grad_()
    kl = divergence(z, new)
    kl.sum().backward()
    assert float(kl.detach().abs().amax()) < 1e-6
    assert float(new.grad.abs().amax()) < 1e-6


def test_where_nothing_is_chosen_the_gradient_of_a_hole_is_zero():
    old, new = torch.tensor([[0.0, 1.0, -INF]]), torch.tensor([[1.0, 0.0, -INF]], requires_grad=True)
    divergence(old, new).sum().backward()
    assert new.grad[0, 2].item() == 0
    assert new.grad.isfinite().all()


def test_no_softmax_is_held_whole():
    """Every tensor that is made on the way is counted: none is larger than a working buffer, and few are alive at a time."""
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else (out,):
                if isinstance(one, torch.Tensor):
                    sizes.append(one.untyped_storage().nbytes() // 4)
            return out

    old, new = torch.zeros(300, 1000), torch.ones(300, 1000)
    targets = torch.zeros(300, dtype=torch.int64)
    with Watch():
        logit_flips(old, new, targets)
    assert max(s for s in sizes if s != old.numel()) <= room.WORK < old.numel()


@pytest.mark.parametrize(
    ("old", "new", "targets", "tau"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), torch.zeros(2, dtype=torch.int64), 1.0),
        (torch.ones(2, 3), torch.ones(2, 3), torch.zeros(3, dtype=torch.int64), 1.0),
        (torch.ones(2, 0), torch.ones(2, 0), torch.zeros(2, dtype=torch.int64), 1.0),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 3]), 1.0),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, -1]), 1.0),
        (torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3), torch.tensor([0, 1]), 1.0),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0]), 1.0),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 1]), 0.0),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 1]), INF),
    ],
)
def test_what_does_not_fit_is_refused(old, new, targets, tau: float):
    with pytest.raises(ValueError, match=r"logits|targets|temperature"):
        logit_flips(old, new, targets, tau)
