"""Documents that come twice: found exactly and nearly, told, and left out when asked."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from mlc.ops.data.corpus import read_corpus
from mlc.ops.data.duplicates import THRESHOLD, Duplicates, duplicates, found_in, jaccard, normal, read_thinned, units
from mlc.ops.update.train import Update
from mlc.tests.factories import tiny_model
from mlc.tests.ops.fakes import MemoryRun, MemoryView

VOCABULARY = [f"word{i}" for i in range(4000)]


def words(seed, count=120):
    draw = random.Random(seed)
    return [draw.choice(VOCABULARY) for _ in range(count)]


def said(tokens):
    return " ".join(tokens)


def corpus(tmp_path, documents, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return read_corpus(path)


def true_jaccard(a, b):
    one, two = ({tuple(t[i : i + 5]) for i in range(len(t) - 4)} for t in (a, b))
    return len(one & two) / len(one | two)


def test_the_normal_form_ignores_case_white_space_and_compatible_letters():
    assert normal("  The\tRiver\n is  ﬁne ") == "the river is fine" == normal("the river is fine")


def test_exact_duplicates_are_the_later_ones(tmp_path):
    one, two = said(words(1)), said(words(2))
    found = duplicates(corpus(tmp_path, [one, two, one.upper(), "  " + two, one]))
    assert found == Duplicates(5, "documents", (2, 3, 4), ())
    assert found.to_json("none") == {"units": 5, "unit": "documents", "exact": 3, "near": 0, "dropped": 0}
    assert found.to_json("exact")["dropped"] == 3


def test_near_duplicates_are_found_above_the_threshold_and_not_below(tmp_path):
    base = words(3, 400)
    close, far = list(base), list(base)
    for place in range(0, 400, 80):  # each changed word spoils five pieces
        close[place] = "other"
    for place in range(0, 400, 20):
        far[place] = "other"
    assert true_jaccard(base, close) > 0.85
    assert true_jaccard(base, far) < 0.7
    found = duplicates(corpus(tmp_path, [said(base), said(words(4)), said(close), said(far)]))
    assert found.near == (2,)
    assert duplicates(corpus(tmp_path, [said(base), said(close)]), near=False).near is None


def test_of_many_pairs_hardly_any_is_missed_and_none_is_invented(tmp_path):
    draw, documents, expected = random.Random(9), [], []
    for number in range(150):
        base = words(f"base{number}", 200)
        copy = list(base)
        for place in draw.sample(range(200), draw.choice((2, 3, 4, 8, 12))):
            copy[place] = "changed"
        expected.append(true_jaccard(base, copy) >= THRESHOLD)
        documents += [said(base), said(copy)]
    found = set(duplicates(corpus(tmp_path, documents)).near)
    real = {2 * n + 1 for n, near in enumerate(expected) if near}
    assert found <= real
    assert len(found) >= 0.97 * len(real)
    assert 50 < len(real) < 150


def test_a_copy_of_a_near_copy_is_compared_with_what_stays(tmp_path):
    chain = [words(5, 300)]
    for step in range(3):  # every link is near the one before it, the last one far from the first
        link = list(chain[-1])
        for place in range(10 + step * 20, 300, 60):
            link[place] = f"step{step}"
        chain.append(link)
    assert true_jaccard(chain[0], chain[1]) > THRESHOLD > true_jaccard(chain[0], chain[3])
    found = duplicates(corpus(tmp_path, [said(c) for c in chain]))
    kept = [i for i in range(4) if i not in found.near]
    assert all(true_jaccard(chain[a], chain[b]) < THRESHOLD for a in kept for b in kept if a < b)


def test_the_answer_is_the_same_every_time_and_short_documents_count(tmp_path):
    documents = [said(words(n % 7, 3 + n)) for n in range(40)] + ["yes", "Yes", "no"]
    one, two = duplicates(corpus(tmp_path, documents)), duplicates(corpus(tmp_path, documents))
    assert one == two
    assert 41 in one.exact


def test_jaccard_of_sorted_sets():
    a, b = np.arange(10, dtype=np.uint64), np.arange(1, 11, dtype=np.uint64)
    assert jaccard(a, b) == 9 / 11
    assert jaccard(a, a[:3]) == 0.0  # the sizes alone rule it out


def test_a_running_text_is_compared_by_paragraphs_and_short_ones_may_come_again(tmp_path):
    one, two = said(words(1, 30)), said(words(2, 30))
    path = tmp_path / "play.txt"
    path.write_text(f"{one}\n\nEXIT\n\n{two}\n\nEXIT\n\n{one}\n")
    text = read_corpus(path)
    assert duplicates(text) == Duplicates(5, "paragraphs", (4,), ())
    thin = read_thinned(str(path), "exact")
    assert thin.documents == (f"{one}\n\nEXIT\n\n{two}\n\nEXIT",)
    assert thin.record == text.record
    assert read_thinned(str(path), "none") == text
    assert len(units(thin)) == 4


def test_large_corpora_are_searched_for_near_duplicates_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("mlc.ops.data.duplicates.LARGE", 10)
    text = corpus(tmp_path, [said(words(1)), said(words(2))])
    path = str(tmp_path / "data.jsonl")
    assert found_in(path, text, "none").near is None
    assert found_in(path, text, "exact").to_json("exact")["near"] is None
    assert found_in(path, text, "near").near == ()


def test_an_update_counts_copies_and_says_so_or_trains_without_them(tmp_path):
    from mlc.tests.factories import WORDS

    view = MemoryView.of(tiny_model(tmp_path / "model"))
    draw = random.Random(0)
    texts = [" ".join(draw.choice(WORDS) for _ in range(40)) for _ in range(30)]
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in [*texts, *texts[:10]]))
    counted, thin = MemoryRun(), MemoryRun()
    short = {"data": str(path), "steps": 2, "batch": 2, "seq_len": 12, "lr": 1e-3}
    list(Update(**short).apply(view, counted))
    list(Update(**short, dedup="exact").apply(view, thin))
    assert counted.records["duplicates"] == {"units": 40, "unit": "documents", "exact": 10, "near": 0, "dropped": 0}
    assert counted.notes == ["10 of 40 documents in the data are copies (10 exact) and trained on; --dedup near leaves them out"]
    assert thin.records["duplicates"]["dropped"] == 10
    assert thin.notes == []
    assert thin.records["training"]["corpus_tokens"] == 30 * 40
    assert counted.records["training"]["corpus_tokens"] == 40 * 40


@pytest.mark.parametrize("way", ["exact", "near"])
def test_one_document_never_goes(tmp_path, way):
    text = said(words(1))
    corpus(tmp_path, [text, text, text])
    assert read_thinned(str(tmp_path / "data.jsonl"), way).documents == (text,)
