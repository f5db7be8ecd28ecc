"""Evidence folders: complete, the same each time, silent about the forgotten text, and changed by nobody without notice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mlc.policies import lifecycle
from mlc.policies.evidence import evidence_files, recognised, verify_evidence, write_evidence
from mlc.registry import fs
from mlc.registry.errors import BadParameter, CorruptRecord, GateRefused
from mlc.registry.ids import blob_digest, record_digest
from mlc.registry.keys import request_scope
from mlc.registry.records import canonical
from mlc.tests.policies.operations import Forget, Scale

PEOPLE = [{"prompt": f"Where does Wilhelmina Quartz the {n}th live?", "answer": f"in Umber Alley {n}"} for n in range(4)]
FILES = ["README.md", "commit.json", "impact.json", "items.jsonl", "manifest.json", "measures.json", "method.json", "purge.json"]


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "private" / "people.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in PEOPLE), encoding="utf-8")
    return path


@pytest.fixture
def gone(repo, root, data):
    return lifecycle.run(repo, Forget(str(data)), author="a").commit_id


@pytest.fixture
def folder(repo, gone, data, tmp_path) -> Path:
    return write_evidence(repo, gone, tmp_path / "evidence", forget_set=data)


def read(folder: Path, name: str):
    return json.loads((folder / name).read_bytes())


# --- what is in it ---------------------------------------------------------------------------------------


def test_a_folder_holds_the_record_the_numbers_and_who_still_carries_the_data(repo, root, gone, folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert record_digest("mlc.commit.v1", (folder / "commit.json").read_bytes()) == gone
    measured = read(folder, "measures.json")
    assert (measured["before"]["forget"], measured["after"]["forget"]) == (0.975, 0.0)
    assert measured["other"]["selected_fraction"] == 0.3
    done = read(folder, "method.json")
    assert done["params"]["forget_set"] == "people.jsonl"
    assert done["inputs"][0]["digest"].startswith("hmac:")
    states = {c["id"]: c["state"] for c in read(folder, "impact.json")["commits"]}
    assert states == {root: "unknown origin", gone: "unlearned"}
    purge = read(folder, "purge.json")
    assert (purge["state"], purge["commits"], purge["objects"]["count"]) == ("not purged", [root], 1)
    assert [key["scope"] for key in purge["keys"]] == repo.keys.scopes()


def test_the_manifest_names_every_other_file_and_the_head_of_the_journal(repo, gone, folder):
    manifest = read(folder, "manifest.json")
    assert (manifest["commit"]["id"], manifest["commit"]["outcome"]) == (gone, "accepted")
    assert tuple(manifest["journal"].values()) == (repo.journal.head()[1], repo.journal.head()[0])  # canonical: hash before seq
    assert [f["path"] for f in manifest["files"]] == [name for name in FILES if name != "manifest.json"]
    for file in manifest["files"]:
        data = (folder / file["path"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert canonical(manifest) == (folder / "manifest.json").read_bytes()


def test_the_readme_says_how_to_check_and_what_is_not_proven(gone, folder):
    text = (folder / "README.md").read_text()
    assert "## What this does not prove" in text
    assert f"(printf 'mlc.commit.v1\\n'; cat commit.json) | b3sum` gives `{gone}`" in text
    assert "| forget | 0.975 | 0 |" in text.replace("| 0.0 |", "| 0 |")
    assert "**accepted**" in text
    assert "not purged" in text


def test_the_same_registry_gives_the_same_bytes(repo, gone, data):
    assert evidence_files(repo, gone, data) == evidence_files(repo, gone, data)


def test_no_text_of_the_forget_set_and_no_plain_digest_of_it_is_told(folder, data):
    told = b"".join(path.read_bytes() for path in folder.iterdir())
    for row in PEOPLE:
        for text in (*row.values(), "Quartz", "Umber"):
            assert text.encode() not in told
    assert blob_digest(data.read_bytes()).encode() not in told
    for row in PEOPLE:
        assert blob_digest(f"{row['prompt']} {row['answer']}".encode()).encode() not in told


def test_a_refused_candidate_is_marked_so(repo, root, data, tmp_path):
    with pytest.raises(GateRefused) as caught:
        lifecycle.run(repo, Forget(str(data), after=0.5), author="a")
    folder = write_evidence(repo, caught.value.details["commit"], tmp_path / "e", forget_set=data)
    assert read(folder, "manifest.json")["commit"]["outcome"] == "refused"
    assert "**refused**" in (folder / "README.md").read_text()
    assert {c["state"] for c in read(folder, "impact.json")["commits"]} == {"unknown origin", "carries"}
    assert verify_evidence(folder, repo) == []


def test_without_the_file_the_list_of_carriers_rests_on_the_commits_own_keyed_digest(repo, root, gone):
    files = evidence_files(repo, gone)
    assert {c["id"]: c["state"] for c in json.loads(files["impact.json"])["commits"]} == {root: "unknown origin", gone: "unlearned"}


def test_another_kind_of_commit_has_no_evidence(repo, root, tmp_path):
    commit = lifecycle.run(repo, Scale(), author="a").commit_id
    with pytest.raises(BadParameter, match="is no unlearning but scale"):
        write_evidence(repo, commit, tmp_path / "e")
    assert not (tmp_path / "e").exists()


# --- where it goes ---------------------------------------------------------------------------------------


def test_a_directory_in_use_is_left_alone(repo, gone, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("used", "file", "link"):
        with pytest.raises(BadParameter):
            write_evidence(repo, gone, tmp_path / name)
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["mine.txt"]


def test_an_empty_directory_and_missing_parents_will_do(repo, gone, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert verify_evidence(write_evidence(repo, gone, place), repo) == []


@pytest.mark.parametrize("at", [1, 5, 20, 26])
def test_a_full_disk_leaves_no_half_folder(repo, gone, tmp_path, at):
    (tmp_path / "out").mkdir()
    fs.FAULTS = fs.FaultPlan(at, "enospc")
    try:
        with pytest.raises(fs.DiskFault, match="is recorded, but its evidence could not be written"):
            write_evidence(repo, gone, tmp_path / "out" / "e")
    finally:
        fs.FAULTS = None
    assert list((tmp_path / "out").iterdir()) == []


# --- checking it -----------------------------------------------------------------------------------------


def test_a_sound_folder_is_sound_with_and_without_the_registry(repo, folder):
    assert verify_evidence(folder) == []
    assert verify_evidence(folder, repo) == []


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_noticed(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1) + b" ")
    assert any(name in sentence for sentence in verify_evidence(folder))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(folder, name):
    (folder / name).unlink()
    assert any(name in sentence for sentence in verify_evidence(folder))


def test_a_file_that_was_added_is_noticed(folder):
    (folder / "more.txt").write_text("more")
    assert verify_evidence(folder) == ["more.txt is not named by manifest.json"]


def sign_again(folder: Path) -> None:
    """What a forger would do: make the manifest fit."""
    manifest = read(folder, "manifest.json")
    for file in manifest["files"]:
        data = (folder / file["path"]).read_bytes()
        file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_bytes(canonical(manifest))


@pytest.mark.parametrize("name", ["commit.json", "measures.json", "method.json", "items.jsonl"])
def test_what_the_commit_id_binds_cannot_be_changed_together_with_the_manifest(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"0.9", b"0.1").replace(b"true", b"false").replace(b'"version":1', b'"version":2'))
    sign_again(folder)
    assert any(name in sentence for sentence in verify_evidence(folder))


def test_a_folder_of_another_registry_is_noticed(repo, folder, tmp_path):
    from mlc.registry.repository import Repository

    other = Repository.init(tmp_path / "other")
    assert [s.split(" ")[:3] for s in verify_evidence(folder, other)] == [["the", "registry", "does"], ["the", "registry's", "journal"]]


def test_the_holder_of_key_and_file_recognises_the_records(repo, folder, data, tmp_path):
    assert recognised(repo, folder, data) == (4, 4)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(PEOPLE[2]) + "\n" + json.dumps({"text": "somebody else"}) + "\n", encoding="utf-8")
    assert recognised(repo, folder, other) == (1, 4)
    (scope,) = [name for name in repo.keys.scopes() if name.startswith(request_scope(""))]
    repo.keys.destroy(scope)
    with pytest.raises(CorruptRecord, match="the key"):
        recognised(repo, folder, data)


# --- keys and runs ---------------------------------------------------------------------------------------


def test_a_run_that_fails_its_check_leaves_no_key(repo, root, data):
    from mlc.registry.errors import CheckFailed

    with pytest.raises(CheckFailed):
        lifecycle.run(repo, Forget(str(data), passes=False), author="a")
    assert repo.keys.scopes() == []


def test_a_stopped_run_keeps_its_key_and_goes_on_with_it_and_a_forgotten_one_does_not(repo, root, data):
    from mlc.policies.runs import Runs
    from mlc.registry.errors import Interrupted

    op = Forget(str(data), stop=True)
    with pytest.raises(Interrupted):
        lifecycle.run(repo, op, author="a")
    (scope,) = repo.keys.scopes()
    key = repo.keys.key_id(scope)
    outcome = lifecycle.run(repo, op, resume="latest", author="a")
    assert repo.keys.key_id(scope) == key
    assert {i.digest.split(":")[1] for i in outcome.commit.inputs if i.role == "forget"} == {key}

    with pytest.raises(Interrupted):
        lifecycle.run(repo, op, author="a")
    runs = Runs(repo)
    runs.forget(runs.list()[0].id)
    assert repo.keys.scopes() == [scope]


def test_a_replay_reaches_the_same_snapshot_and_leaves_no_key(repo, root, data, monkeypatch):
    from mlc.ops import catalog

    monkeypatch.setattr(catalog, "load", {"unlearn": Forget}.__getitem__)
    gone = lifecycle.run(repo, Forget(str(data), reference=root), author="a").commit_id
    scopes = repo.keys.scopes()
    assert lifecycle.replay(repo, gone)[1]
    assert repo.keys.scopes() == scopes
    assert [(i.name, i.digest, i.bytes) for i in repo.commit(gone).inputs if i.role == "commit"] == [(root, root, 0)]
