"""Derived tensors as bytes: evaluated by ranges, coded with what they leave, and decoded from damaged payloads only into an error."""

from __future__ import annotations

import ast
import contextlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.kernels import exact, merge
from mlc.registry.delta import alone, blocks, derivation, recipes
from mlc.registry.delta.derivation import decode, encode, parse_formula
from mlc.registry.delta.derived import LARGEST, Derived, derive
from mlc.registry.delta.recipes import Head, Recipe, Source, parse_recipe, read_head, write_head
from mlc.registry.errors import BadParameter, CorruptRecord
from mlc.registry.ids import Digest
from mlc.tests.registry.derived_models import raw, weights

WORDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
LOW = 0.0078125
ODD = (float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1e-41, 6e4)


def odd(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights with everything a float can be in front."""
    x = weights(*shape, seed=seed, dtype=dtype)
    flat = x.view(-1)
    count = min(len(ODD), len(flat))
    flat[:count] = torch.tensor(ODD[:count]).roll(seed).to(dtype)
    return x


def digest(number: int) -> Digest:
    return Digest(f"{number:064x}")


def case(function: str, dtype: torch.dtype, shape: tuple[int, ...], kinds: tuple[torch.dtype, ...] = ()):
    """(derived, its sources, the tensor)."""
    count = 1 if function == "rank1" else 3
    sources = [odd(*shape, seed=10 + i, dtype=(kinds or (dtype,))[i % len(kinds or (dtype,))]) for i in range(count)]
    numbers = {"rank1": (0.3,), "linear": (0.3, -0.7, 1.1, 0.9), "task": (0.3, 0.6, 0.8), "elect": (0.3, 0.6, 0.8, 1.0)}[function]
    factors = ()
    if function == "rank1":
        factors = weights(shape[0], 3, seed=20), weights(3, int(np.prod(shape[1:])), seed=21)
    cuts = ((LOW, 7), (-1.0, -1)) if function == "elect" else ()
    derived = Derived(function, tuple(digest(i) for i in range(count)), numbers, factors, cuts)
    tensors = dict(zip(derived.sources, sources, strict=True))
    return derived, sources, derive(derived, lambda name, rows: tensors[name][rows], dtype, shape)


def coded(derived: Derived, sources: list[torch.Tensor], target: torch.Tensor, head: Head = Head(None, ())):  # noqa: B008 - frozen
    recipe = Recipe(derived.function, derived.numbers, tuple(Source("tensor", Digest(d)) for d in derived.sources))
    words = tuple(WORDS[x.dtype] for x in sources)
    shape = tuple(target.shape)
    return recipe, encode(recipe, derived, head, WORDS[target.dtype], shape, raw(target), words, reading(sources))


def reading(sources: list[torch.Tensor], asked: list | None = None):
    def read(number: int, part: slice) -> bytes:
        if asked is not None:
            asked.append((number, part.stop - part.start))
        return raw(sources[number].view(-1)[part])

    return read


def back(recipe: Recipe, payload: bytes, blocked: bool, sources: list[torch.Tensor], target: torch.Tensor, wanted: slice, asked=None):
    head, body = read_head(memoryview(payload), len(recipe.snapshots), recipe.summed)
    words = tuple(WORDS[x.dtype] for x in sources)
    formula, residual = parse_formula(recipe, WORDS[target.dtype], tuple(target.shape), words, body)
    return decode(formula, head.residual, blocked, residual, wanted, reading(sources, asked)).tobytes()


def whole(target: torch.Tensor) -> slice:
    return slice(0, target.numel() * target.element_size())


# --- bit for bit -------------------------------------------------------------------------------------------

SHAPES = [(37, 53), (257, 3), (3, 1030), (40, 3, 5)]
FLAT = [("linear", (1, 64)), ("linear", (1031,)), ("task", (99,)), ("elect", (99,))]


@pytest.mark.parametrize("dtype", list(WORDS), ids=str)
@pytest.mark.parametrize(("function", "shape"), [*itertools.product(("rank1", "linear", "task", "elect"), SHAPES), *FLAT])
def test_a_tensor_that_is_what_its_recipe_says_leaves_nothing_and_comes_back(function, shape, dtype):
    derived, sources, target = case(function, dtype, shape)
    recipe, found = coded(derived, sources, target)
    assert found.exactly
    assert not found.blocked
    if function != "rank1":
        assert len(found.payload) == (1 + 2 * 5 if function == "elect" else 1)
    assert back(recipe, found.payload, False, sources, target, whole(target)) == raw(target)


@pytest.mark.parametrize("function", ["linear", "task", "elect"])
def test_sources_of_other_types_are_widened(function):
    derived, sources, target = case(function, torch.bfloat16, (33, 47), (torch.float32, torch.bfloat16, torch.float16))
    recipe, found = coded(derived, sources, target)
    assert found.exactly
    assert back(recipe, found.payload, False, sources, target, whole(target)) == raw(target)


def test_the_sums_are_those_of_the_page():
    a, b, c = (odd(41, 7, seed=i, dtype=torch.bfloat16) for i in range(3))
    f = [x.float() for x in (a, b, c)]
    numbers = [torch.tensor(n) for n in (0.3, 0.6, 0.8, 0.9)]
    linear = ((f[0] * numbers[0]) + (f[1] * numbers[1])) + (f[2] * numbers[2])
    task = f[0] + ((((f[1] - f[0]) * numbers[0]) + ((f[2] - f[0]) * numbers[1])) * numbers[2])
    for name, told, expected in (
        ("linear", (0.3, 0.6, 0.8), linear), ("linear", (0.3, 0.6, 0.8, 0.9), linear / numbers[3]), ("task", (0.3, 0.6, 0.8), task),
    ):  # fmt: skip
        tensors = {digest(i): x for i, x in enumerate((a, b, c))}
        found = derive(Derived(name, tuple(tensors), told), lambda d, rows, t=tensors: t[d][rows], torch.bfloat16, (41, 7))
        assert raw(found) == raw(exact.round_to(expected, torch.bfloat16))


@pytest.mark.parametrize("dtype", list(WORDS), ids=str)
def test_the_kernels_of_merging_give_what_storage_derives(dtype):
    x = [odd(53, 11, seed=i, dtype=dtype) for i in range(3)]
    sums = exact.weighted_sum(x, (0.3, -0.6, 1.1), dtype, 0.8), merge.weighted_sum(*x, weights=(0.3, -0.6, 1.1), total=0.8)
    tasks = (
        exact.task_sum(x[0], x[1:], (0.3, 0.6), 0.7, dtype, 0.9),
        merge.task_sum(x[0], *x[1:], weights=(0.3, 0.6), factor=0.7, total=0.9),
    )
    for mine, theirs in (sums, tasks):
        assert raw(mine) == raw(theirs)


def test_a_sum_of_a_tensor_with_itself_is_that_tensor_even_where_it_is_minus_zero():
    x = weights(50, 3)
    x[0] = torch.tensor([-0.0, 0.0, float("inf")])
    d = Derived("linear", (digest(1), digest(1)), (0.5, 0.5))
    assert raw(derive(d, lambda _, rows: x[rows], torch.float32, (50, 3))) == raw(x)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0), (1,), (9, 2)])
def test_small_and_empty_tensors_are_evaluated(shape):
    x = torch.ones(shape)
    d = Derived("linear", (digest(1), digest(2)), (0.25, 0.5))
    found = derive(d, lambda _, rows: x[rows] if shape else x, torch.float32, shape)
    assert found.shape == x.shape
    assert raw(found) == raw(x * 0.75)


@pytest.mark.parametrize("function", ["rank1", "linear", "task", "elect"])
def test_any_rows_are_those_of_the_whole(function, monkeypatch):
    monkeypatch.setattr(derivation, "SEGMENTS", 0)  # one row at a time
    derived, sources, target = case(function, torch.bfloat16, (37, 5))
    tensors = dict(zip(derived.sources, sources, strict=True))
    for rows in (slice(3, 9), slice(36, 37), slice(5, 5), slice(-4, None)):
        part = derive(derived, lambda d, r: tensors[d][r], torch.bfloat16, (37, 5), rows)
        assert raw(part) == raw(target[rows])


# --- ranges and blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["rank1", "linear", "task", "elect"])
@pytest.mark.parametrize("spoilt", [False, True])
def test_tensors_of_many_blocks_stream(function, spoilt, monkeypatch):
    monkeypatch.setattr(blocks, "WHOLE", 4000)
    monkeypatch.setattr(blocks, "BLOCK", 2000)
    monkeypatch.setattr(alone, "SEGMENT", 300)
    derived, sources, target = case(function, torch.bfloat16, (60, 100))
    if spoilt:
        target[33, 7] = 3.0  # one element of one block
    recipe, found = coded(derived, sources, target)
    assert (found.exactly, found.blocked) == (not spoilt, spoilt)
    extra = len(found.payload) - len(coded(derived, sources, case(function, torch.bfloat16, (60, 100))[2])[1].payload)
    assert extra < 400  # a table of six blocks and a few bytes
    for wanted in (whole(target), slice(3990, 8010), slice(3991, 8009), slice(0, 1), slice(5, 5), slice(11_000, 12_000)):
        asked = []
        assert back(recipe, found.payload, found.blocked, sources, target, wanted, asked) == raw(target)[wanted]
        per_source = sum(count for number, count in asked if number == 0) * 2
        assert per_source <= wanted.stop - wanted.start + 2 * 2000


@pytest.mark.parametrize("function", ["rank1", "linear", "elect"])
def test_rows_longer_than_a_block_are_evaluated_in_ranges(function, monkeypatch):
    monkeypatch.setattr(blocks, "WHOLE", 500)
    monkeypatch.setattr(blocks, "BLOCK", 200)
    derived, sources, target = case(function, torch.float32, (4, 333))
    target[2, 5] += 1
    recipe, found = coded(derived, sources, target)
    assert found.blocked
    for wanted in (whole(target), slice(1333, 1340), slice(3000, 4001)):
        assert back(recipe, found.payload, True, sources, target, wanted) == raw(target)[wanted]


# --- residuals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(WORDS), ids=str)
@pytest.mark.parametrize("function", ["rank1", "linear", "task", "elect"])
@pytest.mark.parametrize("harm", ["one element", "every element", "another tensor"])
def test_what_the_recipe_does_not_say_is_a_residual(function, dtype, harm):
    derived, sources, target = case(function, dtype, (96, 128))
    if harm == "one element":
        target.view(-1)[77] = -5.0
    elif harm == "every element":
        target = (target.float() + weights(96, 128, seed=5) * 1e-3).to(dtype)
    else:
        target = odd(96, 128, seed=99, dtype=dtype)
    recipe, found = coded(derived, sources, target)
    assert not found.exactly
    assert back(recipe, found.payload, found.blocked, sources, target, whole(target)) == raw(target)
    if harm == "one element":
        assert len(found.payload) < 80 + (4 * 3 * (96 + 128) if function == "rank1" else 0)


def test_factors_take_no_more_than_their_fp32_bytes():
    up, down = weights(300, 20, seed=1), torch.randn(20, 200, generator=torch.Generator().manual_seed(0))
    x = weights(300, 200)
    d = Derived("rank1", (digest(0),), (1.0,), (up, down))
    target = derive(d, lambda _, rows: x[rows], torch.float32, (300, 200))
    assert len(coded(d, [x], target)[1].payload) < 1.01 * 4 * 20 * (300 + 200)


@pytest.mark.parametrize("target", [torch.zeros(50, 50), weights(5)], ids=["one value", "few bytes"])
def test_where_nothing_is_gained_no_recipe_is_kept(target):
    d = Derived("linear", (digest(0),), (1.0,))
    assert coded(d, [target], target)[1] is None


def test_factors_that_do_not_fit_are_not_used():
    x = weights(30, 20)
    for up, down in (((30, 2), (3, 20)), ((20, 2), (2, 30)), ((30, 25), (25, 20))):
        d = Derived("rank1", (digest(0),), (1.0,), (weights(*up), weights(*down)))
        assert coded(d, [x], x)[1] is None


# --- what may be said --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "sources", "numbers"),
    [
        ("matmul", 1, (1.0,)), ("rank1", 2, (1.0, 1.0)), ("rank1", 1, ()), ("linear", 0, ()), ("linear", 2, (1.0,)),
        ("linear", 1, (1.0, 2.0, 3.0)), ("task", 1, (1.0,)), ("task", 2, (1.0,)), ("linear", 1, (float("nan"),)),
        ("linear", 1, (float("inf"),)), ("linear", 1, (1e39,)), ("linear", 1, (1.0, 0.0)), ("task", 2, (1.0, 1.0, 0.0)),
        ("elect", 1, (1.0,)), ("elect", 2, (1.0,)), ("elect", 2, (1.0, 1.0, 2.0)),
    ],
)  # fmt: skip
def test_functions_that_do_not_exist_or_fit_are_refused(function, sources, numbers):
    factors = (torch.zeros(1, 1), torch.zeros(1, 1)) if function == "rank1" else ()
    with pytest.raises(BadParameter, match="cannot be so described"):
        Derived(function, tuple(digest(i) for i in range(sources)), numbers, factors)


def test_factors_belong_to_rank1_only():
    with pytest.raises(BadParameter, match="factors"):
        Derived("linear", (digest(0),), (1.0,), (torch.zeros(1, 1),))
    for factors in ((), (torch.zeros(1, 1),), (torch.zeros(1), torch.zeros(1))):
        with pytest.raises(BadParameter, match="two matrices"):
            Derived("rank1", (digest(0),), (1.0,), factors)


@pytest.mark.parametrize("cut", [(float("nan"), 0), (float("inf"), 0), (0.1, 0), (1e39, 0), (0.5, -2), (0.5, 1 << 63)])
def test_a_cut_is_a_number_of_float32_and_an_index(cut):
    with pytest.raises(BadParameter, match="a cut for each"):
        Derived("elect", (digest(0), digest(1)), (1.0, 1.0), cuts=(cut,))


def test_cuts_belong_to_elections_only():
    for function, numbers, cuts in (("task", (1.0, 1.0), ((0.5, 1),)), ("elect", (1.0, 1.0), ()), ("elect", (1.0, 1.0), ((0.5, 1),) * 2)):
        with pytest.raises(BadParameter, match="cut"):
            Derived(function, (digest(0), digest(1)), numbers, cuts=cuts)


def test_an_election_is_its_single_steps():
    base, a, b = (torch.tensor(x) for x in ([1.0, 1.0, 1.0, -0.0], [3.0, 1.5, 0.0, -0.0], [0.0, 2.5, 0.0, -0.0]))
    tensors = dict(zip((digest(0), digest(1), digest(2)), (base, a, b), strict=True))
    # differences (2, .5, -1, 0) and (-1, 1.5, -1, 0); of the first the equals of .5 beyond the first element go
    d = Derived("elect", tuple(tensors), (0.5, 0.25, 2.0, 1.0), cuts=((0.5, 0), (-1.0, -1)))
    found = derive(d, lambda name, rows: tensors[name][rows], torch.float32, (4,))
    assert found.tolist() == [1.0 + 2 * (1.0 / 0.5), 1.0 + 2 * (0.375 / 0.25), 1.0 - 2 * (0.75 / 0.75), 0.0]
    assert not torch.signbit(found[3])


@given(st.lists(st.tuples(st.floats(-1, LARGEST, width=32), st.integers(-1, (1 << 62) - 1)), max_size=5))
def test_cuts_survive(cuts):
    found, rest = recipes.read_cuts(memoryview(recipes.write_cuts(cuts) + b"rest"), len(cuts))
    assert (found, bytes(rest)) == (tuple(cuts), b"rest")


def test_evaluation_computes_through_the_pinned_functions_alone():
    """Operators on tensors, or torch's own arithmetic, must not slip into the file that evaluates."""
    tree = ast.parse(Path(derivation.__file__).read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "torch"}
    assert names <= {"empty", "dtype", "device", "float32"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult | ast.Div | ast.Pow)]


# --- recipes and heads -------------------------------------------------------------------------------------


@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(-LARGEST, LARGEST), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n),
        )
    )
)
def test_recipes_survive_to_the_last_bit_of_their_numbers(told):
    numbers, kinds = told
    sources = tuple(Source("snapshot" if kind else "tensor", digest(i)) for i, kind in enumerate(kinds))
    recipe = Recipe("linear", tuple(numbers), sources)
    again = parse_recipe(recipe.encode())
    assert again == recipe
    assert [n.hex() for n in again.numbers] == [n.hex() for n in numbers]


def test_the_bytes_of_a_recipe_are_these():
    recipe = Recipe("task", (0.5, -0.0, 1e-300), (Source("snapshot", digest(1)), Source("tensor", digest(2))))
    sources = f'[{{"snapshot":"{digest(1)}"}},{{"tensor":"{digest(2)}"}}]'
    assert recipe.encode() == f'mlc.recipe.v1\n{{"function":"task","numbers":[0.5,-0.0,1e-300],"sources":{sources}}}'.encode()


@pytest.mark.parametrize(
    "body",
    [
        "", "[]", "{}", "null", '{"function":"linear","numbers":[1],"sources":[]}', '{"function":"linear","numbers":["1"],"sources":[%]}',
        '{"function":"linear","numbers":[1e999],"sources":[%]}', '{"function":"linear","numbers":[NaN],"sources":[%]}',
        '{"function":"eval","numbers":[1],"sources":[%]}', '{"function":"linear","numbers":[true],"sources":[%]}',
        '{"function":"linear","numbers":[1],"sources":[{"tensor":"../x"}]}', '{"function":"linear","numbers":[1],"sources":[{"file":"a"}]}',
        '{"function":["linear"],"numbers":[1],"sources":[%]}', '{"function":"linear","numbers":1,"sources":[%]}', "[" * 100_000,
        '{"function":"linear","numbers":[1' + "0" * 400 + '],"sources":[%]}', '{"function":"linear","numbers":[1],"sources":[[]]}',
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_are_corrupt(body):
    with pytest.raises(CorruptRecord):
        parse_recipe(recipes.DOMAIN + body.replace("%", f'{{"tensor":"{digest(1)}"}}').encode())
    with pytest.raises(CorruptRecord):
        parse_recipe(body.encode())


@given(st.lists(st.integers(0, (1 << 28) - 1), max_size=12), st.none() | st.integers(0, 255), st.none() | st.permutations(range(9)))
def test_heads_survive(places, residual, order):
    head = Head(residual, tuple(places), None if order is None else tuple(order))
    found, rest = read_head(memoryview(write_head(head) + b"rest"), len(places), 9)
    assert (found, bytes(rest)) == (head, b"rest")


@given(st.permutations(range(6)), st.sampled_from(["linear", "task", "elect"]))
def test_what_is_summed_in_any_order_is_one_recipe(order, function):
    base = [Source("snapshot", digest(99))] if function != "linear" else []
    told = [Source("snapshot" if i % 2 else "tensor", digest(i // 2)) for i in range(6)]
    numbers = [0.5, 0.25, -1.0, 0.125, 0.5, 2.0]
    recipe = Recipe(function, (*numbers, 0.75), (*base, *told))
    other = Recipe(function, (*(numbers[i] for i in order), 0.75), (*base, *(told[i] for i in order)))
    stored = other.ordered(other.sorting())
    assert stored == recipe.ordered(recipe.sorting())
    assert stored.ordered([other.sorting().index(i) for i in range(6)]) == other


def test_sources_at_one_place_take_one_number():
    assert write_head(Head(None, (5, 5, 5))) == bytes([2, 5])
    assert write_head(Head(None, (289, 289))) == bytes([2, 0xA1, 2])
    assert write_head(Head(4, (1, 300))) == bytes([1, 4, 1, 0xAC, 2])
    assert write_head(Head(None, (5, 5), (1, 0))) == bytes([6, 1, 5])


@settings(max_examples=200)
@given(st.binary(max_size=12), st.integers(0, 4), st.integers(0, 4))
def test_any_head_is_read_or_refused(data, snapshots, summed):
    try:
        head, rest = read_head(memoryview(data), snapshots, summed)
    except CorruptRecord:
        return
    assert len(head.places) == snapshots
    assert head.order is None or sorted(head.order) == list(range(summed))
    assert len(rest) < len(data)


# --- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("function", ["rank1", "linear", "task", "elect"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damaged_payloads_are_refused_or_harmless_to_the_reader(function, spoilt, data):
    derived, sources, target = case(function, torch.bfloat16, (40, 30))
    if spoilt:
        target.view(-1)[::9] += 1
    recipe, found = coded(derived, sources, target)
    payload = bytearray(found.payload)
    place = data.draw(st.integers(0, len(payload) - 1))
    if data.draw(st.booleans()):
        payload[place] = data.draw(st.integers(0, 255))
    else:
        del payload[place:]
    for blocked in (False, True):
        try:
            assert len(back(recipe, bytes(payload), blocked, sources, target, whole(target))) == len(raw(target))
        except CorruptRecord:
            continue


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60), st.sampled_from(["rank1", "linear", "elect"]), st.booleans())
def test_payloads_of_nonsense_are_refused_or_harmless(payload, function, blocked):
    derived, sources, target = case(function, torch.float32, (12, 10))
    recipe = Recipe(function, derived.numbers, tuple(Source("tensor", Digest(d)) for d in derived.sources))
    with contextlib.suppress(CorruptRecord):
        assert len(back(recipe, payload, blocked, sources, target, whole(target))) == len(raw(target))


def test_a_rank_beyond_the_sides_takes_no_memory():
    _, sources, target = case("rank1", torch.float32, (12, 10))
    recipe = Recipe("rank1", (1.0,), (Source("tensor", digest(0)),))
    for rank in (11, 1 << 31):
        payload = (
            bytes([0]) + rank.to_bytes(4, "little") + recipes.write_parts([(2, bytes(4))] * 2)
        )  # of one value: four bytes for any size
        with pytest.raises(CorruptRecord, match="rank"):
            back(recipe, payload, False, sources, target, whole(target))
