"""CURE and its baselines: the oracles of the card, on tiny models; real robustness on digits where the material is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from mlc.ops.models import load_model
from mlc.ops.patch.adversary import Adversary, accuracies, answers, divergence, shifted
from mlc.ops.patch.cure import Cure
from mlc.ops.patch.curing import Curing, Picks, check, decay_of, epsilon_of, follow, harmonic, prepare, prominent
from mlc.registry.errors import BadInputFile, BadParameter
from mlc.tests.digits import Digits, trained
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.fakes import Killed, MemoryRun, MemoryView

QUICK = {"steps": 4, "batch": 6, "attack_steps": 2, "lr": 1e-3, "save_every": 2, "epsilon": 0.1}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A tiny ViT and sixty images of three classes that differ in one corner."""
    place = tmp_path_factory.mktemp("images")
    g = torch.Generator().manual_seed(0)
    rows = []
    for label in [0, 1, 2] * 20:
        image = 0.3 * torch.rand(8, 8, generator=g)
        image[:4, 2 * label : 2 * label + 2] += 0.6
        rows.append({"image": image.tolist(), "label": label})
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return MemoryView.of(tiny_model(place / "vit", "vit")), str(place / "data.jsonl")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    place = tmp_path_factory.mktemp("words")
    pairs = [{"prompt": f"the {a} is", "answer": b} for a in WORDS[7:15] for b in WORDS[18:20]]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    texts = [{"text": f"the {a} is {b}", "label": n} for n, b in enumerate(WORDS[18:21]) for a in WORDS[7:13]]
    (place / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return place


def cured(view, data, run=None, **changes):
    op = Cure(data=data, **{**QUICK, **changes})
    return view.after(op.apply(view, run or MemoryRun()))


def curing_of(view, data, **changes):
    op = Cure(data=data, **{**QUICK, **changes})
    found = prepare(op, view, 0)
    module = load_model(view, dtype=torch.float32)
    return Curing(op, module, Adversary(found.task, found.rows, epsilon_of(op, found.task, module), op.attack_steps), 0), found


def tensors(view):
    return {name: view.entry(name).digest for name in view.names()}


# --- the adversary ---------------------------------------------------------------------------------------


def test_what_is_added_keeps_within_epsilon_and_the_pixels_and_sets_answers_apart(images):
    curing, found = curing_of(*images, attack_steps=10)
    adversary, chosen = curing.adversary, list(range(30))
    delta = adversary.moved(curing.module, chosen, torch.Generator().manual_seed(1))
    there = adversary.inputs(curing.module, chosen) + delta
    low, high = adversary.bounds
    assert float(delta.abs().max()) <= 0.1 + 1e-7
    assert low - 1e-7 <= float(there.min())
    assert float(there.max()) <= high + 1e-7
    clean = answers(found.task, curing.module, found.rows, chosen)
    noise = delta.sign() * 0.001
    assert divergence(clean, adversary.answers(curing.module, chosen, delta)) > divergence(
        clean, adversary.answers(curing.module, chosen, noise)
    )
    assert all(p.grad is None for p in curing.module.parameters())


def test_inputs_are_moved_only_while_it_lasts(images):
    curing, found = curing_of(*images)
    before = answers(found.task, curing.module, found.rows, [0, 1]).logits
    with shifted(curing.module, torch.full((2, 1, 8, 8), 0.2), pixels=True):
        assert not torch.equal(answers(found.task, curing.module, found.rows, [0, 1]).logits, before)
    assert torch.equal(answers(found.task, curing.module, found.rows, [0, 1]).logits, before)


def test_a_model_that_is_not_moved_is_as_right_under_attack_as_without(images):
    curing, found = curing_of(*images, epsilon=1e-9)
    clean, robust = accuracies(curing.adversary, curing.module, found.held, 0)
    assert clean == robust


# --- prominence and masks --------------------------------------------------------------------------------


def test_prominence_weighs_both_gradients_by_magnitude_and_keeps_an_exact_share():
    g = torch.Generator().manual_seed(0)
    w, natural, robust = torch.zeros(7, 9), torch.randn(7, 9, generator=g), torch.randn(7, 9, generator=g)
    for share, expected in ((1.0, natural.abs()), (0.0, robust.abs()), (0.1, 0.1 * natural.abs() + 0.9 * robust.abs())):
        mask = prominent(w, natural, robust, share, 0.3)
        assert int(mask.sum()) == math.ceil(0.7 * 63)
        assert float(expected[mask].min()) >= float(expected[~mask].max())
    assert int(prominent(w, None, None, 0.1, 0.25).sum()) == math.ceil(0.75 * 63)  # all equal: by flat index
    assert not prominent(w, natural, robust, 0.1, 1.0).any()


def test_conserving_nothing_without_a_revision_model_is_plain_training_and_conserving_all_keeps_every_matrix(images):
    view, data = images
    plain = tensors(cured(view, data, method="trades"))
    assert tensors(cured(view, data, conserve=0.0, consistency=0.0)) == plain
    kept, whole = tensors(cured(view, data, conserve=1.0)), tensors(view)
    for name in view.names():
        assert (kept[name] == whole[name]) == (len(view.entry(name).shape) > 1), name


def one_step(view, data, **changes):
    run = MemoryRun()
    after = cured(view, data, run, steps=1, weight_decay=0.1, **changes)
    moved = total = 0
    for name in view.names():
        if len(view.entry(name).shape) > 1:
            moved += int((after.tensor(name) != view.tensor(name)).sum())
            total += math.ceil(0.7 * view.tensor(name).numel())
    return moved, total


def test_strictly_only_the_prominent_share_moves_and_otherwise_decay_moves_the_rest(images):
    view, data = images
    moved, allowed = one_step(view, data)
    assert 0.97 * allowed <= moved <= allowed  # a few have no gradient, or too small a one to be seen
    more, _ = one_step(view, data, strict=False)
    assert more > 1.2 * allowed


def test_scope_says_which_matrices_are_conserved(images):
    view, data = images
    curing, _ = curing_of(view, data, scope="mlp|intermediate")
    assert curing.conserved
    assert all("mlp" in name or "intermediate" in name for name in curing.conserved)
    with pytest.raises(BadParameter, match="finds no matrix"):
        curing_of(view, data, scope="nowhere")


# --- the revision model ----------------------------------------------------------------------------------


def test_the_revision_model_is_the_closed_form_mean_when_it_always_follows(images):
    curing, _ = curing_of(*images)
    trained_ = dict(curing.module.named_parameters())
    name = next(iter(trained_))
    revision = {n: torch.nn.Parameter(p.detach().clone(), requires_grad=False) for n, p in trained_.items()}
    first, seen = revision[name].double(), []
    for step in range(5):
        with torch.no_grad():
            for p in trained_.values():
                p.add_(0.1 * (step + 1))
            seen.append(trained_[name].detach().double().clone())
            follow(revision, trained_, 0.9)
    expected = 0.9**5 * first + sum(0.1 * 0.9 ** (4 - k) * w for k, w in enumerate(seen))
    assert float((revision[name].double() - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_revision_model_follows_as_often_as_it_shall(images, share):
    curing, _ = curing_of(*images, revise=share, decay=0.5, conserve=0.0)
    followed, steps = 0, 400
    parameter, kept = next(zip(curing.module.parameters(), curing.revision.parameters(), strict=True))
    for step in range(1, steps + 1):
        with torch.no_grad():
            parameter.add_(1.0)
        before = kept.clone()
        curing.after_step(curing.module, step)
        followed += int(not torch.equal(kept, before))
    assert abs(followed - share * steps) <= 4 * math.sqrt(steps * share * (1 - share))


def test_the_revision_model_remembers_a_sixteenth_of_the_training_unless_told_otherwise():
    def of(**fields):
        return decay_of(Cure(data="x", **fields))

    assert of(steps=1600, revise=0.2) == pytest.approx(1 - 1 / 20)  # 100 steps, one in five of which it follows
    assert of(steps=78_200) == pytest.approx(0.999, abs=1e-4)  # the paper's run has the paper's decay
    assert of(steps=10_000_000) == 0.999
    assert of(steps=10) == 0.0
    assert of(steps=10, revise=0.0) == 0.0  # it never follows: nothing is kept of nothing
    assert of(steps=10, decay=0.5) == 0.5


# --- runs ------------------------------------------------------------------------------------------------


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(images):
    view, data = images
    whole = tensors(cured(view, data, steps=5))
    run = MemoryRun(die_after=3)
    with pytest.raises(Killed):
        cured(view, data, run, steps=5)
    assert any(name.startswith("attached.0.") for name in run.state[1])
    run.die_after = None
    assert tensors(cured(view, data, run, steps=5)) == whole


def test_every_record_comes_once_per_epoch_and_held_out_ones_never(images):
    view, data = images
    found = prepare(Cure(data=data, holdout=0.2), view, 3)
    assert len(found.held) == 12
    assert not set(found.held) & set(found.train)
    picks = Picks(found, 8, 3)
    assert sorted(row for n in range(6) for row in picks.at(n).rows) == sorted(found.train)
    assert picks.at(2).rows == Picks(found, 8, 3).at(2).rows != picks.at(8).rows


def test_a_language_model_and_a_text_classifier_are_moved_in_their_embeddings(words, tmp_path):
    for family, data, epsilon in (("llama", "pairs.jsonl", 0.3), ("bert", "texts.jsonl", 0.3)):
        view = MemoryView.of(tiny_model(tmp_path / family, family))
        run = MemoryRun()
        after = cured(view, str(words / data), run, epsilon=epsilon)
        assert tensors(after) != tensors(view)
        assert [i.role for i in run.inputs] == ["data"]
        found = check(Cure(data=str(words / data), epsilon=epsilon, attack_steps=2), view, after, run)
        assert set(found.values) >= {"clean_before", "clean_after", "robust_before", "robust_after", "robust_gain"}
        with pytest.raises(BadParameter, match="--epsilon takes it in units"):
            cured(view, str(words / data), epsilon=None)


def test_the_harmonic_mean_is_that_of_the_papers_table():
    for natural, robust, told in ((87.05, 55.25, 67.60), (82.78, 49.72, 62.12)):
        assert abs(harmonic(natural, robust) - told) <= 0.006
    assert harmonic(86.76, 52.48) == pytest.approx(65.40, abs=0.006)  # where the paper prints 65.04
    assert harmonic(0.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data": ""}, "--data needs the path"),
        ({"method": "pgd"}, "--method is one of cure, trades, at"),
        ({"conserve": 1.5}, "--conserve is a share"),
        ({"epsilon": 0.0}, "--epsilon must be a positive"),
        ({"epsilon": math.nan}, "--epsilon must be a positive"),
        ({"holdout": 0.0}, "--holdout is a share"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"scope": "("}, "is no regular expression"),
        ({"decay": -0.1}, "--decay is a share"),
    ],
)
def test_values_that_cannot_be_are_refused(values, said):
    with pytest.raises(BadParameter, match=said):
        Cure(**{"data": "x.jsonl", **values})


def test_a_single_record_is_refused(images, tmp_path):
    view, data = images
    (tmp_path / "one.jsonl").write_text(Path(data).read_text().partition("\n")[0])
    with pytest.raises(BadInputFile, match="at least two are needed"):
        cured(view, str(tmp_path / "one.jsonl"))


def test_digits_become_robust_and_stay_right(material, tmp_path):
    digits = Digits.read(material, 0)
    view = MemoryView.of(trained("cnn", digits, tmp_path / "cnn", 0))
    data = str(digits.write(tmp_path / "train.jsonl", digits.train))
    op, run = Cure(data=data, epsilon=0.1, steps=30), MemoryRun()
    after = view.after(op.apply(view, run))
    found = op.check(view, after, run)
    assert found.passed, found.reason
    assert found.values["robust_gain"] >= 0.05
    statistics = [n for n in view.names() if n.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(view.entry(n).digest == after.entry(n).digest for n in statistics)
    strictest = Cure(data=data, epsilon=0.1, steps=30, clean_limit=0.0).check(after, view, run)  # the clean one after the robust one
    assert not strictest.passed
    assert "under attack" in strictest.reason
