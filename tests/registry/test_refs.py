"""Refs: names, compare-and-swap, the mirror that may lag or be damaged, and the log of moves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc.registry import fs
from mlc.registry.errors import RefMoved
from mlc.registry.ids import CommitId
from mlc.registry.records import RefUpdate
from mlc.registry.refs import BadRefName, RefStore, check_name
from mlc.registry.repository import Repository
from mlc.tests.registry.crash_child import open_quick

A, B, C = (CommitId(digit * 64) for digit in "abc")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A registry without catalog and syncs: refs are what it is about."""
    monkeypatch.setattr(fs, "_sync", fs._sync)
    return open_quick(Repository.init(tmp_path).path)


def move(repo: Repository, *updates: tuple[str, CommitId | None, CommitId | None], reason: str = "test") -> int:
    return repo.move_refs([RefUpdate(*update) for update in updates], reason=reason, author="ada")


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["heads/main", "tags/v1.0", "aliases/champion", "heads/team/x_1/fix-2", "heads/0", "tags/" + "z" * 64, "heads/a/b/c/d/e/f/g/h"]
)
def test_names_that_a_ref_may_have(name: str):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "main",
            "remotes/x",
            "/heads/x",
            "heads/",
            "heads//x",
            "heads/x/",
            "heads/a/b/c/d/e/f/g/h/i",
            "heads/" + "a" * 65,
            "heads/" + "ab" * 32,
        ),
        *(
            "heads/Main",
            "heads/HEAD",
            "heads/ünï",
            "heads/a b",
            "heads/x\n",
            "heads/x\x00",
            "heads/x:y",
            "heads/\\x",
            "heads/x~1",
            "heads/x^",
            "heads/@x",
        ),
        *("heads/-x", "heads/.x", "heads/x..y", "heads/x.", "heads/x.lock", "heads/../x", "heads/con", "heads/nul.txt", "heads/a/com1/b"),
    ],
)
def test_names_that_no_ref_may_have(name: str):
    with pytest.raises(BadRefName) as caught:
        check_name(name)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_name_in_capitals_is_refused_with_the_one_that_would_do():
    with pytest.raises(BadRefName) as caught:
        check_name("heads/Feature One")
    assert caught.value.hint == "for example 'feature-one'"


@given(st.text(max_size=80))
def test_a_name_that_is_allowed_is_a_safe_path_below_its_kind(text: str):
    try:
        name = check_name(f"heads/{text}")
    except BadRefName:
        return
    path = Path(name)
    assert path.as_posix() == name
    assert path.parts[0] == "heads"
    assert ".." not in path.parts
    assert name.isascii()
    assert name == name.casefold()


# --- compare and swap ------------------------------------------------------------------------------------


def test_a_ref_is_made_moved_and_removed(repo: Repository):
    move(repo, ("heads/main", None, A))
    move(repo, ("heads/main", A, B), ("tags/v1", None, A))
    assert repo.refs.all() == {"heads/main": B, "tags/v1": A}
    assert repo.refs.read("heads/main") == B
    move(repo, ("tags/v1", A, None))
    assert repo.refs.all() == {"heads/main": B}
    assert repo.refs.read("tags/v1") is None


@pytest.mark.parametrize("old", [None, C])
def test_a_ref_that_is_elsewhere_stops_every_move_of_the_step(repo: Repository, old: CommitId | None):
    move(repo, ("heads/main", None, A))
    with pytest.raises(RefMoved) as caught:
        move(repo, ("tags/v1", None, A), ("heads/main", old, B))
    assert caught.value.exit_code == 9
    assert caught.value.details == {"ref": "heads/main", "expected": old, "actual": A}
    assert repo.refs.all() == {"heads/main": A}
    assert repo.journal.head()[0] == 2


def test_one_step_moves_a_ref_once(repo: Repository):
    with pytest.raises(BadRefName):
        move(repo, ("heads/main", None, A), ("heads/main", A, B))


@pytest.mark.parametrize(("first", "second"), [("heads/x", "heads/x/y"), ("heads/x/y", "heads/x"), ("tags/a/b", "tags/a/b/c")])
def test_a_name_that_is_a_folder_of_another_is_refused(repo: Repository, first: str, second: str):
    move(repo, (first, None, A))
    with pytest.raises(BadRefName):
        move(repo, (second, None, A))
    with pytest.raises(BadRefName):
        move(repo, ("heads/q", None, A), ("heads/q/r", None, A))
    move(repo, (first, A, None), (second, None, B))  # in one step there is room
    assert repo.refs.all() == {second: B}
    assert Repository.open(repo.path).refs.all() == {second: B}


# --- the mirror ------------------------------------------------------------------------------------------


def files(repo: Repository) -> dict[str, str]:
    place = repo.path / "refs"
    return {p.relative_to(place).as_posix(): p.read_text() for p in place.rglob("*") if p.is_file() and p.name != "seq"}


def test_the_mirror_is_one_small_file_a_ref(repo: Repository):
    move(repo, ("heads/a/b", None, A), ("tags/v1", None, B))
    assert files(repo) == {"heads/a/b": f"{A}\n", "tags/v1": f"{B}\n"}
    assert repo.refs.mirrored() == 2
    move(repo, ("heads/a/b", A, None))
    assert files(repo) == {"tags/v1": f"{B}\n"}
    assert not (repo.path / "refs" / "heads" / "a").exists()
    assert (repo.path / "refs" / "heads").is_dir()


def behind(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror as a writer leaves it that dies right after the commit point."""
    with monkeypatch.context() as patch:
        patch.setattr(RefStore, "mirror", lambda self: None)
        move(repo, ("heads/main", A, B), ("tags/v1", None, A), ("heads/old", A, None))


def test_a_mirror_that_lags_is_completed_by_the_reader_and_mended_by_the_next_writer(repo: Repository, monkeypatch: pytest.MonkeyPatch):
    move(repo, ("heads/main", None, A), ("heads/old", None, A))
    behind(repo, monkeypatch)
    reader = Repository.open(repo.path)
    assert reader.refs.all() == {"heads/main": B, "tags/v1": A}
    assert files(repo)["heads/main"] == f"{A}\n"
    writer = open_quick(repo.path)
    move(writer, ("heads/main", B, C))
    assert files(repo) == {"heads/main": f"{C}\n", "tags/v1": f"{A}\n"}
    assert writer.refs.mirrored() == 4


@pytest.mark.parametrize("text", ["", "x\n", "c" * 64 + "\n", None])
def test_a_damaged_mirror_is_noticed_and_never_believed(repo: Repository, text: str | None):
    move(repo, ("heads/main", None, A), ("tags/v1", None, B))
    place = repo.path / "refs" / "heads" / "main"
    place.unlink()
    if text is not None:
        place.write_text(text)
    (repo.path / "refs" / "heads" / "stray").write_text(f"{C}\n")
    reader = open_quick(repo.path)
    assert reader.refs.all() == {"heads/main": A, "tags/v1": B}
    move(reader, ("tags/v2", None, B))
    assert files(repo) == {"heads/main": f"{A}\n", "tags/v1": f"{B}\n", "tags/v2": f"{B}\n"}


@pytest.mark.parametrize("text", ["", "nonsense", "99 " + "0" * 64, "2 " + "0" * 64])
def test_a_damaged_mark_of_the_mirror_is_noticed(repo: Repository, text: str):
    move(repo, ("heads/main", None, A))
    (repo.path / "refs" / "seq").write_text(text)
    reader = open_quick(repo.path)
    assert reader.refs.all() == {"heads/main": A}
    move(reader, ("heads/main", A, B))
    assert Repository.open(repo.path).refs.mirrored() == 3


def test_what_one_process_moves_the_other_sees_at_once(repo: Repository):
    other = Repository.open(repo.path)
    assert other.refs.all() == {}
    move(repo, ("heads/main", None, A))
    assert other.refs.all() == {"heads/main": A}
    move(repo, ("heads/main", A, B))
    assert other.refs.read("heads/main") == B


def test_a_record_that_was_read_and_then_taken_back_is_forgotten(repo: Repository):
    """A reader may see a line whose sync then fails; the writer cuts it off and somebody else writes another."""
    move(repo, ("heads/main", None, A))
    other, log = Repository.open(repo.path), repo.journal.directory / "00000001.log"
    size = log.stat().st_size
    repo.journal.append({"kind": "refs", "refs": [RefUpdate("heads/main", A, B).to_json()]}, txid="x", author="x", time="")
    assert other.refs.read("heads/main") == B
    with log.open("r+b") as file:
        file.truncate(size)
    assert other.refs.read("heads/main") == A
    move(repo, ("heads/main", A, C))
    assert other.refs.read("heads/main") == C


# --- the log of moves ------------------------------------------------------------------------------------


def test_the_reflog_says_who_moved_a_ref_when_and_why(repo: Repository):
    move(repo, ("heads/main", None, A), reason="import")
    move(repo, ("heads/mainly", None, C), reason="branch")
    move(repo, ("heads/main", A, B), ("tags/v1", None, B), reason="update")
    moves = repo.refs.reflog("heads/main")
    assert [(m.seq, m.author, m.old, m.new, m.reason) for m in moves] == [(2, "ada", None, A, "import"), (4, "ada", A, B, "update")]
    assert moves[0].time <= moves[1].time
    assert repo.refs.reflog("tags/none") == []
