"""A day of the broker's bars, fetched from a real server: whose, how often, and what becomes of failures."""

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.errors import CredentialsError, TokenRejectedError
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.ingest import broker_bars
from dhan_pipeline.ingest.broker_bars import EXPIRED, NOT_ASKED, UNKNOWN, BrokerBarsError, Fetch, fetch_day
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline.store.broker_candles import DAY as DAY_MINUTES
from dhan_pipeline.store.broker_candles import MINUTE, read_broker_candles
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.broker import (
    AT_ONCE,
    DAY,
    FUTURE,
    NIFTY,
    RELIANCE,
    TCS,
    TOKENS,
    Server,
    at,
    insert_instruments,
    ns,
    of,
    refusal,
    serving,
    serving_kite,
    serving_source,
    trade,
)
from dhan_pipeline_tests.feeds.simulator.trading import SetClock

MIDNIGHT = ns("00:00")
NEXT_MIDNIGHT = MIDNIGHT + 86_400 * 10**9
TOMORROW = at("00:20", DAY.replace(day=21))


@pytest.fixture
def clock() -> SetClock:
    return SetClock(at("09:15"))


@pytest.fixture
def market(clock: SetClock) -> Market:
    market = Market(TOKENS, seed=2, clock=clock)
    for _ in trade(market, clock, ["09:15:10", "09:16:10", "15:29:50"], events=40):
        pass
    return market


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Source:
    named: Source = request.param
    return named


@pytest.fixture
def broker(
    database_url: str, clock: SetClock, market: Market, conn: connection, tmp_path: Path, source: Source
) -> Iterator[tuple[Server, Settings]]:
    insert_instruments(conn, of(source, *TOKENS))
    settings = Settings(_env_file=None, data_dir=tmp_path / "data", database_url=database_url, data_source=source)
    with serving_source(settings, clock, market, tmp_path) as (rest, online):
        subscribe(online, *TOKENS)
        clock.at = at("23:59:59")
        yield rest, online


def subscribe(settings: Settings, *tokens: int) -> None:
    subscriptions = [Subscription(token, Mode.FULL, "X") for token in of(settings.source, *tokens)]
    write_subscriptions(settings.subscriptions_path, subscriptions)


def insert_ticks(conn: connection, source: Source, *tokens: int) -> None:
    ensure_partitions(conn, ns("09:00"), ns("10:00"))
    with conn, conn.cursor() as cursor:
        for number, token in enumerate(of(source, *tokens)):
            cursor.execute(
                "INSERT INTO tick_rows (tick_id, time, instrument_token, tradable, mode) "
                "VALUES (%s, %s, %s, true, 'full')",
                (number, at("09:15:10"), token),
            )


def fetch(settings: Settings, clock: Clock, *, again: bool = False) -> Fetch:
    assert settings.database_url
    return fetch_day(settings, settings.database_url, DAY, clock, said.append, again=again, policy=AT_ONCE)


said: list[str] = []


def test_the_bars_of_all_that_is_subscribed_come_into_the_table(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock, market: Market
) -> None:
    rest, settings = broker
    fetched = fetch(settings, clock)
    bars = read_broker_candles(conn, MINUTE, MIDNIGHT, NEXT_MIDNIGHT)
    days = read_broker_candles(conn, DAY_MINUTES, MIDNIGHT, NEXT_MIDNIGHT)
    tokens = of(settings.source, *market.tokens.tolist())
    for index, token in enumerate(tokens):
        theirs, ours = market.minute_bars(index), bars["instrument_token"] == token
        assert (bars["time"][ours] // 10**6).tolist() == theirs["time_s"].tolist()
        for name in ("open", "high", "low", "close", "volume", "oi"):
            assert bars[name][ours].tolist() == theirs[name].tolist()
    assert days["instrument_token"].tolist() == sorted(tokens)
    assert days["time"].tolist() == [MIDNIGHT // 1000] * 4
    assert (fetched.wanted, fetched.done, fetched.bars, fetched.rows) == (
        4,
        4,
        len(bars["time"]),
        len(bars["time"]) + 4,
    )
    assert (fetched.requests, rest.asked.total()) == (8, 8)


def test_what_was_fetched_after_the_days_end_is_not_fetched_again_unless_asked(
    broker: tuple[Server, Settings], clock: SetClock
) -> None:
    rest, settings = broker
    assert fetch(settings, clock).done == 4  # a second before midnight: the day may go on
    clock.at = TOMORROW
    assert (fetch(settings, clock).done, rest.asked.total()) == (4, 16)
    over = fetch(settings, clock)
    assert (over.done, over.before, over.requests, rest.asked.total()) == (0, 4, 0, 16)
    assert (fetch(settings, clock, again=True).done, rest.asked.total()) == (4, 24)


def test_what_had_ticks_is_fetched_too_and_first(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    _, settings = broker
    subscribe(settings, RELIANCE, TCS)
    insert_ticks(conn, settings.source, NIFTY, NIFTY, TCS)
    assert fetch(settings, clock).done == 3
    settings.subscriptions_path.unlink()
    assert fetch(settings, clock).done == 2


def test_an_id_that_was_given_to_another_contract_on_the_day_means_that_one(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    _, settings = broker
    subscribe(settings, RELIANCE)
    [token] = of(settings.source, RELIANCE)
    with conn, conn.cursor() as cursor:
        for kind, expiry, since, until in (
            ("OPTSTK", "2026-11-19", "2026-11-01 08:30+05:30", "2026-11-20 08:30+05:30"),
            ("EQUITY", None, "2026-11-20 08:30+05:30", None),
        ):
            cursor.execute(
                "INSERT INTO instrument_versions (instrument_token, valid_from, valid_to, source, exchange, "
                "exchange_segment, trading_symbol, instrument_type, expiry) "
                "VALUES (%s, %s, %s, %s, 'NSE', 'NSE_EQ', 'RELIANCE', %s, %s)",
                (token, since, until, settings.source, kind, expiry),
            )
    assert fetch(settings, clock).done == 1


def test_of_an_older_day_only_what_had_ticks_is_fetched_because_subscriptions_change(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    _, settings = broker
    clock.at = at("12:00", DAY.replace(day=23))
    insert_ticks(conn, settings.source, NIFTY, TCS)
    assert fetch(settings, clock).done == 2


def test_failures_are_counted_by_reason_and_the_others_go_on(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    rest, settings = broker
    gone, unknown = FUTURE + 1, FUTURE + 2
    [token] = of(settings.source, gone)
    insert_instruments(conn, [token])
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "UPDATE instruments SET expiry = %s, is_active = false WHERE instrument_token = %s", (at("00:00"), token)
        )
    subscribe(settings, *TOKENS, gone, unknown)
    rest.instead.append(refusal(settings.source, "no such instrument"))
    clock.at = TOMORROW
    fetched = fetch(settings, clock)
    code = {"dhan": "DH-905", "kite": "InputException"}[settings.source]
    assert fetched.failed == {f"refused ({code})": 1, EXPIRED: 1, UNKNOWN: 1}
    assert (fetched.wanted, fetched.done) == (6, 3)
    assert "no such instrument" in fetched.last_error
    assert fetch(settings, clock).done == 1  # the one that failed


def test_a_contract_that_the_broker_has_forgotten_before_the_master_has_is_expired_too(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    _, settings = broker
    gone = FUTURE + 1
    both = of(settings.source, FUTURE, gone)
    insert_instruments(conn, both[1:])
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE instruments SET expiry = %s WHERE instrument_token = ANY (%s)", (DAY, both))
    subscribe(settings, *TOKENS, gone)
    clock.at = TOMORROW
    fetched = fetch(settings, clock)
    assert (fetched.done, fetched.failed) == (4, {EXPIRED: 1})


def test_where_nothing_comes_at_all_it_fails_with_a_sentence(broker: tuple[Server, Settings], clock: SetClock) -> None:
    rest, settings = broker
    rest.instead.extend([(HTTPStatus.OK, b"")] * 99)
    with pytest.raises(
        BrokerBarsError, match=r"Of 4 instruments, none could be had: (Dhan|Kite) does not give the bars"
    ):
        fetch(settings, clock)


def test_when_the_broker_falls_silent_the_rest_is_left_for_another_time(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest, settings = broker
    monkeypatch.setattr(broker_bars, "CONCURRENT", 1)
    monkeypatch.setattr(broker_bars, "PATIENCE", 2)
    fetch(settings, clock)
    rest.instead.extend([(HTTPStatus.OK, b"")] * 99)
    rest.asked.clear()
    with pytest.raises(BrokerBarsError):
        fetch(settings, clock)
    assert rest.asked.total() == 2 * AT_ONCE.tries
    with conn, conn.cursor() as cursor:
        had = (TOMORROW, *of(settings.source, NIFTY))
        cursor.execute("UPDATE broker_fetches SET fetched_at = %s WHERE instrument_token = %s", had)
    clock.at = TOMORROW
    assert fetch(settings, clock).failed == {"no answer": 2, NOT_ASKED: 1}


def test_a_refused_token_ends_it_at_once(broker: tuple[Server, Settings], clock: SetClock) -> None:
    rest, settings = broker
    rest.active_token = "another"
    with pytest.raises(TokenRejectedError):
        fetch(settings, clock)


def test_progress_is_told_as_often_as_set(
    broker: tuple[Server, Settings], clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = broker
    monkeypatch.setattr(broker_bars, "TELL_EVERY", 2)
    said.clear()
    fetch(settings, clock)
    assert said[0] == "Bars of 4 instruments are to be fetched; 0 were before."
    assert [words.partition(",")[0] for words in said[1:]] == ["2 of 4 instruments", "4 of 4 instruments"]


def test_of_several_sources_each_is_asked_for_its_own(
    database_url: str, conn: connection, clock: SetClock, market: Market, tmp_path: Path
) -> None:
    insert_instruments(conn, [*TOKENS, *of("kite", *TOKENS)])
    settings = Settings(_env_file=None, data_dir=tmp_path, database_url=database_url, data_source="kite,dhan")
    with (
        serving(settings, clock, market, tmp_path) as (dhan, online),
        serving_kite(online, clock, market, tmp_path) as (kite, online),
    ):
        insert_ticks(conn, "dhan", TCS)
        insert_ticks(conn, "kite", NIFTY, RELIANCE)
        clock.at = TOMORROW
        assert fetch(online.of("dhan"), clock).done == 1
        assert fetch(online.of("kite"), clock).done == 2
        assert (dhan.asked.total(), kite.asked.total()) == (2, 4)
        with pytest.raises(CredentialsError, match="KITE_ACCESS_TOKEN"):
            fetch(online.of("kite").model_copy(update={"kite_token_file": Path("/nowhere")}), clock, again=True)
    bars = read_broker_candles(conn, MINUTE, MIDNIGHT, NEXT_MIDNIGHT)
    assert set(bars["instrument_token"].tolist()) == {TCS, *of("kite", NIFTY, RELIANCE)}
