"""Directories into snapshots: which files are weights, what is kept, what is said, and how little is stored twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mlc.registry.errors import BadInputFile, BadParameter
from mlc.registry.formats.directory import export, ingest, scan, scan_converted
from mlc.registry.formats.safetensors import BITS, write_header
from mlc.registry.formats.torch_bytes import TORCH_NAMES
from mlc.registry.ids import tensor_digest
from mlc.registry.records import Snapshot


def save(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors or {"w": torch.arange(4.0)}, path, metadata or {"format": "pt"})
    return path


def stored(repo, source, **how):
    with repo.ingest() as tx:
        result = ingest(tx, source, **how)
        tx.seal()
    return result


def test_a_snapshot_names_every_tensor_and_every_file_by_digest(repo, tmp_path: Path):
    model = save(tmp_path / "m" / "model.safetensors", {"b": torch.ones(2, 3), "a": torch.zeros(1, dtype=torch.bfloat16)})
    (tmp_path / "m" / "README.md").write_bytes(b"hello")
    snapshot, deltas, warnings = stored(repo, scan(tmp_path / "m"))
    assert [(t.name, t.dtype, t.shape) for t in snapshot.tensors] == [("a", "BF16", (1,)), ("b", "F32", (2, 3))]
    assert snapshot.tensors[1].digest == tensor_digest("F32", (2, 3), [torch.ones(2, 3).numpy().tobytes()])
    readme, weights = snapshot.files
    assert (readme.path, readme.kind, readme.size, readme.sha256) == ("README.md", "blob", 5, hashlib.sha256(b"hello").hexdigest())
    assert (weights.path, weights.kind, weights.tensors) == ("model.safetensors", "weights", ("b", "a"))
    assert weights.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert weights.size == model.stat().st_size
    assert model.read_bytes().startswith(repo.blob(weights.digest))
    assert {d.tensor for d in deltas} == {"a", "b"}
    assert warnings == []
    assert repo.snapshot(snapshot.id) == snapshot
    assert (snapshot.kind, snapshot.base) == ("model", None)


def test_the_same_directory_gives_the_same_snapshot_and_stores_nothing_new(repo, tmp_path: Path):
    save(tmp_path / "m" / "model.safetensors")
    first = stored(repo, scan(tmp_path / "m"))[0]
    with repo.ingest() as tx:
        second, deltas, _ = ingest(tx, scan(tmp_path / "m"), bases=first)
        assert tx.seal() is None
    assert second == first
    assert deltas == []


def test_a_changed_tensor_is_recorded_with_how_far_it_moved_from_the_one_of_its_name(repo, tmp_path: Path):
    torch.manual_seed(0)
    before = {"kept": torch.randn(8), "moved": torch.randn(64, 64), "new.shape": torch.zeros(2)}
    after = {**before, "moved": before["moved"].clone(), "new.shape": torch.zeros(3), "added": torch.ones(1)}
    after["moved"][0, 0] += 3.0
    save(tmp_path / "a" / "model.safetensors", before)
    save(tmp_path / "b" / "model.safetensors", after)
    parent = stored(repo, scan(tmp_path / "a"))[0]
    snapshot, deltas, _ = stored(repo, scan(tmp_path / "b"), bases=parent)
    found = {d.tensor: d for d in deltas}
    assert set(found) == {"moved", "new.shape", "added"}
    digest = {t.name: t.digest for t in parent.tensors}
    assert (found["moved"].base, found["moved"].nnz, found["moved"].max_abs) == (digest["moved"], 1, pytest.approx(3.0, abs=1e-6))
    assert found["moved"].bytes_logical == 64 * 64 * 4
    assert 0 < found["moved"].bytes_stored < 200
    assert found["added"].base is None
    assert found["new.shape"].nnz is None
    assert {t.name: t.digest for t in snapshot.tensors}["kept"] == digest["kept"]


@pytest.mark.parametrize("word", sorted(BITS))
def test_every_type_of_the_format_is_stored_changed_and_written_out_again(word: str, repo, tmp_path: Path):
    files, snapshots = [], []
    for version in range(2):
        bits = (
            torch.arange(96 * 64, dtype=torch.int64)
            .mul_(7)
            .add_(version * (word != "BOOL"))
            .remainder_(2 if word == "BOOL" else 251)
            .to(torch.uint8)
        )
        body = bits.numpy().tobytes()
        header = write_header([("w", word, (64, len(body) * 8 // BITS[word] // 64)), ("none", word, (0, 4))])
        folder = tmp_path / f"m{version}"
        folder.mkdir()
        files.append(header.raw + body)
        (folder / "model.safetensors").write_bytes(files[-1])
        snapshots.append(stored(repo, scan(folder), bases=snapshots[-1] if snapshots else None)[0])
        export(repo, snapshots[-1], tmp_path / f"out{version}")
        assert (tmp_path / f"out{version}" / "model.safetensors").read_bytes() == files[-1]
    if word in TORCH_NAMES:
        assert repo.view(snapshots[1].id).tensor("w").view(torch.uint8).reshape(-1).equal(bits)
    with pytest.raises(BadParameter), repo.ingest() as tx:
        tx.put_tensor("F4", (3,), b"\0\0")


# --- which files are weights -----------------------------------------------------------------------------


def kinds(repo, folder: Path) -> tuple[dict[str, str], list[str]]:
    snapshot, _, warnings = stored(repo, scan(folder))
    return {file.path: file.kind for file in snapshot.files}, warnings


def test_a_second_file_with_the_same_names_is_kept_as_opaque_bytes(repo, tmp_path: Path):
    save(tmp_path / "m" / "model.safetensors", {"w": torch.zeros(2)})
    save(tmp_path / "m" / "consolidated.safetensors", {"w": torch.ones(2)})
    save(tmp_path / "m" / "extra" / "head.safetensors", {"h": torch.ones(2)})
    found, warnings = kinds(repo, tmp_path / "m")
    assert found == {"consolidated.safetensors": "blob", "extra/head.safetensors": "weights", "model.safetensors": "weights"}
    assert warnings == ["consolidated.safetensors is kept as opaque bytes: model.safetensors already holds its tensor 'w'"]


def test_the_index_says_which_files_are_the_model(repo, tmp_path: Path):
    folder = tmp_path / "m"
    save(folder / "model-2.safetensors", {"b": torch.zeros(2)})
    save(folder / "model-1.safetensors", {"a": torch.zeros(2)})
    save(folder / "all.safetensors", {"a": torch.ones(2), "b": torch.ones(2)})
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    source = scan(folder)
    assert source.primary == ("model-1.safetensors", "model-2.safetensors")
    assert set(source.weights) == {"model-1.safetensors", "model-2.safetensors"}


def test_a_shard_index_in_a_subfolder_is_relative_to_itself(repo, tmp_path: Path):
    save(tmp_path / "m" / "unet" / "one.safetensors", {"a": torch.zeros(2)})
    (tmp_path / "m" / "unet" / "one.safetensors.index.json").write_text('{"weight_map":{"a":"one.safetensors"}}')
    assert scan(tmp_path / "m").primary == ("unet/one.safetensors",)


def test_a_tensor_that_the_index_forgets_is_kept_and_said(repo, tmp_path: Path):
    save(tmp_path / "m" / "x.safetensors", {"a": torch.zeros(2), "b": torch.zeros(2)})
    (tmp_path / "m" / "model.safetensors.index.json").write_text('{"weight_map":{"a":"x.safetensors"}}')
    source = scan(tmp_path / "m")
    assert source.tensors == 2
    assert source.warnings == ("model.safetensors.index.json does not name 1 of the tensors in its shards",)


def test_one_file_can_be_imported_alone(repo, tmp_path: Path):
    save(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "README.md").write_text("not asked for")
    snapshot = stored(repo, scan(tmp_path / "m" / "model.safetensors"))[0]
    assert [file.path for file in snapshot.files] == ["model.safetensors"]


def test_a_history_inside_the_directory_is_left_out_and_said(repo, tmp_path: Path):
    save(tmp_path / "m" / "model.safetensors")
    for name in (".git", ".mlc"):
        (tmp_path / "m" / name).mkdir()
        (tmp_path / "m" / name / "HEAD").write_text("x")
    (tmp_path / "m" / ".gitattributes").write_text("kept")
    source = scan(tmp_path / "m")
    assert [file.path for file in source.files] == [".gitattributes", "model.safetensors"]
    assert source.warnings == (".git is a history of its own and was left out", ".mlc is a history of its own and was left out")


# --- what changes under our feet -------------------------------------------------------------------------


def test_a_file_that_changes_between_scan_and_ingest_is_refused(repo, tmp_path: Path):
    path = save(tmp_path / "m" / "model.safetensors")
    source = scan(tmp_path / "m")
    save(path, {"other": torch.zeros(4)})
    with repo.ingest() as tx, pytest.raises(BadInputFile, match="changed while"):
        ingest(tx, source)


def test_a_file_that_is_replaced_by_a_link_after_the_scan_is_refused(repo, tmp_path: Path):
    path = save(tmp_path / "m" / "model.safetensors")
    source = scan(tmp_path / "m")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with repo.ingest() as tx, pytest.raises(BadInputFile, match="symbolic link"):
        ingest(tx, source)


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(repo, tmp_path: Path):
    path = save(tmp_path / "m" / "model.safetensors", {"w": torch.zeros(1000)})
    (tmp_path / "m" / "notes").write_bytes(bytes(1000))
    source = scan(tmp_path / "m")
    (tmp_path / "m" / "notes").write_bytes(bytes(10))
    with repo.ingest() as tx, pytest.raises(BadInputFile, match="became shorter"):
        ingest(tx, source)
    assert path.exists()


def test_bools_other_than_zero_and_one_are_refused(repo, tmp_path: Path):
    path = save(tmp_path / "m" / "model.safetensors", {"w": torch.tensor([True, False])})
    data = bytearray(path.read_bytes())
    data[-1] = 2
    path.write_bytes(data)
    with repo.ingest() as tx, pytest.raises(BadInputFile, match="BOOL with bytes other than 0 and 1"):
        ingest(tx, scan(tmp_path / "m"))


def test_bad_input_leaves_nothing_in_the_store(repo, tmp_path: Path):
    save(tmp_path / "m" / "a.safetensors", {"a": torch.zeros(100)})
    path = save(tmp_path / "m" / "b.safetensors", {"w": torch.tensor([True])})
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(BadInputFile):
        stored(repo, scan(tmp_path / "m"))
    assert repo.objects.packs() == []


# --- pickles, converted ----------------------------------------------------------------------------------


def test_pickled_shards_become_safetensors_shards_with_the_same_values(repo, tmp_path: Path):
    folder = tmp_path / "m"
    folder.mkdir()
    torch.manual_seed(0)
    parts = [
        {"a": torch.randn(3, dtype=torch.bfloat16), "t": torch.randn(2, 3).T},
        {"state_dict": {"b": torch.nn.Parameter(torch.randn(2))}},
    ]
    for number, part in enumerate(parts, 1):
        torch.save(part, folder / f"pytorch_model-0000{number}-of-00002.bin")
    shard = "pytorch_model-0000{}-of-00002.bin"
    weight_map = {"a": shard.format(1), "t": shard.format(1), "b": shard.format(2)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {"total_size": 38}, "weight_map": weight_map}))
    (folder / "training_args.bin").write_bytes(b"whatever")
    with scan_converted(folder) as source:
        assert [(c.path, c.result) for c in source.converted] == [(shard.format(n), f"model-0000{n}-of-00002.safetensors") for n in (1, 2)]
        assert source.converted[0].sha256 == hashlib.sha256((folder / shard.format(1)).read_bytes()).hexdigest()
        snapshot, _, warnings = stored(repo, source)
    assert [file.path for file in snapshot.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "training_args.bin",
    ]
    view = repo.view(snapshot.id)
    assert view.tensor("a").equal(parts[0]["a"])
    assert view.tensor("t").equal(parts[0]["t"])
    assert view.tensor("b").equal(parts[1]["state_dict"]["b"])
    assert sum("converted to" in warning for warning in warnings) == 2


def test_asking_for_conversion_where_there_are_safetensors_changes_nothing(repo, tmp_path: Path):
    save(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "optimizer.pt").write_bytes(b"not even a pickle")
    with scan_converted(tmp_path / "m") as source:
        assert source == scan(tmp_path / "m")


# --- real models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stories260k", "stories260k-oz", "facts-small", "facts-deep", "stories-gru"])
def test_a_real_model_comes_back_byte_for_byte(name: str, repo, material: Path, tmp_path: Path):
    source = material / "models" / name
    snapshot = stored(repo, scan(source))[0]
    export(repo, snapshot, tmp_path / "out")
    same_directory(source, tmp_path / "out")


def same_directory(left: Path, right: Path) -> None:
    def content(folder: Path) -> dict[str, str]:
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}

    assert content(left) == content(right)


def test_a_record_of_files_survives_json(repo, tmp_path: Path):
    save(tmp_path / "m" / "model.safetensors")
    snapshot = stored(repo, scan(tmp_path / "m"))[0]
    assert Snapshot.from_json(json.loads(snapshot.encode())) == snapshot
    assert dataclasses.replace(snapshot, kind="adapter").id != snapshot.id
