"""Messages of Kite's feed, made up: several packets in each, of every kind, good and bad."""

import struct

import numpy as np

from dhan_pipeline.instruments import KiteSegment, make_kite_token
from dhan_pipeline_tests.ingest.feed import SECOND_NS, START_NS

INDEX = make_kite_token(KiteSegment.INDICES, 1001)
EQUITY = make_kite_token(KiteSegment.NSE, 2885)
FUTURE = make_kite_token(KiteSegment.NFO, 68407)
CURRENCY = make_kite_token(KiteSegment.CDS, 77)
TOKENS = [INDEX, EQUITY, FUTURE, CURRENCY]
UNKNOWN = make_kite_token(KiteSegment.BSE, 5)

HEARTBEAT = b"\0"
NOW_S = START_NS // SECOND_NS


def message(*packets: bytes) -> bytes:
    return struct.pack(">H", len(packets)) + b"".join(struct.pack(">H", len(packet)) + packet for packet in packets)


def ltp(token: int, price: int) -> bytes:
    """`price` is in units of the wire, as everywhere here."""
    return struct.pack(">Ii", token, price)


def quote(token: int, price: int, close: int = 0) -> bytes:
    if token == INDEX:
        return struct.pack(">7i", token, price, price + 5, price - 5, price, close, price - close)
    return struct.pack(">Ii9i", token, price, 5, price, 1000, 200, 300, price, price + 5, price - 5, close)


def full(token: int, price: int, close: int = 0) -> bytes:
    if token == INDEX:
        return quote(token, price, close) + struct.pack(">I", NOW_S)
    levels = [struct.pack(">iihxx", 10 + step, price - step, 1 + step) for step in range(5)]
    levels += [struct.pack(">iihxx", 20 + step, price + 1 + step, 2 + step) for step in range(5)]
    return quote(token, price, close) + struct.pack(">5I", NOW_S, 7, 9, 5, NOW_S) + b"".join(levels)


def market_messages(count: int, seed: int = 0) -> list[bytes]:
    random = np.random.default_rng(seed)
    messages = []
    for _ in range(count):
        packets = []
        for _ in range(int(random.integers(1, 6))):
            token = TOKENS[random.integers(len(TOKENS))]
            price = int(random.integers(10_000, 20_000)) * (50_000 if token == CURRENCY else 5)
            kinds = [
                lambda t, p: ltp(t, p),
                lambda t, p: quote(t, p),
                lambda t, p: quote(t, p, close=p - 100_000),
                lambda t, p: full(t, p, close=p + 100_000),
                lambda t, p: ltp(UNKNOWN, p),
                lambda t, p: ltp(t, p) + b"\1\2",  # a length that no packet has
            ]
            kind = random.choice(len(kinds), p=[0.3, 0.25, 0.15, 0.2, 0.05, 0.05])
            packets.append(kinds[kind](token, price))
        messages.append(message(*packets))
        if random.random() < 0.02:
            messages[-1] = messages[-1][:-3]
        if random.random() < 0.1:
            messages.append(HEARTBEAT)
    return messages[:count]
