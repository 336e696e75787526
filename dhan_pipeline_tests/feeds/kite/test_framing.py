import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.feeds.kite.framing import readable, split
from dhan_pipeline.feeds.kite.wire import LAYOUTS
from dhan_pipeline_tests.feeds.kite.packed import HEARTBEAT, message, pack, packets

LTP, INDEX, QUOTE, FULL = pack(8), pack(32), pack(44), pack(184)


def verdicts(data: bytes) -> list[tuple[int, int, str | None]]:
    return list(split(data))


def test_one_packet_a_message() -> None:
    assert verdicts(bytes.fromhex("0001 0008 000b4501 0001f9aa")) == [(4, 8, None)]


def test_packets_of_several_kinds_in_a_message() -> None:
    assert verdicts(message(FULL, INDEX, QUOTE)) == [(4, 184, None), (190, 32, None), (224, 44, None)]


def test_a_message_inside_a_larger_buffer() -> None:
    assert list(split(b"\xff\xff\xff" + message(LTP) + b"\xff\xff", 3, 15)) == [(7, 8, None)]


def test_a_message_of_one_byte_is_a_heartbeat() -> None:
    assert verdicts(HEARTBEAT) == verdicts(b"\x07") == [(0, 0, None)]


def test_a_message_of_no_packets_is_a_heartbeat() -> None:
    assert verdicts(message()) == [(0, 0, None)]


def test_an_empty_message_is_one_rejection() -> None:
    assert verdicts(b"") == [(0, 0, "empty message")]


@pytest.mark.parametrize("length", [9, 27, 45, 183, 185, 300, 65_535])
def test_a_length_that_no_packet_has_is_skipped(length: int) -> None:
    assert verdicts(message(LTP, bytes(length), QUOTE)) == [
        (4, 8, None),
        (12, 2 + length, f"packet of {length} bytes"),
        (16 + length, 44, None),
    ]


@pytest.mark.parametrize("length", range(8))
def test_a_length_below_the_smallest_packet_ends_the_message(length: int) -> None:
    data = message(LTP, bytes(length), QUOTE)
    assert verdicts(data) == [(4, 8, None), (12, len(data) - 12, f"packet of {length} bytes")]


def test_a_torn_packet_ends_its_message() -> None:
    assert verdicts(message(LTP, FULL)[:-84]) == [(4, 8, None), (12, 102, "torn packet: 100 of 184 bytes")]


def test_a_length_beyond_the_message_is_read_unsigned() -> None:
    data = message(LTP, count=2) + b"\xff\xff" + QUOTE
    assert verdicts(data) == [(4, 8, None), (12, 46, "torn packet: 44 of 65535 bytes")]


@pytest.mark.parametrize("rest", [b"", b"\0"])
def test_packets_that_were_announced_and_did_not_come_are_one_rejection(rest: bytes) -> None:
    data = message(LTP, LTP, count=5) + rest
    assert verdicts(data)[2:] == [(22, len(rest), "5 packets announced, 2 came")]


def test_the_number_of_packets_is_read_unsigned() -> None:
    assert verdicts(message(LTP, count=0xFFFF))[1:] == [(12, 0, "65535 packets announced, 1 came")]


def test_bytes_after_the_last_packet_are_one_rejection() -> None:
    assert verdicts(message(LTP) + LTP) == [(4, 8, None), (12, 8, "8 bytes after the last of 1 packets")]
    assert verdicts(b"\0\0\0") == [(2, 1, "1 bytes after the last of 0 packets")]


lengths = st.sampled_from([0, 7, 8, 9, 28, 32, 44, 184, 200, 65_535])
torn = st.builds(lambda length, body: struct.pack(">H", length) + body, lengths, st.binary(max_size=190))
messages = st.one_of(
    st.binary(max_size=400),
    st.lists(packets(), max_size=5).map(lambda found: message(*found)),
    st.builds(
        lambda count, parts: struct.pack(">H", count) + b"".join(parts),
        st.integers(0, 6) | st.just(65_535),
        st.lists(torn | packets().map(lambda packet: struct.pack(">H", len(packet)) + packet), max_size=5),
    ),
)


@given(messages)
def test_any_bytes_are_covered_without_gap_or_overlap(data: bytes) -> None:
    found = list(split(data))
    if found == [(0, 0, None)]:
        assert len(data) == 1 or data == b"\0\0"
        return
    at = min(len(data), 2) if found[0][2] != "empty message" else 0
    for start, size, reason in found:
        if reason is None:
            assert size in LAYOUTS
            assert data[at : at + 2] == struct.pack(">H", size)
            at += 2
        assert start == at
        at += size
    assert at == len(data)


@given(messages)
def test_no_message_has_more_packets_than_the_capture_reserves_places_for(data: bytes) -> None:
    assert 1 <= len(list(split(data))) <= len(data) // 8 + 1


def test_no_message_has_more_packets_than_a_block_has_places() -> None:
    assert len(list(split(message(*[LTP] * 65_535) + b"rest"))) == 65_536


@given(messages)
def test_lengths_are_read_at_once_where_all_packets_can_be_read(data: bytes) -> None:
    found = list(split(data))
    good = bool(found[0][1]) and all(reason is None for *_, reason in found)
    lengths = readable(b"\1" + data + b"\1", 1, len(data) + 1)
    assert (lengths or None) == ([size for _, size, _ in found] if good else None)
