"""Files from strangers: a corpus of bad safetensors headers, indexes, configs, links and pickles. Each is refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mlc.registry.errors import BadInputFile, InputNotFound
from mlc.registry.formats.directory import Limits, scan, scan_converted
from mlc.registry.formats.pickles import _verdict
from mlc.registry.formats.safetensors import parse_header

LITTLE = Limits(tensors_per_file=3, metadata_keys=2, metadata_value_bytes=8)


def entry(dtype: str = "F32", shape: str = "[2]", offsets: str = "[0,8]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def file(header: str | bytes, data: int = 8, *, length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def one(info: str, name: str = "w", data: int = 8) -> bytes:
    return file(f'{{"{name}":{info}}}', data)


TWO = '"a":' + entry(offsets="[0,8]")

# what is wrong -> (the bytes, a word that the message must contain)
CORPUS: dict[str, tuple[bytes, str]] = {
    # the frame
    "an empty file": (b"", "0 bytes"),
    "seven bytes": (b"\0" * 7, "7 bytes"),
    "a length of zero": (file("", 0), "header of 0 bytes"),
    "a length of one": (file("{", 0), "header of 1 bytes"),
    "a header longer than the file": (file("{}", 0, length=64), "truncated"),
    "a header longer than the limit": (file("{}", 0, length=17 << 20), "limit"),
    "a header longer than any memory": (file("{}", 0, length=2**64 - 1), "limit"),
    "a git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
    "a zip file": (b"PK\x03\x04\x14\0\0\0" + bytes(60), "limit"),
    "a header that starts with a space": (file(' {"w":' + entry() + "}"), "'{'"),
    "a header that starts with a byte order mark": (file(b"\xef\xbb\xbf{}", 0), "'{'"),
    "a list for a header": (file("[]", 0), "'{'"),
    "a header cut in the middle": (file('{"w":{"dtype":"F32"', 8), "not JSON"),
    "something behind the object": (file('{"w":' + entry() + "}x"), "not JSON"),
    "a second object behind the first": (file("{}{}", 0), "not JSON"),
    "bytes that are not UTF-8": (file(b'{"\xff":1}', 0), "UTF-8"),
    "a header of zero bytes": (file(bytes(16), 0), "'{'"),
    "single quotes": (file("{'w':1}", 0), "not JSON"),
    "a comma at the end": (file('{"w":' + entry() + ",}"), "not JSON"),
    "a comment": (file('{/* */"w":' + entry() + "}"), "not JSON"),
    "a control character in a string": (file('{"__metadata__":{"a":"\x01"}}', 0), "not JSON"),
    # duplicates and unknown keys
    "the same tensor twice": (file("{" + TWO + "," + TWO + "}"), "twice"),
    "the same tensor twice, once escaped": (file("{" + TWO + ',"\\u0061":' + entry() + "}"), "twice"),
    "two metadata objects": (file('{"__metadata__":{},"__metadata__":{},"w":' + entry() + "}"), "twice"),
    "the same metadata key twice": (file('{"__metadata__":{"a":"1","a":"2"}}', 0), "twice"),
    "the dtype given twice": (one('{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}'), "twice"),
    "an unknown key in a tensor": (one(entry()[:-1] + ',"strides":[1]}'), "strides"),
    "a tensor without offsets": (one('{"dtype":"F32","shape":[2]}'), "data_offsets"),
    "a tensor that is a list": (one("[]"), "data_offsets"),
    "a tensor that is null": (one("null"), "data_offsets"),
    "an empty description": (one("{}"), "nothing"),
    # types
    "an unknown type": (one(entry("F31")), "F31"),
    "a type in small letters": (one(entry("f32")), "f32"),
    "a type that is a number": (one('{"dtype":32,"shape":[2],"data_offsets":[0,8]}'), "type"),
    "a type that is a list": (one('{"dtype":[],"shape":[2],"data_offsets":[0,8]}'), "type"),
    "half a byte at the end": (one(entry("F4", "[3]", "[0,1]"), data=1), "12 bits"),
    # shapes
    "a shape that is a number": (one(entry(shape="2")), "shape"),
    "a negative side": (one(entry(shape="[-2]")), "-2"),
    "minus zero": (one(entry(shape="[-0]", offsets="[0,0]"), data=0), "-0"),
    "a side that is not an integer": (one(entry(shape="[2.0]")), "2.0"),
    "a side that is true": (one(entry(shape="[true,2]")), "shape"),
    "a side that is text": (one(entry(shape='["2"]')), "shape"),
    "a side that is NaN": (one(entry(shape="[NaN]")), "NaN"),
    "a side that is infinite": (one(entry(shape="[Infinity]")), "Infinity"),
    "a side written with an exponent": (one(entry(shape="[2e0]")), "2e0"),
    "a side of 5,000 digits": (one(entry(shape="[" + "9" * 5000 + "]")), "unsigned"),
    "a side beyond the limit": (one(entry(shape=f"[{1 << 40},0]", offsets="[0,0]"), data=0), "limit"),
    "a product beyond 64 bits": (one(entry(shape=f"[{1 << 33},{1 << 33},2]")), "limit"),
    "nine dimensions": (one(entry(shape="[1,1,1,1,1,1,1,1,2]")), "9 dimensions"),
    "a shape nested too deeply": (one(entry(shape="[" * 5000 + "]" * 5000)), "deep"),
    # offsets
    "one offset": (one(entry(offsets="[0]")), "two integers"),
    "three offsets": (one(entry(offsets="[0,8,8]")), "two integers"),
    "offsets that are text": (one(entry(offsets='["0","8"]')), "two integers"),
    "offsets that are true": (one(entry(shape="[0]", offsets="[true,true]")), "two integers"),
    "offsets in the wrong order": (one(entry(offsets="[8,0]")), "offsets"),
    "offsets beyond 64 bits": (one(entry(offsets="[0,18446744073709551624]")), "offsets give"),
    "offsets too wide for the shape": (one(entry(offsets="[0,16]"), data=16), "need 8 bytes"),
    "offsets too narrow for the shape": (one(entry(offsets="[0,4]"), data=4), "need 8 bytes"),
    "an empty tensor with bytes": (one(entry(shape="[0]")), "need 0 bytes"),
    "tensors that overlap": (file("{" + TWO + ',"b":' + entry(offsets="[4,12]") + "}", 12), "overlaps"),
    "tensors that share all their bytes": (file("{" + TWO + ',"b":' + entry() + "}"), "overlaps"),
    "a hole between tensors": (file("{" + TWO + ',"b":' + entry(offsets="[12,20]") + "}", 20), "hole"),
    "a hole before the first tensor": (one(entry(offsets="[8,16]"), data=16), "hole"),
    "an empty tensor beyond the end": (file("{" + TWO + ',"b":' + entry(shape="[0]", offsets="[9,9]") + "}", 8), "hole"),
    "data cut short": (one(entry(), data=7), "truncated"),
    "no data at all": (one(entry(), data=0), "truncated"),
    "one byte behind the data": (one(entry(), data=9), "behind"),
    "data without a tensor": (file("{}", 8), "behind"),
    # names
    "an empty name": (one(entry(), name=""), "empty"),
    "a name of 513 bytes": (one(entry(), name="w" * 513), "512"),
    "a name with a slash in front": (one(entry(), name="/etc/passwd"), "characters"),
    "a name that climbs": (one(entry(), name="a/../b"), "'..'"),
    "a name with two slashes": (one(entry(), name="a//b"), "'//'"),
    "a name with a zero byte": (one(entry(), name="a\\u0000b"), "characters"),
    "a name that drives a terminal": (one(entry(), name="a\\u001b[31m"), "characters"),
    "a name with a space": (one(entry(), name="a b"), "characters"),
    "a name that is a line break": (one(entry(), name="a\\n"), "characters"),
    "a name in other letters": (one(entry(), name="gew\u00edcht"), "characters"),
    "a name that reaches into Python": (one(entry(), name="a.__class__.b"), "reserved"),
    # metadata
    "metadata that is a list": (file('{"__metadata__":[]}', 0), "strings"),
    "metadata that is null": (file('{"__metadata__":null}', 0), "strings"),
    "metadata with a number": (file('{"__metadata__":{"a":1}}', 0), "strings"),
    "metadata with an object": (file('{"__metadata__":{"a":{}}}', 0), "strings"),
    "metadata with half a surrogate pair": (file('{"__metadata__":{"a":"\\ud800"}}', 0), "surrogate"),
    "metadata with too many keys": (file('{"__metadata__":{"a":"","b":"","c":""}}', 0), "3 metadata keys"),
    "metadata with a value too long": (file('{"__metadata__":{"a":"123456789"}}', 0), "more than 8 bytes"),
    "too many tensors": (file("{" + ",".join(f'"t{i}":' + entry(shape="[0]", offsets="[0,0]") for i in range(4)) + "}", 0), "tensors"),
    "too many objects": (file('{"a":[' + ",".join(["{}"] * 100_000) + "]}", 0), "too many"),
}


def test_the_corpus_has_at_least_fifty_two_headers():
    assert len(CORPUS) >= 52


@pytest.mark.parametrize("fault", CORPUS)
def test_a_bad_header_is_refused_in_one_sentence_that_names_the_file(fault: str):
    data, word = CORPUS[fault]
    with pytest.raises(BadInputFile) as caught:
        parse_header(data, LITTLE, path="model.safetensors")
    message = caught.value.message
    assert message.startswith("model.safetensors ")
    assert word in message
    assert message.isprintable()
    assert len(message) < 400
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("fault", CORPUS)
def test_a_directory_with_a_bad_header_is_refused_before_anything_is_stored(fault: str, tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(CORPUS[fault][0])
    with pytest.raises(BadInputFile, match=r"model\.safetensors"):
        scan(tmp_path, limits=LITTLE)


# --- indexes ---------------------------------------------------------------------------------------------


def good(name: str = "w") -> bytes:
    return one(entry(), name)


def sharded(folder: Path, weight_map: object, *, shards: tuple[str, ...] = ("a", "b")) -> Path:
    """A directory of shards, each with one tensor of its own name, and an index that says `weight_map`."""
    for name in shards:
        (folder / f"{name}.safetensors").write_bytes(good(name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return folder


GOOD_MAP = {"a": "a.safetensors", "b": "b.safetensors"}


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({**GOOD_MAP, "b": "../b.safetensors"}, "'..'"),
        ({**GOOD_MAP, "b": "/tmp/b.safetensors"}, "relative"),
        ({**GOOD_MAP, "b": "C:/b.safetensors"}, "relative"),
        ({**GOOD_MAP, "b": "x\\b.safetensors"}, "relative"),
        ({**GOOD_MAP, "b": "./b.safetensors"}, "'.'"),
        ({**GOOD_MAP, "b": "b\u0000.safetensors"}, "control"),
        ({**GOOD_MAP, "b": "pytorch_model.bin"}, "not a safetensors"),
        ({**GOOD_MAP, "b": 1}, "not text"),
        ({**GOOD_MAP, "b": "c.safetensors"}, "missing"),
        ({**GOOD_MAP, "b": "a.safetensors"}, "does not"),
        ({**GOOD_MAP, "c": "a.safetensors"}, "does not"),
        ({**GOOD_MAP, "a/../b": "a.safetensors"}, "'..'"),
        ({}, "weight_map"),
        (["a.safetensors"], "weight_map"),
    ],
)
def test_an_index_that_points_astray_is_refused(weight_map: object, word: str, tmp_path: Path):
    with pytest.raises(BadInputFile, match=r"index\.json") as caught:
        scan(sharded(tmp_path, weight_map))
    assert word in caught.value.message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"weight_map":{"a":"a.safetensors","a":"b.safetensors"}}', "twice"),
        ('{"weight_map":{"a":"a.safetensors"},"metadata":{"total_size":NaN}}', "NaN"),
        ('{"weight_map":' + "[" * 2000 + "]" * 2000 + "}", "deep"),
        ('{"weight_map":{"a":"a.safetensors"}', "line 1"),
        ("[]", "one JSON object"),
        ("\ufeff{}", "JSON"),
        ('{"a":' + "1" * 5000 + "}", "digits"),
        ('{"a":"\\udc00"}', "surrogate"),
    ],
)
def test_an_index_that_is_not_strict_json_is_refused(text: str, word: str, tmp_path: Path):
    sharded(tmp_path, GOOD_MAP)
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputFile, match=r"index\.json") as caught:
        scan(tmp_path)
    assert word in caught.value.message


def test_one_tensor_in_two_shards_is_refused(tmp_path: Path):
    sharded(tmp_path, {"w": "a.safetensors"}, shards=())
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(file("{" + f'"{name}":' + entry() + ',"w":' + entry(offsets="[8,16]") + "}", 16))
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors", "w": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInputFile, match=r"both a\.safetensors and b\.safetensors"):
        scan(tmp_path)


def test_an_index_larger_than_its_limit_is_not_read(tmp_path: Path):
    sharded(tmp_path, GOOD_MAP)
    with pytest.raises(BadInputFile, match="more than the 10 that are read"):
        scan(tmp_path, limits=Limits(index_bytes=10))


# --- configs and code ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("config.json", '{"a":1,"a":2}', "twice"),
        ("config.json", '{"a":Infinity}', "Infinity"),
        ("config.json", '{"a":1', "line 1"),
        ("config.json", '{\n"a":1,\n"b" 2}', "line 3"),
        ("config.json", "[1]", "one JSON object"),
        ("config.json", "", "line 1"),
        ("config.json", '{"a":' * 100 + "1" + "}" * 100, "deeper"),
        ("config.json", '{"a":"' + "x" * (1 << 20) + '"}', "1048576"),
        ("generation_config.json", '{"a":NaN}', "NaN"),
        ("tokenizer.json", '{"model":{"vocab":{"a":0,"a":1}}}', "twice"),
        ("tokenizer_config.json", "\xff", "line 1"),
        ("text_encoder/config.json", "{", "line 1"),
    ],
)
def test_a_config_or_tokenizer_that_is_not_strict_json_is_refused(name: str, text: str, word: str, tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(good())
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(BadInputFile) as caught:
        scan(tmp_path)
    assert name in caught.value.message
    assert word in caught.value.message


def test_a_config_that_asks_for_remote_code_is_taken_with_a_warning_and_the_code_is_not_run(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(good())
    (tmp_path / "config.json").write_text(
        '{"model_type":"llama","auto_map":{"AutoModel":"modeling.Evil"},"nested":{"trust_remote_code":true}}'
    )
    (tmp_path / "modeling.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    source = scan(tmp_path)
    assert (
        "config.json asks for remote code (auto_map, trust_remote_code): ignored, nothing was run, the file is kept as bytes"
        in source.warnings
    )
    assert "modeling.py is code: kept as bytes, never run" in source.warnings
    assert [file.path for file in source.files] == ["config.json", "model.safetensors", "modeling.py"]
    assert not (tmp_path / "canary").exists()


# --- the file system -------------------------------------------------------------------------------------


def test_links_devices_and_pipes_are_refused_without_being_opened(tmp_path: Path):
    outside = tmp_path / "secret"
    outside.write_text("secret")
    cases = {
        "file link": lambda path: path.symlink_to(outside),
        "dangling link": lambda path: path.symlink_to(tmp_path / "nothing"),
        "folder link": lambda path: path.symlink_to(tmp_path, target_is_directory=True),
        "pipe": lambda path: os.mkfifo(path),
        "device link": lambda path: path.symlink_to("/dev/zero"),
    }
    for name, make in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(good())
        make(folder / "extra")
        with pytest.raises(BadInputFile, match=r"extra is (a symbolic link|not a regular file)"):
            scan(folder)


@pytest.mark.parametrize(
    "name", ["a\\b", "tab\there", "line\nbreak", "x" * 250 + "/" + "y" * 250 + "/" + "z" * 250 + "/" + "u" * 250 + "/" + "v" * 250]
)
def test_file_names_that_would_not_be_safe_elsewhere_are_refused(name: str, tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(good())
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(BadInputFile, match="name"):
        scan(tmp_path)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(good())
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff", os.O_CREAT | os.O_WRONLY, 0o600))
    with pytest.raises(BadInputFile, match="UTF-8"):
        scan(tmp_path)


def test_too_many_files_are_refused(tmp_path: Path):
    for name in "abc":
        (tmp_path / f"{name}.safetensors").write_bytes(good(name))
    with pytest.raises(BadInputFile, match="more than 2 files"):
        scan(tmp_path, limits=Limits(files=2))


def test_too_many_tensors_in_one_model_are_refused(tmp_path: Path):
    with pytest.raises(BadInputFile, match="limit of 1"):
        scan(sharded(tmp_path, GOOD_MAP), limits=Limits(tensors_per_model=1))


def test_what_is_not_there_or_holds_no_weights_is_said_plainly(tmp_path: Path):
    with pytest.raises(InputNotFound, match="does not exist"):
        scan(tmp_path / "nothing")
    with pytest.raises(BadInputFile, match="no safetensors weights"):
        scan(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(file("{}", 0))
    with pytest.raises(BadInputFile, match="no safetensors weights"):
        scan(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadInputFile, match="no safetensors weights"):
        scan(tmp_path / "notes.txt")


def test_a_cache_is_followed_only_when_named_and_only_inside_itself(tmp_path: Path):
    cache, snapshot = tmp_path / "models--x--y", tmp_path / "models--x--y" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "1234").write_bytes(good())
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    with pytest.raises(BadInputFile, match="symbolic link") as caught:
        scan(snapshot)
    assert "--follow-cache" in (caught.value.hint or "")
    assert scan(snapshot, follow_cache=cache).files[0].size == len(good())
    assert scan(snapshot / "model.safetensors", follow_cache=cache).tensors == 1
    (tmp_path / "secret").write_bytes(good())
    (snapshot / "b.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInputFile, match="leaves"):
        scan(snapshot, follow_cache=cache)
    (snapshot / "b.safetensors").unlink()
    (cache / "blobs" / "5678").symlink_to(tmp_path / "secret")  # inside the cache, but a link again
    (snapshot / "b.safetensors").symlink_to("../../blobs/5678")
    with pytest.raises(BadInputFile, match="symbolic link"):
        scan(snapshot, follow_cache=cache)


# --- pickles ---------------------------------------------------------------------------------------------


class Canary:
    """Writes a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl", "model.joblib", "MODEL.BIN"])
def test_pickled_weights_are_refused_with_the_way_out(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(BadInputFile, match="pickle") as caught:
            scan(place)
        assert "--unsafe-pickle" in (caught.value.hint or "")
    assert not (tmp_path / "canary").exists()


def test_a_pickle_beside_safetensors_is_kept_closed(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(good())
    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    source = scan(tmp_path)
    assert source.warnings == ("training_args.bin is a pickle: kept as bytes, never opened",)
    assert not (tmp_path / "canary").exists()


def test_a_hostile_pickle_is_refused_by_the_child_and_runs_nothing(tmp_path: Path):
    import torch

    torch.save({"w": torch.zeros(2), "x": Canary(tmp_path / "canary")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInputFile, match="asks for more than tensors"), scan_converted(tmp_path):
        pass
    assert not (tmp_path / "canary").exists()


def test_the_child_can_open_no_file_and_no_socket_and_start_no_program_once_it_is_locked():
    code = """
import os, socket, sys
from mlc.registry.formats.pickle_child import lock_down
kept = open(sys.executable, "rb")
lock_down(1 << 34, 60, 1 << 20)
def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False
assert kept.read(4) == b"\\x7fELF" or sys.platform != "linux"
assert refused(lambda: open(sys.executable, "rb"))
assert refused(lambda: socket.socket())
assert refused(lambda: os.pipe())
assert os.geteuid() != 0
os.write(1, b"locked")
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=False)
    assert result.stdout == b"locked", result.stderr.decode()


@pytest.mark.parametrize(
    ("code", "answer", "word"),
    [
        (-9, b"", "signal 9"),
        (0, b"", "without an answer"),
        (1, b'{"done": true}', "without an answer"),
        (0, b"[]", "without an answer"),
        (0, b'{"fault": 3}', "without an answer"),
        (0, b'{"fault": "no\\u001b[31m good"}', "no\\x1b[31m good"),
    ],
)
def test_a_child_that_dies_or_lies_is_a_refusal(code: int, answer: bytes, word: str):
    assert word in (_verdict(code, answer) or "")


def test_a_child_that_takes_too_long_is_stopped(tmp_path: Path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(BadInputFile, match="more than 0 seconds"), scan_converted(tmp_path, limits=Limits(pickle_seconds=0)):
        pass
