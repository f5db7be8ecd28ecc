"""The journal: every line bound to the one before, damage told from unfinished work, and no question that costs more with age."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.registry import fs
from mlc.registry import journal as journal_module
from mlc.registry.errors import CorruptRecord
from mlc.registry.journal import Journal, utc_now
from mlc.registry.journal_lines import BadLine, encode_line, make_record, parse_line
from mlc.registry.journal_seal import Place, decode_seal, encode_seal

TIME = "2026-01-02T03:04:05.678901Z"


def write(journal: Journal, *kinds: str, seal: bool = True) -> None:
    for kind in kinds:
        journal.append({"kind": kind}, txid=f"tx-{kind}", author="ada", time=TIME)
        if seal:
            journal.seal()


def kinds(journal: Journal, after: int = 0) -> list[str]:
    return [record.body["kind"] for record in journal.records(after)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal of five records: a, b, c, d, e."""
    made = Journal(tmp_path / "journal")
    made.create()
    write(made, *"abcde")
    return made


@pytest.fixture
def segment(journal: Journal) -> Path:
    return journal.directory / "00000001.log"


def test_a_line_is_pinned_to_the_byte():
    record = make_record(1, "", {"kind": "init"}, txid="t", author="mlc", time=TIME)
    rest = b'{"author":"mlc","body":{"kind":"init"},"prev":"","seq":1,"time":"2026-01-02T03:04:05.678901Z","txid":"t"}'
    assert record.hash == blake3(b"mlc.journal.v1\n" + b"\n" + rest).hexdigest()
    assert encode_line(record) == (
        b'000000b3 {"author":"mlc","body":{"kind":"init"},"hash":"fa71b112a1a2d9e2e1c671f607f537499e5b11252fb30bb950b9be8262f63125",'
        b'"prev":"","seq":1,"time":"2026-01-02T03:04:05.678901Z","txid":"t"}\n'
    )


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    st.dictionaries(texts, texts | st.just(',"hash":"' + "0" * 64 + '"') | st.dictionaries(st.sampled_from(["hash", "prev", "x"]), texts)),
    texts,
    texts,
)
def test_any_body_survives_a_line_whatever_it_says_about_hashes(body: dict, author: str, txid: str):
    record = make_record(3, "0" * 64, body, txid=txid, author=author, time=TIME)
    line = encode_line(record)
    assert parse_line(line) == record
    assert line.count(b"\n") == 1


@settings(max_examples=300)
@given(st.data())
def test_no_changed_byte_of_a_line_goes_unseen(data: st.DataObject):
    line = encode_line(make_record(2, "1" * 64, {"kind": "note", "text": "é"}, txid="t", author="ada", time=TIME))
    at = data.draw(st.integers(0, len(line) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = line[:at] + bytes([line[at] ^ (1 << bit)]) + line[at + 1 :]
    with pytest.raises(BadLine):
        parse_line(changed)
    with pytest.raises(BadLine):
        parse_line(line[:at])


def test_records_come_back_in_order_and_chained(journal: Journal):
    records = list(journal.records())
    assert [record.seq for record in records] == [1, 2, 3, 4, 5]
    assert records[0].prev == ""
    assert all(later.prev == earlier.hash for earlier, later in pairwise(records))
    assert journal.head() == (5, records[-1].hash) == journal.verify()
    assert [record.seq for record in journal.backward()] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(("after", "rest"), [(0, "abcde"), (1, "bcde"), (3, "de"), (4, "e"), (5, ""), (9, "")])
def test_records_after_any_seq_are_found(journal: Journal, after: int, rest: str):
    assert "".join(kinds(journal, after)) == rest


def test_a_new_journal_is_empty(tmp_path: Path):
    journal = Journal(tmp_path / "journal")
    journal.create()
    assert journal.head() == (0, "")
    assert kinds(journal) == []
    assert list(journal.backward()) == []


def test_segments_rotate_and_every_way_of_reading_crosses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 600)
    monkeypatch.setattr(journal_module, "_BLOCK", 64)
    journal = Journal(tmp_path / "journal")
    journal.create()
    names = [f"k{i}" for i in range(20)]
    write(journal, *names)
    assert len(journal.segments()) > 4
    assert kinds(journal) == names
    for after in range(21):
        assert kinds(journal, after) == names[after:]
    assert [record.body["kind"] for record in journal.backward()] == names[::-1]
    assert journal.find("tx-k3").seq == 4
    assert journal.verify()[0] == 20


def test_a_writer_that_died_while_it_began_a_segment_left_nothing_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 300)
    journal = Journal(tmp_path / "journal")
    journal.create()
    write(journal, "a", "b")
    assert journal.segments() == [1]
    (journal.directory / "00000002.log").touch()  # made, and then it died
    assert kinds(journal) == ["a", "b"]
    write(journal, "c", seal=False)
    with (journal.directory / "00000002.log").open("ab") as file:
        file.write(b"torn")
    again = Journal(journal.directory)
    assert kinds(again) == ["a", "b", "c"]
    again.recover()
    write(again, "d")
    assert again.verify()[0] == 4


def test_a_transaction_is_found_by_its_id_and_kind(journal: Journal):
    assert journal.find("tx-c").seq == 3
    assert journal.find("tx-c", "c").seq == 3
    assert journal.find("tx-c", "commit") is None
    assert journal.find("tx") is None


def test_the_head_costs_the_same_however_long_history_is(journal: Journal, monkeypatch: pytest.MonkeyPatch):
    parsed = []
    monkeypatch.setattr(fs, "_sync", lambda fd: None)
    monkeypatch.setattr(journal_module, "parse_line", lambda line: parsed.append(line) or parse_line(line))
    journal.head()
    assert parsed == []
    write(journal, "f", seal=False)
    journal.head()
    assert len(parsed) == 1
    write(journal, *(f"k{i}" for i in range(200)))
    parsed.clear()
    assert kinds(journal, 100)[0] == "k94"
    assert len(parsed) < 106 + 12  # bisection


@pytest.mark.parametrize("left", [1, 8, 60, -2, -1])
def test_a_torn_last_record_beyond_the_seal_is_cut_and_kept(journal: Journal, segment: Path, left: int):
    whole = segment.stat().st_size
    write(journal, "torn", seal=False)
    line = segment.read_bytes()[whole:]
    os.truncate(segment, whole + left % len(line))
    assert "".join(kinds(journal)) == "abcde"  # a reader waits for no repair
    assert journal.head()[0] == 5
    assert journal.recover() == ["an unfinished journal record after 5 was cut off and kept in quarantine"]
    assert segment.stat().st_size == whole
    assert [path.read_bytes() for path in (journal.directory.parent / "quarantine").iterdir()] == [line[: left % len(line)]]
    assert journal.recover() == []
    write(journal, "f")
    assert journal.verify()[0] == 6


def test_zeros_after_the_seal_are_cut_as_a_power_cut_may_leave_them(journal: Journal, segment: Path):
    with segment.open("ab") as file:
        file.write(bytes(5000))
    journal.recover()
    write(journal, "f")
    assert "".join(kinds(journal)) == "abcdef"


def test_a_whole_record_beyond_the_seal_is_rolled_forward(journal: Journal):
    write(journal, "f", seal=False)
    again = Journal(journal.directory)
    assert again.head()[0] == 6
    assert again.recover() == []
    assert again.read_seal().seq == 6
    assert "".join(kinds(again)) == "abcdef"


def test_an_append_cuts_what_another_writer_left_unfinished(journal: Journal, segment: Path):
    with segment.open("ab") as file:
        file.write(b"000000ff {")
    write(journal, "f")
    assert "".join(kinds(journal)) == "abcdef"
    assert journal.verify()[0] == 6


def test_damage_up_to_the_seal_stops_every_reader_that_meets_it(journal: Journal, segment: Path):
    data = bytearray(segment.read_bytes())
    for record, fault in ((3, "tx-c"), (5, "tx-e")):
        damaged = bytes(data).replace(fault.encode(), fault.upper().encode())
        segment.write_bytes(damaged)
        with pytest.raises(CorruptRecord) as caught:
            journal.verify()
        assert caught.value.exit_code == 7
        assert caught.value.hint == "mlc fsck"
        with pytest.raises(CorruptRecord):
            kinds(journal)
        if record == 5:
            with pytest.raises(CorruptRecord):
                journal.recover()
    assert segment.read_bytes() == damaged  # evidence is left as it was


def test_a_bad_record_followed_by_a_good_one_is_damage_and_not_cut(journal: Journal, segment: Path):
    size = segment.stat().st_size
    write(journal, "f", "g", seal=False)
    segment.write_bytes(segment.read_bytes().replace(b"tx-f", b"tx-F"))
    with pytest.raises(CorruptRecord):
        journal.recover()
    assert segment.stat().st_size > size


def test_a_journal_cut_before_its_seal_is_damage(journal: Journal, segment: Path):
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:3]))
    for ask in (journal.head, journal.verify, journal.recover, lambda: kinds(journal)):
        with pytest.raises(CorruptRecord):
            ask()


def test_a_removed_or_swapped_record_breaks_the_chain(journal: Journal, segment: Path):
    a, b, c, d, e = segment.read_bytes().splitlines(keepends=True)
    for forged in ([a, c, d, e], [a, c, b, d, e], [a, b, b, d, e]):
        segment.write_bytes(b"".join(forged))
        with pytest.raises(CorruptRecord):
            journal.verify()


def test_another_history_of_the_same_length_does_not_fit_the_seal(journal: Journal, tmp_path: Path):
    other = Journal(tmp_path / "other")
    other.create()
    write(other, *"abcdx")
    (journal.directory / "00000001.log").write_bytes((other.directory / "00000001.log").read_bytes())
    for ask in (journal.verify, journal.recover):
        with pytest.raises(CorruptRecord, match="not the one that was sealed"):
            ask()


@pytest.mark.parametrize("damage", [b"", b"{}", b"nonsense", None])
def test_a_lost_or_damaged_seal_is_written_again_from_a_sound_journal(journal: Journal, damage: bytes | None):
    place = journal.directory / "seal"
    sound = place.read_bytes()
    place.unlink()
    if damage is not None:
        place.write_bytes(damage)
    assert "".join(kinds(journal)) == "abcde"
    with pytest.raises(CorruptRecord, match="seal"):
        journal.verify()
    assert journal.recover() == ["the seal of the journal was missing or damaged and was written again"]
    assert place.read_bytes() == sound


def test_a_torn_record_without_a_seal_is_not_judged_harmless(journal: Journal, segment: Path):
    (journal.directory / "seal").unlink()
    os.truncate(segment, segment.stat().st_size - 3)
    with pytest.raises(CorruptRecord):
        journal.recover()


def test_every_changed_bit_of_a_seal_is_noticed():
    text = encode_seal(Place(7, "ab" * 32, 1, 100, 200)).encode()
    assert decode_seal(text) == Place(7, "ab" * 32, 1, 100, 200)
    for at in range(len(text) - 1):
        changed = text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
        assert decode_seal(changed) is None


def test_the_present_is_written_in_utc_with_microseconds():
    now = utc_now()
    assert len(now) == len(TIME)
    assert now.endswith("Z")
