"""Durable calls: what they leave behind when all goes well, and when the disk does not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlc.registry import fs
from mlc.registry.fs import DiskFault, DiskFull, FaultPlan, ReadOnlyRegistry


@pytest.fixture(autouse=True)
def _no_faults_after() -> Iterator[None]:
    yield
    fs.FAULTS = None


def test_a_new_file_is_private_and_complete(tmp_path: Path):
    fs.write_new(tmp_path / "a", [b"one", memoryview(b"two")])
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_new_file_never_replaces_one_and_never_follows_a_link(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("a", "link"):
        with pytest.raises(FileExistsError):
            fs.write_new(tmp_path / name, b"other")
    assert (tmp_path / "a").read_bytes() == b"mine"
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_a_failed_new_file_is_gone_again(tmp_path: Path, at: int, action: str):
    fs.FAULTS = FaultPlan(at, action)  # create, write, fsync
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC if action == "enospc" else errno.EIO)):
        fs.write_new(tmp_path / "a", b"data")
    assert list(tmp_path.iterdir()) == []


def test_replacing_text_is_all_or_nothing(tmp_path: Path):
    place = tmp_path / "HEAD"
    fs.replace_text(place, "old\n")
    fs.FAULTS = plan = FaultPlan(0)
    fs.replace_text(place, "old\n")
    for at in range(1, len(plan.seen)):  # the last call only makes the name durable
        fs.FAULTS = FaultPlan(at, "enospc")
        with pytest.raises(OSError, match="No space"):
            fs.replace_text(place, "new\n")
        assert place.read_text() == "old\n"
        assert list(tmp_path.iterdir()) == [place]


def test_a_short_write_is_continued(tmp_path: Path):
    fs.FAULTS = FaultPlan(2, "short")
    fs.write_new(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize(("at", "action"), [(1, "enospc"), (1, "eio"), (2, "eio")])
def test_a_failed_append_leaves_the_file_as_it_was(tmp_path: Path, at: int, action: str):
    (tmp_path / "log").write_bytes(b"first\n")
    fd = os.open(tmp_path / "log", os.O_WRONLY)
    fs.FAULTS = FaultPlan(at, action)  # write, fsync
    with pytest.raises(OSError, match=r"No space|error"):
        fs.append_durable(fd, b"second\n", at=6)
    os.close(fd)
    assert (tmp_path / "log").read_bytes() == b"first\n"


def test_a_plan_that_only_counts_names_every_call(tmp_path: Path):
    fs.FAULTS = plan = FaultPlan(0)
    fs.replace_text(tmp_path / "x", "text")
    assert [call.split()[0] for call in plan.seen] == ["create", "write", "fsync", "rename", "fsync_dir"]


def test_missing_directories_are_made_private(tmp_path: Path):
    fs.make_dir(tmp_path / "a" / "b")
    fs.make_dir(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (errno.ENOSPC, DiskFull, 1),
        (errno.EDQUOT, DiskFull, 1),
        (errno.EROFS, ReadOnlyRegistry, 2),
        (errno.EACCES, ReadOnlyRegistry, 2),
        (errno.EIO, DiskFault, 1),
    ],
)
def test_what_the_system_refuses_is_said_in_words(tmp_path: Path, number: int, error: type, code: int):
    with pytest.raises(error) as caught, fs.faults_in_words(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == code
    assert caught.value.hint
    assert str(tmp_path) in caught.value.message


def test_too_little_space_is_found_before_anything_is_written(tmp_path: Path):
    fs.require_space(tmp_path, 1)
    with pytest.raises(DiskFull) as caught:
        fs.require_space(tmp_path, 1 << 60)
    assert caught.value.details["bytes"] > 1 << 59
    assert str(caught.value.details["bytes"]) in caught.value.hint
