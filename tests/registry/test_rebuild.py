"""A parent plus changes: headers stay where names and shapes stay, and are what the library would write where they do not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mlc.ops.base import CopyTensor, DropTensor, SetFile, SetTensor
from mlc.registry.errors import BadInputFile, BadParameter, Incompatible, NotFound
from mlc.registry.formats.directory import build_adapter, export, ingest, rebuild, scan
from mlc.registry.formats.safetensors import parse_header
from mlc.registry.formats.storing import Spool
from mlc.registry.records import Snapshot
from mlc.registry.repository import Repository


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a": torch.randn(4, 4), "b": torch.randn(4, 4), "c": torch.randn(3).to(torch.bfloat16), "n": torch.arange(4)}


def store(repo, folder: Path) -> Snapshot:
    with repo.ingest() as tx:
        snapshot = ingest(tx, scan(folder))[0]
        tx.seal()
    return snapshot


def apply(repo, parent: Snapshot, *changes):
    with repo.ingest() as tx:
        result = rebuild(tx, parent, iter(changes))
        tx.seal()
    return result


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.torch.save_file(weights(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    folder.mkdir()
    w = weights()
    safetensors.torch.save_file({"a": w["a"], "c": w["c"]}, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    safetensors.torch.save_file({"b": w["b"], "n": w["n"]}, folder / "model-00002-of-00002.safetensors", {"format": "pt"})
    where = {"a": 1, "b": 2, "c": 1, "n": 2}
    weight_map = {name: f"model-0000{n}-of-00002.safetensors" for name, n in where.items()}
    # 166 bytes in truth: whoever wrote this counted in a way of their own
    index = {"metadata": {"total_parameters": 39, "total_size": 170, "made_by": "me"}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return folder


def exported(repo, snapshot: Snapshot, tmp_path: Path) -> Path:
    target = tmp_path / f"out-{snapshot.id[:8]}"
    export(repo, snapshot, target)  # verifies every SHA-256 that rebuild computed
    return target


def as_the_library_saves(tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save(tensors, {"format": "pt"})


def test_no_change_gives_the_parent_itself(repo, model: Path):
    parent = store(repo, model)
    same = weights()
    assert apply(repo, parent) == (parent, [])
    assert apply(repo, parent, SetTensor("a", same["a"]), CopyTensor("b", "b"), SetFile("config.json", b"{}")) == (parent, [])


def test_a_changed_tensor_keeps_the_header_and_every_other_byte(repo, model: Path, tmp_path: Path):
    parent = store(repo, model)
    changed = weights()["b"] * 1.5
    snapshot, deltas = apply(repo, parent, SetTensor("b", changed))
    before, after = parent.files[1], snapshot.files[1]
    assert (after.digest, after.tensors, after.size) == (before.digest, before.tensors, before.size)
    assert (exported(repo, snapshot, tmp_path) / "model.safetensors").read_bytes() == as_the_library_saves({**weights(), "b": changed})
    assert [d.tensor for d in deltas] == ["b"]
    assert deltas[0].nnz == 16
    assert snapshot.files[0] == parent.files[0]


def test_a_header_that_the_library_would_not_write_is_kept_while_names_and_shapes_stay(repo, tmp_path: Path):
    folder = tmp_path / "odd"
    folder.mkdir()
    text = b'{ "b":{"shape":[1],"dtype":"U8","data_offsets":[0,1]},"a":{"data_offsets":[1,5],"dtype":"F32","shape":[1]} }'
    head = len(text).to_bytes(8, "little") + text
    (folder / "model.safetensors").write_bytes(head + b"\x07" + bytes(4))
    snapshot, _ = apply(repo, store(repo, folder), SetTensor("a", torch.tensor([1.0])))
    assert (exported(repo, snapshot, tmp_path) / "model.safetensors").read_bytes() == head + b"\x07\x00\x00\x80\x3f"


def test_new_dropped_and_reshaped_tensors_give_the_file_that_the_library_would_save(repo, model: Path, tmp_path: Path):
    w = weights()
    snapshot, deltas = apply(
        repo,
        store(repo, model),
        SetTensor("z.new", torch.ones(2, dtype=torch.float16)),
        SetTensor("a", w["a"][:2].contiguous()),
        SetTensor("n", w["n"].to(torch.int32)),
        DropTensor("c"),
        CopyTensor("b.copy", "b"),
    )
    result = {
        "a": w["a"][:2].contiguous(),
        "b": w["b"],
        "b.copy": w["b"].clone(),
        "n": w["n"].to(torch.int32),
        "z.new": torch.ones(2).half(),
    }
    assert (exported(repo, snapshot, tmp_path) / "model.safetensors").read_bytes() == as_the_library_saves(result)
    assert [t.name for t in snapshot.tensors] == sorted(result)
    found = {d.tensor: d for d in deltas}
    assert set(found) == {"a", "b.copy", "n", "z.new"}
    assert (found["b.copy"].codec, found["b.copy"].bytes_stored, found["b.copy"].bytes_logical) == ("ref", 0, 64)


def test_a_copy_reads_the_parent_even_when_its_source_has_changed(repo, model: Path):
    parent = store(repo, model)
    snapshot, _ = apply(repo, parent, SetTensor("a", torch.zeros(4, 4)), CopyTensor("a.old", "a"), CopyTensor("b", "a"))
    view = repo.view(snapshot.id)
    assert view.tensor("a").equal(torch.zeros(4, 4))
    assert view.tensor("a.old").equal(weights()["a"])
    assert view.tensor("b").equal(weights()["a"])


def test_a_dropped_tensor_may_come_back_and_the_last_word_counts(repo, model: Path):
    parent = store(repo, model)
    assert apply(repo, parent, DropTensor("a"), SetTensor("a", weights()["a"]))[0] == parent
    snapshot, _ = apply(repo, parent, SetTensor("a", torch.ones(4, 4)), SetTensor("a", torch.zeros(4, 4)))
    assert repo.view(snapshot.id).tensor("a").equal(torch.zeros(4, 4))


def test_taking_a_change_back_gives_the_old_snapshot(repo, model: Path):
    parent = store(repo, model)
    child, _ = apply(
        repo, parent, SetTensor("new", torch.ones(2)), DropTensor("c"), SetFile("config.json", b'{"x":1}'), SetFile("note", b"n")
    )
    back = [DropTensor("new"), SetTensor("c", weights()["c"]), SetFile("config.json", b"{}"), SetFile("note", None)]
    assert apply(repo, child, *back)[0] == parent


# --- shards ----------------------------------------------------------------------------------------------


def test_content_that_is_stored_already_costs_no_byte_and_is_measured_all_the_same(repo, model: Path):
    parent, w = store(repo, model), weights()
    child, (there,) = apply(repo, parent, SetTensor("a", w["a"] + 1))
    _, (back,) = apply(repo, child, SetTensor("a", w["a"]))
    assert there.bytes_stored > 0
    assert (back.codec, back.bytes_stored, back.bytes_logical, back.nnz) == ("ref", 0, 64, 16)
    twice = apply(repo, parent, SetTensor("a", w["b"] * 2), SetTensor("b", w["b"] * 2))[1]
    assert sorted(delta.codec == "ref" for delta in twice) == [False, True]


def test_new_tensors_go_into_the_shard_of_their_base_and_the_index_follows(repo, sharded: Path, tmp_path: Path):
    snapshot, _ = apply(
        repo,
        store(repo, sharded),
        SetTensor("a2", torch.zeros(4, 4), base="a"),
        CopyTensor("c2", "c"),
        SetTensor("free", torch.zeros(1)),
        DropTensor("n"),
    )
    out = exported(repo, snapshot, tmp_path)
    source = scan(out)
    assert {path: sorted(e.name for e in header.entries) for path, header in source.weights.items()} == {
        "model-00001-of-00002.safetensors": ["a", "a2", "c", "c2"],
        "model-00002-of-00002.safetensors": ["b", "free"],
    }
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"made_by": "me", "total_parameters": 39 + 16 + 3 + 1 - 4, "total_size": 170 + 64 + 6 + 4 - 32}
    assert source.warnings == ()


def test_values_alone_leave_index_and_untouched_shard_as_they_are(repo, sharded: Path):
    parent = store(repo, sharded)
    snapshot, _ = apply(repo, parent, SetTensor("b", torch.zeros(4, 4)))
    before, after = ({f.path: f for f in s.files} for s in (parent, snapshot))
    assert [path for path in before if before[path] != after[path]] == ["model-00002-of-00002.safetensors"]


def test_a_type_that_changes_everywhere_changes_the_total_of_the_index(repo, sharded: Path, tmp_path: Path):
    snapshot, _ = apply(repo, store(repo, sharded), SetTensor("a", weights()["a"].double()))
    index = json.loads((exported(repo, snapshot, tmp_path) / "model.safetensors.index.json").read_text())
    assert (index["metadata"]["total_size"], index["metadata"]["total_parameters"]) == (170 + 64, 39)


def test_a_shard_that_loses_its_last_tensor_disappears(repo, sharded: Path, tmp_path: Path):
    snapshot, _ = apply(repo, store(repo, sharded), DropTensor("b"), DropTensor("n"))
    assert [f.path for f in snapshot.files] == ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    index = json.loads((exported(repo, snapshot, tmp_path) / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {"a", "c"}


def test_an_index_that_the_operation_sets_itself_is_not_second_guessed(repo, sharded: Path):
    mine = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    snapshot, _ = apply(repo, store(repo, sharded), DropTensor("n"), SetFile("model.safetensors.index.json", mine))
    assert repo.view(snapshot.id).file("model.safetensors.index.json") == mine


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (DropTensor("nothing"), NotFound),
        (CopyTensor("x", "nothing"), NotFound),
        (CopyTensor("../x", "a"), BadParameter),
        (SetTensor("a b", torch.zeros(1)), BadParameter),
        (SetTensor("x", torch.zeros(1, dtype=torch.complex128)), Incompatible),
        (SetFile("../config.json", b""), BadParameter),
        (SetFile("nothing", None), NotFound),
        (SetFile("model.safetensors", b""), BadParameter),
        (SetFile("config.json/x", b""), BadParameter),
        (SetFile("config.json", b'{"a":1,"a":2}'), BadInputFile),
        ("not a change", TypeError),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_nothing_is_stored(change: object, error: type[Exception], repo, model: Path):
    parent, packs = store(repo, model), repo.objects.packs()
    with pytest.raises(error):
        apply(repo, parent, SetTensor("a", torch.zeros(4, 4)), change)
    assert repo.objects.packs() == packs


def test_a_model_cannot_lose_all_its_tensors(repo, model: Path):
    with pytest.raises(BadParameter, match="every tensor"):
        apply(repo, store(repo, model), *(DropTensor(name) for name in weights()))


# --- streaming -------------------------------------------------------------------------------------------


def test_bytes_beyond_the_memory_of_the_spool_come_back_from_disk(repo, monkeypatch: pytest.MonkeyPatch):
    from mlc.registry.formats import storing

    monkeypatch.setattr(storing, "SPOOL_MEMORY", 8)
    monkeypatch.setattr(storing, "CHUNK", 3)
    seen: list[bytes] = []
    with repo.ingest() as tx, Spool(tx) as spool:
        for number in range(3):
            spool.keep(f"d{number}", memoryview(bytes([number]) * 10))  # type: ignore[arg-type]
        for number in (2, 0, 1):
            spool.read_into(lambda chunk: seen.append(bytes(chunk)), f"d{number}")  # type: ignore[arg-type]
    assert b"".join(seen) == b"\2" * 10 + b"\0" * 10 + b"\1" * 10
    assert list((repo.path / "tmp").iterdir()) == []


def test_in_whatever_order_tensors_come_and_however_often_the_file_has_its_own_hash(repo, model: Path, tmp_path: Path):
    now, first = {name: x + 1 for name, x in weights().items()}, SetTensor("b", torch.zeros(4, 4))
    file = next(file for file in store(repo, model).files if file.kind == "weights")
    header = [entry.name for entry in parse_header(repo.blob(file.digest), path=file.path, size=file.size).entries]
    orders = [header, header[::-1], [*header[2:], *header[:2]], [*header[:2], header[3]], []]
    for number, order in enumerate(orders):
        for changes in ([SetTensor(n, now[n]) for n in order], [first, *(SetTensor(n, now[n]) for n in order), SetTensor("b", now["b"])]):
            snapshot, _ = apply(repo, store(repo, model), *changes)
            out = tmp_path / f"{number}-{len(changes)}"
            export(repo, snapshot, out)
            written = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
            assert written == next(file.sha256 for file in snapshot.files if file.path == "model.safetensors")


def test_an_operation_may_reuse_its_buffer_after_it_has_yielded(repo, model: Path, tmp_path: Path):
    def changes():
        buffer = torch.zeros(4, 4)
        for name, value in (("a", 1.0), ("b", 2.0)):
            buffer.fill_(value)
            yield SetTensor(name, buffer)
        buffer.fill_(99.0)

    with repo.ingest() as tx:
        snapshot, _ = rebuild(tx, store(repo, model), changes())
        tx.seal()
    exported(repo, snapshot, tmp_path)
    assert repo.view(snapshot.id).tensor("a").eq(1.0).all()


# --- adapters --------------------------------------------------------------------------------------------


def test_an_adapter_is_built_on_its_base(repo, model: Path, tmp_path: Path):
    base = store(repo, model)
    tensors = {"x.lora_B.weight": torch.ones(4, 2), "x.lora_A.weight": torch.ones(2, 4, dtype=torch.bfloat16)}
    deltas: list = []
    with repo.ingest() as tx:
        snapshot = build_adapter(tx, base.id, tensors, {"adapter_config.json": b"{}"}, deltas=deltas)
        tx.seal()
    assert (snapshot.kind, snapshot.base) == ("adapter", base.id)
    assert [t.name for t in snapshot.tensors] == sorted(tensors)
    assert {d.tensor for d in deltas} == set(tensors)
    out = exported(repo, snapshot, tmp_path)
    assert (out / "adapter_model.safetensors").read_bytes() == as_the_library_saves(tensors)
    assert (out / "adapter_config.json").read_bytes() == b"{}"


def test_an_adapter_with_unsafe_names_is_refused(repo, model: Path):
    base = store(repo, model)
    with repo.ingest() as tx:
        with pytest.raises(BadParameter):
            build_adapter(tx, base.id, {"a b": torch.ones(1)}, {})
        with pytest.raises(BadParameter):
            build_adapter(tx, base.id, {"a": torch.ones(1)}, {"../x": b""})


# --- any changes at all ----------------------------------------------------------------------------------

values = st.sampled_from([torch.zeros(2), torch.ones(4, 4), torch.ones(3).half(), torch.arange(4), torch.zeros(0)])
names = st.sampled_from(["a", "b", "c", "n", "d", "e.f"])
changes = st.one_of(
    st.builds(SetTensor, names, values, st.none() | names),
    st.builds(CopyTensor, names, st.sampled_from(["a", "b", "c", "n"])),
    st.builds(DropTensor, st.sampled_from(["b", "c", "n"])),
    st.builds(SetFile, st.sampled_from(["notes.txt", "notes/x.txt"]), st.binary(max_size=8)),
)


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(changes, max_size=6), st.booleans())
def test_any_changes_give_what_a_table_of_tensors_would_hold(tmp_path_factory, many: list, shard: bool):
    place = tmp_path_factory.mktemp("any")
    repo, folder = Repository.init(place / "work"), place / "model"
    folder.mkdir()
    w, parts = weights(), (("a", "c"), ("b", "n")) if shard else (("a", "b", "c", "n"),)
    for number, part in enumerate(parts):
        safetensors.torch.save_file({name: w[name] for name in part}, folder / f"part{number}.safetensors")
    snapshot, _ = apply(repo, store(repo, folder), *many)
    expected = _table(w, many)
    out = exported(repo, snapshot, place)
    loaded = {name: tensor for path in out.glob("*.safetensors") for name, tensor in safetensors.torch.load_file(path).items()}
    assert {name: (t.dtype, t.tolist()) for name, t in loaded.items()} == {name: (t.dtype, t.tolist()) for name, t in expected.items()}
    assert {t.name: t.digest for t in store(repo, out).tensors} == {t.name: t.digest for t in snapshot.tensors}
    for file in snapshot.files:
        assert hashlib.sha256((out / file.path).read_bytes()).hexdigest() == file.sha256
        if file.kind == "weights":
            assert parse_header((out / file.path).read_bytes()).raw == repo.blob(file.digest)


def _table(before: dict[str, torch.Tensor], many: list) -> dict[str, torch.Tensor]:
    now = dict(before)
    for change in many:
        match change:
            case SetTensor(name, data, _):
                now[name] = data
            case CopyTensor(name, source):
                now[name] = before[source]
            case DropTensor(name):
                now.pop(name, None)
    return now
