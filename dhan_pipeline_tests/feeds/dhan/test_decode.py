import struct
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.feeds.dhan.framing import split
from dhan_pipeline.feeds.dhan.packets import (
    DhanTick,
    parse_full_packet,
    parse_oi_packet,
    parse_prev_close_packet,
    parse_quote_packet,
    parse_ticker_packet,
)
from dhan_pipeline.feeds.dhan.wire import LAYOUTS
from dhan_pipeline.instruments import PRICE_DECIMALS, generate_instrument_token, split_instrument_token
from dhan_pipeline.ticks import COLUMNS, Decoded, Mode, RawTicks, StateUpdates

PARSERS = {Mode.TICKER: parse_ticker_packet, Mode.QUOTE: parse_quote_packet, Mode.FULL: parse_full_packet}
MODES = {2: Mode.TICKER, 4: Mode.QUOTE, 8: Mode.FULL}
CONTROL = {0: "heartbeat", 7: "market_status", 50: "disconnect"}


def pack(code: int, *values: float, segment: int = 2, security_id: int = 49229, length: int | None = None) -> bytes:
    layout = LAYOUTS[code]
    missing = len(layout.struct.unpack(bytes(layout.size))) - 4 - len(values)
    return layout.struct.pack(
        code, layout.size if length is None else length, segment, security_id, *values, *[0] * missing
    )


def grown(packet: bytes, extra: bytes) -> bytes:
    return packet[:1] + struct.pack("<H", len(packet) + len(extra)) + packet[3:] + extra


def decode_messages(messages: Sequence[bytes], text: Sequence[bool] | None = None) -> Decoded:
    offsets = np.cumsum([0, *map(len, messages)])
    return decode(b"".join(messages), offsets, None if text is None else np.array(text, bool))


def only(decoded: Decoded) -> RawTicks:
    (ticks,) = decoded.ticks
    return ticks


def positions(decoded: Decoded) -> list[int]:
    parts: list[RawTicks | StateUpdates] = [*decoded.ticks, decoded.open_interest, decoded.previous_close]
    read = [position for part in parts for position in part.position.tolist()]
    return sorted(read + [rejection.position for rejection in decoded.rejected])


def assert_conserved(decoded: Decoded) -> None:
    """packets = ticks + state + control + rejected, and every position is used once."""
    used = positions(decoded)
    assert len(set(used)) == len(used)
    assert decoded.packets == len(used) + sum(decoded.control.values())
    assert all(0 <= position < decoded.packets for position in used)


TICKER = pack(2, 1294.5, 1_786_022_457)
QUOTE = pack(
    4, 25974.9, 75, 1_781_084_997, 25980.15, 3_000_000_000, 512_775, 498_225, 26001.0, 26060.2, 26044.8, 25941.1
)
FULL = pack(
    8, 25974.9, 75, 1_781_084_997, 25980.15, 5_123_400, 512_775, 498_225, 14_000_025, 14_200_000, 13_900_000,
    26001.0, 26060.2, 26044.8, 25941.1,
    75, 150, 1, 2, 25974.8, 25975.0,
    225, 300, 3, 4, 25974.7, 25975.2,
    375, 450, 5, 6, 25974.6, 25975.3,
    525, 600, 7, 8, 25974.5, 25975.4,
    0, 0, 0, 0, 0.0, 0.0,
)  # fmt: skip
OI = pack(5, 14_000_025)
PREVIOUS_CLOSE = pack(6, 26060.2, 512_775)


def test_full_packets_become_columns() -> None:
    ticks = only(decode_messages([FULL] * 3))
    assert ticks.mode == Mode.FULL
    assert ticks.position.tolist() == ticks.message.tolist() == [0, 1, 2]
    assert ticks.start.tolist() == [0, 162, 324]
    assert ticks.size.tolist() == [162] * 3
    assert ticks.instrument_token.tolist() == [generate_instrument_token("NSE_FNO", 49229)] * 3
    assert {name: values.tolist()[1] for name, values in ticks.columns.items() if values.dtype.kind != "f"} == {
        "last_traded_quantity": 75,
        "last_trade_time": 1_781_084_997 - 19_800,
        "volume_traded": 5_123_400,
        "total_sell_quantity": 512_775,
        "total_buy_quantity": 498_225,
        "oi": 14_000_025,
        "oi_day_high": 14_200_000,
        "oi_day_low": 13_900_000,
        "bid_quantities": [75, 225, 375, 525, 0],
        "bid_orders": [1, 3, 5, 7, 0],
        "ask_quantities": [150, 300, 450, 600, 0],
        "ask_orders": [2, 4, 6, 8, 0],
    }
    prices = {name: np.round(values.astype(float), 2).tolist()[1] for name, values in ticks.columns.items()}
    assert prices["last_price"] == 25974.9
    assert prices["average_traded_price"] == 25980.15
    assert [prices[f"day_{name}"] for name in ("open", "close", "high", "low")] == [26001.0, 26060.2, 26044.8, 25941.1]
    assert prices["bid_prices"] == [25974.8, 25974.7, 25974.6, 25974.5, 0.0]
    assert prices["ask_prices"] == [25975.0, 25975.2, 25975.3, 25975.4, 0.0]


@pytest.mark.parametrize(("packet", "mode"), [(TICKER, Mode.TICKER), (QUOTE, Mode.QUOTE), (FULL, Mode.FULL)])
def test_columns_are_named_as_in_the_tick_schema(packet: bytes, mode: Mode) -> None:
    ticks = only(decode_messages([packet]))
    assert ticks.mode == mode
    assert set(ticks.columns) <= {column.name for column in COLUMNS}
    assert "oi" not in ticks.columns or mode is Mode.FULL
    with pytest.raises(KeyError):
        ticks.columns["security_id"]


def test_a_block_of_one_kind_is_not_copied() -> None:
    decoded = decode_messages([FULL] * 4)
    assert np.shares_memory(only(decoded).columns["bid_prices"], np.frombuffer(decoded.payload, np.uint8))


def test_kinds_are_separated_and_keep_their_positions() -> None:
    decoded = decode_messages([FULL, OI, QUOTE, PREVIOUS_CLOSE, FULL, TICKER])
    assert {ticks.mode: ticks.position.tolist() for ticks in decoded.ticks} == {
        Mode.TICKER: [5],
        Mode.QUOTE: [2],
        Mode.FULL: [0, 4],
    }
    assert decoded.open_interest.position.tolist() == decoded.open_interest.message.tolist() == [1]
    assert decoded.open_interest.value.tolist() == [14_000_025]
    assert decoded.previous_close.position.tolist() == [3]
    assert decoded.previous_close.value.tolist() == [pytest.approx(26060.2)]
    assert decoded.previous_close.start.tolist() == [162 + 12 + 50]
    assert decoded.previous_close.size.tolist() == [16]


def test_control_packets_are_counted_by_name() -> None:
    decoded = decode_messages([pack(0), pack(7), FULL, pack(50, 805), pack(7)])
    assert decoded.control == {"heartbeat": 1, "market_status": 2, "disconnect": 1}
    assert only(decoded).position.tolist() == [2]
    assert decoded.packets == 5


def test_text_messages_are_control_even_if_they_look_like_packets() -> None:
    decoded = decode_messages([FULL, FULL, b"{}", FULL + FULL, b""], [False, True, True, True, True])
    assert decoded.control == {"text": 4}
    assert only(decoded).position.tolist() == [0]
    assert decoded.packets == 5


def test_a_block_of_text_alone() -> None:
    assert decode_messages([b"", b""], [True, True]).control == {"text": 2}


def test_stacked_packets_of_one_kind() -> None:
    decoded = decode_messages([FULL, FULL * 3, FULL * 2])
    assert only(decoded).message.tolist() == [0, 1, 1, 1, 2, 2]
    assert only(decoded).start.tolist() == [n * 162 for n in range(6)]
    assert decoded.rejected == []


def test_stacked_packets_of_several_kinds() -> None:
    decoded = decode_messages([QUOTE + OI, OI + QUOTE + FULL, QUOTE])
    assert {ticks.mode: ticks.position.tolist() for ticks in decoded.ticks} == {Mode.QUOTE: [0, 3, 5], Mode.FULL: [4]}
    assert decoded.open_interest.position.tolist() == [1, 2]
    assert decoded.open_interest.message.tolist() == [0, 1]


def test_a_stack_whose_size_only_looks_like_equal_packets() -> None:
    stack = pack(2, 100.0) + pack(6, 99.0) + pack(7) + pack(7)
    assert len(stack) % 16 == 0
    decoded = decode_messages([stack, pack(2, 1.0) * 2])
    assert only(decoded).position.tolist() == [0, 4, 5]
    assert decoded.control == {"market_status": 2}
    assert decoded.previous_close.position.tolist() == [1]


def test_grown_packets_are_read_by_their_known_part() -> None:
    longer = grown(FULL, b"\xff" * 8)
    decoded = decode_messages([FULL, longer, longer + FULL, longer])
    assert only(decoded).size.tolist() == [162, 170, 170, 162, 170]
    assert only(decoded).columns["oi"].tolist() == [14_000_025] * 5
    assert decoded.rejected == []


@pytest.mark.parametrize("length", [0, 7, 8, 163, 171, 65535])
def test_a_message_of_the_known_size_is_accepted_whatever_its_length_says(length: int) -> None:
    decoded = decode_messages([pack(8, 100.0, length=length), FULL])
    assert len(only(decoded)) == 2
    assert decoded.rejected == []


@pytest.mark.parametrize("code", [4, 8])
@pytest.mark.parametrize("wrong", [51, 163, 171])
def test_real_packets_are_accepted_and_sizes_of_older_write_ups_not_demanded(code: int, wrong: int) -> None:
    real = pack(code, 100.0)
    assert len(real) in (50, 162)
    decoded = decode_messages([real, pack(code, 100.0, length=wrong), real])
    assert only(decoded).position.tolist() == [0, 1, 2]
    assert decoded.rejected == []


@pytest.mark.parametrize(
    ("raw", "utc"),
    [
        (1_786_022_457, 1_786_002_657),  # captured 2026-08-06 at 13:20:57 IST
        (1_781_084_997, 1_781_065_197),  # received 2026-06-10 at 09:49:57.8 IST
        (0, 0),
        (315_532_800, 0),
        (315_532_801, 315_513_001),
        (2**32 - 1, 2**32 - 1 - 19_800),
    ],
)
def test_trade_times_are_converted_from_the_indian_wall_clock(raw: int, utc: int) -> None:
    assert only(decode_messages([pack(2, 1.0, raw)])).columns["last_trade_time"].tolist() == [utc]


def test_bad_packets_are_kept_and_the_good_around_them_too() -> None:
    unknown = struct.pack("<BHBI", 99, 20, 1, 1).ljust(20, b"?")
    decoded = decode_messages([FULL, TICKER + unknown + TICKER, FULL[:100], b"\x08", b"", FULL])
    assert {ticks.mode: ticks.position.tolist() for ticks in decoded.ticks} == {Mode.FULL: [0, 7], Mode.TICKER: [1, 3]}
    assert [(r.position, r.message, r.reason, r.payload) for r in decoded.rejected] == [
        (2, 1, "unknown code 99", unknown),
        (4, 2, "torn full packet: 100 of 162 bytes", FULL[:100]),
        (5, 3, "1 bytes, too few for a header", b"\x08"),
        (6, 4, "empty message", b""),
    ]
    assert decoded.packets == 8


def test_index_packets_and_depth_of_version_1_are_kept() -> None:
    depth = pack(3, 100.0)
    index = struct.pack("<BHBI", 1, 20, 0, 13).ljust(20, b"\0")
    assert [r.payload for r in decode_messages([depth, index, depth * 2]).rejected] == [depth, index, depth, depth]


def test_an_unassigned_segment_is_left_to_the_instrument_lookup() -> None:
    token = int(only(decode_messages([pack(2, 1.0, segment=9, security_id=2**32 - 1)])).instrument_token[0])
    with pytest.raises(ValueError, match="9"):
        split_instrument_token(token)


def test_an_empty_block() -> None:
    decoded = decode(b"", np.zeros(1, np.int64))
    assert (decoded.packets, decoded.ticks, decoded.control, decoded.rejected) == (0, [], {}, [])


def test_a_block_of_empty_messages() -> None:
    decoded = decode_messages([b"", b""])
    assert [r.reason for r in decoded.rejected] == ["empty message"] * 2


segments = st.sampled_from(sorted(PRICE_DECIMALS))
prices = st.floats(0, 1e6, width=32)
numbers = {"B": st.integers(0, 2**8 - 1), "H": st.integers(0, 2**16 - 1), "I": st.integers(0, 2**32 - 1), "f": prices}


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """A valid packet of any kind, now and then longer than known."""
    code = draw(st.sampled_from([0, 2, 4, 5, 6, 7, 8, 50]))
    layout = LAYOUTS[code]
    formats = [field.format for field in layout.fields] + list("IIHHff") * layout.levels
    values = [draw(numbers[format_]) for format_ in formats[4:]]
    packet = layout.struct.pack(code, layout.size, draw(segments), draw(numbers["I"]), *values)
    extra = draw(st.just(b"") | st.binary(max_size=20))
    return grown(packet, extra) if extra else packet


def columns_of(tick: DhanTick, mode: Mode) -> dict[str, object]:
    """What the one-packet functions say, in the terms of the batch path."""
    values = tick.model_dump()
    if tick.depth is not None:
        for side in ("bid", "ask"):
            for one, many in (("price", "prices"), ("quantity", "quantities"), ("orders", "orders")):
                values[f"{side}_{many}"] = [getattr(level, f"{side}_{one}") or 0 for level in tick.depth]
    values["last_trade_time"] = int(tick.last_trade_time.timestamp()) if tick.last_trade_time else 0
    return {name: value or 0 for name, value in values.items()}


@given(st.lists(st.lists(packets(), min_size=1, max_size=4).map(b"".join), max_size=8))
@example([FULL, OI, FULL])
@example([FULL, FULL, FULL * 2])
def test_the_batch_says_what_the_one_packet_functions_say(messages: list[bytes]) -> None:
    decoded = decode_messages(messages)
    assert_conserved(decoded)
    assert decoded.rejected == []
    payload = decoded.payload
    for ticks in decoded.ticks:
        columns = {name: values.tolist() for name, values in ticks.columns.items()}
        for row, (start, size) in enumerate(zip(ticks.start.tolist(), ticks.size.tolist(), strict=True)):
            tick = PARSERS[ticks.mode](payload[start : start + size])
            decimals = PRICE_DECIMALS[split_instrument_token(int(ticks.instrument_token[row]))[0]]
            expected = columns_of(tick, ticks.mode)
            for name, values in columns.items():
                rounded = [np.round(values[row], decimals).tolist()]
                if name == "average_traded_price":
                    rounded.append(round(values[row], 4))
                assert expected[name] in rounded, name
            assert generate_instrument_token(tick.exchange_segment, tick.security_id) == ticks.instrument_token[row]
    for state, parse, name in (
        (decoded.open_interest, parse_oi_packet, "oi"),
        (decoded.previous_close, parse_prev_close_packet, "prev_close"),
    ):
        for row, (start, size) in enumerate(zip(state.start.tolist(), state.size.tolist(), strict=True)):
            tick = parse(payload[start : start + size])
            decimals = PRICE_DECIMALS[split_instrument_token(int(state.instrument_token[row]))[0]]
            assert round(state.value[row].item(), decimals) == (getattr(tick, name) or 0)


hostile = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=170).map(lambda body: b"\x08" + body),
    st.lists(packets() | st.binary(max_size=30), max_size=4).map(b"".join),
    st.sampled_from([TICKER * 3, FULL * 2, OI * 4, FULL[:-1], TICKER + pack(7) * 2]),
)


@given(st.lists(st.tuples(hostile, st.booleans()), max_size=8))
@example([(b"", False)])
def test_any_bytes_are_decoded_as_if_walked_packet_by_packet(messages: list[tuple[bytes, bool]]) -> None:
    decoded = decode_messages([message for message, _ in messages], [text for _, text in messages])
    assert_conserved(decoded)

    walked = []
    offset = 0
    for index, (message, text) in enumerate(messages):
        found = [(0, len(message), -2, None)] if text else list(split(message)) or [(0, 0, -1, "empty message")]
        walked += [(index, start + offset, size, code, reason) for start, size, code, reason in found]
        offset += len(message)
    assert decoded.packets == len(walked)
    control = Counter(CONTROL.get(code, "text") for *_, code, reason in walked if not reason and code in {*CONTROL, -2})
    assert decoded.control == control
    for ticks in decoded.ticks:
        code = next(code for code, mode in MODES.items() if mode is ticks.mode)
        rows = zip(ticks.position, ticks.message, ticks.start, ticks.size, strict=True)
        assert [tuple(map(int, row)) for row in rows] == [
            (position, index, start, size)
            for position, (index, start, size, found, reason) in enumerate(walked)
            if found == code and not reason
        ]
    assert [(r.position, r.message, r.reason, r.payload) for r in decoded.rejected] == [
        (position, index, reason, decoded.payload[start : start + size])
        for position, (index, start, size, _, reason) in enumerate(walked)
        if reason
    ]
