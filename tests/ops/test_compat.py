"""Anchors, stored teachers and the losses: against the whole computation, at the edges the method names, and between vocabularies."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from mlc.ops.compat.anchors import read_anchors
from mlc.ops.compat.objective import Compatible, cells
from mlc.ops.compat.options import TOP, Settings, parse_anchors
from mlc.ops.compat.rows import kept_out, with_anchors
from mlc.ops.compat.teacher import ask
from mlc.ops.data.mixing import Batch, Mixture, Source
from mlc.ops.models import load_model
from mlc.registry.errors import BadInputFile, BadParameter, Incompatible, InputNotFound, VocabularyMismatch
from mlc.tests.benchmarks.toy_classes import CLASSES, Points, told, toy
from mlc.tests.factories import WORDS, tiny_model, tiny_tokenizer
from mlc.tests.ops.fakes import MemoryRun, MemoryView

MUSCLES = ("muscle-student", "muscle-new")
WIDE = 200  # a vocabulary beyond what is stored whole


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two versions of 64 tokens and two of WIDE, by name."""
    made = {}
    for name, width, seed in (("old", 64, 0), ("new", 64, 1), ("old wide", WIDE, 2), ("new wide", WIDE, 3)):
        place = tiny_model(tmp_path_factory.mktemp("model"), seed=seed, vocab_size=width)
        tiny_tokenizer(place, width)
        made[name] = MemoryView.of(place)
    return made


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"the {a} is", "answer": f"{b} {a}" if n % 2 else b} for n, (a, b) in enumerate(zip(WORDS, WORDS[3:], strict=False))]
    rows.append({"text": "the river is near the stone"})
    return write(tmp_path / "anchors.jsonl", rows)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def held(models, path, method="focal-kl", old="old", new="new", second=None, **more):
    """(objective, anchors, student module) with the labels' loss and all weights as asked."""
    student, run = models[new], MemoryRun()
    anchors = read_anchors(path, student)
    settings = Settings(method, **more)
    told = ask(models[old], "old", student, anchors, run, settings.tau)
    other = ask(models[second], "second", student, anchors, run, settings.tau) if second else None
    return Compatible(settings, anchors, told, other, 0, None), anchors, load_model(student, dtype=torch.float32)


def whole(models, anchors, old, module, chosen, tau=1.0):
    """KL per decision from both whole softmaxes in float64, and which of the old version's records are right."""
    teacher = load_model(models[old], dtype=torch.float32)
    with torch.no_grad():
        was, owners, targets = anchors.answers(teacher, chosen)
        now, _, _ = anchors.answers(module, chosen)
    p, q = ((z.double() / tau).log_softmax(-1) for z in (was, now))
    return (p.exp() * (p - q)).sum(-1) * tau * tau, owners, was.argmax(-1) == targets, now, targets


def per_record(values, owners):
    return torch.stack([values[owners == i].mean() for i in range(int(owners.max()) + 1)])


# --- losses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_focal_distillation_is_the_labels_loss_and_a_weighted_divergence(models, pairs, tau):
    objective, anchors, module = held(models, pairs, tau=tau, alpha=0.5, beta=3.0, weight=2.0)
    chosen = list(range(len(anchors)))
    kl, owners, hits, logits, targets = whole(models, anchors, "old", module, chosen, tau)
    right = torch.tensor([bool(hits[owners == i].all()) for i in chosen])[owners]
    right[owners == len(chosen) - 1] = hits[owners == len(chosen) - 1]  # a plain text: its tokens one by one
    labels = per_record(F.cross_entropy(logits, targets, reduction="none").double(), owners).mean()
    wanted = labels + 2.0 * per_record((0.5 + 3.0 * right) * kl, owners).mean()
    assert objective.loss(module, chosen).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_labels_of_anchors_are_weighed_by_themselves(models, pairs):
    objective, anchors, module = held(models, pairs, weight=0.5, labels=0.25)
    chosen = list(range(len(anchors)))
    whole_loss, none = (held(models, pairs, weight=0.5, labels=labels)[0].loss(module, chosen) for labels in (1.0, 0.0))
    assert objective.loss(module, chosen).item() == pytest.approx((none + 0.25 * (whole_loss - none)).item(), rel=1e-6)


def test_plain_distillation_asks_nobody_who_is_right(models, pairs):
    objective, anchors, module = held(models, pairs, "kd")
    chosen = list(range(len(anchors)))
    kl, owners, _, logits, targets = whole(models, anchors, "old", module, chosen)
    labels = per_record(F.cross_entropy(logits, targets, reduction="none").double(), owners).mean()
    assert objective.loss(module, chosen).item() == pytest.approx((labels + per_record(kl, owners).mean()).item(), rel=1e-5)


def test_where_every_token_is_wrong_muscle_is_the_divergence_from_the_old_version(models, pairs):
    objective, anchors, module = held(models, pairs, "muscle-student", second="new")
    chosen = list(range(len(anchors)))
    kl, owners, _, logits, targets = whole(models, anchors, "old", module, chosen)
    wrong = [i for i in chosen if not bool((logits.argmax(-1) == targets)[owners == i].any())]
    assert wrong
    assert objective.loss(module, wrong).item() == pytest.approx(per_record(kl, owners)[wrong].mean().item(), rel=1e-5)


def rightly(view, tmp_path):
    """Anchors of one token that a version gets right."""
    prompts = [f"the {word} is" for word in WORDS]
    asked = read_anchors(write(tmp_path / "asked.jsonl", [{"prompt": p, "answer": WORDS[0]} for p in prompts]), view)
    with torch.no_grad():
        best = asked.answers(load_model(view, dtype=torch.float32), range(len(prompts)))[0].argmax(-1).tolist()
    texts = {i: text for text, i in json.loads(view.file("tokenizer.json"))["model"]["vocab"].items()}
    return write(tmp_path / "right.jsonl", [{"prompt": p, "answer": texts[b]} for p, b in zip(prompts, best, strict=True) if b > 3])


def test_where_every_token_is_right_and_nothing_was_trained_muscle_is_zero_with_no_gradient(models, tmp_path):
    objective, anchors, module = held(models, rightly(models["new"], tmp_path), "muscle-student", second="new")
    loss = objective.loss(module, range(len(anchors)))
    loss.backward()
    assert abs(loss.item()) < 1e-7
    assert max(float(p.grad.norm()) for p in module.parameters() if p.grad is not None) < 1e-6


def test_two_equal_versions_have_nothing_to_learn_from_each_other(models, pairs):
    objective, anchors, module = held(models, pairs, "muscle-new", old="new", second="new")
    assert abs(objective.loss(module, range(len(anchors))).item()) < 1e-7


def test_the_two_readings_of_the_mask_differ_where_the_student_is_wrong_and_the_new_version_right():
    """The student is the old version: pulled to itself where it is wrong, or, where the new one decides and is right, to the new one."""
    anchors = Points(torch.eye(CLASSES), torch.arange(CLASSES))
    new, old = (torch.nn.Linear(CLASSES, CLASSES, bias=False) for _ in range(2))
    new.weight.data, old.weight.data = 3 * torch.eye(CLASSES), 3 * torch.eye(CLASSES).roll(1, 0)
    teachers = told(anchors, old), told(anchors, new)
    by_student, by_new = (Compatible(Settings(method), anchors, *teachers, 0, None).loss(old, range(CLASSES)).item() for method in MUSCLES)
    assert abs(by_student) < 1e-6
    assert by_new > 1


def test_logit_matching_does_not_see_a_common_offset_where_only_the_likeliest_tokens_are_kept(models, pairs):
    objective, anchors, module = held(models, pairs, "focal-logits", old="new wide", new="new wide")
    labels = objective.loss(module, [0])  # equal versions: only the labels are left
    logits, _, targets = anchors.answers(module, [0])
    assert labels.item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)


def test_the_loss_of_text_and_that_of_anchors_are_added(models, pairs):
    objective, _, module = held(models, pairs, "kd")
    objective.text = lambda module, batch: torch.tensor(10.0)
    objective.source = 1
    batch = Batch(torch.tensor([[1, 1], [1, 1], [1, 1], [2, 0]]), (0, 0, 0, 1))
    assert objective(module, batch).item() == pytest.approx(10 + objective.loss(module, [2]).item())


# --- what is stored --------------------------------------------------------------------------------------


def test_the_stored_divergence_is_below_the_true_one_by_what_its_bound_says(models, pairs):
    objective, anchors, module = held(models, pairs, old="old wide", new="new wide")
    chosen = list(range(len(anchors)))
    true, *_ = whole(models, anchors, "old wide", module, chosen)
    told = objective.old.at(chosen, torch.device("cpu"))
    assert told.ids.shape[1] == TOP < WIDE
    logits, _, _ = anchors.answers(module, chosen)
    theirs, ours = cells(logits, told, 1.0, whole=False)
    assert theirs.exp().sum(-1).tolist() == pytest.approx([1.0] * len(theirs), abs=1e-5)
    assert ours.exp().sum(-1).tolist() == pytest.approx([1.0] * len(ours), abs=1e-5)
    kept = (theirs.exp() * (theirs - ours)).sum(-1).double()
    teacher = load_model(models["old wide"], dtype=torch.float32)
    was = anchors.answers(teacher, chosen)[0].detach().double().scatter(1, told.ids, -torch.inf).log_softmax(-1)
    now = logits.detach().double().scatter(1, told.ids, -torch.inf).log_softmax(-1)
    rest = torch.where(was.exp() > 0, was.exp() * (was - now), 0.0).sum(-1)
    lost = told.rest.exp().double() * rest
    torch.testing.assert_close(true - kept.detach(), lost, rtol=1e-3, atol=1e-6)
    assert float(lost.min()) >= 0


def test_the_stored_gradient_is_off_by_twice_the_mass_outside_at_most(models, pairs):
    objective, anchors, module = held(models, pairs, old="old wide", new="new wide")
    chosen = list(range(len(anchors)))
    told = objective.old.at(chosen, torch.device("cpu"))
    logits = anchors.answers(module, chosen)[0].detach().requires_grad_()
    objective._kl(logits, told).sum().backward()
    teacher = load_model(models["old wide"], dtype=torch.float32)
    true = logits.detach().softmax(-1) - anchors.answers(teacher, chosen)[0].detach().softmax(-1)
    off = (logits.grad - true).abs().sum(-1)
    assert bool((off <= 2 * told.rest.exp() + 1e-5).all())
    assert float(off.max()) > 0


def test_a_teacher_is_asked_once(models, pairs):
    run, student = MemoryRun(), models["new"]
    anchors = read_anchors(pairs, student)
    for _ in range(2):
        ask(models["old"], "old", student, anchors, run, 1.0)
    assert run.computed == 1
    ask(models["old"], "old", student, anchors, run, 2.0)
    assert run.computed == 2


# --- other models ----------------------------------------------------------------------------------------


def relabelled(view, change):
    """The view with another tokenizer: `change` maps token text to token text."""
    core = json.loads(view.file("tokenizer.json"))
    core["model"]["vocab"] = {change(text): i for text, i in core["model"]["vocab"].items()}
    tensors = {name: view.tensor(name) for name in view.names()}
    return MemoryView(tensors, {**view._files, "tokenizer.json": json.dumps(core).encode()})


def turned(text):
    """Words change places, so that ids differ and texts are shared."""
    return WORDS[(WORDS.index(text) + 5) % len(WORDS)] if text in WORDS else text


def test_a_teacher_with_other_ids_is_followed_token_by_token(models, pairs):
    student, run = models["new"], MemoryRun()
    anchors = read_anchors(pairs, student)
    teacher = relabelled(models["old"], turned)
    told = ask(teacher, "old", student, anchors, run, 1.0)
    assert told.facts()["written_otherwise"] == 6  # the plain text has no partner in another vocabulary
    theirs = read_anchors(pairs, teacher)
    logits, _, targets = theirs.answers(load_model(teacher, dtype=torch.float32), [0])
    found = told.at([0], torch.device("cpu"))
    names = [{i: t for t, i in json.loads(v.file("tokenizer.json"))["model"]["vocab"].items()} for v in (teacher, student)]
    for token, value in zip(found.ids[0].tolist(), found.logits[0].tolist(), strict=True):
        place = next(i for i, text in names[0].items() if text == names[1][token])
        assert value == pytest.approx(logits[0, place].item(), abs=1e-6)
    assert found.hit.tolist() == (logits.argmax(-1) == targets).tolist()


def test_a_teacher_that_writes_no_answer_alike_is_refused_with_what_they_share(models, pairs):
    teacher = relabelled(models["old"], lambda text: f"{text}x" if text in WORDS else text)
    anchors = read_anchors(pairs, models["new"])
    with pytest.raises(VocabularyMismatch, match=r"shares \d+ of this version's 64 tokens and writes no answer"):
        ask(teacher, "old", models["new"], anchors, MemoryRun(), 1.0)


def test_an_answer_that_is_spelled_otherwise_is_held_whole_where_the_teacher_is_right(models, tmp_path):
    """`lamp` is one token here and unknown there; the other record is written alike."""
    path = write(tmp_path / "a.jsonl", [{"prompt": "the river is", "answer": "lamp"}, {"prompt": "the river is", "answer": "red"}])
    student, run = models["new"], MemoryRun()
    anchors = read_anchors(path, student)
    teacher = relabelled(models["old"], lambda text: "lantern" if text == "lamp" else text)
    told = ask(teacher, "old", student, anchors, run, 1.0)
    found = told.at([0, 1], torch.device("cpu"))
    assert found.spelled.tolist() == [False, True]
    assert found.known.tolist()[0] is bool(found.hit[0])
    module = load_model(student, dtype=torch.float32)
    loss = Compatible(Settings("kd", alpha=1.0), anchors, told, None, 0, None).loss(module, [0])
    assert loss.isfinite()


def test_choices_are_classes_whose_logits_are_likelihoods(models, tmp_path):
    rows = [
        {"prompt": "the river is", "choices": ["red", "blue", "near the stone"], "index": 1},
        {"prompt": "a", "choices": ["red", "lamp"], "index": 0},
    ]
    write(tmp_path / "c.jsonl", rows)
    suite = tmp_path / "c.toml"
    suite.write_text('name = "c"\nkind = "choice"\ndata = "c.jsonl"\n')
    objective, anchors, module = held(models, suite, "focal-logits")
    logits, _, targets = anchors.answers(module, [0, 1])
    assert (len(anchors), logits.shape, targets.tolist()) == (2, (2, 3), [1, 0])
    assert logits[1, 2].item() == -torch.inf
    objective.loss(module, [0, 1]).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_pairs_of_sentences_are_choices_too(models, tmp_path):
    write(tmp_path / "p.jsonl", [{"good": "the river is red", "bad": "river the red is"}])
    suite = tmp_path / "p.toml"
    suite.write_text('name = "p"\nkind = "pairs"\ndata = "p.jsonl"\n')
    objective, anchors, module = held(models, suite, "focal-kl")
    assert anchors.answers(module, [0])[0].shape == (1, 2)
    assert objective.loss(module, [0]).isfinite()


def images(tmp_path, labels):
    generator = torch.Generator().manual_seed(0)
    rows = [{"image": torch.rand(8, 8, generator=generator).tolist(), "label": label} for label in labels]
    return write(tmp_path / "images.jsonl", rows)


def test_a_classifier_with_further_classes_is_held_on_the_old_ones(tmp_path):
    old, new = (MemoryView.of(tiny_model(tmp_path / str(n), "vit", num_labels=n, seed=n)) for n in (3, 5))
    anchors = read_anchors(images(tmp_path, [0, 1, 2, 4]), new)
    told = ask(old, "old", new, anchors, MemoryRun(), 1.0)
    assert told.kept["known"].tolist() == [True, True, True, False]
    module = load_model(new, dtype=torch.float32)
    objective = Compatible(Settings("kd"), anchors, told, None, 0, None)
    logits = anchors.answers(module, [3])[0]
    assert objective.loss(module, [3]).item() == pytest.approx(F.cross_entropy(logits, torch.tensor([4])).item(), rel=1e-5)
    teacher = load_model(old, dtype=torch.float32)
    was, now = anchors.answers(teacher, [0])[0].log_softmax(-1), anchors.answers(module, [0])[0][:, :3].log_softmax(-1)
    kl = (was.exp() * (was - now)).sum()
    label = F.cross_entropy(anchors.answers(module, [0])[0], torch.tensor([0]))
    assert objective.loss(module, [0]).item() == pytest.approx((kl + label).item(), rel=1e-4)


def test_a_teacher_of_another_kind_or_of_other_classes_is_refused(models, tmp_path):
    new = MemoryView.of(tiny_model(tmp_path / "vit", "vit"))
    anchors = read_anchors(images(tmp_path, [0, 1]), new)
    with pytest.raises(Incompatible):
        ask(models["old"], "old", new, anchors, MemoryRun(), 1.0)
    other = MemoryView.of(tiny_model(tmp_path / "five", "vit", num_labels=5))
    with pytest.raises(Incompatible, match="is not class"):
        ask(other, "old", new, anchors, MemoryRun(), 1.0)


# --- rows and options ------------------------------------------------------------------------------------


def test_anchors_take_their_share_of_the_rows_and_the_others_share_the_rest(models, pairs):
    anchors = read_anchors(pairs, models["new"])
    text = Mixture(
        [Source("a", torch.ones(9, 4, dtype=torch.int64), 0.5), Source("b", torch.ones(9, 4, dtype=torch.int64), 0.5)], batch=4, seed=0
    )
    mixed = with_anchors(text, anchors, [2, 5], 0.25, batch=8, seed=0)
    drawn = [mixed.at(n) for n in range(10)]
    counts = [sum(batch.source.count(s) for batch in drawn) for s in range(3)]
    assert counts == [30, 30, 20]
    assert {int(row[0]) for batch in drawn for row, s in zip(batch.ids, batch.source, strict=True) if s == 2} == {2, 5}


def test_what_is_held_out_is_chosen_by_content(models, pairs):
    anchors = read_anchors(pairs, models["new"])
    trained, spared = kept_out(anchors, 0.2)
    assert (len(trained), len(spared)) == (len(anchors) - 4, 4)
    assert not set(trained) & set(spared)
    assert kept_out(anchors, 0.0) == (list(range(len(anchors))),) * 2


@pytest.mark.parametrize(
    "more", [{"method": "magic"}, {"alpha": -1.0}, {"tau": 0.0}, {"weight": 0.0}, {"alpha": 0.0, "beta": 0.0}, {"beta": float("nan")}]
)
def test_settings_that_mean_nothing_are_refused(more):
    with pytest.raises(BadParameter):
        Settings(**more)


def test_a_ratio_is_read_from_behind_the_last_colon():
    assert (parse_anchors("a.jsonl").path, parse_anchors("a.jsonl").share) == ("a.jsonl", 0.5)
    assert (parse_anchors("c:/a.jsonl:0.2").path, parse_anchors("c:/a.jsonl:0.2").share) == ("c:/a.jsonl", 0.2)
    assert parse_anchors("c:/a.jsonl").path == "c:/a.jsonl"
    with pytest.raises(BadParameter, match="between 0 and 1"):
        parse_anchors("a.jsonl:1.5")


def test_files_that_hold_nothing_are_refused(models, tmp_path):
    with pytest.raises(InputNotFound):
        read_anchors(tmp_path / "none.jsonl", models["new"])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BadInputFile, match="empty"):
        read_anchors(tmp_path / "empty.jsonl", models["new"])


# --- the toy ---------------------------------------------------------------------------------------------


def test_logit_matching_halves_the_negative_flips_of_a_classifier():
    """Positive-congruent training on noisy points; a shorter run than the table's."""
    found = toy(7, ("untreated", "focal-logits"), steps=600, spread=2.0)
    plain, treated = found["untreated"], found["focal-logits"]
    assert treated["nfr"] <= 0.5 * plain["nfr"]
    assert treated["accuracy"] >= plain["accuracy"] - 0.005
    assert plain["nfr"] > 0.02
