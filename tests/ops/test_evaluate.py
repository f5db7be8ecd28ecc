"""Scorers against plain loops without batches or padding; rows, metrics, and what happens with models that do not fit."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pyarrow as pa
import pytest
import torch

from mlc.ops.evaluate.bench import Bench, TokenRow
from mlc.ops.evaluate.choice import _row
from mlc.ops.evaluate.coder import Coder
from mlc.ops.evaluate.predictions import Prediction, from_arrow, mean, outcomes, settled, to_arrow
from mlc.ops.evaluate.rows import Example
from mlc.ops.evaluate.runner import EvaluationResult, evaluate
from mlc.ops.evaluate.suite import load_suite
from mlc.registry.errors import BadInputFile, Incompatible
from mlc.registry.ids import blob_digest
from mlc.tests.factories import WORDS, facts_suite, tiny_model


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models gain nothing from a second thread, and two test workers on two cores lose much by it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def llama(home):
    return _loaded(tiny_model(home / "llama", "llama"))


@pytest.fixture(scope="module")
def gpt2(home):
    return _loaded(tiny_model(home / "gpt2", "gpt2"))


def _loaded(directory):
    import transformers as tf

    kind = json.loads((directory / "config.json").read_text())["architectures"][0]
    model = getattr(tf, kind).from_pretrained(directory).eval()
    tokenizer = tf.PreTrainedTokenizerFast.from_pretrained(directory) if (directory / "tokenizer.json").exists() else None
    return {"model": model, "tokenizer": tokenizer}


def _suite(directory, kind, rows, settings=""):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "s.toml").write_text(f'name = "s"\nkind = "{kind}"\ndata = "d.jsonl"\n{settings}')
    return load_suite(directory / "s.toml")


def _rows(result: EvaluationResult) -> list[Prediction]:
    return from_arrow(result.rows)


def _plain_logprobs(loaded, text, given):
    """Nats of each token of `text` after the first `given` words, one forward pass, no padding."""
    ids = loaded["tokenizer"](text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = loaded["model"](input_ids=ids).logits[0].double().log_softmax(-1)
    return [logprobs[i - 1, ids[0, i]].item() for i in range(given, ids.shape[1])], logprobs.argmax(-1)[given - 1 : -1].tolist()


CLOZE = [
    {"id": "one", "prompt": "the river is", "answer": "north", "part": "a"},
    {"id": "two", "prompt": "a lamp on the stone in the harbour near the amber", "answer": "speaks of two", "part": "b"},
    {"id": "three", "prompt": "blue", "answer": "red", "part": "a"},
    {"id": "four", "prompt": "one of the", "answer": "lamp is", "part": "b"},
]


# --- cloze -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_cloze_equals_a_plain_forward_pass_of_each_example(tmp_path, request, family):
    loaded = request.getfixturevalue(family)
    result = evaluate(None, _suite(tmp_path, "cloze", CLOZE, 'slices = "part"'), **loaded)
    for row, example in zip(_rows(result), CLOZE, strict=True):
        values, best = _plain_logprobs(loaded, f"{example['prompt']} {example['answer']}", len(example["prompt"].split()))
        truth = loaded["tokenizer"](example["answer"])["input_ids"]
        assert row.logprob == pytest.approx(sum(values), abs=1e-5)
        assert row.score == pytest.approx(math.exp(sum(values)), abs=1e-6)
        assert (row.example, row.correct, row.slice) == (example["id"], best == truth, example["part"])
    assert result.metrics["logprob"] == pytest.approx(sum(row.logprob for row in _rows(result)) / 4)
    assert (result.n, result.kind, result.suite, result.limit) == (4, "cloze", "s", None)


def test_a_right_answer_counts_and_a_wrong_one_shows_what_was_written(tmp_path, llama):
    prompts = ["the river", "a stone", "the amber lamp", "two", "near the harbour"]
    greedy = []
    for prompt in prompts:
        ids = llama["tokenizer"](prompt, return_tensors="pt")["input_ids"]
        for _ in range(2):
            with torch.no_grad():
                ids = torch.cat([ids, llama["model"](input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        greedy.append(llama["tokenizer"].decode(ids[0, -2:]).split())
    rows = [{"prompt": p, "answer": " ".join(g)} for p, g in zip(prompts, greedy, strict=True)]
    right = evaluate(None, _suite(tmp_path / "right", "cloze", rows), **llama)
    assert right.metrics["accuracy"] == 1.0
    assert [row.answer for row in _rows(right)] == [" ".join(g) for g in greedy]
    other = [{"prompt": p, "answer": f"{g[0]} {'red' if g[1] != 'red' else 'blue'}"} for p, g in zip(prompts, greedy, strict=True)]
    wrong = evaluate(None, _suite(tmp_path / "wrong", "cloze", other), **llama)
    assert wrong.metrics["accuracy"] == 0.0
    assert [row.answer for row in _rows(wrong)] == [" ".join(g) for g in greedy]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_batch_size_changes_no_answer(tmp_path, request, family):
    loaded = request.getfixturevalue(family)
    suites = [
        facts_suite(tmp_path, rows=40),
        _suite(tmp_path / "c", "cloze", CLOZE).path,
        _suite(tmp_path / "p", "perplexity", [{"id": str(n), "text": " ".join(WORDS[:n])} for n in range(1, 20)], "seq_len = 8").path,
    ]
    for path in suites:
        suite = load_suite(path)
        alone = _rows(evaluate(None, suite, batch_tokens=1, **loaded))
        for budget in (17, 64, 8192):
            together = _rows(evaluate(None, suite, batch_tokens=budget, **loaded))
            assert [(r.example, r.answer, r.correct) for r in together] == [(r.example, r.answer, r.correct) for r in alone]
            assert [r.logprob for r in together] == pytest.approx([r.logprob for r in alone], abs=1e-5)


def test_the_same_measurement_twice_gives_the_same_bytes(tmp_path, llama):
    suite = load_suite(facts_suite(tmp_path))
    assert evaluate(None, suite, **llama) == evaluate(None, suite, **llama)


def test_the_limit_measures_the_first_rows(tmp_path, llama):
    result = evaluate(None, _suite(tmp_path, "cloze", CLOZE), limit=2, **llama)
    assert ([row.example for row in _rows(result)], result.n, result.limit) == (["one", "two"], 2, 2)


def test_an_answer_outside_the_vocabulary_is_never_right(tmp_path, llama):
    bench = Bench(llama["model"], Coder(llama["tokenizer"]), 64, "eval")
    unknown = bench.text.unknown
    ids = next(i for i in range(4, 64) if bench.next_tokens([[i]]) != [unknown])
    with torch.no_grad():  # a model that always writes "unknown"
        model = copy.deepcopy(llama["model"])
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(64, 16))
        model.lm_head.weight[unknown] = model.model(torch.tensor([[ids]])).last_hidden_state[0, -1]
    word = llama["tokenizer"].decode([ids])
    result = evaluate(None, _suite(tmp_path, "cloze", [{"prompt": word, "answer": "xylophone"}]), model=model, tokenizer=llama["tokenizer"])
    (row,) = _rows(result)
    assert row.score > 1 / 64  # the model does prefer it
    assert (row.correct, result.metrics["accuracy"]) == (False, 0.0)


# --- where the answer begins -----------------------------------------------------------------------------


def _bpe(words, merges, **special):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<s>", *words])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)), **special)


def test_a_token_that_merges_across_the_border_belongs_to_the_answer():
    coder = Coder(_bpe(["a", "t", " ", "x", "t "], [("t", " ")], bos_token="<s>"))
    (context, answer), (whole, lone) = coder.split([("at", "x"), ("a", "x")])
    assert [coder.tokenizer.convert_ids_to_tokens(part) for part in (context, answer)] == [["a"], ["t ", "x"]]
    assert [coder.tokenizer.convert_ids_to_tokens(part) for part in (whole, lone)] == [["a"], [" ", "x"]]


def test_the_blank_of_a_prompt_is_written_with_the_answer():
    coder = Coder(_bpe(["a", " ", "x", " x"], [(" ", "x")], bos_token="<s>"))
    expected = ([1], [4])
    assert coder.split([("a", "x"), ("a ", "x"), ("a", " x")]) == [expected] * 3


def test_an_empty_context_begins_with_the_start_token_or_is_refused():
    assert Coder(_bpe(["a", "t"], [], bos_token="<s>")).split([("a", "t")])[0][0] == [1]
    merged = _bpe(["a", " ", "t", "a "], [("a", " ")])
    with pytest.raises(Incompatible, match="no token that begins a text"):
        Coder(merged).split([("a", "t")])
    assert Coder(_bpe(["a", " ", "t", "a "], [("a", " ")], eos_token="<s>")).split([("a", "t")])[0] == ([0], [4, 3])


def test_a_bos_that_the_tokenizer_sets_itself_is_kept_in_front():
    from tokenizers import processors

    tokenizer = _bpe(["a", "t", " "], [], bos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert Coder(tokenizer).split([("a", "t")]) == [([0, 1], [3, 2])]


def test_an_answer_that_leaves_no_token_is_named(tmp_path, llama):
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=llama["tokenizer"].backend_tokenizer, bos_token="<s>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("zz", "")
    with pytest.raises(Incompatible, match="no token of the answer 'zz'"):
        evaluate(None, _suite(tmp_path, "cloze", [{"prompt": "the", "answer": "zz"}]), model=llama["model"], tokenizer=tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])


def test_a_prompt_that_is_too_long_loses_its_beginning_and_an_answer_that_is_too_long_is_refused(tmp_path, llama):
    long = " ".join(WORDS[i % len(WORDS)] for i in range(200))
    rows = [{"prompt": long, "answer": "red"}, {"prompt": " ".join(long.split()[-63:]), "answer": "red"}]
    first, second = _rows(evaluate(None, _suite(tmp_path / "a", "cloze", rows), **llama))
    assert first.logprob == pytest.approx(second.logprob, abs=1e-5)
    with pytest.raises(Incompatible, match="200 tokens; the model reads 64"):
        evaluate(None, _suite(tmp_path / "b", "cloze", [{"prompt": "the", "answer": long}]), **llama)


# --- choice, pairs, perplexity ---------------------------------------------------------------------------


def test_choice_takes_the_most_probable_continuation(tmp_path, llama):
    choices = ["red", "speaks of the north", "in a harbour", "blue stone"]
    result = evaluate(None, _suite(tmp_path, "choice", [{"prompt": "the lamp is", "choices": choices, "index": 1}]), **llama)
    values = [sum(_plain_logprobs(llama, f"the lamp is {c}", 3)[0]) for c in choices]
    (row,) = _rows(result)
    assert row.answer == choices[values.index(max(values))]
    assert row.logprob == pytest.approx(values[1], abs=1e-5)
    assert row.score == pytest.approx(values[1] - max(v for i, v in enumerate(values) if i != 1), abs=1e-5)
    normed = [v / len(c) for v, c in zip(values, choices, strict=True)]
    assert result.metrics["accuracy_norm"] == float(normed.index(max(normed)) == 1)


def test_the_normalised_choice_counts_nats_per_character():
    example = Example("e", None, {"prompt": "p", "choices": ["no", "certainly"], "index": 1})
    assert _row(example, [-2.0, -4.0], per_character=False).correct is False
    assert _row(example, [-2.0, -4.0], per_character=True) == Prediction("e", "certainly", True, 1.0 - 4.0 / 9, -4.0)


def test_equal_choices_go_to_the_first():
    example = Example("e", None, {"prompt": "p", "choices": ["a", "b"], "index": 0})
    assert _row(example, [-1.0, -1.0], per_character=False).answer == "a"


def test_the_main_metric_decides_which_choice_the_rows_hold(tmp_path, llama):
    choices = [" ".join(WORDS[: 1 + 3 * i]) for i in range(4)]
    rows = [{"prompt": f"the {word}", "choices": choices, "index": 3} for word in WORDS]
    result = evaluate(None, _suite(tmp_path, "choice", rows, 'metric = "accuracy_norm"'), **llama)
    found = _rows(result)
    assert sum(row.correct for row in found) / len(found) == result.metrics["accuracy_norm"] != result.metrics["accuracy"]


def test_pairs_compare_whole_sentences(tmp_path, llama):
    rows = [{"good": f"the {a} is {b}", "bad": f"{b} the is {a}"} for a, b in itertools.pairwise(WORDS)]
    result = evaluate(None, _suite(tmp_path, "pairs", rows), **llama)
    for row, pair in zip(_rows(result), rows, strict=True):
        good, bad = (sum(_plain_logprobs(llama, f"<s> {pair[side]}", 1)[0]) for side in ("good", "bad"))
        assert row.score == pytest.approx(good - bad, abs=1e-5)
        assert (row.correct, row.answer) == (good > bad, "good" if good > bad else "bad")
    assert 0 < result.metrics["accuracy"] < 1


def test_perplexity_scores_every_token_once_and_weighs_by_tokens(tmp_path, llama):
    words = [WORDS[(5 * i) % len(WORDS)] for i in range(23)]
    (tmp_path / "t.txt").write_text(" ".join(words))
    (tmp_path / "s.toml").write_text('name = "s"\nkind = "perplexity"\ndata = "t.txt"\nseq_len = 8')
    result = evaluate(None, load_suite(tmp_path / "s.toml"), **llama)
    pieces = [words[i : i + 7] for i in range(0, 23, 7)]  # BOS takes the eighth place
    values = [_plain_logprobs(llama, "<s> " + " ".join(piece), 1)[0] for piece in pieces]
    total = sum(map(sum, values))
    rows = _rows(result)
    assert [row.example for row in rows] == [f"t.txt#{i}" for i in range(4)]
    assert [row.score for row in rows] == pytest.approx([-sum(v) / len(v) for v in values], abs=1e-5)
    assert [row.correct for row in rows] == [None] * 4
    assert result.metrics["tokens"] == 23
    assert result.metrics["nll"] == pytest.approx(-total / 23, abs=1e-5)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(-total / 23), rel=1e-5)
    assert result.metrics["bits_per_byte"] == pytest.approx(-total / math.log(2) / len(" ".join(words)), rel=1e-5)


def test_documents_do_not_touch_each_other(tmp_path, llama):
    texts = [" ".join(WORDS[i : i + 9]) for i in range(4)]
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    together = _rows(evaluate(None, _suite(tmp_path / "all", "perplexity", rows), **llama))
    for i, row in enumerate(rows):
        (alone,) = _rows(evaluate(None, _suite(tmp_path / str(i), "perplexity", [row]), **llama))
        assert together[i].example == alone.example == f"d{i}#0"
        assert together[i].logprob == pytest.approx(alone.logprob, abs=1e-5)


# --- classes ---------------------------------------------------------------------------------------------


def test_texts_are_classified_as_by_a_plain_forward_pass(tmp_path, home):
    loaded = _loaded(tiny_model(home / "bert", "bert"))
    rows = [{"text": " ".join(WORDS[i : i + n]), "label": (i + n) % 3} for i in range(5) for n in (1, 4, 9)]
    rows[0]["label"] = "LABEL_1"
    suite = _suite(tmp_path, "classify", rows)
    alone, together = (_rows(evaluate(None, suite, batch_tokens=budget, **loaded)) for budget in (1, 8192))
    for one, other, example in zip(alone, together, rows, strict=True):
        with torch.no_grad():
            ids = loaded["tokenizer"](example["text"], return_tensors="pt")["input_ids"]
            logprobs = loaded["model"](input_ids=ids).logits[0].log_softmax(-1)
        label = 1 if example["label"] == "LABEL_1" else example["label"]
        assert one.answer == other.answer == f"LABEL_{int(logprobs.argmax())}"
        assert one.logprob == pytest.approx(logprobs[label].item(), abs=1e-5)
        assert other.logprob == pytest.approx(one.logprob, abs=1e-5)
        assert one.correct == (int(logprobs.argmax()) == label)


def test_images_may_be_flat_or_nested(tmp_path, home):
    loaded = _loaded(tiny_model(home / "vit", "vit"))
    torch.manual_seed(0)
    images = torch.rand(7, 8, 8)
    shapes = [images[0].reshape(-1), images[1], images[2][None], images[3][..., None], *images[4:]]
    rows = [{"id": str(i), "image": shape.tolist(), "label": i % 3} for i, shape in enumerate(shapes)]
    found = _rows(evaluate(None, _suite(tmp_path, "classify", rows), model=loaded["model"]))
    with torch.no_grad():
        logprobs = loaded["model"](pixel_values=images[:, None]).logits.log_softmax(-1)
    assert [row.logprob for row in found] == pytest.approx([logprobs[i, i % 3].item() for i in range(7)], abs=1e-5)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image": [0.0] * 63, "label": 0}, "63 pixel values, the model wants 1 x 8 x 8"),
        ({"image": [0.0] * 64, "label": 3}, "none of the model's 3 classes"),
        ({"image": [0.0] * 64, "label": "cat"}, "none of the model's 3 classes"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_named(tmp_path, home, row, says):
    loaded = _loaded(tiny_model(home / "vit", "vit"))
    with pytest.raises(Incompatible, match=says):
        evaluate(None, _suite(tmp_path, "classify", [row]), model=loaded["model"])


def test_texts_and_images_do_not_mix(tmp_path, home):
    vit = _loaded(tiny_model(home / "vit", "vit"))
    with pytest.raises(Incompatible, match="text among images"):
        evaluate(None, _suite(tmp_path, "classify", [{"image": [0.0] * 64, "label": 0}, {"text": "a", "label": 0}]), model=vit["model"])


# --- what does not fit, what breaks ----------------------------------------------------------------------


def test_a_model_without_the_right_head_is_refused(tmp_path, llama, home):
    with pytest.raises(Incompatible, match="LlamaForCausalLM cannot answer"):
        evaluate(None, _suite(tmp_path, "classify", [{"text": "a", "label": 0}]), **llama)
    bert = _loaded(tiny_model(home / "bert", "bert"))
    with pytest.raises(Incompatible, match="cannot answer"):
        evaluate(None, load_suite(facts_suite(tmp_path)), **bert)


def test_numbers_that_are_not_finite_become_holes_and_wrong_answers(tmp_path, llama):
    model = copy.deepcopy(llama["model"])
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    for kind, rows in [
        ("cloze", CLOZE),
        ("choice", [{"prompt": "the", "choices": ["a", "of"], "index": 0}]),
        ("pairs", [{"good": "the lamp", "bad": "lamp the"}]),
    ]:
        result = evaluate(None, _suite(tmp_path / kind, kind, rows), model=model, tokenizer=llama["tokenizer"])
        assert (result.metrics["accuracy"], result.metrics["logprob"]) == (0.0, None)
        assert all((row.correct, row.score, row.logprob) == (False, None, None) for row in _rows(result))
    result = evaluate(None, _suite(tmp_path / "p", "perplexity", [{"text": "the lamp"}]), model=model, tokenizer=llama["tokenizer"])
    assert (result.metrics["perplexity"], result.metrics["nll"], result.metrics["tokens"]) == (None, None, 2.0)
    assert _rows(result)[0].correct is None


def test_a_perplexity_beyond_all_floats_is_a_hole():
    from mlc.ops.evaluate.perplexity import totals

    assert totals([-8000.0], 10, 5)["perplexity"] is None
    assert totals([-8000.0], 10, 5)["nll"] == 800.0


def test_one_missing_number_leaves_no_mean():
    assert (mean([1.0, 3.0]), mean([1.0, None]), mean([])) == (2.0, None, None)
    assert settled(Prediction("e", "a", True, float("inf"), -1.0)) == Prediction("e", "a", False, None, -1.0)


def test_the_model_is_left_as_it_was(tmp_path, llama):
    model = copy.deepcopy(llama["model"]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(None, load_suite(facts_suite(tmp_path)), model=model, tokenizer=llama["tokenizer"])
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_progress_reaches_the_end(tmp_path, llama):
    told = []
    evaluate(None, load_suite(facts_suite(tmp_path)), progress=lambda *step: told.append(step), batch_tokens=16, **llama)
    assert told == [("eval facts", 4, 12), ("eval facts", 8, 12), ("eval facts", 12, 12)]


def test_a_bad_row_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(BadInputFile):
        evaluate(None, _suite(tmp_path, "cloze", [{"prompt": "x"}]))


# --- rows and records ------------------------------------------------------------------------------------


def test_rows_are_an_arrow_file_with_the_columns_of_the_catalog(tmp_path, llama):
    result = evaluate(None, _suite(tmp_path, "cloze", CLOZE), **llama)
    schema = pa.ipc.open_file(result.rows).schema
    assert [(field.name, str(field.type)) for field in schema] == [
        ("example", "string"),
        ("answer", "string"),
        ("correct", "bool"),
        ("score", "double"),
        ("logprob", "double"),
        ("slice", "string"),
    ]


def test_rows_survive_the_columnar_form():
    rows = [Prediction("a", "x", True, 1.0, -0.5, "s"), Prediction("b", "", None, None, None)]
    assert from_arrow(to_arrow(rows)) == rows
    assert from_arrow(to_arrow([])) == []
    assert [o.correct for o in outcomes(rows)] == [True, None]


def test_a_result_becomes_the_record_of_an_evaluation(tmp_path, llama):
    suite = _suite(tmp_path, "cloze", CLOZE)
    result = evaluate(None, suite, limit=3, **llama)
    record = result.record("5" * 64, blob_digest(result.rows), {"threads": 1})
    assert (record.suite, record.suite_digest, record.n, record.limit, record.scorer) == ("s", suite.digest, 3, 3, "builtin:1")
    assert record.metrics == result.metrics
    assert type(record).from_json(record.to_json()) == record


def test_batches_are_longest_first_and_keep_to_the_budget():
    bench = Bench(None, None, 12, "eval")
    lengths = [3, 9, 1, 3, 20, 4]
    batches = list(bench.batches(lengths))
    assert [i for batch in batches for i in batch] == [4, 1, 5, 0, 3, 2]
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 12 for batch in batches)
    assert list(bench.batches([4, 4], width=1 << 26)) == [[0], [1]]
    assert list(bench.batches([])) == []


def test_a_view_is_loaded_in_float32_with_its_own_tokenizer(tmp_path, home):
    from mlc.tests.ops.fakes import MemoryView

    directory = tiny_model(home / "half", "llama", dtype="bfloat16")
    view = MemoryView.of(directory)
    suite = load_suite(facts_suite(tmp_path))
    loaded = _loaded(directory)
    assert evaluate(view, suite) == evaluate(None, suite, model=loaded["model"].float(), tokenizer=loaded["tokenizer"])


def test_sequences_are_scored_in_their_given_order(llama):
    bench = Bench(llama["model"], Coder(llama["tokenizer"]), 32, "eval")
    rows = [TokenRow([5], [6] * n, str(n)) for n in (1, 5, 2, 4, 3)]
    with torch.inference_mode():
        assert [len(found.best) for found in bench.likelihoods(rows)] == [1, 5, 2, 4, 3]
