"""What operations see: lazy verified tensors in memory of their own, sanitised configs, and files as they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mlc.registry.errors import BadInputFile, HashMismatch, MissingObject, MlcError, NotFound
from mlc.registry.formats.configs import asks_for_code, sanitised
from mlc.registry.formats.directory import ingest, scan
from mlc.registry.view import ModelView


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "w": torch.randn(64, 8),
        "half": torch.randn(5).to(torch.bfloat16),
        "eight": torch.randn(4).to(torch.float8_e4m3fn),
        "whole": torch.arange(6).reshape(2, 3),
        "truth": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }


def view_of(repo, folder: Path) -> ModelView:
    with repo.ingest() as tx:
        snapshot = ingest(tx, scan(folder))[0]
        tx.seal()
    return repo.view(snapshot.id)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.torch.save_file(weights(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8, "auto_map": {"AutoModel": "x.Y"}}))
    (folder / "notes.txt").write_bytes(b"notes")
    return folder


def test_every_tensor_has_its_name_type_shape_and_bits(repo, model: Path):
    view = view_of(repo, model)
    assert view.names() == tuple(sorted(weights()))
    assert view.primary_names() == view.names()
    for name, tensor in weights().items():
        got = view.tensor(name)
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert got.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)) or tensor.numel() == 0
        assert bytes(view.raw(name)) == bytes(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else True
        assert view.entry(name).shape == tuple(tensor.shape)
    assert view.has("w")
    assert not view.has("v")
    assert not view.adapter


def test_writing_into_a_tensor_harms_nobody(repo, model: Path):
    view = view_of(repo, model)
    for name in weights():
        view.tensor(name).zero_()
    assert view.tensor("w").equal(weights()["w"])
    assert repo.view(view.snapshot_id).tensor("w").equal(weights()["w"])


def test_an_unknown_tensor_is_not_found(repo, model: Path):
    with pytest.raises(NotFound, match="'v'"):
        view_of(repo, model).tensor("v")


def test_a_damaged_tensor_is_an_error_and_never_a_value(repo, model: Path):
    view = view_of(repo, model)
    info = repo.objects.info(view.entry("w").digest)
    (pack,) = repo.path.glob("objects/pack-*.pack")
    data = bytearray(pack.read_bytes())
    data[info.offset + info.stored_size // 2] ^= 16
    os.chmod(pack, 0o600)
    pack.write_bytes(data)
    fresh = type(repo).open(repo.path).view(view.snapshot_id)
    with pytest.raises(MlcError) as caught:
        fresh.tensor("w")
    assert caught.value.exit_code == 7
    assert fresh.tensor("whole").equal(weights()["whole"])


def test_a_snapshot_that_does_not_exist_is_missing(repo):
    with pytest.raises((MissingObject, HashMismatch)):
        repo.view("0" * 64)


def test_files_are_given_as_they_were_and_weight_files_are_not_files(repo, model: Path):
    view = view_of(repo, model)
    assert [file.path for file in view.files()] == ["config.json", "model.safetensors", "notes.txt"]
    assert view.file("notes.txt") == b"notes"
    assert view.file("config.json") == (model / "config.json").read_bytes()
    assert view.file("model.safetensors") is None
    assert view.file("nothing") is None


# --- configs ---------------------------------------------------------------------------------------------


def test_the_config_is_parsed_and_without_what_asks_for_code(repo, model: Path):
    assert view_of(repo, model).config == {"model_type": "llama", "hidden_size": 8}


def test_a_model_without_a_config_has_none(repo, model: Path):
    (model / "config.json").unlink()
    assert view_of(repo, model).config is None


HOSTILE = {
    "model_type": "llama",
    "conv_kernel": 4,
    "kernel_size": [3],
    "auto_map": {"AutoConfig": "evil--x.Y"},
    "trust_remote_code": True,
    "attn_implementation": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "_experts_implementation": "evil/kernel",
    "use_kernels": True,
    "kernel_config": {"RMSNorm": "evil/kernel"},
    "quantization_config": {"quant_method": "evil"},
    "compression_config": {},
    "use_pretrained_backbone": True,
    "transformers_weights": "/etc/passwd",
    "custom_pipelines": {"x": {"impl": "x.Y"}},
    "text_config": {"hidden_size": 4, "auto_map": {"a": "b"}, "layers": [{"attn_implementation": "evil/kernel", "size": 1}]},
}


def test_nothing_that_names_code_kernels_or_repositories_is_left_at_any_depth():
    before = json.dumps(HOSTILE)
    assert sanitised(HOSTILE) == {
        "model_type": "llama",
        "conv_kernel": 4,
        "kernel_size": [3],
        "text_config": {"hidden_size": 4, "layers": [{"size": 1}]},
    }
    assert json.dumps(HOSTILE) == before
    assert asks_for_code(HOSTILE) == ["auto_map", "custom_pipelines", "trust_remote_code"]
    assert asks_for_code({"trust_remote_code": False, "auto_map": None}) == []


def test_a_config_that_became_invalid_in_the_store_is_an_error(repo, model: Path):
    view = view_of(repo, model)
    object.__setattr__(view, "file", lambda path: b'{"a":1,"a":2}')
    with pytest.raises(BadInputFile, match="twice"):
        _ = view.config


# --- more than one weight file ---------------------------------------------------------------------------


def test_the_primary_names_leave_out_weights_that_a_loader_would_not_take(repo, model: Path):
    safetensors.torch.save_file({"head": torch.ones(1)}, model / "extra.safetensors")
    view = view_of(repo, model)
    assert view.has("head")
    assert view.primary_names() == tuple(sorted(weights()))
    assert set(view.names()) - set(view.primary_names()) == {"head"}


def test_the_primary_names_of_a_sharded_model_are_those_of_its_index(repo, tmp_path: Path):
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("a", "b", "z"):
        safetensors.torch.save_file({name: torch.ones(1)}, folder / f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}')
    assert view_of(repo, folder).primary_names() == ("a", "b")


def test_the_view_and_the_formats_import_nothing_heavy():
    modules = "mlc.registry.view, mlc.registry.formats.directory, mlc.registry.formats.pickle_child"
    code = f"import sys, {modules}; print([m for m in ('torch', 'numpy', 'safetensors', 'peft', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
