"""Snapshots back into directories: byte for byte, all or nothing, never through what is already there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mlc.registry import fs
from mlc.registry.errors import BadParameter, CorruptRecord, HashMismatch, MlcError
from mlc.registry.formats.directory import ExportedFile, export, ingest, scan
from mlc.registry.records import Snapshot


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"layers.{i}.w": torch.randn(8, 8).to(torch.bfloat16) for i in range(6)} | {"norm": torch.ones(3), "none": torch.zeros(0, 4)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with weights, a config, a file in a subfolder and one with an odd name."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    safetensors.torch.save_file(weights(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "none"}')
    (folder / "sub" / "ü file.txt").write_bytes(bytes(range(256)))
    (folder / "empty").write_bytes(b"")
    return folder


def store(repo, folder: Path) -> Snapshot:
    with repo.ingest() as tx:
        snapshot = ingest(tx, scan(folder))[0]
        tx.seal()
    return snapshot


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in {"model", "work"})


def test_what_was_imported_comes_back_byte_for_byte_with_its_hashes(repo, model: Path, tmp_path: Path):
    files = export(repo, store(repo, model), tmp_path / "deep" / "out")
    assert content(tmp_path / "deep" / "out") == content(model)
    assert files == [ExportedFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in sorted(content(model).items())]


def test_an_empty_directory_is_filled(repo, model: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    export(repo, store(repo, model), tmp_path / "out")
    assert content(tmp_path / "out") == content(model)


@pytest.mark.parametrize("make", ["file", "full folder", "link", "dangling link"])
def test_a_target_that_is_taken_is_refused_and_untouched(make: str, repo, model: Path, tmp_path: Path):
    target, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if make == "file":
        target.write_text("mine")
    elif make == "full folder":
        target.mkdir()
        (target / "mine").write_text("mine")
    else:
        target.symlink_to(elsewhere if make == "link" else tmp_path / "nothing")
    with pytest.raises(BadParameter, match="already exists") as caught:
        export(repo, store(repo, model), target)
    assert caught.value.hint
    assert list(elsewhere.iterdir()) == []
    assert not (tmp_path / "nothing").exists()
    assert leftovers(tmp_path) == ["elsewhere", "out"]


def test_a_file_that_would_differ_from_its_record_is_an_error_and_leaves_nothing(repo, model: Path, tmp_path: Path):
    snapshot = store(repo, model)
    for place in range(len(snapshot.files)):
        files = list(snapshot.files)
        files[place] = dataclasses.replace(files[place], sha256="0" * 64)
        with pytest.raises(HashMismatch, match="would not be the file that was recorded"):
            export(repo, dataclasses.replace(snapshot, files=tuple(files)), tmp_path / "out")
    assert leftovers(tmp_path) == []


def damage(repo, snapshot: Snapshot) -> str:
    """Flip one bit of the first tensor's stored bytes; returns its digest."""
    (pack,) = repo.path.glob("objects/pack-*.pack")
    info = repo.objects.info(snapshot.tensors[0].digest)
    data = bytearray(pack.read_bytes())
    data[info.offset + info.stored_size - 1] ^= 1
    os.chmod(pack, 0o600)
    pack.write_bytes(data)
    return info.digest


@pytest.mark.parametrize("layout", ["hf", "single", "shards"])
def test_a_damaged_tensor_is_an_error_that_names_it_and_leaves_nothing(layout, repo, model: Path, tmp_path: Path):
    snapshot = store(repo, model)
    digest = damage(repo, snapshot)
    with pytest.raises(MlcError, match=digest) as caught:
        export(type(repo).open(repo.path), snapshot, tmp_path / "out", layout=layout, max_shard_size=300)
    assert caught.value.exit_code == 7
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("path", ["../evil", "/tmp/evil", "a/../../evil", "", "a//b", "evil\x00", "C:\\evil"])
def test_a_snapshot_cannot_write_outside_its_target(path: str, repo, model: Path, tmp_path: Path):
    snapshot = store(repo, model)
    evil = dataclasses.replace(snapshot.files[0], path=path)
    with pytest.raises(CorruptRecord, match="whose name"):
        export(repo, dataclasses.replace(snapshot, files=(evil,)), tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_two_files_that_need_the_same_place_are_an_error(repo, model: Path, tmp_path: Path):
    snapshot = store(repo, model)
    entry = snapshot.files[0]
    clash = (dataclasses.replace(entry, path="a"), dataclasses.replace(entry, path="a/b"))
    with pytest.raises(MlcError):
        export(repo, dataclasses.replace(snapshot, files=clash), tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_weight_file_that_lists_an_unknown_tensor_is_an_error(repo, model: Path, tmp_path: Path):
    snapshot = store(repo, model)
    with pytest.raises(CorruptRecord, match="does not have"):
        export(repo, dataclasses.replace(snapshot, tensors=()), tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_directory_that_may_not_be_written_is_refused_in_words(repo, model: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadParameter, match="cannot be written to"):
        export(repo, store(repo, model), tmp_path / "file" / "out")


def test_a_failure_of_the_last_step_leaves_nothing(repo, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = store(repo, model)
    monkeypatch.setattr(fs, "FAULTS", fs.FaultPlan(1, "eio"))  # the rename into place
    with pytest.raises(MlcError):
        export(repo, snapshot, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_up_is_said_in_words_and_leaves_nothing(repo, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot, written = store(repo, model), []
    real = os.write

    def full(fd: int, data: memoryview) -> int:
        written.append(len(data))
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(fs.DiskFull):
        export(repo, snapshot, tmp_path / "out")
    monkeypatch.undo()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("link", ["auto", "copy", "hardlink", "reflink"])
def test_every_way_of_linking_gives_the_same_private_files(link: str, repo, model: Path, tmp_path: Path):
    export(repo, store(repo, model), tmp_path / "out", link=link)
    assert content(tmp_path / "out") == content(model)
    assert all(p.stat().st_nlink == 1 for p in (tmp_path / "out").rglob("*") if p.is_file())


# --- other layouts ---------------------------------------------------------------------------------------


def test_shards_are_no_larger_than_asked_and_hold_everything(repo, model: Path, tmp_path: Path):
    snapshot = store(repo, model)
    export(repo, snapshot, tmp_path / "out", layout="shards", max_shard_size=300)
    source = scan(tmp_path / "out")  # our own strict reader takes it, index and all
    assert len(source.primary) == 3
    assert all(header.data_size <= 300 for header in source.weights.values())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 6 * 128 + 12
    loaded = {k: v for path in source.primary for k, v in safetensors.torch.load_file(tmp_path / "out" / path).items()}
    assert all(loaded[name].equal(tensor) for name, tensor in weights().items())
    assert {t.name: t.digest for t in store(repo, tmp_path / "out").tensors} == {t.name: t.digest for t in snapshot.tensors}
    others = {path: data for path, data in content(tmp_path / "out").items() if "safetensors" not in path}
    assert others == {path: data for path, data in content(model).items() if "safetensors" not in path}


def test_a_sharded_model_as_one_file_is_what_the_library_would_save(repo, model: Path, tmp_path: Path):
    export(repo, store(repo, model), tmp_path / "shards", layout="shards", max_shard_size=300)
    export(repo, store(repo, tmp_path / "shards"), tmp_path / "single", layout="single")
    assert content(tmp_path / "single") == content(model)


def test_one_shard_is_one_file_and_a_large_tensor_stands_alone(repo, model: Path, tmp_path: Path):
    snapshot = store(repo, model)
    export(repo, snapshot, tmp_path / "one", layout="shards")
    assert content(tmp_path / "one") == content(model)
    export(repo, snapshot, tmp_path / "many", layout="shards", max_shard_size=1)
    assert len(scan(tmp_path / "many").primary) == 8


def test_a_layout_that_would_overwrite_another_file_or_makes_no_sense_is_refused(repo, model: Path, tmp_path: Path):
    (model / "model-00001-of-00003.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    snapshot = store(repo, model)
    with pytest.raises(BadParameter, match="already the name"):
        export(repo, snapshot, tmp_path / "out", layout="shards", max_shard_size=300)
    with pytest.raises(BadParameter, match="no layout"):
        export(repo, snapshot, tmp_path / "out", layout="shards", max_shard_size=0)
    with pytest.raises(BadParameter, match="no layout"):
        export(repo, snapshot, tmp_path / "out", layout="zip")  # type: ignore[arg-type]
    assert leftovers(tmp_path) == []


def test_a_sharded_model_written_by_transformers_comes_back_byte_for_byte(repo, material: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(material / "models" / "stories260k")
    model.save_pretrained(tmp_path / "model", max_shard_size="300KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    export(repo, store(repo, tmp_path / "model"), tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "model")
