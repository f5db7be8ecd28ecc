"""Keeping house: init, fsck, reindex, du, doctor, and the names at a glance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlc.registry.glance import find, look
from mlc.registry.repository import Repository
from mlc.tests.cli.running import ok, run_cli


def test_init_lays_out_a_registry_with_settings_and_a_policy(tmp_path: Path):
    answer = ok("init", tmp_path / "work", "--branch", "trunk")
    assert answer == {"registry": str(tmp_path / "work"), "head": "trunk", "files": ["mlc.toml", "policies/default.toml"]}
    assert (tmp_path / "work" / ".mlc" / "format").read_text() == "mlc 1\n"
    assert ok("policy", "check", "-R", tmp_path / "work")["rules"]


def test_init_leaves_files_that_are_there_and_refuses_a_second_registry(tmp_path: Path):
    (tmp_path / "mlc.toml").write_text("# mine\n")
    assert ok("init", tmp_path)["files"] == ["policies/default.toml"]
    assert (tmp_path / "mlc.toml").read_text() == "# mine\n"
    again = run_cli("init", tmp_path, "--json")
    assert again.code == 2
    assert again.error["kind"] == "AlreadyARegistry"


def test_the_demo_template_brings_the_model_the_suites_and_the_texts(tmp_path: Path):
    files = set(ok("init", tmp_path, "--template", "demo")["files"])
    assert {"model/model.safetensors", "suites/known.toml", "suites/known.jsonl", "new-facts.jsonl", "replay.jsonl"} <= files
    assert run_cli("init", tmp_path / "x", "--template", "nonsense", "--json").code == 2


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_sound_registry_is_clean_at_every_level(work, level: int):
    answer = ok("fsck", "--level", str(level))
    assert (answer["level"], answer["clean"]) == (level, True)
    assert {"objects", "bytes", "findings"} <= set(answer)


def test_a_flipped_bit_is_found_and_is_exit_7(work):
    pack = max((work.root / ".mlc" / "objects").glob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    answer = run_cli("fsck", "--level", "2", "--json")
    assert answer.code == 7
    assert answer.json["clean"] is False
    assert any(finding["severity"] == "fault" for finding in answer.json["findings"])
    assert "fault" in run_cli("fsck", "--level", "2").out


@pytest.mark.parametrize("words", [["--level", "9"], ["--sample", "3"], ["--sample", "3/2"]])
def test_a_wrong_fsck_is_a_usage_error(work, words):
    assert run_cli("fsck", *words, "--json").code == 2


def test_the_catalog_comes_back_identical(work):
    before = ok("log", "--all")
    (work.root / ".mlc" / "catalog.duckdb").unlink()
    assert ok("reindex")["commits"] == 3
    assert ok("log", "--all") == before


def test_du_says_what_is_stored_and_by_what(work):
    answer = ok("du", "--by", "op")
    assert {"total_bytes", "logical_bytes", "ratio", "by"} <= set(answer)
    assert set(answer["by"]) == {"import", "update"}
    assert "objects" in run_cli("du").out
    assert run_cli("du", "--by", "colour", "--json").code == 2


def test_the_doctor_names_what_is_wrong_and_how_to_mend_it(work):
    assert ok("doctor")["ok"] is True
    (work.root / "mlc.toml").write_text("[evil]\n")
    answer = run_cli("doctor", "--json")
    assert answer.code == 1
    settings = next(check for check in answer.json["checks"] if check["name"] == "settings")
    assert settings["ok"] is False
    assert "evil" in settings["detail"]
    assert "✗ settings" in run_cli("doctor").out


def test_the_doctor_works_without_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLC_REGISTRY", raising=False)
    assert ok("doctor")["ok"] is True


# --- at a glance -----------------------------------------------------------------------------------------


def test_a_glance_sees_what_the_repository_sees(work):
    ok("tag", "v1", "main~1")
    ok("alias", "champion")
    ok("branch", "a/b")
    repo, seen = Repository.open(work.root), look(work.root)
    assert seen is not None
    assert (seen.head, seen.branches, seen.tags, seen.aliases) == (repo.head(), repo.branches(), repo.tags(), repo.aliases())
    assert seen.commit(work.second) == repo.commit(work.second).to_json()
    assert find(work.root / "suites") == work.root / ".mlc"


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "refs" / "heads" / "main").write_text("0" * 64 + "\n"),
        lambda place: (place / "refs" / "heads" / "main").unlink(),
        lambda place: (place / "refs" / "seq").write_text("1 nonsense\n"),
        lambda place: (place / "journal" / "seal").unlink(),
        lambda place: os.truncate(place / "journal" / "00000001.log", (place / "journal" / "00000001.log").stat().st_size + 4),
        lambda place: (place / "format").write_text("mlc 2\n"),
    ],
    ids=["another commit", "a name lost", "no digest", "no seal", "a torn record", "another format"],
)
def test_a_glance_does_not_answer_when_it_cannot_be_sure(work, damage):
    damage(work.root / ".mlc")
    assert look(work.root) is None


def test_a_glance_never_tells_a_commit_that_is_not_what_its_name_says(work):
    seen = look(work.root)
    assert seen is not None
    place = work.root / ".mlc" / "objects" / "commits" / f"{work.second}.json"
    place.chmod(0o600)
    place.write_text(place.read_text().replace("second", "forged"))
    assert seen.commit(work.second) is None
    assert run_cli("status", "--json").code == 7
