from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dhan_pipeline.feeds.kite.decode import decode
from dhan_pipeline.feeds.kite.framing import split
from dhan_pipeline.feeds.kite.packets import KiteTick, parse_packet
from dhan_pipeline.feeds.kite.wire import DIVISORS, LAYOUTS
from dhan_pipeline.instruments import KiteSegment, decimals_of
from dhan_pipeline.ticks import COLUMNS, NULL_INT, Decoded, Mode, RawTicks
from dhan_pipeline_tests.feeds.kite.packed import HEARTBEAT, NIFTY, RELIANCE, USDINR, message, pack, packets

MODES = {Mode.TICKER: (8,), Mode.QUOTE: (28, 44), Mode.FULL: (32, 184)}


def decode_messages(messages: Sequence[bytes], text: Sequence[bool] | None = None) -> Decoded:
    offsets = np.cumsum([0, *map(len, messages)])
    return decode(b"".join(messages), offsets, None if text is None else np.array(text, bool))


def only(decoded: Decoded) -> RawTicks:
    (ticks,) = decoded.ticks
    return ticks


def assert_conserved(decoded: Decoded) -> None:
    """packets = ticks + control + rejected, and every position is used once."""
    used = [position for ticks in decoded.ticks for position in ticks.position.tolist()]
    used += [rejection.position for rejection in decoded.rejected]
    used += [position for positions in decoded.control_positions.values() for position in positions.tolist()]
    assert sorted(used) == list(range(decoded.packets))
    assert len(decoded.open_interest) == len(decoded.previous_close) == 0


LTP = pack(8, last_price=129_450)
QUOTE = pack(
    44,
    last_price=129_450,
    last_traded_quantity=75,
    average_traded_price=129_512,
    volume_traded=3_000_000_000,
    total_buy_quantity=498_225,
    total_sell_quantity=512_775,
    day_open=129_000,
    day_high=130_000,
    day_low=128_550,
    day_close=128_900,
)
TIMES = {"last_trade_time": 1_625_461_886, "exchange_timestamp": 1_625_461_887}
LEVELS = [(75, 129_450, 1), (225, 129_445, 3), (375, 129_440, 5), (525, 129_435, 65_535), (0, 0, 0)]
LEVELS += [(150, 129_455, 2), (300, 129_460, 4), (450, 129_465, 6), (2**32 - 1, 129_470, 8), (0, 0, 0)]
FULL = QUOTE + LAYOUTS[184].struct.pack(
    *[0] * 11, 1_625_461_886, 14_000_025, 14_200_000, 13_900_000, 1_625_461_887,
    *(number for level in LEVELS for number in (*level, 0xFFFF)),
)[44:]  # fmt: skip
DAY = {"day_high": 929_000, "day_low": 926_000, "day_open": 931_500, "day_close": 931_056}
INDEX_QUOTE = pack(28, NIFTY, last_price=928_139, change=-2_917, **DAY)
INDEX_FULL = pack(32, NIFTY, last_price=928_139, change=-2_917, **DAY, exchange_timestamp=1_625_461_887)


def test_full_packets_become_columns() -> None:
    ticks = only(decode_messages([message(FULL)] * 3))
    assert ticks.mode is Mode.FULL
    assert ticks.position.tolist() == ticks.message.tolist() == [0, 1, 2]
    assert ticks.start.tolist() == [4, 192, 380]
    assert ticks.size.tolist() == [184] * 3
    assert ticks.instrument_token.tolist() == [RELIANCE] * 3
    assert {name: values.tolist()[1] for name, values in ticks.columns.items()} == {
        "last_price": 1294.5,
        "last_traded_quantity": 75,
        "last_trade_time": 1_625_461_886,
        "average_traded_price": 1295.12,
        "volume_traded": 3_000_000_000,
        "total_buy_quantity": 498_225,
        "total_sell_quantity": 512_775,
        "day_open": 1290.0,
        "day_high": 1300.0,
        "day_low": 1285.5,
        "day_close": 1289.0,
        "oi": 14_000_025,
        "oi_day_high": 14_200_000,
        "oi_day_low": 13_900_000,
        "bid_prices": [1294.5, 1294.45, 1294.4, 1294.35, 0.0],
        "bid_quantities": [75, 225, 375, 525, 0],
        "bid_orders": [1, 3, 5, 65_535, 0],
        "ask_prices": [1294.55, 1294.6, 1294.65, 1294.7, 0.0],
        "ask_quantities": [150, 300, 450, 2**32 - 1, 0],
        "ask_orders": [2, 4, 6, 8, 0],
    }


@pytest.mark.parametrize(
    ("alone", "index", "mode"), [(QUOTE, INDEX_QUOTE, Mode.QUOTE), (FULL, INDEX_FULL, Mode.FULL)], ids=["quote", "full"]
)
def test_an_index_stands_among_what_is_traded_without_what_it_does_not_have(
    alone: bytes, index: bytes, mode: Mode
) -> None:
    for messages in ([message(alone), message(index)], [message(alone, index)], [message(index)]):
        ticks = only(decode_messages(messages))
        assert ticks.mode is mode
        assert ticks.instrument_token.tolist()[-1] == NIFTY
        row = {name: values.tolist()[-1] for name, values in ticks.columns.items()}
        absent = {"last_traded_quantity", "volume_traded", "total_buy_quantity", "total_sell_quantity"}
        if mode is Mode.FULL:
            absent |= {"oi", "oi_day_high", "oi_day_low"}
        assert {name for name, value in row.items() if value == NULL_INT} == absent
        assert {name: row[name] for name in ("last_price", "average_traded_price")} == {
            "last_price": 9281.39,
            "average_traded_price": 0.0,
        }
        assert [row[f"day_{name}"] for name in ("high", "low", "open", "close")] == [9290.0, 9260.0, 9315.0, 9310.56]
        assert row["last_trade_time"] == (1_625_461_887 if mode is Mode.FULL else 0)
        if mode is Mode.FULL:
            assert row["bid_prices"] == row["ask_quantities"] == row["bid_orders"] == [0] * 5
    both = only(decode_messages([message(alone, index)]))
    assert {name: values[0].tolist() for name, values in both.columns.items()} == {
        name: values[0].tolist() for name, values in only(decode_messages([message(alone)])).columns.items()
    }


@pytest.mark.parametrize(("packet", "mode"), [(LTP, Mode.TICKER), (QUOTE, Mode.QUOTE), (FULL, Mode.FULL)])
def test_columns_are_named_as_in_the_tick_schema(packet: bytes, mode: Mode) -> None:
    ticks = only(decode_messages([message(packet)]))
    assert ticks.mode is mode
    assert set(ticks.columns) <= {column.name for column in COLUMNS}
    assert "oi" not in ticks.columns or mode is Mode.FULL


@pytest.mark.parametrize("packet", [LTP, QUOTE, INDEX_QUOTE])
def test_only_full_packets_have_a_trade_time(packet: bytes) -> None:
    assert only(decode_messages([message(packet)])).columns["last_trade_time"].tolist() == [0]


@pytest.mark.parametrize(("raw", "utc"), [(0, 0), (315_532_800, 0), (315_532_801, 315_532_801), (2**32 - 1, 2**32 - 1)])
def test_trade_times_are_utc(raw: int, utc: int) -> None:
    ticks = only(decode_messages([message(pack(184, last_trade_time=raw), pack(32, NIFTY, exchange_timestamp=raw))]))
    assert ticks.columns["last_trade_time"].tolist() == [utc, utc]


def test_prices_are_in_units_of_their_segment() -> None:
    found = message(
        pack(8, USDINR, last_price=831_225_000),
        *(pack(8, 5 << 8 | segment, last_price=831_225) for segment in (6, 12, 1, 8, 200)),
    )
    assert only(decode_messages([found])).columns["last_price"].tolist() == [
        83.1225,
        83.1225,
        83.1225,
        8312.25,
        8312.25,
        8312.25,
    ]


def test_negative_prices_stay_negative_to_be_refused() -> None:
    assert only(decode_messages([message(pack(8, last_price=-1))])).columns["last_price"].tolist() == [-0.01]


@pytest.mark.parametrize("messages", [[message(FULL)] * 4, [message(FULL, FULL, FULL)]])
def test_packets_of_one_kind_that_are_evenly_apart_are_not_copied(messages: list[bytes]) -> None:
    decoded = decode_messages(messages)
    assert np.shares_memory(only(decoded).columns["bid_quantities"], np.frombuffer(decoded.payload, np.uint8))


def test_kinds_are_separated_and_keep_their_positions() -> None:
    decoded = decode_messages([message(FULL, INDEX_QUOTE, LTP), HEARTBEAT, message(INDEX_FULL, QUOTE), message(FULL)])
    assert {ticks.mode: ticks.position.tolist() for ticks in decoded.ticks} == {
        Mode.TICKER: [2],
        Mode.QUOTE: [1, 5],
        Mode.FULL: [0, 4, 6],
    }
    assert decoded.message.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert decoded.control == {"heartbeat": 1}
    assert decoded.rejected == []


def test_a_message_whose_size_only_looks_like_equal_packets() -> None:
    found = message(pack(32, NIFTY), pack(44), pack(32, NIFTY), pack(8), pack(44))
    assert len(found) == 2 + 5 * (2 + 32)
    decoded = decode_messages([found, message(*[pack(32, NIFTY)] * 5)])
    assert {ticks.mode: ticks.position.tolist() for ticks in decoded.ticks} == {
        Mode.TICKER: [3],
        Mode.QUOTE: [1, 4],
        Mode.FULL: [0, 2, 5, 6, 7, 8, 9],
    }


def test_text_messages_are_control_even_if_they_look_like_packets() -> None:
    one = message(FULL)
    decoded = decode_messages([one, one, b"{}", HEARTBEAT, b"", message(LTP, FULL)], [False, *[True] * 5])
    assert decoded.control == {"text": 5}
    assert only(decoded).position.tolist() == [0]
    assert decoded.packets == 6


def test_blocks_of_heartbeats_and_of_text_alone() -> None:
    assert decode_messages([HEARTBEAT] * 3).control == {"heartbeat": 3}
    assert decode_messages([b"{}", b""], [True, True]).control == {"text": 2}


def test_bad_packets_are_kept_and_the_good_around_them_too() -> None:
    torn = message(FULL)[:-84]
    unknown = bytes(20)
    decoded = decode_messages([message(FULL), message(LTP, unknown, LTP), torn, b"", message(count=2), message(FULL)])
    assert {ticks.mode: ticks.position.tolist() for ticks in decoded.ticks} == {Mode.TICKER: [1, 3], Mode.FULL: [0, 7]}
    assert [(r.position, r.message, r.reason, r.payload) for r in decoded.rejected] == [
        (2, 1, "packet of 20 bytes", b"\0\x14" + unknown),
        (4, 2, "torn packet: 100 of 184 bytes", torn[2:]),
        (5, 3, "empty message", b""),
        (6, 4, "2 packets announced, 0 came", b""),
    ]
    assert decoded.packets == 8


def test_an_unassigned_segment_is_left_to_the_instrument_lookup() -> None:
    assert only(decode_messages([message(pack(8, 0xFFFFFFFF))])).instrument_token.tolist() == [2**32 - 1]


def test_an_empty_block() -> None:
    decoded = decode(b"", np.zeros(1, np.int64))
    assert (decoded.packets, decoded.ticks, decoded.control, decoded.rejected) == (0, [], {}, [])


def columns_of(tick: KiteTick, index: bool) -> dict[str, object]:
    """What the one-packet function says, in the terms of the batch path."""
    values = tick.model_dump()
    for side, levels in (("bid", tick.bids), ("ask", tick.asks)):
        for one, many in (("price", "prices"), ("quantity", "quantities"), ("orders", "orders")):
            values[f"{side}_{many}"] = [getattr(level, one) or 0 for level in levels] if levels else [0] * 5
    traded = tick.exchange_timestamp if index else tick.last_trade_time
    values["last_trade_time"] = int(traded.timestamp()) if traded else 0
    return values


@given(st.lists(st.lists(packets(), max_size=5).map(lambda found: message(*found)), max_size=6))
@example([message(FULL), message(INDEX_FULL), message(FULL)])
@example([message(FULL), message(FULL, FULL)])
@example([message(pack(8, 12, last_price=75_816_450))])
def test_the_batch_says_what_the_one_packet_function_says(messages: list[bytes]) -> None:
    decoded = decode_messages(messages)
    assert_conserved(decoded)
    assert decoded.rejected == []
    for ticks in decoded.ticks:
        columns = {name: values.tolist() for name, values in ticks.columns.items()}
        decimals = decimals_of(ticks.instrument_token).tolist()
        for row, (start, size) in enumerate(zip(ticks.start.tolist(), ticks.size.tolist(), strict=True)):
            tick = parse_packet(decoded.payload[start : start + size])
            assert (tick.instrument_token, tick.mode) == (ticks.instrument_token[row], ticks.mode)
            expected = columns_of(tick, index=size in (28, 32))
            for name, values in columns.items():
                value = values[row]
                if value == NULL_INT:
                    assert expected[name] is None
                elif name == "average_traded_price":
                    assert (expected[name] or 0) in (np.round(value, decimals[row]), np.round(value, 4))
                else:
                    assert (expected[name] or 0) == np.round(value, decimals[row]).tolist(), name


hostile = st.one_of(
    st.binary(max_size=60),
    st.lists(packets() | st.binary(max_size=30), max_size=4).map(lambda found: message(*found)),
    st.builds(
        lambda found, count, cut: message(*found, count=count)[:cut],
        st.lists(packets(), max_size=3),
        st.integers(0, 4),
        st.integers(0, 600),
    ),
    st.sampled_from([HEARTBEAT, message(LTP, LTP), message(FULL, INDEX_FULL), message(FULL)[:-1], b""]),
)


@given(st.lists(st.tuples(hostile, st.booleans() | st.just(False)), max_size=8))
@example([(b"", False)])
def test_any_bytes_are_decoded_as_if_walked_packet_by_packet(messages: list[tuple[bytes, bool]]) -> None:
    decoded = decode_messages([data for data, _ in messages], [text for _, text in messages])
    assert_conserved(decoded)

    walked = []
    offset = 0
    for index, (data, text) in enumerate(messages):
        found = [(0, -1, None)] if text else list(split(data))
        walked += [(index, start + offset, size, reason) for start, size, reason in found]
        offset += len(data)
    assert decoded.message.tolist() == [index for index, *_ in walked]
    names = {0: "heartbeat", -1: "text"}
    assert decoded.control == Counter(names[size] for *_, size, reason in walked if not reason and size in names)
    for ticks in decoded.ticks:
        rows = zip(ticks.position, ticks.message, ticks.start, ticks.size, strict=True)
        assert [tuple(map(int, row)) for row in rows] == [
            (position, index, start, size)
            for position, (index, start, size, reason) in enumerate(walked)
            if size in MODES[ticks.mode] and not reason
        ]
    assert [(r.position, r.message, r.reason, r.payload) for r in decoded.rejected] == [
        (position, index, reason, decoded.payload[start : start + size])
        for position, (index, start, size, reason) in enumerate(walked)
        if reason
    ]


@given(st.lists(hostile, min_size=1, max_size=8))
def test_messages_that_are_decoded_together_say_what_they_say_alone(messages: list[bytes]) -> None:
    together = decode_messages(messages)
    alone = [decode_messages([data]) for data in messages]
    assert together.packets == sum(decoded.packets for decoded in alone)
    assert [r.payload for r in together.rejected] == [r.payload for decoded in alone for r in decoded.rejected]
    for mode in Mode:
        rows = [t for t in together.ticks if t.mode is mode]
        single = [t for decoded in alone for t in decoded.ticks if t.mode is mode]
        assert len(rows) == bool(single)
        for ticks in rows:
            assert ticks.instrument_token.tolist() == [token for t in single for token in t.instrument_token.tolist()]
            for name, values in ticks.columns.items():
                assert values.tolist() == [value for t in single for value in t.columns[name].tolist()], name


def test_every_segment_has_its_divisor() -> None:
    for segment in KiteSegment:
        ticks = only(decode_messages([message(pack(8, 1 << 8 | segment, last_price=2**31 - 1))]))
        assert ticks.columns["last_price"].tolist() == [(2**31 - 1) / DIVISORS.get(segment, 100)]
