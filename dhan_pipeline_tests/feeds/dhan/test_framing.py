import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.feeds.dhan.framing import split


def packet(code: int, size: int, length: int | None = None) -> bytes:
    return struct.pack("<BHBI", code, size if length is None else length, 1, 1333).ljust(size, b"\x11")


TICKER = packet(2, 16)
QUOTE = packet(4, 50)
FULL = packet(8, 162)
OI = packet(5, 12)


def verdicts(message: bytes) -> list[tuple[int, int, int, str | None]]:
    return list(split(message))


def test_one_packet_a_message() -> None:
    assert verdicts(FULL) == [(0, 162, 8, None)]


def test_stacked_packets_are_all_found() -> None:
    assert verdicts(QUOTE + OI + FULL) == [(0, 50, 4, None), (50, 12, 5, None), (62, 162, 8, None)]


def test_a_message_inside_a_larger_buffer() -> None:
    assert list(split(b"\0\0\0" + TICKER + OI, 3, 19)) == [(3, 16, 2, None)]


def test_a_packet_that_grew_is_advanced_by_its_length() -> None:
    assert verdicts(packet(8, 170) + TICKER) == [(0, 170, 8, None), (170, 16, 2, None)]


@pytest.mark.parametrize("length", [0, 7, 8, 8 + 154, 163, 171, 65535])
def test_a_message_of_exactly_the_known_size_is_a_packet_whatever_its_length_says(length: int) -> None:
    assert verdicts(packet(8, 162, length)) == [(0, 162, 8, None)]


@pytest.mark.parametrize("length", [0, 7, 65535])
def test_a_senseless_length_within_a_stack_yields_to_the_known_size(length: int) -> None:
    assert verdicts(packet(4, 50, length) + TICKER) == [(0, 50, 4, None), (50, 16, 2, None)]


def test_a_torn_packet_ends_its_message() -> None:
    assert verdicts(TICKER + FULL[:100]) == [
        (0, 16, 2, None),
        (16, 100, 8, "torn full packet: 100 of 162 bytes"),
    ]


def test_a_packet_too_short_by_its_own_length_is_skipped() -> None:
    assert verdicts(packet(8, 100) + TICKER) == [
        (0, 100, 8, "full packet of 100 bytes, 162 needed"),
        (100, 16, 2, None),
    ]


def test_an_unknown_packet_of_sane_length_is_skipped() -> None:
    assert verdicts(packet(99, 30) + TICKER) == [(0, 30, 99, "unknown code 99"), (30, 16, 2, None)]


@pytest.mark.parametrize("length", [0, 7, 65535])
def test_an_unknown_packet_of_senseless_length_takes_the_rest(length: int) -> None:
    assert verdicts(packet(99, 30, length) + TICKER) == [(0, 46, 99, "unknown code 99")]


def test_index_packets_and_depth_of_version_1_are_known_and_not_read() -> None:
    assert [reason for *_, reason in verdicts(packet(1, 20) + packet(3, 112) + TICKER)] == [
        "index packet (code 1): its layout is not documented",
        "depth packet (code 3) of version 1 of the feed",
        None,
    ]


def test_too_few_bytes_for_a_header() -> None:
    assert verdicts(TICKER + b"\x02\x10\x00") == [(0, 16, 2, None), (16, 3, -1, "3 bytes, too few for a header")]


def test_nothing_in_nothing() -> None:
    assert verdicts(b"") == []


packets = st.builds(
    lambda code, body, length: struct.pack("<BHBI", code, len(body) + 8 if length is None else length, 1, 5) + body,
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 50, 99]),
    st.binary(max_size=170),
    st.none() | st.integers(0, 200) | st.just(65535),
)


@given(st.binary(max_size=400) | st.lists(packets, max_size=6).map(b"".join))
def test_any_bytes_are_covered_without_gap_or_overlap(message: bytes) -> None:
    at = 0
    for start, size, _, _ in split(message):
        assert start == at
        assert size > 0
        at += size
    assert at == len(message)
