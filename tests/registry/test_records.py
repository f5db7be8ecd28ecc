"""Records and their ids: the bytes are pinned, because an id that changes is a history that is lost."""

from __future__ import annotations

import math

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from mlc.registry.errors import BadParameter, CorruptRecord
from mlc.registry.ids import CommitId, Digest, blob_digest, is_digest, record_digest, tensor_digest
from mlc.registry.records import (
    ArtifactRecord,
    Commit,
    Evaluation,
    FileEntry,
    InputRecord,
    OperationRecord,
    RefUpdate,
    RuleOutcome,
    Snapshot,
    TensorDelta,
    TensorEntry,
    Verdict,
    Waiver,
    canonical,
)

TIME = "2026-01-02T03:04:05.678901Z"
SNAPSHOT = Snapshot(
    (TensorEntry("w", "F32", (2, 3), Digest("1" * 64)),),
    (FileEntry("model.safetensors", 100, "2" * 64, "weights", Digest("3" * 64), ("w",)),),
)
COMMIT = Commit(
    (CommitId("4" * 64),),
    SNAPSHOT.id,
    OperationRecord("update", 1, {"lr": 0.0001, "steps": 10, "where": None}),
    "Ada",
    TIME,
    "more text",
    seeds={"torch": 7},
    inputs=(InputRecord("data", "oz.txt", "5" * 64, 12),),
    environment={"threads": 2},
    artifacts=(ArtifactRecord("fisher", "k", Digest("6" * 64), 9),),
    metrics={"facts": {"accuracy": 0.75, "perplexity": None}},
    evaluations={"facts": Digest("7" * 64)},
    check={"landed": True},
    verdict=Verdict(
        "accepted",
        (RuleOutcome("r", "flips.nfr", "facts", "pass", "block", 0.02, 0.01, None, 100, "fine."),),
        CommitId("4" * 64),
        (Waiver("r", "why", "Ada", TIME),),
    ),
)
EVALUATION = Evaluation(SNAPSHOT.id, "facts", "8" * 64, "cloze", {"accuracy": 0.75}, 100, Digest("9" * 64))


def test_canonical_bytes_are_sorted_compact_utf8():
    assert canonical({"b": [1, 2.5, None, True], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.5,null,true]}'.encode()


def test_a_number_that_is_not_finite_becomes_null():
    assert canonical([math.nan, math.inf, -math.inf, 0.1]) == b"[null,null,null,0.1]"


def test_a_key_that_is_not_text_is_refused():
    with pytest.raises(TypeError):
        canonical({1: "one"})


def test_the_id_of_a_snapshot_is_pinned():
    assert SNAPSHOT.encode() == (
        b'{"base":null,"files":[{"digest":"%s","kind":"weights","path":"model.safetensors","sha256":"%s","size":100,"tensors":["w"]}],'
        b'"kind":"model","tensors":[{"digest":"%s","dtype":"F32","name":"w","shape":[2,3]}]}' % (b"3" * 64, b"2" * 64, b"1" * 64)
    )
    assert SNAPSHOT.id == "dc0889370d51a159a1927a90898503531c5b565fa22b9133deb142b9781b0ee3"
    assert SNAPSHOT.id == blake3(b"mlc.snapshot.v1\n" + SNAPSHOT.encode()).hexdigest()


def test_the_id_of_a_commit_is_pinned():
    assert COMMIT.id == "01b5721439462274e847b557593ef407c8c3abc24a7db34f2ac47935b44ead37"
    assert COMMIT.id == blake3(b"mlc.commit.v1\n" + COMMIT.encode()).hexdigest()
    assert sorted(COMMIT.to_json()) == [
        "artifacts", "author", "check", "environment", "evaluations", "inputs", "message", "metrics",
        "op", "parents", "seeds", "snapshot", "time", "verdict", "version",
    ]  # fmt: skip


def test_the_id_of_an_evaluation_is_pinned():
    assert EVALUATION.id == "77fec299a1be02b12dbd25f9b3b793e9b347deb0827222b96300b34c4e83a797"
    assert EVALUATION.id == blake3(b"mlc.evaluation.v1\n" + EVALUATION.encode()).hexdigest()


def test_digests_of_tensors_and_blobs_are_pinned():
    assert blob_digest(b"abc") == "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    assert tensor_digest("F32", (2, 3), [bytes(24)]) == "a32be97bd7628b03454e4ab77797b57141b17e444acb45c267f489353f3cab75"
    assert tensor_digest("F32", (2, 3), [bytes(24)]) == blake3(b"mlc.tensor.v1\nF32\n2,3\n" + bytes(24)).hexdigest()


def test_a_tensor_is_no_blob_and_no_other_shape_with_the_same_bytes():
    data = bytes(24)
    names = {
        blob_digest(data),
        tensor_digest("F32", (6,), [data]),
        tensor_digest("F32", (2, 3), [data]),
        tensor_digest("I32", (6,), [data]),
    }
    assert len(names) == 4
    assert tensor_digest("F32", (6,), [data[:5], data[5:]]) in names
    assert record_digest("a", b"") != record_digest("b", b"")


@pytest.mark.parametrize(
    "record",
    [
        SNAPSHOT,
        COMMIT,
        EVALUATION,
        RefUpdate("heads/main", None, CommitId("1" * 64)),
        TensorDelta("w", None, Digest("1" * 64), "raw", 8, 4, l2=0.5),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_survives_json(record):
    import json

    assert type(record).from_json(json.loads(record.encode())) == record


def test_a_record_with_an_unknown_or_missing_key_is_refused():
    good = RefUpdate("heads/main", None, None).to_json()
    with pytest.raises(CorruptRecord, match="unknown keys: colour"):
        RefUpdate.from_json({**good, "colour": "red"})
    with pytest.raises(CorruptRecord, match="incomplete"):
        RefUpdate.from_json({"name": "heads/main"})
    with pytest.raises(CorruptRecord, match="not a JSON object"):
        RefUpdate.from_json(["heads/main"])  # type: ignore[arg-type]


@given(
    st.fixed_dictionaries({name: st.text(st.characters(exclude_categories=["Cs"])) for name in ("author", "message", "name")}),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_text_and_any_finite_number_survive_a_commit(texts: dict[str, str], number: float):
    import json

    op = OperationRecord(texts["name"], 1, {"x": number, texts["name"]: [texts["message"]]})
    commit = Commit((), SNAPSHOT.id, op, texts["author"], TIME, texts["message"], metrics={"s": {"m": number}})
    again = Commit.from_json(json.loads(commit.encode()))
    assert again == commit
    assert again.id == commit.id
    assert is_digest(commit.id)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_canonical_bytes_read_back_as_the_value_and_encode_to_themselves(value):
    import json

    data = canonical(value)
    assert json.loads(data) == value
    assert canonical(json.loads(data)) == data
    assert b"\n" not in data


def test_text_that_is_no_unicode_is_refused_in_words():
    with pytest.raises(BadParameter, match="not valid UTF-8"):
        canonical({"message": "broken \udcff"})


def test_a_snapshot_that_was_named_is_what_it_was_and_its_copies_get_names_of_their_own():
    import copy
    import dataclasses
    import pickle

    plain = Snapshot((TensorEntry("a", "F32", (2,), Digest("0" * 64)),), ())
    named = dataclasses.replace(plain)
    assert named.id == plain.id == named.id
    fresh = dataclasses.replace(plain)
    assert fresh == named
    assert fresh.encode() == named.encode()
    assert hash(fresh) == hash(named)
    assert copy.copy(named).id == pickle.loads(pickle.dumps(named)).id == named.id
    assert dataclasses.replace(named, kind="adapter").id != named.id
    assert Snapshot.from_json(named.to_json()) == named
