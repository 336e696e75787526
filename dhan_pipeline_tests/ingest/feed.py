"""A feed of made-up packets, a clock set by hand, and looks into the journal and the database."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from threading import Thread
from typing import Any

import numpy as np
import pytest
from psycopg2 import sql

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.dhan.wire import LAYOUTS, ResponseCode
from dhan_pipeline.feeds.simulator import tokens
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.kite import KiteSimulator
from dhan_pipeline.ingest.backlog import Backlog
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.instruments import (
    ExchangeSegment,
    KiteSegment,
    generate_instrument_token,
    make_kite_token,
    source_of,
)
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.notes import NOTE_CONNECTION
from dhan_pipeline.journal.reader import read_blocks
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import IST_OFFSET_S, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline.store.engine import connect
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode

HOUR, NEXT_HOUR = "2026-11-20T09:00", "2026-11-20T10:00"
START_NS = parse_hour_key(HOUR)
SECOND_NS = 1_000_000_000

Instrument = tuple[ExchangeSegment, int]
INDEX: Instrument = (ExchangeSegment.IDX_I, 13)
EQUITY: Instrument = (ExchangeSegment.NSE_EQ, 2885)
FUTURE: Instrument = (ExchangeSegment.NSE_FNO, 68407)
CURRENCY: Instrument = (ExchangeSegment.NSE_CURRENCY, 77)
INSTRUMENTS = (INDEX, EQUITY, FUTURE, CURRENCY)
TOKENS = [generate_instrument_token(*instrument) for instrument in INSTRUMENTS]

#: What the exchange of the tests trades: each mode of equities and of futures.
SUBSCRIPTIONS = [
    Subscription(generate_instrument_token(("NSE_EQ", "NSE_FNO")[n % 2], 100_000 + n), list(Mode)[n % 3], f"S{n}")
    for n in range(60)
]
KITE_SUBSCRIPTIONS = [
    Subscription(make_kite_token((KiteSegment.NSE, KiteSegment.NFO)[n % 2], 100_000 + n), list(Mode)[n % 3], f"S{n}")
    for n in range(60)
]
SUBSCRIPTIONS_OF: dict[Source, list[Subscription]] = {"dhan": SUBSCRIPTIONS, "kite": KITE_SUBSCRIPTIONS}
SUBSCRIBED = [subscription.instrument_token for subscription in SUBSCRIPTIONS]
CLIENT_ID = "1100000001"

#: A test of what is above the feed, and the same whosever it is.
BOTH_SOURCES = pytest.mark.parametrize("source", SOURCES, indirect=True)

UNKNOWN: Instrument = (ExchangeSegment.BSE_EQ, 5)


def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Return once the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.005)


def add_instruments(database_url: str, tokens: Sequence[int]) -> None:
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO instruments (instrument_token, source, exchange, trading_symbol) VALUES (%s, %s, '', '')",
            [(token, source_of(token)) for token in tokens],
        )


def prepare_capture(settings: Settings) -> None:
    """The instruments, subscriptions and token without which a capture does not start."""
    assert settings.database_url is not None
    subscriptions = SUBSCRIPTIONS_OF[settings.source]
    add_instruments(settings.database_url, [subscription.instrument_token for subscription in subscriptions])
    write_subscriptions(settings.subscriptions_path, subscriptions)
    if settings.source == "dhan":
        save_token(settings.dhan_token_file, tokens.make_token(CLIENT_ID, expires_in=1e7), CLIENT_ID)
    else:
        token = {"api_key": tokens.API_KEY, "access_token": tokens.make_kite_access_token(expires_in=1e7)}
        settings.kite_token_file.write_text(json.dumps(token))


def simulator_of(settings: Settings, **options: Any) -> DhanSimulator | KiteSimulator:
    """The exchange of the source, which trades what `prepare_capture` subscribes."""
    tokens = [subscription.instrument_token for subscription in SUBSCRIPTIONS_OF[settings.source]]
    return DhanSimulator(tokens, **options) if settings.source == "dhan" else KiteSimulator(tokens, **options)


class HandClock(Clock):
    """Shows what it is set to: nanoseconds, by default a second after 09:00 IST of a trading day."""

    def __init__(self, at_ns: int = START_NS + SECOND_NS) -> None:
        super().__init__()
        self.at_ns = at_ns

    def now_ns(self) -> int:
        return self.at_ns


def packet(code: ResponseCode, instrument: Instrument, *values: float) -> bytes:
    """A packet; its missing fields are 0."""
    layout = LAYOUTS[code]
    body = layout.struct.pack(
        code,
        layout.size,
        *instrument,
        *values,
        *[0] * (len(layout.struct.unpack(bytes(layout.size))) - 4 - len(values)),
    )
    assert len(body) == layout.size
    return body


def ticker(instrument: Instrument, price: float) -> bytes:
    return packet(ResponseCode.TICKER, instrument, price, START_NS // SECOND_NS + IST_OFFSET_S)


def quote(instrument: Instrument, price: float, close: float = 0.0) -> bytes:
    trade = (price, 5, START_NS // SECOND_NS + IST_OFFSET_S, price, 1000, 300, 200)
    return packet(ResponseCode.QUOTE, instrument, *trade, price, close, price, price)


def full(instrument: Instrument, price: float, close: float = 0.0) -> bytes:
    trade = (price, 5, START_NS // SECOND_NS + IST_OFFSET_S, price, 1000, 300, 200)
    levels = [value for step in range(5) for value in (10, 20, 1, 2, price - step, price + 1 + step)]
    return packet(ResponseCode.FULL, instrument, *trade, 7, 9, 5, price, close, price, price, *levels)


def open_interest(instrument: Instrument, value: int) -> bytes:
    return packet(ResponseCode.OPEN_INTEREST, instrument, value)


def previous_close(instrument: Instrument, price: float) -> bytes:
    return packet(ResponseCode.PREVIOUS_CLOSE, instrument, price, 0)


def market_messages(count: int, seed: int = 0) -> list[bytes]:
    """Messages of all kinds, in all modes, of all instruments, good and bad, one packet each or a few."""
    random = np.random.default_rng(seed)
    messages = []
    for _ in range(count):
        parts = []
        for _ in range(1 if random.random() < 0.9 else 3):
            instrument = INSTRUMENTS[random.integers(len(INSTRUMENTS))]
            price = float(random.integers(2000, 4000)) / 20
            kinds = [
                lambda i, p: ticker(i, p),
                lambda i, p: quote(i, p),
                lambda i, p: quote(i, p, close=p - 1),
                lambda i, p: full(i, p, close=p + 1),
                lambda i, p: open_interest(i, int(p * 10)),
                lambda i, p: previous_close(i, p),
                lambda i, p: ticker(UNKNOWN, p),
                lambda i, p: packet(ResponseCode.HEARTBEAT, i),
            ]
            kind = random.choice(len(kinds), p=[0.3, 0.2, 0.1, 0.2, 0.09, 0.01, 0.05, 0.05])
            parts.append(kinds[kind](instrument, price))
        messages.append(b"".join(parts))
        if random.random() < 0.02:
            messages[-1] = messages[-1][:-3]
    return messages


def record(journal: JournalWriter, messages: Sequence[bytes], at_ns: int, in_block: int = 10) -> list[Block]:
    """Append messages, a millisecond apart, in blocks of so many."""
    blocks = []
    for start in range(0, len(messages), in_block):
        part = messages[start : start + in_block]
        times = [at_ns + (start + i) * 1_000_000 for i in range(len(part))]
        blocks.append(journal.append(times, [i % 5 for i in range(len(part))], [False] * len(part), part))
    return blocks


def backlog_of(journal: JournalWriter, settings: Settings) -> Backlog:
    return Backlog(settings.journal_dir, settings.capture_number, journal.last_block_id, journal.last_received_ns)


@contextmanager
def running(writer: Writer, backlog: Backlog, drain_s: float = 20.0) -> Iterator[None]:
    """The writer in a thread of its own, stopped at the end."""
    thread = Thread(target=writer.run)
    thread.start()
    try:
        yield
    finally:
        backlog.close()
        writer.stop(drain_s)
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def outage(server_url: str, database_url: str) -> Iterator[None]:
    """The database ends all sessions and takes no new ones."""
    name = database_url.rpartition("/")[2]
    with closing(connect(server_url)) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        allow = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
        cursor.execute(allow.format(sql.Identifier(name), sql.Literal(False)))
        end_sessions(server_url, database_url)
        try:
            yield
        finally:
            cursor.execute(allow.format(sql.Identifier(name), sql.Literal(True)))


def end_sessions(server_url: str, database_url: str) -> None:
    with closing(connect(server_url)) as conn, conn.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            (database_url.rpartition("/")[2],),
        )


def query(database_url: str, statement: str, *values: object) -> list[tuple[object, ...]]:
    with closing(connect(database_url)) as conn, conn.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall()


def feed_messages(block: Block) -> int:
    """Messages that came from the feed, and are no notes."""
    return int(np.count_nonzero(block.connection != NOTE_CONNECTION))


def assert_stored_exactly_once(settings: Settings, database_url: str) -> None:
    """The ledger, the ticks and the rejected are what the journal decodes to: no block missing, none twice."""
    blocks = list(read_blocks(settings.journal_dir, settings.capture_number))
    decode = decoder(settings)
    decoded = {block.block_id: decode(block.payload, block.offsets, block.text).packets for block in blocks}
    ledger = query(database_url, "SELECT block_id, messages, packets FROM ingest_ledger ORDER BY block_id")
    assert ledger == [(block.block_id, block.messages, decoded[block.block_id]) for block in blocks]
    [(packets, ticks, others, rejected)] = query(
        database_url,
        "SELECT sum(packets)::int, sum(ticks)::int, sum(state + control)::int, sum(rejected)::int FROM ingest_ledger",
    )
    assert packets == ticks + others + rejected
    assert query(database_url, "SELECT count(*), count(DISTINCT tick_id) FROM ticks") == [(ticks, ticks)]
    assert query(database_url, "SELECT count(*) FROM rejected_packets") == [(rejected,)]
