"""Written answers: decoding against a plain loop, and the overlap of a text with its reference by hand."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from mlc.ops.evaluate.bench import Bench
from mlc.ops.evaluate.coder import Coder
from mlc.ops.evaluate.decode import Limits, _Cached, _Whole, continue_tokens, cut, end_tokens, write
from mlc.ops.evaluate.overlap import longest_common, normalised, overlap, rouge_l, token_f1
from mlc.ops.evaluate.predictions import from_arrow
from mlc.ops.evaluate.runner import evaluate
from mlc.registry.errors import BadInputFile, BadRecipe, Incompatible
from mlc.tests.factories import WORDS, tiny_model
from mlc.tests.ops.suites import loaded, suite

torch.set_num_threads(1)
PROMPTS = ["the river is", "a lamp", "blue", "one of the stone in the harbour near the amber", "two red"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "neox"])
def given(request, tmp_path_factory):
    return loaded(tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return loaded(tiny_model(tmp_path_factory.mktemp("models") / "llama"))


def _bench(given, tokens=4096):
    return Bench(given["model"], Coder(given["tokenizer"]), tokens, "eval")


def _alone(given, head, count):
    """Greedy decoding of one prompt, everything read anew at each step."""
    ids = list(head)
    for _ in range(count):
        with torch.no_grad():
            token = int(given["model"](input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == given["tokenizer"].eos_token_id:
            break
        ids.append(token)
    return ids[len(head) :]


# --- decoding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_many_prompts_at_once_write_what_each_would_write_alone(given, budget):
    bench = _bench(given, budget)
    heads = bench.text.encode(PROMPTS)
    with torch.inference_mode():
        found = continue_tokens(bench, heads, Limits(12))
    assert found == [_alone(given, head, 12) for head in heads]


def test_the_order_of_the_prompts_does_not_matter(llama):
    bench = _bench(llama)
    forward, backward = write(bench, PROMPTS, Limits(9)), write(bench, PROMPTS[::-1], Limits(9))
    assert forward == backward[::-1]


def test_writing_ends_at_the_end_of_text_and_the_others_go_on(llama):
    bench = _bench(llama)
    heads = bench.text.encode(PROMPTS)
    free = continue_tokens(bench, heads, Limits(10))
    token = free[0][1]  # what the first prompt writes second ends a text from now on
    bench.model.config.eos_token_id = [2, token]
    try:
        assert end_tokens(bench) >= {2, token}
        ended = continue_tokens(bench, heads, Limits(10))
    finally:
        bench.model.config.eos_token_id = 2
    assert ended == [ids[: ids.index(token)] if token in ids else ids for ids in free]
    assert ended[0] == free[0][: free[0].index(token)]


def test_a_model_without_a_cache_writes_the_same(llama):
    cached, whole = _Cached(_bench(llama)), _Whole(_bench(llama))
    ids = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    with torch.inference_mode():
        for _ in range(4):
            a, b = cached(ids), whole(ids)
            assert a == b
            ids = [[token] for token in a]
            if len(ids) == 3:
                cached.keep([0, 2])
                whole.keep([0, 2])
                ids = [ids[0], ids[2]]


def test_a_stop_text_ends_writing_and_is_left_out(llama):
    bench = _bench(llama)
    (text,) = write(bench, [PROMPTS[0]], Limits(8))
    mark = text.split()[2]
    (stopped,) = write(bench, [PROMPTS[0]], Limits(8, (mark,)))
    assert stopped == text[: text.find(mark)].strip()


def test_the_first_stop_text_counts_and_one_at_the_very_start_of_blanks_does_not():
    assert cut("\n\n red. blue\nmore", ("\n", "blue")) == "red."
    assert cut(" red ", ()) == "red"


def test_a_prompt_longer_than_the_window_loses_its_head_and_leaves_room(llama):
    bench = _bench(llama)
    long = " ".join(WORDS[i % len(WORDS)] for i in range(200))
    (ids,) = continue_tokens(bench, bench.text.encode([long]), Limits(200))
    assert ids == _alone(llama, bench.text.encode([long])[0][-32:], 32)  # the window is 64, half of it is for writing


# --- overlap ---------------------------------------------------------------------------------------------


def test_the_overlap_of_two_sentences_by_hand():
    found = overlap("The cat sat on a mat.", "the cat is on the mat")
    assert (found.exact, found.f1) == (False, pytest.approx(0.75))  # cat on mat of {cat sat on mat} and {cat is on mat}
    assert (found.rouge_l, found.rouge_l_f1) == (pytest.approx(4 / 6), pytest.approx(4 / 6))  # the cat on mat


def test_recall_counts_the_reference_and_precision_the_text():
    assert rouge_l("red blue red blue", "red blue") == (1.0, 0.5)
    assert rouge_l("", "red") == rouge_l("red", "") == (0.0, 0.0)


def test_articles_and_marks_do_not_count_for_an_exact_match():
    assert overlap("The  Eiffel Tower!", "eiffel tower").exact
    assert normalised("A man, an apple and the U.S.") == "man apple and us"
    assert not overlap("eiffel", "eiffel tower").exact


def test_two_empty_texts_agree_and_one_empty_text_does_not():
    assert (token_f1("the", "a"), token_f1("", "red"), token_f1("red", "")) == (1.0, 0.0, 0.0)


def test_words_beyond_ascii_count():
    assert rouge_l("Škoda jede", "škoda jede rychle")[0] == pytest.approx(2 / 3)


def test_the_longest_common_subsequence_equals_the_plain_table():
    draw = random.Random(0)
    for _ in range(50):
        a, b = ([draw.choice("abcd") for _ in range(draw.randrange(0, 90))] for _ in range(2))
        row = [0] * (len(b) + 1)
        for x in a:
            corner = 0
            for j, y in enumerate(b, 1):
                corner, row[j] = row[j], corner + 1 if x == y else max(row[j], row[j - 1])
        assert longest_common(a, b) == row[-1]
    assert longest_common("abcbdab", "bdcaba") == 4


# --- the suite -------------------------------------------------------------------------------------------


def test_a_generate_suite_scores_what_was_written(tmp_path, llama):
    said = write(_bench(llama), PROMPTS[:3], Limits(3))
    rows = [
        {"id": "right", "prompt": PROMPTS[0], "reference": said[0].upper() + "."},
        {"id": "one-of-two", "prompt": PROMPTS[1], "reference": ["nothing alike", said[1]]},
        {"id": "wrong", "prompt": PROMPTS[2], "reference": "nothing alike"},
    ]
    result = evaluate(None, suite(tmp_path, "generate", rows, "max_tokens = 3"), **llama)
    found = from_arrow(result.rows)
    assert [row.answer for row in found] == said
    assert [row.correct for row in found] == [True, True, False]
    assert result.metrics == {name: pytest.approx(2 / 3) for name in ("exact_match", "f1", "rouge_l", "rouge_l_f1")}
    again = evaluate(None, suite(tmp_path, "generate", rows, "max_tokens = 3"), batch_tokens=1, **llama)
    assert again.rows == result.rows


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("max_tokens = 0", "'max_tokens' must be a whole number of at least 1"),
        ('stop = "x"', "'stop' must be a list of texts"),
        ('stop = [""]', "'stop' must be a list of texts"),
        ("rouge = true", "only truth suites take 'rouge'"),
        ("private = 1", "'private' must be true or false"),
    ],
)
def test_a_mistake_in_its_settings_is_named(tmp_path, settings, says):
    with pytest.raises(BadRecipe, match=says):
        suite(tmp_path, "generate", [{"prompt": "a", "reference": "b"}], settings)


def test_a_reference_that_is_missing_or_empty_is_named_with_its_line(tmp_path):
    for row in ({"prompt": "a"}, {"prompt": "a", "reference": []}, {"prompt": "a", "reference": [" "]}):
        with pytest.raises(BadInputFile, match="line 2"):
            suite(tmp_path, "generate", [{"prompt": "a", "reference": "b"}, row]).examples()


def test_a_model_that_keeps_nothing_is_refused_rather_than_read_without_its_past():
    class Forgetful(torch.nn.Module):
        def forward(self, input_ids=None, past_key_values=None, use_cache=None):
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8), past_key_values=None)

    bench = SimpleNamespace(model=Forgetful(), device=torch.device("cpu"), keeps_some=False)
    with pytest.raises(Incompatible, match="Forgetful keeps no keys and values"):
        _Cached(bench)([[1, 2]])
