"""An hour of two feeds in a real database: compared, written, compared again."""

from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token, segment_of, source_of
from dhan_pipeline.quality import shadow_hours
from dhan_pipeline.quality.shadow import ShadowComparison
from dhan_pipeline.quality.shadow_hours import ShadowRefusedError, compare_hour
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.partitions import instant
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.two_feeds import HOUR, NIFTY, RELIANCE, START_NS, TCS, Feed, Market, honest, store

NOW_NS = START_NS + HOUR_NS
ALONE = generate_instrument_token(ExchangeSegment.BSE_EQ, 500325)


@pytest.fixture
def settings(tmp_path: Path, database_url: str, conn: connection) -> Settings:
    """Of a database that knows the instruments."""
    names = {NIFTY.kite_token: "NIFTY 50", ALONE: "RELIANCE"}
    instruments = [
        (token, source_of(token), names.get(token, pair.symbol), segment_of(token).name, 0.05)
        for pair in (NIFTY, RELIANCE, TCS)
        for token in (pair.dhan_token, pair.kite_token)
    ]
    with conn, conn.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO instruments (instrument_token, source, trading_symbol, exchange_segment, tick_size, exchange) "
            "VALUES %s",
            [(*row, "NSE") for row in instruments],
        )
    return Settings(_env_file=None, data_source="kite,dhan", data_dir=tmp_path, database_url=database_url)


def compared(settings: Settings, hour: str = HOUR, now_ns: int = NOW_NS) -> ShadowComparison:
    assert settings.database_url is not None
    return compare_hour(settings, settings.database_url, hour, now_ns)


def rows(conn: connection) -> list[tuple[Any, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT * FROM shadow_comparisons ORDER BY hour, dhan_token")
        return cursor.fetchall()


def test_an_hour_is_compared_and_comparing_it_again_changes_nothing(settings: Settings, conn: connection) -> None:
    alone = Market(9, trades=50).feed(ALONE, 9)
    store(conn, *honest(NIFTY, 1, 500), *honest(RELIANCE, 2, 500), *honest(TCS, 3, 500), alone)
    found = compared(settings)
    assert [pair.symbol for pair in found.pairs] == ["NIFTY", "RELIANCE", "TCS"]
    assert found.agreement is not None
    assert found.agreement > 0.999
    assert [(one.source, one.instrument_token) for one in found.unpaired] == [("dhan", ALONE)]
    assert found.ticks["dhan"] == found.total("dhan_ticks") + len(alone.time_us)
    assert found.ticks["kite"] == found.total("kite_ticks")
    written = rows(conn)
    assert [row[1:3] for row in written] == [(pair.dhan_token, pair.kite_token) for pair in found.pairs]
    compared(settings)
    assert rows(conn) == written


def test_memory_stays_small_by_comparing_in_portions(
    settings: Settings, conn: connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(conn, *honest(NIFTY, 1, 200), *honest(RELIANCE, 2, 200), *honest(TCS, 3, 200))
    whole, written = compared(settings), rows(conn)
    for name in ("PAIRS_AT_ONCE", "TICKS_AT_ONCE"):
        monkeypatch.setattr(shadow_hours, name, 1)
        parts = compared(settings)
        assert rows(conn) == written
        assert parts.by_minute.tolist() == pytest.approx(whole.by_minute.tolist())


def test_what_is_subscribed_at_both_and_silent_at_one_is_compared(settings: Settings, conn: connection) -> None:
    only_kite: Feed = honest(TCS, 3)[1]
    store(conn, *honest(RELIANCE, 2), only_kite)
    assert [one.symbol for one in compared(settings).unpaired] == ["TCS"]
    for token in (TCS.dhan_token, TCS.kite_token):
        write_subscriptions(settings.of(source_of(token)).subscriptions_path, [Subscription(token, Mode.FULL, "TCS")])
    found = compared(settings)
    assert (found.unpaired, len(found.pairs)) == ([], 2)
    assert found.below(0.95) == [1]
    assert found.columns["dhan_missing_seconds"][1] > 2000


def test_where_only_one_broker_has_ticks_there_is_nothing_to_compare(settings: Settings, conn: connection) -> None:
    store(conn, *honest(RELIANCE, trades=20))
    compared(settings)
    assert len(rows(conn)) == 1
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM tick_rows WHERE instrument_token = %s", [RELIANCE.kite_token])
    found = compared(settings)
    assert (found.pairs, found.unpaired, found.agreement) == ([], [], None)
    assert rows(conn) == []


def test_an_hour_that_is_not_over_is_refused(settings: Settings) -> None:
    with pytest.raises(ShadowRefusedError, match=f"^The hour {HOUR} is not over: it is compared afterwards.$"):
        compared(settings, now_ns=NOW_NS - 1)


def test_an_hour_whose_ticks_have_left_the_database_keeps_its_rows(settings: Settings, conn: connection) -> None:
    store(conn, *honest(RELIANCE, trades=20))
    compared(settings)
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM tick_rows")
        cursor.execute(
            "INSERT INTO ingest_ledger VALUES (1, 0, %(at)s, 1, 9, 9, 0, 0, 0, 16, %(at)s, %(at)s, now(), 1)",
            {"at": instant(START_NS)},
        )
    with pytest.raises(ShadowRefusedError, match="no longer in the database: materialise them first"):
        compared(settings)
    assert len(rows(conn)) == 1
