"""What is stored, and what it would be without sharing."""

from __future__ import annotations

import pytest

from mlc.registry.errors import BadParameter
from mlc.registry.maintenance.du import du
from mlc.registry.repository import Repository
from mlc.tests.registry.real import small_history

TENSOR = 24 * 32 * 4


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return small_history(tmp_path_factory.mktemp("du") / "work")


def test_the_parts_sum_to_what_lies_on_disk(repo):
    usage = du(repo)
    assert usage.total_bytes == sum(usage.parts.values()) == sum(p.stat().st_size for p in repo.path.rglob("*") if p.is_file())
    assert usage.parts["objects"] > 5 * TENSOR / 2
    assert usage.parts["catalog.duckdb"] > 0
    assert usage.parts["journal"] > 0


def test_logical_bytes_are_full_copies_of_every_version(repo):
    files = sum(
        f.size
        for c in (r.body["commit"] for r in repo.journal.records() if r.body["kind"] == "commit")
        for f in repo.snapshot(repo.commit(c).snapshot).files
    )
    usage = du(repo)
    assert usage.logical_bytes == files
    assert usage.logical_bytes > 11 * TENSOR
    assert usage.ratio == usage.total_bytes / files


def test_by_codec_covers_every_object(repo):
    rows = du(repo, "codec").by
    infos = list(repo.objects.iter_infos())
    assert sum(row.objects for row in rows) == len(infos)
    assert sum(row.bytes_stored for row in rows) == sum(info.stored_size for info in infos)
    assert {row.key for row in rows} == {info.codec if info.kind == "tensor" else "blob" for info in infos}
    assert [row.bytes_stored for row in rows] == sorted((row.bytes_stored for row in rows), reverse=True)


def test_by_operation_and_branch_count_changed_tensors(repo):
    assert {row.key: row.objects for row in du(repo, "op").by} == {"import": 2, "update": 4}
    assert {row.key: row.objects for row in du(repo, "branch").by} == {"main": 4, "(no branch)": 2}
    with pytest.raises(BadParameter):
        du(repo, "colour")


def test_an_empty_registry_has_no_ratio(tmp_path):
    usage = du(Repository.init(tmp_path / "work"))
    assert usage.ratio is None
    assert usage.by == []
    assert usage.to_json()["logical_bytes"] == 0
