"""What was wrong in the system that users come from, each with a test that fails if it came back.

More is tested where each part is; here is the whole list, in the order of docs/migration.md.
"""

import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan import (
    DhanTick,
    DhanWebSocketClient,
    InstrumentInfo,
    InstrumentsCache,
    parse_full_packet,
    parse_quote_packet,
    save_token,
)
from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.ingest import backlog
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.instruments import generate_instrument_token, split_instrument_token
from dhan_pipeline.journal.stretch import join
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.candles import rebuild_candles
from dhan_pipeline.store.ticks import StoredBlocks, write_blocks
from dhan_pipeline_tests.ingest.feed import HOUR, SECOND_NS, START_NS, backlog_of, previous_close, record, ticker

NIFTY, ABB = generate_instrument_token("IDX_I", 13), generate_instrument_token("NSE_EQ", 13)
RELIANCE = generate_instrument_token("NSE_EQ", 2885)
TOKENS = np.array([NIFTY, ABB, RELIANCE])
NINE = datetime.fromtimestamp(START_NS / 1e9, UTC)
WALL_CLOCK = START_NS // SECOND_NS + 19_800  # 09:00:00 as the wire writes it


def quote(price: float, volume: int, quantity: int = 5, traded: int = WALL_CLOCK, close: float = 0.0) -> bytes:
    trade = struct.pack("<fHIfIII", price, quantity, traded, 0.0, volume, 0, 0)
    return struct.pack("<BHBI", 4, 50, 1, 2885) + trade + struct.pack("<ffff", 0.0, close, 0.0, 0.0)


def full(price: float) -> bytes:
    return struct.pack("<BHBI", 8, 162, 1, 2885) + struct.pack("<f", price) + bytes(150)


class Stored:
    """Messages that go through the journal into the table, and what the table then says."""

    def __init__(self, conn: connection, journal: JournalWriter) -> None:
        self.conn = conn
        self.journal = journal
        self.processor = BlockProcessor(TOKENS)

    def process(self, messages: list[bytes], at_s: float = 1.0) -> StoredBlocks:
        blocks = record(self.journal, messages, START_NS + int(at_s * SECOND_NS), len(messages))
        return self.processor.process(join(blocks))

    def __call__(self, *messages: bytes) -> None:
        write_blocks(self.conn, [self.process(list(messages))], Clock())

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.conn, self.conn.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def stored(conn: connection, tmp_path: Path) -> Iterator[Stored]:
    with closing(JournalWriter(tmp_path / "journal", 0)) as journal:
        yield Stored(conn, journal)


def test_quotes_of_50_and_full_packets_of_162_bytes_are_read_not_those_of_51_and_163_or_171(stored: Stored) -> None:
    assert (parse_quote_packet(quote(10.0, 7)).last_price, parse_full_packet(full(10.0)).last_price) == (10.0, 10.0)
    stored(quote(10.0, 7), full(11.0))
    assert stored.query("SELECT mode, last_price FROM ticks ORDER BY tick_id") == [("quote", 10.0), ("full", 11.0)]
    assert stored.query("SELECT count(*) FROM rejected_packets") == [(0,)]


def test_india_s_five_and_a_half_hours_are_taken_off_trade_times_once(stored: Stored) -> None:
    stored(quote(10.0, 7))
    assert parse_quote_packet(quote(10.0, 7)).last_trade_time == NINE
    assert stored.query("SELECT last_trade_time, time - last_trade_time FROM ticks") == [(NINE, timedelta(seconds=1))]


def test_change_is_there_because_the_previous_close_is_remembered(stored: Stored) -> None:
    share = split_instrument_token(RELIANCE)
    stored(previous_close(share, 100.0), ticker(share, 101.5))
    stored(ticker(share, 99.0))
    assert stored.query("SELECT change, change_percent FROM ticks ORDER BY tick_id") == [(1.5, 1.5), (-1.0, -1.0)]


def test_tokens_are_the_same_in_every_process() -> None:
    program = "from dhan_pipeline.instruments import generate_instrument_token as t; print(t('NSE_EQ', 2885))"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {f"{RELIANCE}\n"}


def test_an_instrument_is_looked_up_by_its_segment_too(stored: Stored) -> None:
    for token, symbol in ((NIFTY, "NIFTY"), (ABB, "ABB")):
        columns = "instrument_token, source, exchange, trading_symbol"
        stored.query(f"INSERT INTO instruments ({columns}) VALUES (%s, 'dhan', 'NSE', %s)", token, symbol)
    stored(ticker(split_instrument_token(NIFTY), 26_000.0), ticker(split_instrument_token(ABB), 5_000.0))
    rows = stored.query("SELECT trading_symbol, last_price FROM ticks_with_symbols ORDER BY tick_id")
    assert rows == [("NIFTY", 26_000.0), ("ABB", 5_000.0)]


def test_no_look_up_goes_through_the_instruments_one_by_one() -> None:
    class Unlisted(InstrumentsCache):
        def __iter__(self) -> Iterator[tuple[str, int]]:
            raise AssertionError("all instruments were listed")

    infos = [InstrumentInfo(instrument_token=RELIANCE + n, name=str(n)) for n in range(1_000)]
    cache = Unlisted.of(infos)
    made: list[int] = []
    make = cache.at
    cache.at = lambda place: made.append(place) or make(place)  # type: ignore[method-assign, func-returns-value]
    assert cache["NSE_EQ", 2885 + 999].name == "999"
    assert made == [999]


def test_rows_of_nse_are_in_the_segment_that_they_say(tmp_path: Path) -> None:
    header = (
        "EXCH_ID,SEGMENT,SECURITY_ID,ISIN,INSTRUMENT,UNDERLYING_SYMBOL,SYMBOL_NAME,DISPLAY_NAME,SERIES,LOT_SIZE,"
        "SM_EXPIRY_DATE,STRIKE_PRICE,OPTION_TYPE,TICK_SIZE"
    )
    rows = [
        f"NSE,{segment},13,NA,{kind},NIFTY,NAME,Name,NA,1,2026-11-24,,XX,5"
        for segment, kind in (("E", "EQUITY"), ("I", "INDEX"), ("D", "FUTIDX"), ("C", "FUTCUR"))
    ]
    (tmp_path / "master.csv").write_text("\n".join([header, *rows]))
    assert parse_dhan_csv(tmp_path / "master.csv").segment_counts == {
        "IDX_I": 1,
        "NSE_EQ": 1,
        "NSE_FNO": 1,
        "NSE_CURRENCY": 1,
    }


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_quotes_are_what_comes_where_quotes_are_subscribed_and_again_after_a_reconnect(tmp_path: Path) -> None:
    save_token(tmp_path / "token.json", make_token("1000000001"), "1000000001")
    ticks: list[DhanTick] = []
    async with DhanSimulator([RELIANCE], rate=500) as simulator:
        settings = Settings(
            _env_file=None,  # type: ignore[call-arg]
            dhan_feed_url=simulator.feed_url,
            dhan_token_file=tmp_path / "token.json",
            data_dir=tmp_path,
        )
        client = DhanWebSocketClient(ticks.append, reconnect_delay=0.001, settings=settings)
        await client.connect()
        await client.subscribe([("NSE_EQ", 2885)], "quote")
        await until(lambda: len(ticks) > 10)
        simulator.reset()
        await until(lambda: client.get_stats()["reconnects"] == 1)
        count = len(ticks)
        await until(lambda: len(ticks) > count + 10)
        await client.close()
    assert {tick.response_code for tick in ticks} <= {4, 5, 6}
    assert {tick.response_code for tick in ticks[count:]} >= {4}


def test_all_packets_of_one_second_are_kept(stored: Stored) -> None:
    stored(*(quote(10.0 + n, 7 + n) for n in range(20)))
    assert stored.query("SELECT count(*), count(DISTINCT last_trade_time), max(last_price) FROM ticks") == [(20, 1, 29)]


def test_deltas_are_between_neighbours_whoever_stored_them_and_when(stored: Stored) -> None:
    parts = [stored.process([quote(10.0, volume) for volume in (n * 100, n * 100 + 30)], at_s=n) for n in range(1, 5)]
    for part in (parts[1], parts[3], parts[0], parts[2]):  # as workers that compete for them would
        write_blocks(stored.conn, [part], Clock())
    deltas = stored.query("SELECT volume_delta FROM tick_deltas('2026-11-20', %s) ORDER BY tick_id", RELIANCE)
    assert [delta for (delta,) in deltas] == [None, 30, 70, 30, 70, 30, 70, 30]


def test_the_volume_of_a_minute_is_what_the_day_s_volume_grew_by(stored: Stored) -> None:
    # Half of the packets only tell of the order book; a trade of more than 65,535 does not fit its quantity.
    volumes = [1_000, 1_000, 1_005, 1_005, 171_005]
    stored(*(quote(10.0, volume, quantity=min(volume - 1_000, 65_535) or 5) for volume in volumes))
    rebuild_candles(stored.conn, HOUR, START_NS + 24 * HOUR_NS)
    assert stored.query("SELECT volume FROM candles_1m") == [(170_005,)]


def test_a_queue_that_is_full_loses_nothing(stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MEMORY_LIMIT_BYTES", 300)
    waiting = backlog_of(stored.journal, Settings(_env_file=None, data_dir=tmp_path))  # type: ignore[call-arg]
    waiting.start_after(None)
    waiting.take(0.0)
    blocks = record(stored.journal, [quote(10.0, n) for n in range(50)], START_NS, 1)
    for block in blocks:
        waiting.put(block)
    taken: list[int] = []
    while waiting.taken_through_ns() is None:
        taken += [block.block_id for block in waiting.take(0.0)]
    assert taken == [block.block_id for block in blocks]


def test_a_quantity_of_zero_is_stored_as_zero_and_a_price_of_zero_as_none(stored: Stored) -> None:
    stored(quote(10.0, 0, quantity=0), full(10.0))
    rows = stored.query(
        "SELECT last_traded_quantity, volume_traded, total_buy_quantity, average_traded_price, day_open FROM ticks"
    )
    assert rows == [(0, 0, 0, None, None)] * 2
    assert stored.query(
        "SELECT oi, bid_quantities[1], bid_orders[1], bid_prices[1] FROM ticks WHERE mode = 'full'"
    ) == [(0, 0, 0, None)]
