"""The proof: packets of a market become candles here and bars at the broker's; then some of those are made wrong."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.feeds.simulator.history import BarEdit, choose_edits
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.ingest.broker_bars import fetch_day
from dhan_pipeline.ingest.rebuild import rebuild_hour
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.quality.days import reconcile_day
from dhan_pipeline.quality.reconciliation import Reconciliation
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline.store.candles import rebuild_candles
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline_tests.broker import (
    AT_ONCE,
    DAY,
    NIFTY,
    RELIANCE,
    TOKENS,
    at,
    insert_instruments,
    ns,
    of,
    serving_source,
    snapshot,
    trade,
)
from dhan_pipeline_tests.feeds.simulator.trading import SetClock

HOUR = "2026-11-20T09:00"
TIMES = [f"09:{minute}:{second}" for minute in range(16, 28) for second in ("05", "35")]


@pytest.fixture
def clock() -> SetClock:
    return SetClock(at("09:16"))


@pytest.fixture
def market(clock: SetClock) -> Market:
    return Market(TOKENS, seed=3, clock=clock)


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Source:
    named: Source = request.param
    return named


@pytest.fixture
def edits() -> list[BarEdit]:
    """What the broker says otherwise than it was; by the tokens of the market."""
    return []


@pytest.fixture
def broker(
    database_url: str,
    clock: SetClock,
    market: Market,
    conn: connection,
    tmp_path: Path,
    source: Source,
    edits: list[BarEdit],
) -> Iterator[Settings]:
    """A morning that was captured, of an exchange that was open before, and the broker a minute after midnight."""
    insert_instruments(conn, of(source, *TOKENS))
    settings = Settings(_env_file=None, data_dir=tmp_path / "data", database_url=database_url, data_source=source)
    with closing(JournalWriter(settings.journal_dir, settings.capture_number)) as journal:
        before = (clock.now_ns(), snapshot(market, clock, source))
        for received_ns, messages in [before, *trade(market, clock, TIMES, events=24, source=source)]:
            count = len(messages)
            journal.append([received_ns] * count, [0] * count, [False] * count, messages)
    clock.at = at("00:01", DAY.replace(day=21))
    rebuild_hour(settings, database_url, HOUR, clock)
    rebuild_candles(conn, HOUR, clock.now_ns())
    with serving_source(settings, clock, market, tmp_path, edits) as (_, online):
        yield online


def compare(settings: Settings, clock: SetClock) -> Reconciliation:
    assert settings.database_url
    fetch_day(settings, settings.database_url, DAY, clock, lambda words: None, again=True, policy=AT_ONCE)
    return reconcile_day(settings, settings.database_url, DAY)[0]


def differences(conn: connection) -> list[tuple[int, int, str, float | None, float | None, str]]:
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token, extract(epoch FROM time)::bigint, field, ours, brokers, explained_by "
            "FROM candle_differences WHERE day = %s ORDER BY 1, 2, 3",
            (DAY,),
        )
        return cursor.fetchall()


def test_candles_of_all_packets_are_the_brokers(broker: Settings, conn: connection, clock: SetClock) -> None:
    result = compare(broker, clock)
    assert differences(conn) == []
    assert (result.agreement, result.instruments, result.explained) == (1.0, 4, 0)
    assert result.bars > 40


def test_every_bar_of_the_brokers_that_was_changed_is_found_and_nothing_else(
    broker: Settings, conn: connection, clock: SetClock, market: Market, source: Source, edits: list[BarEdit]
) -> None:
    whole = compare(broker, clock)
    # The volume of an index is nobody's; and in the first minute a late start explains everything.
    edits += [
        edit
        for edit in choose_edits(market, 30, seed=5)
        if (edit.instrument_token, edit.field) != (NIFTY, "volume") and edit.time_s * 10**9 > ns("09:16")
    ]
    assert {edit.field for edit in edits} == {None, "open", "high", "low", "close", "volume"}
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM broker_candles")
    result = compare(broker, clock)
    found = {(token, time, field): numbers for token, time, field, *numbers in differences(conn)}
    assert found.keys() == {
        (of(source, edit.instrument_token)[0], edit.time_s, edit.field or "extra") for edit in edits
    }
    for edit in edits:
        [token] = of(source, edit.instrument_token)
        ours, brokers, explained_by = found[token, edit.time_s, edit.field or "extra"]
        assert isinstance(ours, float)
        assert brokers == (None if edit.field is None else pytest.approx(ours + edit.delta))
        assert explained_by == ""
    assert (result.bars, result.unexplained, result.explained) == (whole.bars, len(edits), 0)
    assert result.agreement == pytest.approx(1 - len(edits) / whole.bars)


def test_a_day_is_replaced_when_it_is_compared_again(
    broker: Settings, conn: connection, clock: SetClock, edits: list[BarEdit]
) -> None:
    edits.append(BarEdit(RELIANCE, ns("09:20") // 10**9, "high", 1.0))
    compare(broker, clock)
    assert [field for _, _, field, *_ in differences(conn)] == ["high"]
    edits.clear()
    compare(broker, clock)
    assert differences(conn) == []


def test_minutes_that_we_lack_are_explained_by_the_gap_that_was_noted(
    broker: Settings, conn: connection, clock: SetClock, source: Source
) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM candles_1m WHERE time >= %s AND time < %s", (at("09:20"), at("09:22")))
        cursor.execute("DELETE FROM candles_1m WHERE time = %s", (at("09:25"),))
        gap = Gap(1, 0, ns("09:20:30"), Cause.RESET, "", tuple(of(source, *TOKENS)), ns("09:21:30"))
        apply_notes(cursor, broker.capture_number, [(1, gap)])
    result = compare(broker, clock)
    by_time: dict[int, set[str]] = {}
    for _, time, field, _, _, explained_by in differences(conn):
        assert field == "missing"
        by_time.setdefault(time, set()).add(explained_by)
    assert by_time == {ns(t) // 10**9: {why} for t, why in (("09:20", "gap"), ("09:21", "gap"), ("09:25", ""))}
    assert result.explained == 2 * result.unexplained == 8
