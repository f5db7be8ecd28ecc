"""Keys: digests that only their holder can match, and that nobody can once the key is gone."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from blake3 import blake3

from mlc.registry import fs
from mlc.registry.errors import BadParameter, CorruptRecord
from mlc.registry.fs import DiskFull, FaultPlan
from mlc.registry.keys import Keys, request_scope
from mlc.registry.maintenance.du import du
from mlc.registry.maintenance.fsck import fsck


@pytest.fixture
def keys(tmp_path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture(autouse=True)
def _no_faults_after():
    yield
    fs.FAULTS = None


def test_a_pseudonym_names_its_key_and_is_the_keyed_digest(keys):
    said = keys.pseudonym("registry", b"a secret")
    assert re.fullmatch(r"hmac:[0-9a-f]{12}:[0-9a-f]{64}", said)
    key = bytes.fromhex((keys.path / "registry").read_text().splitlines()[1])
    assert said == f"hmac:{keys.key_id('registry')}:{blake3(b'a secret', key=key).hexdigest()}"
    assert key.hex()[:12] != keys.key_id("registry")
    assert said == Keys(keys.path).pseudonym("registry", b"a secret")


def test_every_scope_has_a_key_of_its_own(keys):
    said = {keys.pseudonym(scope, b"same") for scope in ("registry", "request-1", "request-2", "suite-Probe.v1")}
    assert len({text[-64:] for text in said}) == len({text.split(":")[1] for text in said}) == 4
    assert keys.scopes() == ["registry", "request-1", "request-2", "suite-Probe.v1"]


def test_key_files_and_their_folder_are_private(keys):
    keys.pseudonym("registry", b"x")
    assert (keys.path / "registry").stat().st_mode & 0o777 == 0o600
    assert keys.path.stat().st_mode & 0o777 == 0o700
    assert os.listdir(keys.path) == ["registry"]


def test_asking_makes_no_key(keys):
    assert not keys.has("registry")
    assert not keys.matches("registry", b"x", "hmac:00:00")
    assert (keys.key_id("registry"), keys.scopes(), keys.destroy("registry")) == (None, [], False)
    assert not keys.path.exists()


@pytest.mark.parametrize("scope", ["", ".", "..", "../journal", "a/b", ".new-1", "a\\b\x00", "ä", "x" * 129, "-a"])
def test_a_scope_is_a_plain_name(keys, scope):
    for ask in (keys.has, keys.destroy, lambda s: keys.pseudonym(s, b"x")):
        with pytest.raises(BadParameter):
            ask(scope)
    assert not keys.path.exists()


def test_a_destroyed_key_is_gone_from_memory_and_disk(keys):
    before = keys.pseudonym("request-1", b"x")
    assert keys.destroy("request-1")
    assert os.listdir(keys.path) == []
    assert not keys.matches("request-1", b"x", before)
    assert keys.pseudonym("request-1", b"x") != before  # a new key


def test_a_key_destroyed_halfway_is_no_key_and_is_erased_by_the_next_one(keys):
    keys.pseudonym("request-1", b"x")
    keys.pseudonym("request-2", b"x")
    fs.FAULTS = FaultPlan(3, "eio")  # rename, sync, then the write over it
    with pytest.raises(fs.DiskFault):
        keys.destroy("request-1")
    fs.FAULTS = None
    assert keys.scopes() == ["request-2"]
    assert keys.destroy("request-2")
    assert os.listdir(keys.path) == []


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_key_that_cannot_be_written_leaves_nothing_half_made(keys, at):
    keys.path.mkdir()
    fs.FAULTS = FaultPlan(at, "enospc")  # create, write, sync, link, sync of the folder
    with pytest.raises(DiskFull):
        keys.pseudonym("registry", b"x")
    fs.FAULTS = None
    assert [name for name in os.listdir(keys.path) if name.startswith(".")] == []
    assert keys.pseudonym("registry", b"x") == keys.pseudonym("registry", b"x")


def test_a_damaged_key_is_an_error_and_never_another_key(keys):
    keys.pseudonym("registry", b"x")
    (keys.path / "registry").write_text("mlc key 1\nabc\n")
    with pytest.raises(CorruptRecord, match="is not a key") as caught:
        Keys(keys.path).pseudonym("registry", b"x")
    assert "abc" not in caught.value.message


def test_processes_that_race_for_a_key_agree_on_one(tmp_path):
    code = "import sys, pathlib, mlc.registry.keys as k; print(k.Keys(pathlib.Path(sys.argv[1])).pseudonym('registry', b'x'))"
    racing = [subprocess.Popen([sys.executable, "-P", "-c", code, str(tmp_path / "keys")], stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate()[0] for process in racing}) == 1


def test_fsck_and_du_do_not_stumble_over_keys(repo):
    repo.keys.pseudonym("registry", b"x")
    assert [fsck(repo, level).clean for level in range(4)] == [True] * 4
    assert not [f for f in fsck(repo, 3).findings if "keys" in f.object]
    assert du(repo).parts["other"] > 0


def test_a_request_scope_is_named_by_its_run():
    assert request_scope("20260101-000000-abcd") == "request-20260101-000000-abcd"
