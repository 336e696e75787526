import struct

import numpy as np
import pytest

from dhan_pipeline.feeds.dhan.wire import LAYOUTS, ResponseCode
from dhan_pipeline.feeds.simulator.latest import SENT_MODES, Latest, framed
from dhan_pipeline.feeds.simulator.misbehaviour import payload_of, split_frames
from dhan_pipeline.instruments import generate_instrument_token

TICKER, QUOTE, FULL = ResponseCode.TICKER, ResponseCode.QUOTE, ResponseCode.FULL
PREVIOUS_CLOSE, OPEN_INTEREST = ResponseCode.PREVIOUS_CLOSE, ResponseCode.OPEN_INTEREST

HEADER = "01 450b0000"
TRADE = bytes.fromhex("0000c842 0a00 00a5fe6a 0000c642 e8030000 64000000 c8000000")
PRICES = bytes.fromhex("0000c042 0000be42 0000ca42 0000bc42")
A_TICKER = bytes.fromhex(f"02 1000 {HEADER}") + TRADE[:4] + TRADE[6:10]
A_QUOTE = bytes.fromhex(f"04 3200 {HEADER}") + TRADE + PRICES
A_FULL = bytes.fromhex(f"08 a200 {HEADER}") + TRADE + bytes.fromhex("07000000 09000000 05000000") + PRICES + b"d" * 100


def opaque(*packets: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(packets), f"V{len(packets[0])}")


def messages(frames: bytes) -> list[bytes]:
    return [payload_of(frame) for frame in split_frames(frames)]


@pytest.mark.parametrize(
    ("packet", "mode", "expected"),
    [(A_FULL, QUOTE, A_QUOTE), (A_FULL, TICKER, A_TICKER), (A_QUOTE, TICKER, A_TICKER), (A_FULL, FULL, A_FULL)],
)
def test_a_packet_is_cut_down_to_what_the_broker_would_send(packet: bytes, mode: ResponseCode, expected: bytes) -> None:
    rows = framed(opaque(packet, packet), ResponseCode(packet[0]), mode)
    assert messages(rows.tobytes()) == [expected, expected]


def test_trade_times_move_but_for_those_of_what_never_traded() -> None:
    never = A_TICKER[:12] + bytes(4)
    rows = framed(opaque(A_TICKER, A_TICKER, never), TICKER, TICKER, np.array([5, -5, 5]))
    times = [struct.unpack("<I", message[12:])[0] for message in messages(rows.tobytes())]
    assert times == [0x6AFEA505, 0x6AFEA4FB, 0]
    assert messages(framed(opaque(A_FULL), FULL, QUOTE, 5).tobytes())[0][14:18] == bytes.fromhex("05a5fe6a")


def test_what_is_sent_follows_from_what_was_recorded_and_what_is_wanted() -> None:
    ticker, quote, full, nothing = 1, 2, 4, 0
    assert SENT_MODES[FULL][full, full] == full
    assert SENT_MODES[FULL][full, ticker] == ticker
    assert SENT_MODES[FULL][full, ticker | quote] == ticker | quote
    assert SENT_MODES[FULL][full, ticker | full] == ticker | full
    assert SENT_MODES[QUOTE][quote, full] == quote  # nobody knows more
    assert SENT_MODES[QUOTE][quote, ticker] == ticker
    assert SENT_MODES[QUOTE][quote, nothing] == nothing
    # What was recorded in both modes comes once in each.
    assert SENT_MODES[FULL][ticker | full, ticker | full] == full
    assert SENT_MODES[TICKER][ticker | full, ticker | full] == ticker


def test_the_latest_packet_that_says_enough_is_given() -> None:
    latest = Latest()
    index = latest.enter([generate_instrument_token("NSE_EQ", 2885)])
    assert latest.mode_of(FULL, index).tolist() == [0]
    latest.keep(QUOTE, index, opaque(A_QUOTE), np.array([0]))
    assert latest.mode_of(FULL, index).tolist() == [2]
    assert latest.mode_of(TICKER, index).tolist() == [1]
    assert messages(latest.frames(TICKER, index)) == [A_TICKER]
    latest.keep(FULL, index, opaque(A_FULL), np.array([1]))
    newer = A_TICKER[:8] + b"new!" + A_TICKER[12:]
    latest.keep(TICKER, index, opaque(newer), np.array([2]))
    assert latest.mode_of(FULL, index).tolist() == [4]
    assert messages(latest.frames(FULL, index)) == [A_FULL]
    assert messages(latest.frames(QUOTE, index)) == [A_QUOTE]
    assert messages(latest.frames(TICKER, index)) == [newer]
    assert latest.packets(FULL, index)["oi"].tolist() == [7]
    latest.keep(FULL, index, opaque(A_FULL), np.array([3]))
    assert messages(latest.frames(TICKER, index)) == [A_TICKER]


def test_of_several_packets_of_an_instrument_the_last_is_kept() -> None:
    latest = Latest()
    index = latest.enter([generate_instrument_token("NSE_EQ", 2885)] * 3)
    newest = A_TICKER[:8] + b"new!" + A_TICKER[12:]
    latest.keep(TICKER, index, opaque(A_TICKER, A_TICKER, newest), np.arange(3))
    assert messages(latest.frames(TICKER, index[:1])) == [newest]


def test_indices_stay_when_instruments_are_added() -> None:
    latest = Latest()
    tokens = [generate_instrument_token("NSE_FNO", 40_000 - number) for number in range(3000)]
    first = latest.enter(tokens[:700])
    latest.keep(PREVIOUS_CLOSE, first[:1], np.zeros(1, f"V{LAYOUTS[PREVIOUS_CLOSE].size}"), np.array([0]))
    assert latest.enter(tokens).tolist() == list(range(3000))
    assert latest.enter(tokens[:700]).tolist() == first.tolist() == list(range(700))
    assert len(latest) >= 3000
    assert latest.tokens.tolist() == tokens
    assert np.flatnonzero(latest.recorded).tolist() == [0]
    assert latest.has(PREVIOUS_CLOSE, np.arange(3000)).tolist() == [0]
    assert latest.has(OPEN_INTEREST, np.arange(3000)).tolist() == []
    assert latest.lookup(np.array([-1, tokens[5], tokens[5] + 1_000_000])).tolist() == [-1, 5, -1]
