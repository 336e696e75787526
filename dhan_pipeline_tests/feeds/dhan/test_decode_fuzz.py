"""Hostile bytes: nothing is lost, nothing good is changed by what is bad beside it, and nothing raises."""

import json
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dhan_pipeline.enrich import MarketState, enrich, fold
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.feeds.dhan.depth import parse_depth_message
from dhan_pipeline.feeds.dhan.explain import explain
from dhan_pipeline.feeds.dhan.framing import SIZES, split
from dhan_pipeline.feeds.dhan.packets import (
    PacketError,
    parse_disconnect_packet,
    parse_full_packet,
    parse_market_depth_level,
    parse_oi_packet,
    parse_prev_close_packet,
    parse_quote_packet,
    parse_ticker_packet,
)
from dhan_pipeline.feeds.dhan.wire import LAYOUTS
from dhan_pipeline.instruments import InstrumentIndex, generate_instrument_token
from dhan_pipeline.store.copy import tick_copy
from dhan_pipeline.ticks import NULL_INT, Decoded, Enriched

BOUNDED = settings(max_examples=200)

#: The largest message that a connection takes, and the most packets that a block can number.
LARGEST_BYTES = 512 << 10
MOST_PACKETS = 1 << 16

CONTROL = {0: "heartbeat", 7: "market_status", 50: "disconnect"}
PARSERS: dict[int, Callable[[bytes], Any]] = {
    2: parse_ticker_packet,
    4: parse_quote_packet,
    5: parse_oi_packet,
    6: parse_prev_close_packet,
    8: parse_full_packet,
    50: parse_disconnect_packet,
}

AT_NS = 1_795_147_200_000_000_000  # 2026-11-20 10:30 IST
BLOCK_ID = 1_795_147_200_000
KNOWN = [generate_instrument_token(segment, number) for segment in (0, 1, 2, 3) for number in (1, 13, 2**32 - 1)]
INDEX = InstrumentIndex(KNOWN)

#: Segments and security ids: four that are known, two that are not.
IDENTITIES = [(0, 13), (1, 1), (2, 13), (3, 2**32 - 1), (1, 999), (200, 1)]

#: Columns of rupees and ratios that may be zero or negative.
SIGNED = {"change", "change_percent", "bid_ask_spread", "order_imbalance"}

extreme_floats = st.sampled_from(
    [0.0, -0.0, 0.05, 1.0, 25974.9, 1e-45, 1.1754944e-38, 3.4028235e38, -0.05, -3.4e38, math.inf, -math.inf, math.nan]
)
values = {
    "B": st.integers(0, 2**8 - 1),
    "H": st.sampled_from([0, 1, 2**15, 2**16 - 1]) | st.integers(0, 2**16 - 1),
    "I": st.sampled_from([0, 1, 315_532_800, 315_532_801, 1_795_167_000, 2**31 - 1, 2**31, 2**32 - 1])
    | st.integers(0, 2**32 - 1),
    "f": extreme_floats | st.floats(width=32),
}
prices = st.floats(0, 1e6, width=32)
currency_prices = st.floats(0, 4e5, width=32)


@st.composite
def packets(draw: st.DrawFn, extreme: bool = True) -> bytes:
    """A packet that can be read, whatever its fields say; or one whose fields are sensible, too."""
    code = draw(st.sampled_from(sorted(SIZES)))
    layout = LAYOUTS[code]
    segment, number = draw(
        st.sampled_from([(0, 13), (1, 1), (2, 13), (3, 2**32 - 1), (1, 999), (200, 1)][: 6 if extreme else 4])
    )
    sensible = {"f": currency_prices if segment == 3 else prices}
    body = b""
    for format_ in [*(field.format for field in layout.fields[4:]), *"IIHHff" * layout.levels]:
        value = draw(values[format_] if extreme else sensible.get(format_, st.integers(0, 1_000)))
        body += struct.pack("<" + format_, value)
    return struct.pack("<BHBI", code, layout.size, segment, number) + body


@st.composite
def flipped(draw: st.DrawFn) -> bytes:
    """One to three packets of which some bytes are others."""
    message = bytearray(b"".join(draw(st.lists(packets(), min_size=1, max_size=3))))
    for at in draw(st.lists(st.integers(0, len(message) - 1), min_size=1, max_size=4)):
        message[at] = draw(st.integers(0, 255))
    return bytes(message)


@st.composite
def unreadable(draw: st.DrawFn) -> bytes:
    """A packet that nobody can read, and whose length is right."""
    code = draw(st.sampled_from([1, 3, 9, 49, 51, 99, 254, 255]))
    body = draw(st.binary(max_size=40))
    return struct.pack("<BHBI", code, 8 + len(body), 1, 13) + body


hostile = st.one_of(
    st.binary(max_size=200),
    flipped(),
    st.lists(packets() | unreadable() | st.binary(max_size=20), max_size=4).map(b"".join),
    packets().flatmap(lambda packet: st.integers(0, len(packet)).map(lambda size: packet[:size])),
)
blocks = st.lists(st.tuples(hostile, st.booleans() | st.just(False)), max_size=8)


class Piece(NamedTuple):
    """A packet as `framing.split` finds it."""

    message: int
    code: int
    reason: str | None
    payload: bytes


def decode_messages(messages: Sequence[bytes], text: Sequence[bool] | None = None) -> Decoded:
    offsets = np.cumsum([0, *map(len, messages)])
    return decode(b"".join(messages), offsets, None if text is None else np.array(text, bool))


def walk(messages: Sequence[bytes], text: Sequence[bool]) -> list[Piece]:
    pieces = []
    for index, message in enumerate(messages):
        if text[index]:
            pieces.append(Piece(index, -2, None, message))
        elif not message:
            pieces.append(Piece(index, -1, "empty message", b""))
        else:
            pieces += [Piece(index, code, why, message[at : at + size]) for at, size, code, why in split(message)]
    return pieces


def assert_all_there(decoded: Decoded, messages: Sequence[bytes], text: Sequence[bool]) -> None:
    """Every byte of every message is in exactly one packet, and every packet in exactly one place."""
    pieces = walk(messages, text)
    for index, message in enumerate(messages):
        assert b"".join(piece.payload for piece in pieces if piece.message == index) == message
    assert decoded.packets == len(pieces)

    found: dict[int, bytes] = {}
    for part in [*decoded.ticks, decoded.open_interest, decoded.previous_close]:
        for position, message, start, size in zip(part.position, part.message, part.start, part.size, strict=True):
            assert position not in found
            found[int(position)] = decoded.payload[start : start + size]
            assert pieces[position].message == message
    for rejection in decoded.rejected:
        assert rejection.position not in found
        found[rejection.position] = rejection.payload
        assert pieces[rejection.position][:3:2] == (rejection.message, rejection.reason)
    assert all(pieces[position].payload == payload for position, payload in found.items())

    rest = [piece for position, piece in enumerate(pieces) if position not in found]
    assert len(rest) == sum(decoded.control.values())
    for name in ("text", *CONTROL.values()):
        codes = [code for code, known in {-2: "text", **CONTROL}.items() if known == name]
        assert decoded.control.get(name, 0) == sum(piece.code in codes for piece in rest)
    assert all(rejection.reason for rejection in decoded.rejected)
    assert decoded.packets == (
        sum(map(len, decoded.ticks))
        + len(decoded.open_interest)
        + len(decoded.previous_close)
        + sum(decoded.control.values())
        + len(decoded.rejected)
    )


def rows_of(decoded: Decoded, messages: set[int]) -> list[tuple[Any, ...]]:
    """What was read from these messages, in order, without the places where it stood."""
    rows = []
    for ticks in decoded.ticks:
        columns = {name: column.tolist() for name, column in ticks.columns.items()}
        tokens = ticks.instrument_token.tolist()
        for row, (position, message) in enumerate(zip(ticks.position.tolist(), ticks.message.tolist(), strict=True)):
            if message in messages:
                fields = repr([(name, column[row]) for name, column in sorted(columns.items())])
                rows.append((position, str(ticks.mode), tokens[row], fields))
    for name, part in (("oi", decoded.open_interest), ("close", decoded.previous_close)):
        for row, (position, message) in enumerate(zip(part.position.tolist(), part.message.tolist(), strict=True)):
            if message in messages:
                rows.append((position, name, int(part.instrument_token[row]), repr(part.value[row].item())))
    return [row[1:] for row in sorted(rows)]


@BOUNDED
@given(blocks)
@example([(b"", False)])
@example([(b"", True), (b"\xff\xfe\x00", True), (struct.pack("<BHBI", 0, 8, 0, 0), False)])
def test_every_byte_of_a_hostile_block_is_in_one_packet_and_every_packet_in_one_place(
    block: list[tuple[bytes, bool]],
) -> None:
    messages, text = [message for message, _ in block], [text for _, text in block]
    assert_all_there(decode_messages(messages, text), messages, text)
    assert_all_there(decode_messages(messages), messages, [False] * len(messages))


@BOUNDED
@given(st.lists(st.tuples(st.booleans(), packets(), hostile), min_size=1, max_size=8))
def test_good_messages_come_out_the_same_whatever_lies_between_them(block: list[tuple[bool, bytes, bytes]]) -> None:
    messages = [packet if good else other for good, packet, other in block]
    good = {index for index, (is_good, _, _) in enumerate(block) if is_good}
    alone = [messages[index] for index in sorted(good)]
    mixed = decode_messages(messages)
    assert rows_of(mixed, good) == rows_of(decode_messages(alone), set(range(len(alone))))
    assert not good & {rejection.message for rejection in mixed.rejected}


@BOUNDED
@given(st.lists(st.tuples(st.booleans(), packets(), unreadable()), min_size=1, max_size=8), packets())
def test_good_packets_come_out_the_same_whatever_unreadable_ones_share_their_message(
    block: list[tuple[bool, bytes, bytes]], last: bytes
) -> None:
    parts = [packet if good else other for good, packet, other in block] + [last]
    good = [packet for good, packet, _ in block if good] + [last]
    # What is left of a message and has the size of the packet that begins there is that packet, whatever follows.
    assume(
        all(
            len(part) == len(b"".join(parts[at:])) or SIZES.get(part[0]) != len(b"".join(parts[at:]))
            for at, part in enumerate(parts)
        )
    )
    message = b"".join(parts)
    mixed = decode_messages([message])
    assert rows_of(mixed, {0}) == rows_of(decode_messages([b"".join(good)]), {0})
    assert [rejection.payload for rejection in mixed.rejected] == [other for good, _, other in block if not good]


def enrich_messages(decoded: Decoded, state: MarketState, messages: int) -> Enriched:
    received_ns = AT_NS + np.arange(messages, dtype=np.int64) * 1_000_000
    return enrich(decoded, np.array([BLOCK_ID]), np.array([0, messages]), received_ns, INDEX, state)


@settings(BOUNDED, max_examples=100)
@given(st.lists(st.lists(hostile, max_size=6), min_size=1, max_size=3))
def test_hostile_blocks_are_enriched_or_rejected_and_what_becomes_rows_is_sane(days: list[list[bytes]]) -> None:
    state, folded = MarketState(len(INDEX)), MarketState(len(INDEX))
    for messages in days:
        decoded = decode_messages(messages)
        enriched = enrich_messages(decoded, state, len(messages))
        fold(decoded, INDEX, folded)
        for name in ("previous_close", "announced", "open_interest"):
            assert np.array_equal(getattr(state, name), getattr(folded, name), equal_nan=name == "previous_close")
        assert not np.isinf(state.previous_close).any()
        assert not (state.previous_close <= 0).any()

        assert enriched.packets == enriched.rows + enriched.state + enriched.control + len(enriched.rejected)
        pieces = walk(messages, [False] * len(messages))
        positions = [rejection.position for rejection in enriched.rejected]
        assert positions == sorted(set(positions))
        assert all(pieces[rejection.position].payload == rejection.payload for rejection in enriched.rejected)
        for batch in enriched.ticks:
            ids = batch.columns["tick_id"]
            assert not set((ids & (MOST_PACKETS - 1)).tolist()) & set(positions)
            assert ((ids >> 16) == BLOCK_ID).all()
            assert np.isin(batch.columns["instrument_token"], KNOWN).all()
            for name, column in batch.columns.items():
                assert not np.isinf(column).any(), name
                assert name in SIGNED or column.dtype.kind != "f" or not (column <= 0).any(), name
            traded = batch.columns["last_trade_time"]
            assert ((traded == NULL_INT) | (traded > 0)).all()
            assert (traded <= batch.columns["time"] + 120_000_000).all()
        tick_copy(enriched.ticks)


@pytest.mark.parametrize("code", sorted(PARSERS))
@settings(BOUNDED, max_examples=100)
@given(data=hostile | packets())
def test_a_parser_of_one_packet_raises_nothing_but_its_error(code: int, data: bytes) -> None:
    try:
        tick = PARSERS[code](data)
    except PacketError:
        return
    assert tick.response_code == code
    assert json.loads(tick.model_dump_json())["response_code"] == code
    assert all(value >= 0 for value in tick.model_dump().values() if isinstance(value, float))
    assert decode_messages([data]).rejected == []


@BOUNDED
@given(st.binary(max_size=60), st.integers(-30, 70), st.integers(0, 6))
def test_the_parser_of_a_depth_level_raises_nothing_but_its_error(data: bytes, offset: int, decimals: int) -> None:
    try:
        level = parse_market_depth_level(data, offset, decimals)
    except PacketError:
        return
    assert 0 <= offset <= len(data) - 20
    assert all(price is None or 0 < price < math.inf for price in (level.bid_price, level.ask_price))


depth_frames = st.builds(
    lambda code, rows, length, body: struct.pack("<HBBII", length, code, 1, 13, rows) + body,
    st.sampled_from([41, 50, 51]) | st.integers(0, 255),
    st.sampled_from([0, 1, 20, 200, 201, 2**32 - 1]),
    st.sampled_from([0, 11, 12, 28, 332, 65535]),
    st.binary(max_size=40) | st.integers(0, 420).map(bytes),
)


@BOUNDED
@given(hostile | depth_frames | st.lists(depth_frames, max_size=3).map(b"".join))
def test_any_frame_is_explained_to_its_last_byte(frame: bytes) -> None:
    explained = explain(frame)
    json.dumps(explained, allow_nan=False)
    position = 0
    for packet in explained:
        assert packet["offset"] == position
        assert packet["size"] > 0
        ends = [row["offset"] for row in packet["rows"][1:]] + [position + packet["size"]]
        assert all(row["offset"] < end for row, end in zip(packet["rows"], ends, strict=True))
        position += packet["size"]
    assert position == len(frame)


@BOUNDED
@given(hostile | st.lists(depth_frames, max_size=3).map(b"".join), st.sampled_from([20, 200]))
def test_any_message_of_a_depth_feed_is_taken_apart(message: bytes, levels: Any) -> None:
    parse_depth_message(message, levels)


LARGE = {
    "zeros": bytes(LARGEST_BYTES),
    "ones": b"\xff" * LARGEST_BYTES,
    "heartbeats": struct.pack("<BHBI", 0, 8, 0, 0) * MOST_PACKETS,
    "unknown packets": struct.pack("<BHBI", 99, 8, 0, 0) * MOST_PACKETS,
    "one unknown packet": struct.pack("<BHBI", 99, 65_535, 0, 0).ljust(LARGEST_BYTES, b"?"),
    "kinds by turns": (struct.pack("<BHBIfI", 2, 16, 1, 1, 10.0, 0) + struct.pack("<BHBII", 5, 12, 1, 1, 7))
    * (LARGEST_BYTES // 28),
    "torn at the end": struct.pack("<BHBIfI", 2, 16, 1, 1, 10.0, 0) * (LARGEST_BYTES // 16 - 1) + b"\x02" * 15,
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_message_is_decoded_and_enriched_whole(name: str) -> None:
    message = LARGE[name]
    decoded = decode_messages([message])
    pieces = walk([message], [False])
    assert decoded.packets == len(pieces) <= MOST_PACKETS
    enriched = enrich_messages(decoded, MarketState(len(INDEX)), 1)
    assert enriched.packets == enriched.rows + enriched.state + enriched.control + len(enriched.rejected)
    assert [r.payload for r in decoded.rejected] == [piece.payload for piece in pieces if piece.reason]
    assert sum(len(piece.payload) for piece in pieces) == len(message)


def test_as_many_packets_as_a_block_can_number_are_told_apart() -> None:
    ticker = struct.pack("<BHBIfI", 2, 16, 1, 1, 10.0, 0)
    for messages in (
        [ticker] * MOST_PACKETS,
        [ticker, b""] * (MOST_PACKETS // 2),
        [ticker * 64] * (MOST_PACKETS // 64),
    ):
        enriched = enrich_messages(decode_messages(messages), MarketState(len(INDEX)), len(messages))
        positions = [
            int(tick_id) & (MOST_PACKETS - 1) for batch in enriched.ticks for tick_id in batch.columns["tick_id"]
        ]
        positions += [rejection.position for rejection in enriched.rejected]
        assert sorted(positions) == list(range(MOST_PACKETS))


@BOUNDED
@given(st.lists(packets(extreme=False), min_size=1, max_size=6))
def test_sensible_packets_of_known_instruments_are_never_rejected(messages: list[bytes]) -> None:
    decoded = decode_messages(messages)
    assert decoded.rejected == []
    assert enrich_messages(decoded, MarketState(len(INDEX)), len(messages)).rejected == []
