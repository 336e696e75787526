import struct
import zlib
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.ticks import NULL_INT
from dhan_pipeline.transport.message import RAW_LIMIT, MessageError, Part, Remembered, decode, encode

int64 = st.integers(-(2**63), 2**63 - 1)
uint32 = st.integers(0, 2**32 - 1)

#: Two blocks, the first without a message of the lane; a packet and a text; one instrument.
SMALL = Part(
    lane=2,
    lanes=3,
    block_ids=np.array([1_795_147_200_000, 1_795_147_200_100]),
    messages=np.array([7, 9]),
    payload_bytes=np.array([70, 90]),
    first_received_ns=np.array([1_795_147_200_000_000_000, 1_795_147_200_100_000_000]),
    last_received_ns=np.array([1_795_147_200_000_000_006, 1_795_147_200_100_000_008]),
    first_messages=np.array([0, 0, 2]),
    received_ns=np.array([1_795_147_200_100_000_003, 1_795_147_200_100_000_005]),
    connection=np.array([0, 1], np.uint8),
    text=np.array([False, True]),
    first_position=np.array([3, 5]),
    payload=b"\x02\x10abc{}",
    offsets=np.array([0, 5, 7]),
    remembered=Remembered(
        tokens=np.array([1_103_806_597_957]),
        previous_close=np.array([2885.5]),
        announced=np.array([True]),
        open_interest=np.array([NULL_INT]),
    ),
    follows=1_795_147_199_900,
)

#: The columns of the same, in the order of the document.
SMALL_COLUMNS = bytes.fromhex(
    "00761cf7a1010000 64761cf7a1010000"  # block ids
    "00808907dea4e918 00617f0ddea4e918"  # first and
    "06808907dea4e918 08617f0ddea4e918"  # last received
    "0700000000000000 0900000000000000"  # messages of the whole blocks
    "4600000000000000 5a00000000000000"  # their bytes
    "03617f0ddea4e918 0200000000000000"  # received: the first, then the difference
    "450b000001010000"  # token
    "00000000008ba640"  # previous close
    "0000000000000080"  # open interest
    "00000000 02000000"  # messages of the part in each block
    "05000000 02000000"  # their lengths
    "03000000 02000000"  # first position, and the difference
    "00 01 00 01"  # connection, text
    "01"  # announced
    "02106162637b7d"  # payload
)
LENGTHS = 15 * 8 + 2 * 4
"""Where the lengths begin in them; the counts of messages are before."""

#: The whole message, as a version of zstd wrote it; others may write other bytes.
SMALL_MESSAGE = bytes.fromhex(
    "64626d01 31ae5712 0200 0300 02000000 02000000 01000000 07000000 9c751cf7a1010000"
    "28b52ffd209c2d0300440400761cf7a10100006400808907dea4e91800617f0d06080700090046005a000302450b00000101"
    "008ba64000008000000000020000000503000100010102106162637b7d0e00208b9544a095175c20df529981d1c0686034dc"
    "6820cbccbcc0a665e508"
)


def same(a: Any, b: Any) -> bool:
    """Whether two parts hold the same, to the last bit."""
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, Remembered):
            if not same(one, other):
                return False
        elif isinstance(one, np.ndarray):
            if one.dtype != other.dtype or one.tobytes() != other.tobytes():
                return False
        elif one != other:
            return False
    return True


@st.composite
def parts(draw: st.DrawFn) -> Part:
    own = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    n, blocks = sum(own), len(own)
    payloads = draw(st.lists(st.binary(max_size=200), min_size=n, max_size=n))
    instruments = draw(st.integers(0, 5))

    def column(values: st.SearchStrategy[Any], count: int, kind: type) -> Any:
        return np.array(draw(st.lists(values, min_size=count, max_size=count)), kind)

    lanes = draw(st.integers(1, 65_535))
    return Part(
        lane=draw(st.integers(1, lanes)),
        lanes=lanes,
        block_ids=column(int64, blocks, np.int64),
        messages=column(int64, blocks, np.int64),
        payload_bytes=column(int64, blocks, np.int64),
        first_received_ns=column(int64, blocks, np.int64),
        last_received_ns=column(int64, blocks, np.int64),
        first_messages=np.cumsum([0, *own], dtype=np.int64),
        received_ns=column(int64, n, np.int64),
        connection=column(st.integers(0, 255), n, np.uint8),
        text=column(st.booleans(), n, np.bool_),
        first_position=column(st.integers(0, 65_535), n, np.int64),
        payload=b"".join(payloads),
        offsets=np.cumsum([0, *map(len, payloads)], dtype=np.int64),
        remembered=Remembered(
            column(int64, instruments, np.int64),
            column(st.floats(width=64), instruments, np.float64),
            column(st.booleans(), instruments, np.bool_),
            column(int64, instruments, np.int64),
        ),
        follows=draw(int64),
    )


def message(lane: int, lanes: int, counts: tuple[int, int, int, int], raw: bytes) -> bytes:
    """A message with a checksum that matches, whatever it holds."""
    frame: bytes = pa.Codec("zstd", 1).compress(raw, asbytes=True)
    rest = struct.pack("<HHIIIIq", lane, lanes, *counts, 0) + frame
    return b"dbm\x01" + struct.pack("<I", zlib.crc32(rest)) + rest


def test_the_bytes_of_a_message_are_those_that_are_documented() -> None:
    body = encode(SMALL)
    assert body[:4] == b"dbm\x01"
    assert body[8:36] == bytes.fromhex("0200 0300 02000000 02000000 01000000 07000000 9c751cf7a1010000")
    assert int.from_bytes(body[4:8], "little") == zlib.crc32(body[8:])
    assert pa.Codec("zstd").decompress(body[36:], len(SMALL_COLUMNS), asbytes=True) == SMALL_COLUMNS


def test_a_message_that_was_written_before_is_read() -> None:
    assert same(decode(SMALL_MESSAGE), SMALL)


@given(parts())
def test_a_part_comes_back_as_it_was(part: Part) -> None:
    assert same(decode(encode(part)), part)


def test_a_part_of_thousands_of_messages_is_smaller_than_they_are() -> None:
    n = 5000
    part = replace(
        SMALL,
        first_messages=np.array([0, 0, n]),
        received_ns=1_795_147_200_100_000_000 + np.arange(n) * 20_000,
        connection=np.zeros(n, np.uint8),
        text=np.zeros(n, np.bool_),
        first_position=np.arange(n),
        payload=b"a packet of sixteen bytes"[:16] * n,
        offsets=np.arange(n + 1) * 16,
    )
    body = encode(part)
    assert len(body) < len(part.payload) / 10
    assert same(decode(body), part)


@given(parts(), st.data())
def test_a_message_that_is_cut_or_damaged_is_refused_with_a_reason(part: Part, data: st.DataObject) -> None:
    body = encode(part)
    for spoilt in (
        body[: data.draw(st.integers(0, len(body) - 1))],
        body + data.draw(st.binary(min_size=1, max_size=9)),
        *(
            body[:at] + bytes([body[at] ^ data.draw(st.integers(1, 255))]) + body[at + 1 :]
            for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=9))
        ),
    ):
        with pytest.raises(MessageError, match=r"\.$"):
            decode(spoilt)


@given(
    st.integers(0, 65_535),
    st.integers(0, 65_535),
    st.tuples(*[st.integers(0, 9) | uint32] * 4),
    st.binary(max_size=300),
)
def test_a_message_whose_checksum_matches_is_a_part_or_refused(
    lane: int, lanes: int, counts: tuple[int, int, int, int], raw: bytes
) -> None:
    try:
        part = decode(message(lane, lanes, counts, raw))
    except MessageError:
        return
    assert (len(part.block_ids), len(part.received_ns), len(part.remembered.tokens), len(part.payload)) == counts


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        decode(body)


@pytest.mark.parametrize("at", range(4))
def test_a_message_that_claims_gigabytes_is_refused_before_there_is_memory_for_them(at: int) -> None:
    counts = [1, 0, 0, 0]
    counts[at] = 2**32 - 1
    with pytest.raises(MessageError, match="sizes are impossible"):
        decode(message(1, 3, (counts[0], counts[1], counts[2], counts[3]), b""))


@pytest.mark.parametrize("at", [LENGTHS - 8, LENGTHS - 4, LENGTHS, LENGTHS + 7])
def test_columns_that_do_not_fit_each_other_are_refused(at: int) -> None:
    raw = bytearray(SMALL_COLUMNS)
    raw[at] ^= 1
    with pytest.raises(MessageError, match="do not fit"):
        decode(message(2, 3, (2, 2, 1, 7), bytes(raw)))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no message with parts"),
        (b'{"not": "a message of ours, but of some length"}', "no message with parts"),
        (b"dbm\x02" + SMALL_MESSAGE[4:], "has version 2, this program reads 1: update the older end"),
        (SMALL_MESSAGE[:-1], "checksum does not match"),
        (message(2, 3, (2, 2, 1, 8), SMALL_COLUMNS), "another size than it says"),
        (message(4, 3, (2, 2, 1, 7), SMALL_COLUMNS), "sizes are impossible"),
        (message(0, 3, (2, 2, 1, 7), SMALL_COLUMNS), "sizes are impossible"),
        (message(1, 3, (0, 0, 0, 7), b"no block"), "sizes are impossible"),
    ],
)
def test_a_message_is_refused_with_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        decode(body)


def test_a_part_that_is_too_large_to_be_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="is larger than 16777216"):
        encode(replace(SMALL, payload=bytes(RAW_LIMIT), offsets=np.array([0, 0, RAW_LIMIT])))
