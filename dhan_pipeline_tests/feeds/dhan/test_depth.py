import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.feeds.dhan.depth import DepthMessage, Levels, parse_depth_message, split_depth

# 200-level feed, two rows of bids of NSE_EQ 1333: 1650.25 x 120 in 3 orders, 1650.20 x 80 in 2.
TWO_BIDS = bytes.fromhex(
    "2c00 29 01 35050000 02000000"
    "0000000000c99940 78000000 03000000"
    "cdccccccccc89940 50000000 02000000"
)  # fmt: skip


def side(code: int, rows: int, field: int, length: int | None = None) -> bytes:
    """A packet of either depth feed; `field` is the number at offset 8."""
    body = b"".join(struct.pack("<dII", 100 + row, row * 10, row) for row in range(rows))
    return struct.pack("<HBBII", 12 + len(body) if length is None else length, code, 2, 49229, field) + body


BID_20 = side(41, 20, 0)
ASK_20 = side(51, 20, 77)


def test_rows_of_a_packet() -> None:
    message = parse_depth_message(TWO_BIDS, 200)
    assert (message.rejected, message.disconnects) == ([], [])
    (bids,) = message.sides
    assert (bids.side, bids.exchange_segment, bids.security_id) == ("bid", 1, 1333)
    assert bids.prices.tolist() == [1650.25, 1650.2]
    assert bids.quantities.tolist() == [120, 80]
    assert bids.orders.tolist() == [3, 2]


def test_bid_and_ask_are_stacked_and_20_rows_are_read_whatever_offset_8_says() -> None:
    assert len(BID_20) == 332
    message = parse_depth_message(BID_20 + ASK_20 + BID_20, 20)
    assert [packet.side for packet in message.sides] == ["bid", "ask", "bid"]
    assert [len(packet.prices) for packet in message.sides] == [20, 20, 20]
    assert message.sides[1].prices.tolist() == [100.0 + row for row in range(20)]
    assert message.rejected == []


def test_200_rows_are_3212_bytes() -> None:
    packet = side(51, 200, 200)
    assert len(packet) == 3212
    (asks,) = parse_depth_message(packet, 200).sides
    assert asks.quantities.tolist() == [row * 10 for row in range(200)]


def test_a_packet_longer_than_its_rows_is_advanced_by_its_length() -> None:
    padded = side(41, 200, 3)
    message = parse_depth_message(padded + side(51, 2, 2), 200)
    assert [(packet.side, len(packet.prices)) for packet in message.sides] == [("bid", 3), ("ask", 2)]


@pytest.mark.parametrize("length", [0, 11, 65535])
def test_a_senseless_length_yields_to_the_known_size(length: int) -> None:
    message = parse_depth_message(side(41, 20, 0, length) + ASK_20, 20)
    assert [packet.side for packet in message.sides] == ["bid", "ask"]


@pytest.mark.parametrize(
    ("message", "levels", "reason"),
    [
        (BID_20 + ASK_20[:300], 20, "torn ask packet: 300 of 332 bytes"),
        (side(41, 2, 2, 28) + ASK_20, 200, "torn bid packet: 28 of 44 bytes"),
        (side(41, 2, 201), 200, "bid packet of 201 rows, more than 200"),
        (side(42, 2, 2), 200, "unknown code 42"),
        (BID_20 + b"\0\0\0", 20, "3 bytes, too few for a header"),
    ],
)
def test_what_cannot_be_read_is_kept_with_its_reason(message: bytes, levels: Levels, reason: str) -> None:
    found, kept = parse_depth_message(message, levels).rejected[0]
    assert found == reason
    assert kept in message


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        ("0e00 32 00 00000000 00000000 2503", 805),  # where the documentation says
        ("0c00 32 00 00000000 27030000", 807),  # where the broker's own client reads
        ("0e00 32 00 00000000 00000000 0000", 0),
        ("0000 32 00 00000000 00000000", 0),
    ],
)
def test_the_reason_of_a_disconnect_is_found_at_either_place(packet: str, reason: int) -> None:
    assert parse_depth_message(bytes.fromhex(packet), 20) == DepthMessage(disconnects=[reason])


@given(st.binary(max_size=900) | st.builds(lambda a, b: BID_20 + a + ASK_20 + b, st.binary(), st.binary()))
def test_any_bytes_are_covered_and_counted(message: bytes) -> None:
    every: tuple[Levels, ...] = (20, 200)
    for levels in every:
        packets = list(split_depth(message, levels))
        assert sum(size for _, size, _, _ in packets) == len(message)
        result = parse_depth_message(message, levels)
        assert len(packets) == len(result.sides) + len(result.disconnects) + len(result.rejected)
        assert all(np.shares_memory(s.prices, np.frombuffer(message, np.uint8)) for s in result.sides if s.prices.size)
