"""The pinned functions give the same bytes on every kind of processor, and their source contains nothing that might not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlc.kernels import exact

CHILD = Path(__file__).with_name("exact_child.py")
# What may be called in exact.py, besides its own functions: all of it moves, rounds or combines elements one by one.
ALLOWED = {
    "add", "sub", "mul", "div", "to", "t", "contiguous", "copy_", "isnan", "amax", "where", "tensor", "empty", "empty_like",
    "lt", "gt", "eq", "clamp", "threshold_", "hardshrink", "nextafter", "bitwise_left_shift", "bitwise_xor", "all",
    "is_floating_point", "dim", "numel", "get_num_threads", "reshape", "view", "tuple", "list", "len", "range", "max", "min", "slice",
    "zip", "enumerate", "any", "bool", "float", "TypeError", "ValueError", "RuntimeError",
}  # fmt: skip


def child(capability: str) -> tuple[str, str]:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-P", str(CHILD)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return tuple(done.stdout.split())  # type: ignore[return-value]


def suspicious(source: str) -> list[str]:
    """Calls and operators that restoring must not use: fused, reducing, or not on the list."""
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "?")
            if name not in ALLOWED | own or any(word.arg in ("alpha", "value", "beta") for word in node.keywords):
                found.append(f"{name} in line {node.lineno}")
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult | ast.Pow | ast.Div):
            found.append(f"{type(node.op).__name__} in line {node.lineno}")
    return found


def test_a_plain_processor_gives_the_same_bytes_as_this_one():
    plain, here = child("default"), child(torch.backends.cpu.get_cpu_capability().lower().replace(" ", ""))
    assert plain[0] == "DEFAULT"
    assert plain[1] == here[1]


def test_the_source_uses_nothing_fused_and_nothing_that_sums():
    assert suspicious(Path(exact.__file__).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.addcmul(y, a, b)", "torch.add(y, a, alpha=0.5)", "torch.lerp(y, a, 0.5)",
        "up @ down", "y.sum()", "torch.matmul(a, b)", "y.addmm(a, b)",
    ],
)  # fmt: skip
def test_the_guard_notices_a_forbidden_call(line: str):
    source = Path(exact.__file__).read_text(encoding="utf-8")
    assert suspicious(source + f"\n\ndef broken(y, a, b, up, down):\n    return {line}\n") != []


def test_rank_one_terms_are_added_one_after_another_and_rounded_once_each():
    w, up, down = torch.tensor([[1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0**-24], [2.0**-24]])
    assert exact.add_rank1_terms(w, up, down).item() == 1.0  # each half-ulp is rounded away on its own; their sum would not be
    assert exact.add_rank1_terms(w, up, down, 2.0).item() == 1.0 + 2.0**-22


def test_the_factor_scales_the_lower_factor_first():
    w, up, down = torch.zeros(1, 1), torch.tensor([[3.0]]), torch.tensor([[0.1]])
    expected = torch.tensor(3.0) * (torch.tensor(0.1) * torch.tensor(0.7))
    assert exact.add_rank1_terms(w, up, down, 0.7).item() == expected.item()


def test_no_bit_depends_on_how_rows_are_chunked(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    w, up, down = (torch.randn(*s, generator=generator) for s in ((37, 11), (37, 3), (3, 11)))
    whole = exact.add_rank1_terms(w, up, down, 0.1)
    monkeypatch.setattr(exact, "_chunk", lambda: 23)
    assert exact.add_rank1_terms(w, up, down, 0.1).equal(whole)


def test_no_bit_of_a_sum_depends_on_the_steps_and_it_may_be_written_anywhere(monkeypatch):
    base, *xs = (torch.randn(101, generator=torch.Generator().manual_seed(i)).to(torch.bfloat16) for i in range(3))
    xs[0][3], xs[1][50] = float("nan"), float("inf")
    whole = [exact.weighted_sum(xs, (0.5, -0.7), torch.float16, 1.5), exact.task_sum(base, xs, (1.0, 0.3), 0.9, torch.bfloat16, 1.3)]
    monkeypatch.setattr(exact, "_chunk", lambda: 23)
    out = torch.empty(2, 101, dtype=torch.float16), torch.empty(2, 101, dtype=torch.bfloat16)
    exact.weighted_sum(xs, (0.5, -0.7), torch.float16, 1.5, out[0][1])
    exact.task_sum(base, xs, (1.0, 0.3), 0.9, torch.bfloat16, 1.3, out[1][1])
    assert [x[1].view(torch.int16).tolist() for x in out] == [x.view(torch.int16).tolist() for x in whole]


def test_a_sum_is_its_single_steps():
    base, x, y = (torch.randn(70, generator=torch.Generator().manual_seed(i)) for i in range(3))
    steps = exact.add(exact.scale(exact.sub(x, base), 0.6), exact.scale(exact.sub(y, base), 1.0))
    merged = exact.task_sum(base, (x, y), (0.6, 1.0), 0.9, torch.float32, 1.6)
    assert merged.equal(exact.add(base, exact.scale(exact.div(steps, torch.tensor(1.6)), 0.9)))


def test_every_nan_leaves_as_the_canonical_one():
    payloads = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    assert exact.round_to(payloads, torch.bfloat16).view(torch.int16).tolist() == [0x7FC0] * 3
    assert exact.round_to(payloads, torch.float32).view(torch.int32).tolist() == [0x7FC00000] * 3


def test_rounding_goes_to_the_nearest_and_ties_to_even():
    x = torch.tensor([1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 1.0 + 2.0**-8 + 2.0**-20])
    assert exact.round_to(x, torch.bfloat16).tolist() == [1.0, 1.0 + 2.0**-6, 1.0 + 2.0**-7]


def test_narrow_types_must_be_widened_first():
    half = torch.ones(2, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="float32 or two float64"):
        exact.add(half, half)
    assert exact.add(exact.widen(half), exact.widen(half)).tolist() == [2.0, 2.0]
    with pytest.raises(TypeError, match="only floats"):
        exact.widen(torch.ones(2, dtype=torch.int32))


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not make"):
        exact.add_rank1_terms(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, 3))


def test_flushing_tiny_numbers_to_zero_is_noticed():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        with pytest.raises(RuntimeError, match="flushed to zero"):
            exact.round_to(torch.ones(1), torch.bfloat16)
    finally:
        torch.set_flush_denormal(False)
