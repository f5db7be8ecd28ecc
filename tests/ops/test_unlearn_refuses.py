"""What `unlearn` refuses: options that cannot work, records and models that cannot be used. Never with the text of a record."""

from __future__ import annotations

import math

import pytest
import torch

from mlc.ops.data.items import read_items
from mlc.ops.unlearn.task import task_of
from mlc.ops.unlearn.unlearn import Unlearn
from mlc.registry.errors import BadInputFile, BadParameter, Incompatible, VocabularyMismatch
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView
from mlc.tests.ops.forgetting import OWNERS, jsonl, pairs, world


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


def unlearn(sets, **more):
    return Unlearn(**{**sets, "steps": 4, "batch": 6, "lr": 1e-2, **more})


def result(op, view):
    return view.after(op.apply(view, MemoryRun()))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "scrub"}, "--method is one of"),
        ({"objective": "dpo"}, "--objective is one of"),
        ({"mask": "best"}, "--mask is one of"),
        ({"fisher": "batch"}, "--fisher is one of"),
        ({"measure": "all"}, "--measure is one of"),
        ({"batch": 0}, "--batch"),
        ({"steps": 0}, "--steps"),
        ({"lr": 0.0}, "--lr"),
        ({"beta": -1.0}, "--beta"),
        ({"gamma": math.nan}, "--gamma"),
        ({"damping": 0.0}, "--damping"),
        ({"clip": -1.0}, "--clip"),
        ({"keep_ratio": 1.5}, "--keep-ratio"),
        ({"keep_ratio": 0.0}, "--keep-ratio"),
        ({"retain_limit": 0.0}, "--retain-limit"),
        ({"target": 1.0}, "--target"),
        ({"weight_decay": 1.0}, "--weight-decay"),
        ({"refusal": " "}, "--refusal"),
        ({"strength": "strong"}, "--strength is auto or a positive number"),
        ({"strength": "0"}, "--strength is auto or a positive number"),
        ({"method": "ssd", "strength": "1"}, "proven no-op"),
        ({"method": "lfssd", "strength": "1.5"}, "proven no-op"),
        ({"retain_set": None}, "--method dense needs --retain-set"),
        ({"retain_set": None, "retain_weight": 0.0}, "--strength auto needs --retain-set"),
        ({"retain_set": None, "method": "slug"}, "--method slug needs --retain-set"),
        ({"retain_set": None, "method": "ssd"}, "--method ssd needs --retain-set"),
        ({"retain_set": "blake3:" + "0" * 64}, "a digest is not enough"),
        ({"forget_set": ""}, "--forget-set"),
    ],
)
def test_an_option_that_cannot_work_is_refused_at_once(more, words):
    with pytest.raises(BadParameter) as caught:
        Unlearn(**{"forget_set": "f.jsonl", "retain_set": "r.jsonl", **more})
    assert words in caught.value.message
    assert caught.value.hint


def test_a_stored_retain_set_and_none_at_all_are_options_where_they_suffice():
    assert Unlearn(forget_set="f", retain_set="blake3:" + "a" * 64, method="ssd", strength="0.2").stored_retain == "a" * 64
    assert Unlearn(forget_set="f", retain_weight=0.0, strength="1").retain_set is None


@pytest.mark.parametrize("attempt", ["plan", "apply"])
def test_plan_and_run_refuse_the_same_files(small, tmp_path, attempt):
    def tried(**paths):
        op = unlearn({**small[1], **paths})
        return op.plan(small[0]) if attempt == "plan" else list(op.apply(small[0], MemoryRun()))

    bad = {
        "empty": ("", "at least one record"),
        "twice": ('{"text": "lamp amber"}\n{"text": "lamp amber"}\n', "line 2: the same record as line 1"),
        "missing": ('{"prompt": "lamp amber"}\n', "line 1: the field is missing"),
    }
    for name, (content, words) in bad.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(content)
        with pytest.raises(BadInputFile, match=words) as caught:
            tried(forget_set=str(path))
        assert "amber" not in str(caught.value) + str(caught.value.hint)
    with pytest.raises(BadInputFile, match="are also in"):
        tried(retain_set=small[1]["forget_set"])
    with pytest.raises(BadInputFile, match="are also in"):
        tried(holdout_set=small[1]["forget_set"])


def test_a_tokenizer_that_does_not_fit_is_refused(small):
    view, sets = small
    files = {e.path: view.file(e.path) for e in view.files()}
    files["tokenizer.json"] = files["tokenizer.json"].replace(b'"w36": 62', b'"w36": 9062')
    with pytest.raises(VocabularyMismatch, match="up to 9062"):
        result(unlearn(sets), MemoryView({n: view.tensor(n) for n in view.names()}, files))


def test_records_that_the_model_cannot_be_asked_are_named_by_their_line(small, tmp_path):
    long = {"prompt": "the lamp", "answer": " ".join(["amber"] * 70)}
    for row, words in ((long, "the answer has 70 tokens, the model reads 64"), ({"text": "amber", "label": 1}, "has a class")):
        path = jsonl(tmp_path / "f.jsonl", [*pairs(OWNERS[:1]), row])
        with pytest.raises(BadInputFile, match=words) as caught:
            result(unlearn({**small[1], "forget_set": path}), small[0])
        assert "line 3" in caught.value.message
        assert "amber" not in caught.value.message


def test_a_classifier_names_the_line_of_a_record_that_it_cannot_read(tmp_path):
    view = MemoryView.of(tiny_model(tmp_path / "vit", "vit"))
    good = {"image": [[0.0] * 8] * 8, "label": 0}
    for row, words in (
        ({"text": "a lamp"}, "needs `image` and `label`"),
        ({"image": [0.0, 1.0], "label": 0}, "2 pixel values"),
        ({**good, "label": "cat"}, "none of the model's 3 classes"),
    ):
        path = jsonl(tmp_path / "f.jsonl", [good, row])
        with pytest.raises(BadInputFile, match=f"line 2.*{words}|{words}") as caught:
            task_of(view).rows(read_items(path, "forget"))
        assert caught.value.details["line"] == 2


def test_models_that_answer_nothing_are_refused(small):
    with pytest.raises(Incompatible, match="stored and compared, not run"):
        result(unlearn(small[1]), MemoryView({"w": torch.zeros(2)}, {}))
