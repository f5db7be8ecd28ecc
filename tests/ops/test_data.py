"""Corpora, rows and mixtures."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mlc.ops.data import Marks, Mixture, Source, pack, read_corpus
from mlc.ops.data.corpus import join
from mlc.ops.data.packing import cut
from mlc.registry.errors import BadInputFile, InputNotFound
from mlc.registry.ids import blob_digest

MARKS = Marks(bos=1, eos=2)


@pytest.fixture(scope="module")
def core():
    """Digits to ids 10 + digit, so that rows can be read by eye."""
    made = Tokenizer(models.WordLevel({str(d): 10 + d for d in range(10)} | {"?": 3}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def fault(path):
    with pytest.raises(BadInputFile) as caught:
        read_corpus(path)
    return caught.value


# --- reading ---


def test_a_text_file_is_one_running_document_with_its_digest(tmp_path):
    path = write(tmp_path / "a.txt", "one two\nthree\n")
    corpus = read_corpus(path)
    assert corpus.documents == ("one two\nthree\n",)
    assert corpus.running
    record = corpus.record
    assert (record.role, record.name, record.digest, record.bytes) == ("data", "a.txt", blob_digest(b"one two\nthree\n"), 14)


def test_jsonl_rows_are_texts_or_prompts_with_their_answers(tmp_path):
    rows = [{"text": "a b"}, {"prompt": "x is", "answer": "y"}, {"prompt": "x is", "completion": " y"}, {"question": "q?\n", "answer": "z"}]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(r) for r in rows) + "\n\n")
    assert read_corpus(path).documents == ("a b", "x is y", "x is y", "q?\nz")
    assert not read_corpus(path).running


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a\u2028b"}\n')
    assert read_corpus(path).documents == ("a\u2028b",)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('{"text": "a"}\n{"text": }\n', 2, "not valid JSON"),
        ('{"text": "a"}\n\n{"body": "b"}\n', 3, "neither `text` nor a `prompt`"),
        ('["a"]\n', 1, "expected a JSON object"),
        ('{"text": 5}\n', 1, "not a string"),
        ('{"prompt": 5, "answer": "x"}\n', 1, "not a string"),
        ('{"text": "  "}\n', 1, "empty"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', 2, "not UTF-8"),
        ("[" * 100_000, 1, "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_by_path_and_number(tmp_path, content, line, words):
    path = write(tmp_path / "bad.jsonl", content)
    error = fault(path)
    assert error.details == {"path": str(path), "line": line}
    assert f"{path}, line {line}" in error.message
    assert words in error.message


@pytest.mark.parametrize("content", ["", " \n\t\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_is_refused(tmp_path, name, content):
    assert "is empty" in fault(write(tmp_path / name, content)).message


def test_a_missing_file_and_a_directory_are_said_apart(tmp_path):
    with pytest.raises(InputNotFound, match="does not exist"):
        read_corpus(tmp_path / "no.txt")
    assert "is a directory" in fault(tmp_path).message


@given(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8))
def test_joining_never_loses_a_character(prompt, answer):
    joined = join(prompt, answer)
    assert joined.startswith(prompt)
    assert joined.endswith(answer)
    assert len(joined) - len(prompt) - len(answer) in (0, 1)


# --- packing ---


def test_rows_start_with_bos_and_keep_the_order_of_the_text(tmp_path, core):
    corpus = read_corpus(write(tmp_path / "a.txt", "0 1 2 3 4 5 6 7 8"))
    packed = pack(corpus, core, MARKS, 5)
    assert packed.train.tolist() == [[1, 10, 11, 12, 13], [1, 14, 15, 16, 17]]
    assert packed.tokens == 9
    assert len(packed.held) == 0


def test_documents_are_parted_by_eos_and_bos(tmp_path, core):
    corpus = read_corpus(write(tmp_path / "a.jsonl", '{"text": "0 1"}\n{"text": "2"}\n{"text": "3 4 5"}\n'))
    packed = pack(corpus, core, MARKS, 6)
    assert packed.train.tolist() == [[1, 10, 11, 2, 1, 12], [1, 2, 1, 13, 14, 15]]


def test_a_tokenizer_without_bos_starts_rows_with_eos_and_one_without_either_with_nothing(core):
    assert cut([10, 11, 12, 13], 3, Marks(None, 2).first).tolist() == [[2, 10, 11], [2, 12, 13]]
    assert cut([10, 11, 12, 13], 2, Marks(None, None).first).tolist() == [[10, 11], [12, 13]]
    assert Marks(None, 2).between == (2,)


def test_the_tail_of_a_running_text_is_held_out(tmp_path, core):
    corpus = read_corpus(write(tmp_path / "a.txt", " ".join(str(i % 10) for i in range(100))))
    packed = pack(corpus, core, MARKS, 11, holdout=0.2)
    assert (len(packed.train), len(packed.held)) == (8, 2)
    both = torch.cat([packed.train, packed.held])
    assert torch.equal(both, pack(corpus, core, MARKS, 11).train)


def test_held_out_documents_are_chosen_by_content_and_never_trained_on(tmp_path, core):
    lines = [f"{i % 10} {i // 10 % 10} {i // 100} {i % 7}" for i in range(200)]
    one = read_corpus(write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in lines)))
    other = read_corpus(write(tmp_path / "b.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in reversed(lines))))
    first, second = (pack(c, core, MARKS, 7, holdout=0.1) for c in (one, other))

    def documents(rows):
        stream = " ".join(str(i) for row in rows.tolist() for i in row[1:])
        return set(stream.split(" 2 1 "))

    assert len(first.held) >= 1
    assert len(documents(first.held) & documents(second.held)) >= 15  # of 20: the ends of rows fall differently
    assert not documents(first.held) & {d for d in documents(first.train) if d.count(" ") == 3}


def test_a_corpus_too_small_to_spare_a_row_is_trained_on_whole(tmp_path, core):
    corpus = read_corpus(write(tmp_path / "a.jsonl", '{"text": "0 1 2 3"}\n{"text": "4 5 6 7"}\n'))
    packed = pack(corpus, core, MARKS, 6, holdout=0.1, least=2)
    assert (len(packed.train), len(packed.held)) == (2, 0)


def test_less_than_one_batch_is_said_with_the_numbers(tmp_path, core):
    corpus = read_corpus(write(tmp_path / "small.txt", "0 1 2 3 4"))
    with pytest.raises(BadInputFile, match=r"small.txt holds 5 tokens, fewer than one batch of 8 rows of 128") as caught:
        pack(corpus, core, MARKS, 128, least=8)
    assert "--seq-len" in caught.value.hint


def test_a_long_text_is_tokenised_in_pieces_without_losing_anything(tmp_path, core, monkeypatch):
    text = "".join(f"{i % 10} {i % 7}\n" for i in range(50))
    corpus = read_corpus(write(tmp_path / "a.txt", text))
    whole = pack(corpus, core, MARKS, 6).train
    monkeypatch.setattr("mlc.ops.data.packing._PIECE", 37)
    assert torch.equal(pack(corpus, core, MARKS, 6).train, whole)


# --- mixing ---


def source(name, rows, share, base):
    return Source(name, torch.arange(rows)[:, None].repeat(1, 3) + base, share)


def mixture(seed=0, batch=8):
    return Mixture([source("data", 20, 0.5, 0), source("a", 6, 0.375, 100), source("b", 5, 0.125, 200)], batch=batch, seed=seed)


def test_the_shares_hold_in_every_batch_and_rows_of_a_source_lie_side_by_side():
    for number in range(10):
        assert mixture().at(number).source == (0, 0, 0, 0, 1, 1, 1, 2)


def test_every_row_is_read_once_before_any_is_read_again():
    first = [i for n in range(5) for i in mixture().at(n).ids[:, 0].tolist() if i < 100]
    assert sorted(first) == list(range(20))
    again = [i for n in range(5, 10) for i in mixture().at(n).ids[:, 0].tolist() if i < 100]
    assert sorted(again) == list(range(20))
    assert first != again


def test_a_batch_depends_on_seed_and_number_alone():
    assert torch.equal(mixture().at(7).ids, mixture().at(7).ids)
    assert not torch.equal(mixture(seed=0).at(0).ids, mixture(seed=1).at(0).ids)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 9))
def test_after_any_number_of_rows_each_source_has_delivered_its_share(weights, batch):
    shares = [w / sum(weights) for w in weights]
    mixed = Mixture([source(str(i), 4, s, 100 * i) for i, s in enumerate(shares)], batch=batch, seed=0)
    counts = [0] * len(shares)
    for number in range(12):
        for which in mixed.at(number).source:
            counts[which] += 1
        total = (number + 1) * batch
        assert all(abs(c - s * total) <= len(shares) for c, s in zip(counts, shares, strict=True))


def test_the_digest_of_a_mixture_covers_rows_shares_and_seed():
    assert mixture().digest() == mixture().digest()
    assert mixture().digest() != mixture(seed=1).digest()
    assert (
        Mixture([source("data", 20, 1.0, 0)], batch=8, seed=0).digest() != Mixture([source("data", 20, 1.0, 1)], batch=8, seed=0).digest()
    )


def test_shares_that_do_not_fill_a_batch_are_a_fault():
    with pytest.raises(ValueError, match="sum to 1"):
        Mixture([source("data", 5, 0.5, 0)], batch=2, seed=0)
