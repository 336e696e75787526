import json
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.notes import NOTE_CONNECTION, Note, Started, decode_note, encode_note, notes
from dhan_pipeline.journal.reader import read_blocks
from dhan_pipeline.journal.writer import JournalWriter

BOUNDED = settings(max_examples=300)

GAP = Gap(
    gap_id=1_795_145_400_000_000_001,
    connection=2,
    started_ns=1_795_145_399_000_000_000,
    cause=Cause.STALL,
    detail="nothing came for 30 s",
    instruments=(1_108_101_562_369, 1_108_101_562_370),
)
GAP_BYTES = (
    b'{"note":"gap","gap_id":1795145400000000001,"connection":2,"started_ns":1795145399000000000,"cause":"stall",'
    b'"detail":"nothing came for 30 s","instruments":[1108101562369,1108101562370],"ended_ns":null,"recovery":""}'
)
END = Gap(
    gap_id=1_795_145_400_000_000_001,
    connection=2,
    started_ns=1_795_145_399_000_000_000,
    cause=Cause.HOST_DOWN,
    ended_ns=1_795_145_401_000_000_000,
    recovery="connected again",
)
END_BYTES = (
    b'{"note":"gap","gap_id":1795145400000000001,"connection":2,"started_ns":1795145399000000000,"cause":"host down",'
    b'"detail":"","instruments":null,"ended_ns":1795145401000000000,"recovery":"connected again"}'
)
STARTED = Started(pid=4711, since_ns=1_795_145_399_000_000_000, cause=Cause.RESTART, last_gap_id=17)
STARTED_BYTES = b'{"note":"started","pid":4711,"since_ns":1795145399000000000,"cause":"restart","last_gap_id":17}'
FIRST = Started(pid=1, since_ns=None, cause=Cause.STOP, last_gap_id=0)
FIRST_BYTES = b'{"note":"started","pid":1,"since_ns":null,"cause":"stop","last_gap_id":0}'


@pytest.mark.parametrize(
    ("note", "payload"),
    [(GAP, GAP_BYTES), (END, END_BYTES), (STARTED, STARTED_BYTES), (FIRST, FIRST_BYTES)],
    ids=["gap", "end of a gap", "started", "first start"],
)
def test_a_note_is_these_bytes(note: Note, payload: bytes) -> None:
    assert encode_note(note) == payload
    assert decode_note(payload) == note


numbers = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
gaps = st.builds(
    Gap,
    numbers,
    st.integers(0, 254),
    numbers,
    st.sampled_from(Cause),
    texts,
    st.none() | st.lists(numbers, max_size=5).map(tuple),
    st.none() | numbers,
    texts,
)


@BOUNDED
@given(gaps | st.builds(Started, numbers, st.none() | numbers, st.sampled_from(Cause), numbers))
def test_every_note_comes_back_as_it_was(note: Note) -> None:
    assert decode_note(encode_note(note)) == note


def test_a_note_of_very_many_instruments_comes_back_as_it_was() -> None:
    gap = Gap(1, 0, 1, Cause.RESET, instruments=tuple(range(2**40, 2**40 + 100_000)))
    assert decode_note(encode_note(gap)) == gap


def test_words_in_any_language_come_back_as_they_were_and_cross_the_wire_as_ascii() -> None:
    gap = Gap(1, 0, 1, Cause.SERVER, detail="सर्वर ने संपर्क तोड़ दिया 😀", recovery="ठीक")
    payload = encode_note(gap)
    assert payload.isascii()
    assert decode_note(payload) == gap
    unescaped = json.dumps(json.loads(payload), ensure_ascii=False).encode()
    assert not unescaped.isascii()
    assert decode_note(unescaped) == gap


def test_characters_that_the_database_cannot_hold_are_replaced() -> None:
    gap = Gap(1, 0, 1, Cause.SERVER, detail="a\0b\ud800c", recovery="\udfff")
    assert decode_note(encode_note(gap)) == Gap(1, 0, 1, Cause.SERVER, detail="a\ufffdb\ufffdc", recovery="\ufffd")


def test_a_field_that_a_later_version_adds_is_passed_over() -> None:
    assert decode_note(GAP_BYTES.replace(b"{", b'{"colour":"blue",')) == GAP
    assert decode_note(STARTED_BYTES.replace(b"{", b'{"host":["a"],')) == STARTED


def changed(payload: bytes, **fields: object) -> bytes:
    return json.dumps(json.loads(payload) | fields).encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"17",
        b'"gap"',
        b'["gap"]',
        b"{}",
        b'{"note":"gap"}',
        b'{"note":"started","cause":"stop"}',
        b'{"note":["gap"],"cause":"stop"}',
        b'{"cause":"stop","pid":1,"since_ns":1}',
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{",
        b"[" * 100_000,
        b'{"note":' * 100_000,
        b"9" * 10_000,
        GAP_BYTES[:-1],
        GAP_BYTES + b"}",
        changed(GAP_BYTES, note="holiday"),
        changed(GAP_BYTES, cause="sunspots"),
        changed(GAP_BYTES, cause=None),
        changed(GAP_BYTES, cause=["stall"]),
        changed(GAP_BYTES, gap_id=None),
        changed(GAP_BYTES, gap_id="1"),
        changed(GAP_BYTES, gap_id=1.5),
        changed(GAP_BYTES, gap_id=True),
        changed(GAP_BYTES, gap_id=-1),
        changed(GAP_BYTES, gap_id=2**63),
        changed(GAP_BYTES, started_ns=float("nan")),
        changed(GAP_BYTES, started_ns=float("inf")),
        changed(GAP_BYTES, ended_ns=10**4000),
        changed(GAP_BYTES, connection=255),
        changed(GAP_BYTES, detail=None),
        changed(GAP_BYTES, detail=["a"]),
        changed(GAP_BYTES, recovery=5),
        changed(GAP_BYTES, instruments=5),
        changed(GAP_BYTES, instruments="12"),
        changed(GAP_BYTES, instruments={"1": 2}),
        changed(GAP_BYTES, instruments=[1, None]),
        changed(GAP_BYTES, instruments=[[1]]),
        changed(STARTED_BYTES, pid="x"),
        changed(STARTED_BYTES, since_ns=-5),
    ],
)
def test_what_is_no_note_of_ours_is_passed_over(payload: bytes) -> None:
    assert decode_note(payload) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@BOUNDED
@given(
    st.binary(max_size=100)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(sorted(json.loads(GAP_BYTES))), json_values, max_size=3).map(
        lambda fields: changed(GAP_BYTES, **fields)
    )
)
def test_no_message_whatever_makes_reading_fail(payload: bytes) -> None:
    note = decode_note(payload)
    assert note is None or decode_note(encode_note(note)) == note


@pytest.mark.parametrize("payload", [GAP_BYTES, END_BYTES, STARTED_BYTES])
def test_a_note_with_any_byte_changed_is_still_a_note_or_none(payload: bytes) -> None:
    for at in range(len(payload)):
        for byte in (0, 34, 48, 125, 255):
            note = decode_note(payload[:at] + bytes([byte]) + payload[at + 1 :])
            assert note is None or decode_note(encode_note(note)) == note


def test_the_notes_of_a_journal_are_found_among_its_messages(tmp_path: Path, start_ns: int) -> None:
    rows = [
        (0, False, b"\x08\x00"),
        (NOTE_CONNECTION, True, STARTED_BYTES),
        (1, True, GAP_BYTES),  # a server that sends JSON like ours
        (NOTE_CONNECTION, False, GAP_BYTES),
        (NOTE_CONNECTION, True, b"not a note"),
        (NOTE_CONNECTION, True, b""),
        (NOTE_CONNECTION, True, GAP_BYTES),
        (NOTE_CONNECTION, True, END_BYTES),
    ]
    connection, text, payloads = zip(*rows, strict=True)
    with closing(JournalWriter(tmp_path, 0)) as writer:
        writer.append([start_ns + i for i in range(len(rows))], connection, text, payloads)
    (block,) = read_blocks(tmp_path, 0)
    assert list(notes(block)) == [(start_ns + 1, STARTED), (start_ns + 6, GAP), (start_ns + 7, END)]
    decoded = decode(block.payload, block.offsets, block.text)
    assert decoded.control == {"text": 6}
    assert decoded.packets == 8


def test_a_block_without_notes_has_none(journal: tuple[Path, list[Block]]) -> None:
    assert [note for block in journal[1] for note in notes(block)] == []
