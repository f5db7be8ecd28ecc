"""Signatures and overlays: the oracles of the card, on tensors small enough to be checked in full."""

from __future__ import annotations

import copy
import functools
import json
import math
import operator
import random

import pytest
import torch

from mlc.kernels.exact import add, sub
from mlc.ops.patch.extract import check_same, extract, kind_of, project
from mlc.ops.patch.overlay import check_fits, joint, materialise
from mlc.ops.patch.patch import Patch
from mlc.ops.patch.quantise import BITS, pack, quantise, restore, unpack
from mlc.ops.patch.signature import MARK, SIZES, architecture_of, decode
from mlc.registry.delta.frames import compress, decompress
from mlc.registry.errors import BadParameter, CorruptRecord, Incompatible, ShapeMismatch, StalePlan
from mlc.registry.ids import blob_digest
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView
from mlc.tests.ops.patching import moved, signature, small

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bits_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# --- extraction ------------------------------------------------------------------------------------------


def test_what_is_left_is_orthogonal_to_the_way_to_the_clean_model_and_keeps_pythagoras():
    origin, clean, robust = randn(40, 30), randn(40, 30, seed=1), randn(40, 30, seed=2)
    a, v, rest = (clean - origin).double(), (robust - origin).double(), project(robust, clean, origin).double()
    assert abs(float((a * rest).sum())) <= 1e-6 * float(a.norm() * rest.norm())
    along = float((a * v).sum()) ** 2 / float((a * a).sum())
    assert math.isclose(float(rest.norm()) ** 2 + along, float(v.norm()) ** 2, rel_tol=1e-5)


def test_a_robust_model_that_went_only_further_along_the_same_way_leaves_nothing():
    origin, clean = torch.zeros(50), randn(50)
    assert not project(clean, clean, origin).any()
    assert not project(clean * 0.25, clean, origin).any()


def test_a_direction_of_length_zero_leaves_the_whole_difference():
    clean, robust = randn(20), randn(20, seed=1)
    assert torch.equal(project(robust, clean, clean), (robust.double() - clean.double()).float())


def test_models_without_a_difference_have_no_signature():
    view = small()
    with pytest.raises(BadParameter, match="there is no signature"):
        extract(view, view, small(1), kind_of("8", None, "all", 1))


@pytest.mark.parametrize(("bits", "off"), [("8", 2**-23), ("ternary", 2**-8)])
def test_running_statistics_move_to_those_of_the_robust_model_and_counters_are_left_alone(bits, off):
    clean = small()
    robust = moved(clean, 3)
    found = decode(extract(robust, clean, small(1), kind_of(bits, None, "all", 1)))
    assert set(found.statistics) == {"norm.running_mean", "norm.running_var"}
    assert "norm.num_batches_tracked" not in found.names()
    assert "norm.running_mean" not in found.tensors
    for name in found.statistics:
        step = float((robust.tensor(name) - clean.tensor(name)).abs().max())
        for strength in (1.0, 2.5):  # never further than they were measured
            there = materialise(name, clean.tensor(name), [(found, strength)])
            assert float((there - robust.tensor(name)).abs().max()) <= off * max(step, 2**-16) + 2**-23


def test_other_architectures_are_refused_with_the_first_mismatch():
    clean = small()
    tensors = {n: clean.tensor(n) for n in clean.names()}
    with pytest.raises(ShapeMismatch, match=r"the clean model has a tensor conv\.bias, the robust model has none"):
        check_same(clean, MemoryView({n: t for n, t in tensors.items() if n != "conv.bias"}, {}), "the robust model")
    with pytest.raises(ShapeMismatch, match=r"head.weight is \[10, 6\] in the clean model and \[9, 6\]"):
        extract(clean, clean, MemoryView({**tensors, "head.weight": torch.zeros(9, 6)}, {}), kind_of("8", None, "all", 1))
    broken = MemoryView({**tensors, "head.bias": torch.full((10,), math.nan)}, {})
    with pytest.raises(Incompatible, match=r"head.bias: not every number is finite"):
        extract(broken, clean, clean, kind_of("8", None, "all", 1))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("2", None, "all", 1.0), "--bits is 8, 4 or ternary"),
        (("8", 0.0, "all", 1.0), r"outside \(0, 1\]"),
        (("8", 1.5, "all", 1.0), r"outside \(0, 1\]"),
        (("8", math.nan, "all", 1.0), r"outside \(0, 1\]"),
        (("8", None, "shallow", 1.0), "--layers is all or shallow:K"),
        (("8", None, "shallow:0", 1.0), "--layers is all or shallow:K"),
        (("8", None, "all", -1.0), "a strength lies between"),
        (("8", None, "all", math.nan), "a strength lies between"),
    ],
)
def test_values_that_cannot_be_are_refused(values, said):
    with pytest.raises(BadParameter, match=said):
        kind_of(*values)


def test_shallow_means_the_first_convolutions_or_embeddings_and_the_first_blocks(tmp_path):
    clean = small()
    found = decode(extract(moved(clean, 1), clean, clean, kind_of("8", None, "shallow:1", 1)))
    assert set(found.tensors) == {"conv.weight", "conv.bias"}
    assert len(found.statistics) == 2  # those of every layer
    vit = MemoryView.of(tiny_model(tmp_path / "vit", "vit"))
    names = set(decode(extract(moved(vit, 1), vit, vit, kind_of("4", None, "shallow:1", 1))).tensors)
    assert any("embeddings" in name for name in names)
    assert any("0" in name.split(".") for name in names)
    assert not any("1" in name.split(".") or "classifier" in name for name in names)
    plain = MemoryView({"a": torch.ones(3)}, {})
    with pytest.raises(Incompatible, match="which of its layers are shallow"):
        extract(moved(plain, 1), plain, plain, kind_of("8", None, "shallow:1", 1))


def test_more_shallow_layers_than_a_model_has_are_refused(tmp_path):
    vit, convolutional = MemoryView.of(tiny_model(tmp_path / "vit", "vit")), small()
    for view, there, what in ((vit, 2, "block"), (convolutional, 1, "convolution")):
        all_of_them = decode(extract(moved(view, 1), view, view, kind_of("8", None, f"shallow:{there}", 1)))
        assert all_of_them.kind.layers == f"shallow:{there}"
        with pytest.raises(BadParameter, match=f"asks for the first {there + 1} {what}s; the model has {there}$") as caught:
            extract(moved(view, 1), view, view, kind_of("8", None, f"shallow:{there + 1}", 1))
        assert f"shallow:{there}" in caught.value.hint


# --- codes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["8", "4"])
def test_levels_are_off_by_at_most_half_a_step_and_coding_again_changes_nothing(bits):
    x = randn(1000)
    coded = quantise(x, bits, 1.0)
    back = restore(coded, bits, 1000)
    half = float(x.max() - x.min()) / (2 * (2 ** BITS[bits] - 1))
    assert float((back - x).abs().max()) <= half + 2**-22 * float(x.abs().max())
    assert (quantise(back, bits, 1.0).codes == coded.codes).all()


@pytest.mark.parametrize("bits", ["8", "4", "ternary"])
def test_equal_values_zeros_and_single_elements_are_coded_without_dividing_by_zero(bits):
    for x in (torch.zeros(7), torch.full((5,), -0.25), torch.tensor([3.0])):
        back = restore(quantise(x, bits, 1.0), bits, len(x))
        assert torch.equal(back, x)


def test_ternary_keeps_the_greatest_by_sign_and_the_best_single_scale():
    x = randn(1000)
    back = restore(quantise(x, "ternary", 0.4), "ternary", 1000)
    kept = back != 0
    assert int(kept.sum()) == 400
    assert float(x[kept].abs().min()) >= float(x[~kept].abs().max())
    assert torch.equal(back.sign()[kept], x.sign()[kept])
    scale = float(back.abs().max())
    errors = [float(((x - back * (other / scale)) ** 2).sum()) for other in (0.99 * scale, scale, 1.01 * scale)]
    assert errors[1] == min(errors)


@pytest.mark.parametrize(("bits", "top"), [("8", 256), ("4", 16), ("ternary", 3)])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 33])
def test_packed_codes_come_back(bits, top, count):
    codes = torch.randint(0, top, (count,), generator=torch.Generator().manual_seed(count)).to(torch.uint8).numpy()
    assert (unpack(pack(codes, bits), count, bits) == codes).all()
    with pytest.raises(ValueError, match="no codes"):
        unpack(pack(codes, bits) + b"x", count, bits)


@pytest.mark.parametrize(("bits", "density"), [("8", 1.0), ("4", 1.0), ("ternary", 0.4), ("8", 0.1), ("4", 0.25)])
def test_a_signature_survives_its_bytes_and_weighs_what_its_form_says(bits, density):
    clean = MemoryView({"a": randn(300, 300), "b": randn(1000, seed=1)}, {})
    robust = moved(clean, 2)
    data = extract(robust, clean, clean, kind_of(bits, density, "all", 0.5))
    found = decode(data)
    assert (found.kind.bits, found.kind.density, found.kind.strength) == (bits, density, 0.5)
    assert found.digest == blob_digest(data)
    assert (found.size, found.full_bytes) == (len(data), 4 * 91000)
    for name in clean.names():
        rest = project(robust.tensor(name), clean.tensor(name), clean.tensor(name))
        assert torch.equal(found.tensor(name), restore(quantise(rest, bits, density), bits, rest.numel()).reshape(rest.shape))
    each = {"8": 8, "4": 4, "ternary": math.log2(3)}[bits] * (1 if bits == "ternary" else density) + (
        1 if bits != "ternary" and density < 1 else 0
    )
    assert len(data) <= 91000 * each / 8 + 400
    if bits == "ternary":
        assert len(data) < 0.0445 * 4 * 91000  # entropy of 40 % signs: 1.371 bits


def test_bytes_that_are_no_signature_are_said_to_be_none():
    data = signature(small(), 1)
    for wrong in (b"", b"mlc.signature.v1", data[:-1], data + b"x", b"x" + data[1:], data[:20] + b"\xff" * 8 + data[28:]):
        with pytest.raises(CorruptRecord):
            decode(wrong)


def test_a_header_that_says_nonsense_is_damage_and_no_accident():
    data = extract(moved(small(), 1), small(), small(), kind_of("4", 0.3, "all", 1))
    length, squeezed = SIZES.unpack_from(data, len(MARK))
    at = len(MARK) + SIZES.size
    header, rest = json.loads(decompress(data[at : at + squeezed], length)), data[at + squeezed :]
    places = [("names",), ("kind", 1), ("shapes", 0), ("shapes", 0, 0), ("frames", 0, 0), ("frames", 0, 2, 1), ("statistics", 0, 1, 0)]
    for place in places:
        for nonsense in (None, 1.5, "x", [[1]], {"a": 1}, -1):
            wrong = copy.deepcopy(header)
            inner = functools.reduce(operator.getitem, place[:-1], wrong)
            inner[place[-1]] = nonsense
            if place == ("kind", 1) and isinstance(nonsense, float | int):
                continue  # a share like any other
            said = json.dumps(wrong).encode()
            frame = compress(said)
            with pytest.raises(CorruptRecord) as caught:
                decode(MARK + SIZES.pack(len(said), len(frame)) + frame + rest)
            assert caught.value.hint


# --- the overlay -----------------------------------------------------------------------------------------


def tiny(dtype):
    values = {"conv.weight": 0.05 * randn(6, 5), "norm.running_mean": randn(6, seed=1), "norm.running_var": randn(6, seed=2).abs() + 0.5}
    return MemoryView({name: tensor.to(dtype) for name, tensor in values.items()}, {})


@pytest.mark.parametrize("combine", ["norm", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_sequences_of_changes_pass_the_bytes_of_each_set_and_end_in_the_clean_ones(dtype, combine):
    clean, chance = tiny(dtype), random.Random(0)
    bits = {1: "ternary", 2: "8", 3: "4", 4: "ternary"}
    kept = [clean.objects.keep(signature(clean, seed, form)) for seed, form in bits.items()]
    digests = dict(zip(kept, (1.25, 1.0, 0.5, 0.3), strict=True))
    run, sets = MemoryRun(), {frozenset(): clean.snapshot_id}
    run.versions["clean"] = clean
    for _ in range(1000 if (dtype, combine) == (torch.float32, "norm") else 50):
        at, here = clean, []
        changes = [chance.choice(list(digests)) for _ in range(chance.randrange(1, 4))]  # what is named again is taken off
        rest = [digest for digest in digests if changes.count(digest) % 2]
        for digest in (*changes, *chance.sample(rest, len(rest))):
            gone = (digest,) if digest in here else ()
            here = [d for d in here if d != digest] if gone else [*here, digest]
            names, strengths = tuple(d[:8] for d in here), tuple(digests[d] for d in here)
            at.objects = clean.objects
            at = at.after(Patch(names, tuple(here), strengths, gone, clean="clean", combine=combine).apply(at, run))
            assert sets.setdefault(frozenset(here), at.snapshot_id) == at.snapshot_id
        assert not here
        assert at.snapshot_id == clean.snapshot_id
    assert len(sets) == len(set(sets.values())) >= 12  # every set of up to three of four


@pytest.mark.parametrize("dtype", DTYPES)
def test_subtracting_would_not_give_the_clean_bytes_back(dtype):
    clean, step = (0.05 * randn(10000)).to(dtype), 0.005 * randn(10000, seed=1)
    there = add(clean.float(), step).to(dtype)
    assert float((sub(there.float(), step).to(dtype) != clean).float().mean()) >= 0.05


def test_strength_zero_leaves_every_bit_and_strength_is_linear():
    clean = MemoryView({"a": torch.zeros(500), "b": torch.tensor([-0.0, 1.0])}, {})
    found = decode(signature(clean, 1, "8"))
    assert bits_of(materialise("b", clean.tensor("b"), [(found, 0.0)])) == bits_of(clean.tensor("b"))
    one, three = (materialise("a", clean.tensor("a"), [(found, s)]) for s in (1.0, 3.0))
    assert float((three - 3 * one).abs().max()) <= 2**-23 * float(three.abs().max())


def test_statistics_of_several_patches_move_together_and_a_variance_stays_above_zero():
    clean = MemoryView({"n.running_var": torch.full((4,), 1.0), "w": torch.zeros(4)}, {})
    a, b = (decode(signature(clean, seed)) for seed in (1, 2))
    x, y = a.statistics["n.running_var"], b.statistics["n.running_var"]
    both = materialise("n.running_var", clean.tensor("n.running_var"), [(a, 1.0), (b, 0.5)])
    assert torch.allclose(both, 1 + x + y / 2)
    narrow = torch.full((4,), 1e-6)
    assert bool((materialise("n.running_var", narrow, [(a, 1.0), (b, 1.0)]) >= 0.99e-7).all())


def test_a_patch_is_refused_by_another_architecture():
    clean = small()
    found = decode(signature(clean, 1))
    tensors = {n: clean.tensor(n) for n in clean.names()}
    check_fits(found, small(5, torch.bfloat16), "patch fog")
    for changed, said in (
        ({n: t for n, t in tensors.items() if n != "conv.bias"}, "patch fog changes conv.bias, which this model does not have"),
        ({**tensors, "head.bias": torch.zeros(9)}, r"head.bias is \[10\] in patch fog and F32 \[9\]"),
        ({**tensors, "head.bias": torch.zeros(10, dtype=torch.int64)}, r"head.bias is \[10\] in patch fog and I64"),
        ({**tensors, "more": torch.zeros(1)}, "made for a model of 9 tensors, this one has 10"),
    ):
        with pytest.raises(ShapeMismatch, match=said) as caught:
            check_fits(found, MemoryView(changed, {}), "patch fog")
        assert caught.value.exit_code == 6
    assert architecture_of([("a", (1,)), ("b", ())]) == architecture_of([("b", []), ("a", [1])])


# --- the operation ---------------------------------------------------------------------------------------


def start(bits="ternary"):
    clean = small()
    digests = [clean.objects.keep(signature(clean, seed, bits)) for seed in (1, 2)]
    return clean, digests


def test_only_declared_tensors_change_and_the_last_one_removed_gives_the_clean_snapshot_back():
    clean, (fog, _) = start()
    op = Patch(("fog",), (fog,), (1.0,), onto=clean.snapshot_id)
    run = MemoryRun()
    patched = clean.after(op.apply(clean, run))
    patched.objects = clean.objects
    differing = {n for n in clean.names() if clean.entry(n).digest != patched.entry(n).digest}
    assert differing == set(op.plan(clean).touches) == set(decode(clean.objects.blob(fog)).names())
    assert run.artifacts == {("signature", fog): clean.objects.blob(fog)}
    assert [(i.role, i.name, i.digest) for i in run.inputs] == [("patch", "fog", fog)]
    run.versions["base"] = clean
    off = Patch(removed=(fog,), clean="base", onto=patched.snapshot_id)
    after = patched.after(off.apply(patched, run))
    assert after.snapshot_id == clean.snapshot_id
    assert off.check(patched, after, run).values["equal_to_clean"]


def test_a_version_that_is_not_the_planned_one_is_refused():
    clean, (fog, _) = start()
    with pytest.raises(StalePlan, match="planned for snapshot"):
        list(Patch(("fog",), (fog,), (1.0,), onto="ab" * 32).apply(clean, MemoryRun()))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "no patch was named"),
        ({"names": ("fog",)}, "a name, a signature and a strength each"),
        ({"names": ("a", "b"), "signatures": ("ab" * 32,) * 2, "strengths": (1.0, 1.0)}, "twice"),
        ({"names": ("a",), "signatures": ("fog",), "strengths": (1.0,)}, "not the digest"),
        ({"names": ("a",), "signatures": ("ab" * 32,), "strengths": (math.nan,)}, "a strength lies between"),
    ],
)
def test_lists_that_cannot_be_are_refused(fields, said):
    with pytest.raises(BadParameter, match=said):
        Patch(**fields)


def test_several_signatures_move_a_tensor_as_far_as_the_strongest_alone_would():
    assert joint([0.7], "norm") == joint([1.0, 1.0], "sum") == 1.0
    assert joint([1.0, 1.0], "norm") == pytest.approx(2**-0.5)
    assert joint([1.5, 0.0015], "norm") == pytest.approx(1.0, abs=1e-6)
    clean = MemoryView({"w": torch.zeros(300), "n.running_mean": torch.zeros(4)}, {})
    a, b = decode(signature(clean, 1)), decode(signature(clean, 2))
    for strengths in ((1.0, 1.0), (0.5, 1.25)):
        both = materialise("w", clean.tensor("w"), [(a, strengths[0]), (b, strengths[1])], "norm")
        factor = joint(strengths, "norm")
        expected = factor * (strengths[0] * a.tensor("w") + strengths[1] * b.tensor("w"))
        assert torch.allclose(both, expected, atol=1e-8)
        longest = max(float((s * x.tensor("w")).norm()) for s, x in zip(strengths, (a, b), strict=True))
        assert 0.8 * longest <= float(both.norm()) <= 1.2 * longest  # random signatures are nearly orthogonal
    mean = materialise("n.running_mean", clean.tensor("n.running_mean"), [(a, 1.0), (b, 1.0)], "norm")
    x, y = (s.statistics["n.running_mean"] for s in (a, b))
    assert torch.allclose(mean, (x + y) / 2, atol=1e-8)
    alone = materialise("w", clean.tensor("w"), [(a, 0.5)], "norm")
    assert bits_of(alone) == bits_of(materialise("w", clean.tensor("w"), [(a, 0.5)]))
    with pytest.raises(BadParameter, match="--combine is norm or sum"):
        Patch(("a",), ("ab" * 32,), (1.0,), combine="mean")
