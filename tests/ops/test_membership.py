"""Membership inference and memorisation: AUC, scores and token statistics by hand, and on a model that learned its members by heart."""

from __future__ import annotations

import copy
import math
import random
import zlib

import pytest
import torch

from mlc.ops.evaluate.bench import Bench, TokenRow, statistics
from mlc.ops.evaluate.coder import Coder
from mlc.ops.evaluate.leakage import TokenStats, auc, extracted, lowest_mean, membership_scores, memorised, privleak
from mlc.ops.evaluate.predictions import from_arrow
from mlc.ops.evaluate.runner import evaluate
from mlc.registry.errors import BadInputFile
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.suites import loaded, suite, token_logprobs

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return loaded(tiny_model(tmp_path_factory.mktemp("models") / "llama"))


# --- AUC -------------------------------------------------------------------------------------------------


def test_the_auc_counts_the_pairs_that_are_in_order():
    draw = random.Random(0)
    for _ in range(20):
        scores = [draw.randrange(6) / 2 for _ in range(30)]
        labels = [True, False, *(draw.random() < 0.4 for _ in range(28))]
        pairs = [(a, b) for a, x in zip(scores, labels, strict=True) for b, y in zip(scores, labels, strict=True) if x and not y]
        assert auc(scores, labels) == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))


def test_the_auc_is_one_for_recognised_members_and_a_half_for_ties():
    assert auc([3.0, 2.0, 1.0, 0.0], [True, True, False, False]) == 1.0
    assert auc([3.0, 2.0, 1.0, 0.0], [False, False, True, True]) == 0.0
    assert auc([1.0] * 4, [True, False, True, False]) == 0.5
    assert auc([1.0, -math.inf], [True, False]) == 1.0


def test_the_auc_is_nothing_without_two_sides_or_with_a_score_that_is_no_number():
    assert auc([1.0], [True]) is None
    assert auc([], []) is None
    assert auc([1.0, math.nan], [True, False]) is None


def test_privleak_is_zero_for_the_retrained_model_and_minus_a_hundred_for_a_member():
    assert privleak(0.47, 0.47) == 0.0
    assert privleak(1.0) == -100.0
    assert privleak(0.0) == 100.0  # overdone: its silence gives it away
    assert privleak(0.5, 1.0) is None


# --- scores ----------------------------------------------------------------------------------------------


def test_the_scores_of_one_text_by_hand():
    stats = TokenStats([-1.0, -4.0, -2.0, -3.0, -5.0], [-2.0] * 5, [2.0] * 5, [True] * 5)
    scores = membership_scores(stats, "amber")
    assert scores["loss"] == -3.0
    assert scores["mink"] == pytest.approx(-4.5)  # the lowest two of five
    assert scores["minkpp"] == pytest.approx((-1.5 - 1.0) / 2)
    assert scores["zlib"] == pytest.approx(-3.0 / len(zlib.compress(b"amber")))


def test_at_least_one_token_is_looked_at():
    assert lowest_mean([-3.0, -1.0]) == -3.0  # 0.4 of two is none


def test_token_statistics_are_the_moments_of_the_models_own_choice():
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 10, 2, 2, 5, 1])
    first, second = statistics(logits, targets, [3, 4])
    logp = logits.double().log_softmax(-1)
    mean = (logp.exp() * logp).sum(-1)
    spread = ((logp.exp() * logp**2).sum(-1) - mean**2).sqrt()
    both = first + second
    assert both.logprobs == pytest.approx(logp[range(7), targets].tolist(), abs=1e-5)
    assert both.means == pytest.approx(mean.tolist(), abs=1e-5)
    assert both.deviations == pytest.approx(spread.tolist(), abs=1e-4)
    assert both.right == (logits.argmax(-1) == targets).tolist()
    assert (len(first.right), len(second.right)) == (3, 4)


def test_uniform_logits_have_no_spread_and_still_a_finite_score():
    (stats,) = statistics(torch.zeros(3, 8), torch.tensor([1, 2, 3]), [3])
    assert stats.deviations == pytest.approx([1e-3] * 3)
    assert all(map(math.isfinite, membership_scores(stats, "x").values()))
    (hard,) = statistics(torch.tensor([[0.0, -math.inf, -1e5]]), torch.tensor([0]), [1])
    assert math.isfinite(membership_scores(hard, "x")["minkpp"])


def test_a_constant_on_all_logits_changes_nothing():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 1, 2, 3, 4])
    (a,), (b,) = statistics(logits, targets, [5]), statistics(logits + 7.0, targets, [5])
    assert membership_scores(a, "x") == pytest.approx(membership_scores(b, "x"), abs=1e-5)


# --- memorisation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "strength", "share"),
    [
        ("1111", 1.0, 1.0),
        ("0011", 0.5, 0.5),
        ("1101", 0.25, 0.75),
        ("1110", 0.0, 0.75),
        ("0000", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("1", 1.0, 1.0),
    ],
)
def test_extraction_strength_is_the_share_of_the_end_that_the_model_writes_by_itself(right, strength, share):
    flags = [c == "1" for c in right]
    assert (extracted(flags), memorised(flags)) == (strength, share)


# --- the suite -------------------------------------------------------------------------------------------


def _texts(seed, count):
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(8)) for _ in range(count)]


def _rows(members, strangers):
    found = [{"id": f"m{i}", "text": text, "member": True} for i, text in enumerate(members)]
    return found + [{"id": f"s{i}", "text": text, "member": False} for i, text in enumerate(strangers)]


def _by_heart(given, texts, steps=60):
    model = copy.deepcopy(given["model"]).train()
    ids = torch.tensor([given["tokenizer"]("<s> " + text)["input_ids"] for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return {**given, "model": model.eval()}


def test_a_model_that_learned_its_members_by_heart_gives_them_away(tmp_path, llama):
    members, strangers = _texts(1, 20), _texts(2, 20)
    data = suite(tmp_path, "membership", _rows(members, strangers))
    before = evaluate(None, data, **llama).metrics
    after = evaluate(None, data, **_by_heart(llama, members)).metrics
    assert set(after) == {"auc_loss", "auc_zlib", "auc_mink", "auc_minkpp"}
    assert min(after.values()) >= 0.95
    assert all(0.2 < value < 0.8 for value in before.values())


def test_a_membership_row_is_never_right_or_wrong_and_equals_a_plain_forward_pass(tmp_path, llama):
    members, strangers = _texts(1, 3), _texts(2, 3)
    data = suite(tmp_path, "membership", _rows(members, strangers), 'metric = "auc_loss"')
    rows = from_arrow(evaluate(None, data, batch_tokens=20, **llama).rows)
    for row, text in zip(rows, [*members, *strangers], strict=True):
        values = token_logprobs(llama, "<s> " + text, 1)
        assert (row.correct, row.answer) == (None, "member" if row.example.startswith("m") else "stranger")
        assert row.score == pytest.approx(sum(values) / len(values), abs=1e-5)
        assert row.logprob == pytest.approx(sum(values), abs=1e-4)


def test_an_answer_is_scored_after_its_prompt_and_a_long_text_in_pieces(tmp_path, llama):
    long = " ".join(WORDS[i % len(WORDS)] for i in range(150))  # the window is 64
    rows = [{"id": "a", "prompt": "the river", "answer": "is red", "member": True}, {"id": "b", "text": long, "member": False}]
    data = suite(tmp_path, "membership", rows, 'metric = "auc_loss"')
    first, second = from_arrow(evaluate(None, data, **llama).rows)
    assert first.logprob == pytest.approx(sum(token_logprobs(llama, "the river is red", 2)), abs=1e-5)
    pieces = [" ".join(long.split()[at : at + 63]) for at in range(0, 150, 63)]
    assert second.logprob == pytest.approx(sum(sum(token_logprobs(llama, "<s> " + piece, 1)) for piece in pieces), abs=1e-3)


def test_one_side_alone_is_refused_and_a_limit_that_leaves_one_has_no_auc(tmp_path, llama):
    with pytest.raises(BadInputFile, match="all rows are members, or none is"):
        suite(tmp_path / "a", "membership", _rows(_texts(1, 2), [])).examples()
    with pytest.raises(BadInputFile, match="line 1: 'member' must be true or false"):
        suite(tmp_path / "b", "membership", [{"text": "red", "member": 1}]).examples()
    result = evaluate(None, suite(tmp_path / "c", "membership", _rows(_texts(1, 2), _texts(2, 2))), limit=2, **llama)
    assert set(result.metrics.values()) == {None}


def test_token_statistics_agree_with_likelihoods(llama):
    bench = Bench(llama["model"], Coder(llama["tokenizer"]), 30, "eval")
    rows = [TokenRow([1, 5, 6][: 1 + i % 3], [7, 8, 9, 10][: 1 + i % 4], str(i)) for i in range(9)]
    with torch.inference_mode():
        found, plain = bench.token_stats(rows), bench.likelihoods(rows)
    assert [sum(stats.logprobs) for stats in found] == pytest.approx([p.logprob for p in plain], abs=1e-5)
    assert [all(stats.right) for stats in found] == [p.greedy for p in plain]
