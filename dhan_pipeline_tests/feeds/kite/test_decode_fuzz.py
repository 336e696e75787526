"""Hostile bytes: nothing is lost, nothing good is changed by what is bad beside it, and nothing raises."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dhan_pipeline.enrich import MarketState, enrich, fold
from dhan_pipeline.feeds.kite.decode import decode
from dhan_pipeline.feeds.kite.explain import explain
from dhan_pipeline.feeds.kite.framing import split
from dhan_pipeline.feeds.kite.packets import PacketError, parse_message, parse_packet
from dhan_pipeline.feeds.kite.wire import LAYOUTS
from dhan_pipeline.instruments import InstrumentIndex, KiteSegment, make_kite_token
from dhan_pipeline.store.copy import tick_copy
from dhan_pipeline.ticks import NULL_INT, Decoded, Enriched
from dhan_pipeline_tests.feeds.kite.packed import HEARTBEAT, message, pack, packets

BOUNDED = settings(max_examples=100)

#: The largest message that a connection takes, and the most packets that a block can number.
LARGEST_BYTES = 512 << 10
MOST_PACKETS = 1 << 16

AT_NS = 1_795_147_200_000_000_000  # 2026-11-20 09:30 IST
BLOCK_ID = 1_795_147_200_000
KNOWN = [
    make_kite_token(segment, number)
    for segment in (KiteSegment.NSE, KiteSegment.CDS, KiteSegment.INDICES, KiteSegment.NCO)
    for number in (1, 13, 2**24 - 1)
]
INDEX = InstrumentIndex(KNOWN)

#: Columns of rupees that may be zero or negative.
SIGNED = {"change", "change_percent", "bid_ask_spread", "order_imbalance"}

extreme_prices = st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]) | st.integers(-(2**31), 2**31 - 1)


@st.composite
def known(draw: st.DrawFn, prices: st.SearchStrategy[int] = extreme_prices) -> bytes:
    """A packet that can be read, mostly of a known instrument, whatever its fields say."""
    packet = draw(packets(prices))
    token = draw(st.sampled_from([*KNOWN, KNOWN[0] + 512, 0, 2**32 - 1]))
    return struct.pack(">I", token) + packet[4:]


@st.composite
def flipped(draw: st.DrawFn) -> bytes:
    """A message of which some bytes are others."""
    data = bytearray(message(*draw(st.lists(known(), min_size=1, max_size=3))))
    for at in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=4)):
        data[at] = draw(st.integers(0, 255))
    return bytes(data)


unreadable = st.integers(9, 60).filter(lambda size: size not in LAYOUTS).map(bytes)
good = st.lists(known(), min_size=1, max_size=4).map(lambda found: message(*found))
hostile = st.one_of(
    st.binary(max_size=200),
    flipped(),
    st.lists(known() | unreadable | st.binary(max_size=20), max_size=4).map(lambda found: message(*found)),
    good.flatmap(lambda data: st.integers(0, len(data)).map(lambda size: data[:size])),
    st.just(HEARTBEAT),
)


def decode_messages(messages: Sequence[bytes]) -> Decoded:
    return decode(b"".join(messages), np.cumsum([0, *map(len, messages)]))


def rows_of(decoded: Decoded, messages: set[int]) -> list[tuple[Any, ...]]:
    """What was read from these messages, in order, without the places where it stood."""
    rows = []
    for ticks in decoded.ticks:
        columns = {name: column.tolist() for name, column in ticks.columns.items()}
        tokens = ticks.instrument_token.tolist()
        for row, (position, number) in enumerate(zip(ticks.position.tolist(), ticks.message.tolist(), strict=True)):
            if number in messages:
                fields = [(name, column[row]) for name, column in sorted(columns.items())]
                rows.append((position, str(ticks.mode), tokens[row], fields))
    return [row[1:] for row in sorted(rows)]


@BOUNDED
@given(st.lists(st.tuples(st.booleans(), good, hostile), min_size=1, max_size=8))
def test_good_messages_come_out_the_same_whatever_lies_between_them(block: list[tuple[bool, bytes, bytes]]) -> None:
    messages = [data if is_good else other for is_good, data, other in block]
    kept = {index for index, (is_good, _, _) in enumerate(block) if is_good}
    alone = [messages[index] for index in sorted(kept)]
    mixed = decode_messages(messages)
    assert rows_of(mixed, kept) == rows_of(decode_messages(alone), set(range(len(alone))))
    assert not kept & {rejection.message for rejection in mixed.rejected}


@BOUNDED
@given(st.lists(st.tuples(st.booleans(), known(), unreadable), min_size=1, max_size=8))
def test_good_packets_come_out_the_same_whatever_unreadable_ones_share_their_message(
    block: list[tuple[bool, bytes, bytes]],
) -> None:
    mixed = decode_messages([message(*(packet if is_good else other for is_good, packet, other in block))])
    kept = message(*(packet for is_good, packet, _ in block if is_good))
    assert rows_of(mixed, {0}) == rows_of(decode_messages([kept]), {0})
    assert [rejection.payload[2:] for rejection in mixed.rejected] == [
        other for is_good, _, other in block if not is_good
    ]


def enrich_messages(decoded: Decoded, state: MarketState, messages: int) -> Enriched:
    received_ns = AT_NS + np.arange(messages, dtype=np.int64) * 1_000_000
    return enrich(decoded, np.array([BLOCK_ID]), np.array([0, messages]), received_ns, INDEX, state)


@BOUNDED
@given(st.lists(st.lists(hostile, max_size=6), min_size=1, max_size=3))
@example([[message(pack(32, KNOWN[6], last_price=5), pack(184, KNOWN[0], last_price=5))]])
def test_hostile_blocks_are_enriched_or_rejected_and_what_becomes_rows_is_sane(days: list[list[bytes]]) -> None:
    state, folded = MarketState(len(INDEX)), MarketState(len(INDEX))
    for messages in days:
        decoded = decode_messages(messages)
        enriched = enrich_messages(decoded, state, len(messages))
        fold(decoded, INDEX, folded)
        for name in ("previous_close", "announced", "open_interest"):
            assert np.array_equal(getattr(state, name), getattr(folded, name), equal_nan=name == "previous_close")
        assert not (state.previous_close <= 0).any()

        assert enriched.packets == enriched.rows + enriched.control + len(enriched.rejected)
        positions = [rejection.position for rejection in enriched.rejected]
        assert positions == sorted(set(positions))
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


@BOUNDED
@given(hostile | known() | packets())
def test_the_parsers_raise_nothing_but_their_error(data: bytes) -> None:
    try:
        tick = parse_packet(data)
    except PacketError:
        pass
    else:
        assert decode_messages([message(data)]).rejected == []
        assert json.loads(tick.model_dump_json())["instrument_token"] == int.from_bytes(data[:4], "big")
        assert all(value >= 0 for name, value in tick if isinstance(value, float) and name != "change")
    try:
        ticks = parse_message(data)
    except PacketError:
        return
    decoded = decode_messages([data])
    assert decoded.rejected == []
    assert len(ticks) == sum(map(len, decoded.ticks))


@BOUNDED
@given(hostile | st.lists(hostile, max_size=3).map(b"".join))
def test_any_message_is_explained_to_its_last_byte(data: bytes) -> None:
    explained = explain(data)
    json.dumps(explained, allow_nan=False)
    position = 0
    for packet in explained:
        assert packet["offset"] == position
        ends = [row["offset"] for row in packet["rows"][1:]] + [position + packet["size"]]
        assert all(row["offset"] < end for row, end in zip(packet["rows"], ends, strict=False))
        position += packet["size"]
    assert position == len(data)
    if data:
        assert [packet["error"] for packet in explained if packet["error"]] == [why for *_, why in split(data) if why]


LTP = pack(8, KNOWN[0], last_price=5)
QUOTE = pack(44, KNOWN[0], last_price=5)
LARGE = {
    "zeros": bytes(LARGEST_BYTES),
    "ones": b"\xff" * LARGEST_BYTES,
    "packets of one kind": message(*[LTP] * (LARGEST_BYTES // 10 - 1)),
    "kinds by turns": message(*[LTP, QUOTE] * (LARGEST_BYTES // 56 - 1)),
    "unknown packets": message(*[bytes(9)] * (LARGEST_BYTES // 11 - 1)),
    "one unknown packet": message(bytes(65_535)).ljust(LARGEST_BYTES, b"?"),
    "torn at the end": message(*[LTP] * (LARGEST_BYTES // 10 - 1))[:-1],
    "fewer than announced": message(*[LTP] * 50_000, count=65_535),
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_message_is_decoded_and_enriched_whole(name: str) -> None:
    data = LARGE[name]
    decoded = decode_messages([data])
    pieces = list(split(data))
    assert decoded.packets == len(pieces) <= min(MOST_PACKETS, len(data) // 8 + 1)
    enriched = enrich_messages(decoded, MarketState(len(INDEX)), 1)
    assert enriched.packets == enriched.rows + enriched.control + len(enriched.rejected)
    assert [r.payload for r in decoded.rejected] == [data[at : at + size] for at, size, reason in pieces if reason]


def test_as_many_packets_as_a_block_can_number_are_told_apart() -> None:
    for messages in (
        [message(LTP)] * MOST_PACKETS,
        [message(LTP), HEARTBEAT, b""] * (MOST_PACKETS // 3),
        [message(*[LTP, QUOTE] * 32)] * (MOST_PACKETS // 64),
    ):
        decoded = decode_messages(messages)
        enriched = enrich_messages(decoded, MarketState(len(INDEX)), len(messages))
        positions = [int(id_) & (MOST_PACKETS - 1) for batch in enriched.ticks for id_ in batch.columns["tick_id"]]
        positions += [rejection.position for rejection in enriched.rejected]
        positions += [int(at) for positions in decoded.control_positions.values() for at in positions]
        assert sorted(positions) == list(range(decoded.packets))


@BOUNDED
@given(st.lists(known(st.integers(0, 2**30)), min_size=1, max_size=6))
def test_packets_of_known_instruments_with_possible_prices_are_rejected_for_their_time_alone(
    found: list[bytes],
) -> None:
    decoded = decode_messages([message(*found)])
    assert decoded.rejected == []
    reasons = {rejection.reason for rejection in enrich_messages(decoded, MarketState(len(INDEX)), 1).rejected}
    assert reasons <= {"unknown instrument", "trade time in the future"}
