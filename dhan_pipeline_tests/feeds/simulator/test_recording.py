from collections.abc import Sequence
from itertools import chain

import numpy as np

from dhan_pipeline.feeds.dhan.decode import REJECTED, TEXT
from dhan_pipeline.feeds.simulator.recording import GROWN, Messages, Packets, merge, packets_of
from dhan_pipeline.instruments import generate_instrument_token

RELIANCE = generate_instrument_token("NSE_EQ", 2885)
FUTURE = generate_instrument_token("NSE_FNO", 68407)

TICKER = bytes.fromhex("02 1000 01 450b0000 00004842 00a5fe6a")
OPEN_INTEREST = bytes.fromhex("05 0c00 02 370b0100 e8030000")
HEARTBEAT = bytes.fromhex("00 0800 00 00000000")
DISCONNECT = bytes.fromhex("32 0a00 00 00000000 2503")


def messages(*payloads: bytes, at: Sequence[int] | None = None, text: Sequence[int] = ()) -> Messages:
    """Recorded messages, a nanosecond apart where nothing is said."""
    size = np.array([len(payload) for payload in payloads])
    return Messages(
        received_ns=np.array(at if at is not None else range(len(payloads)), np.int64),
        start=size.cumsum() - size,
        size=size,
        text=np.isin(np.arange(len(payloads)), text),
        payload=b"".join(payloads),
    )


def in_bytes(packets: Packets) -> list[bytes]:
    return [
        packets.payload[start : start + size]
        for start, size in zip(packets.start.tolist(), packets.size.tolist(), strict=True)
    ]


def payloads(recorded: Messages) -> list[bytes]:
    return [
        recorded.payload[start : start + size]
        for start, size in zip(recorded.start.tolist(), recorded.size.tolist(), strict=True)
    ]


def test_packets_are_found_with_their_code_time_and_instrument() -> None:
    packets = packets_of(messages(TICKER, HEARTBEAT, OPEN_INTEREST))
    assert in_bytes(packets) == [TICKER, HEARTBEAT, OPEN_INTEREST]
    assert packets.code.tolist() == [2, 0, 5]
    assert packets.token.tolist() == [RELIANCE, -1, FUTURE]
    assert packets.received_ns.tolist() == [0, 1, 2]
    assert packets.instruments.tolist() == [RELIANCE, FUTURE]


def test_packets_of_one_message_have_its_time_and_their_order() -> None:
    packets = packets_of(messages(TICKER, OPEN_INTEREST + TICKER + HEARTBEAT, TICKER * 3, at=[5, 6, 7]))
    assert in_bytes(packets) == [TICKER, OPEN_INTEREST, TICKER, HEARTBEAT, TICKER, TICKER, TICKER]
    assert packets.received_ns.tolist() == [5, 6, 6, 6, 7, 7, 7]


def test_what_ended_a_connection_is_left_out() -> None:
    packets = packets_of(messages(DISCONNECT, TICKER, TICKER + DISCONNECT))
    assert in_bytes(packets) == [TICKER, TICKER]


def test_what_cannot_be_read_is_kept_as_it_is() -> None:
    unknown = bytes.fromhex("63 0c00 01 450b0000 01020304")
    grown = TICKER.replace(b"\x10", b"\x14", 1) + b"more"
    odd = messages("gruß".encode(), b"", b"\x02\x10", unknown, grown, HEARTBEAT[:1] + b"\x0a\0\0\0\0\0\0++", text=[0])
    packets = packets_of(odd)
    assert in_bytes(packets) == payloads(odd)
    assert packets.code.tolist() == [TEXT, REJECTED, REJECTED, REJECTED, GROWN, REJECTED]
    assert packets.token.tolist()[:5] == [-1, -1, -1, RELIANCE, RELIANCE]
    assert packets.instruments.tolist() == [RELIANCE]


def test_nothing_but_the_end_of_a_connection_is_no_packet() -> None:
    assert len(packets_of(messages(DISCONNECT))) == 0


def test_several_recordings_are_merged_by_time_a_piece_at_a_time() -> None:
    first = [messages(b"a1", b"a4", b"a5", at=[1, 4, 5]), messages(b"a9", at=[9])]
    second = [messages(b"b2", b"b5", b"b6", at=[2, 5, 6], text=[1]), messages(b"b7", b"b8", at=[7, 8])]
    merged = list(merge([iter(first), iter(()), iter(second)]))
    found = list(chain.from_iterable(map(payloads, merged)))
    assert found == [b"a1", b"b2", b"a4", b"a5", b"b5", b"b6", b"b7", b"b8", b"a9"]
    assert list(chain.from_iterable(piece.text.tolist() for piece in merged)) == [x == b"b5" for x in found]
    assert list(chain.from_iterable(piece.received_ns.tolist() for piece in merged)) == [1, 2, 4, 5, 5, 6, 7, 8, 9]


def test_one_recording_is_passed_on_as_it_is() -> None:
    pieces = [messages(b"a", at=[1]), messages(b"b", at=[2])]
    assert list(merge([iter(pieces)])) == pieces
    assert list(merge([])) == []
