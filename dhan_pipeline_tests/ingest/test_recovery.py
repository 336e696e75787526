"""After a gap, against a real server: quotes at once, bars when they are due, candles that say where they come from."""

from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.feeds.errors import CredentialsError, NoDataPlanError
from dhan_pipeline.feeds.simulator.history import INTRADAY_PATH
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.rest import error
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.ingest import broker_bars
from dhan_pipeline.ingest.recovery import Recovered, due, recover_gaps
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source, capture_number
from dhan_pipeline.store.gap_recoveries import gap_instruments
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline_tests.broker import (
    AT_ONCE,
    FUTURE,
    NIFTY,
    RELIANCE,
    TCS,
    TOKENS,
    Server,
    at,
    insert_instruments,
    no_data_plan,
    ns,
    of,
    serving,
    serving_kite,
    serving_source,
    trade,
)
from dhan_pipeline_tests.feeds.simulator.trading import SetClock

#: Trades in each minute from 09:20 to 09:29.
MINUTES = [f"09:{minute}:20" for minute in range(20, 30)]

SETTINGS = Settings(_env_file=None)


@pytest.fixture
def source() -> Source:
    """Unless a test asks for another: what a gap leads to does not depend on it."""
    return "dhan"


@pytest.fixture
def settings(tmp_path: Path, database_url: str, source: Source) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path / "data", database_url=database_url, data_source=source)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(at("09:20"))


@pytest.fixture
def market(clock: SetClock) -> Market:
    market = Market(TOKENS, seed=1, clock=clock)
    for _ in trade(market, clock, MINUTES, events=40):
        pass
    return market


@pytest.fixture
def broker(
    settings: Settings, clock: SetClock, market: Market, conn: connection, tmp_path: Path
) -> Iterator[tuple[Server, Settings]]:
    insert_instruments(conn, of(settings.source, *TOKENS))
    with serving_source(settings, clock, market, tmp_path) as both:
        yield both


def note_gap(
    conn: connection,
    started: str,
    ended: str | None,
    tokens: tuple[int, ...] = tuple(TOKENS),
    cause: Cause = Cause.RESET,
    gap_id: int = 1,
    source: Source = "dhan",
) -> None:
    ended_ns = None if ended is None else ns(ended)
    gap = Gap(gap_id, 0, ns(started), cause, "", tuple(of(source, *tokens)), ended_ns)
    with conn, conn.cursor() as cursor:
        apply_notes(cursor, capture_number(source, 0), [(gap_id, gap)])


def recover(settings: Settings, clock: SetClock, *, again: bool = False) -> Recovered:
    assert settings.database_url
    return recover_gaps(settings, settings.database_url, clock, lambda words: None, again=again, policy=AT_ONCE)


def rows(conn: connection, query: str) -> list[tuple[object, ...]]:
    with conn, conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


@pytest.mark.parametrize("source", SOURCES)
def test_after_a_gap_the_brokers_bars_stand_in_for_ours(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock, market: Market
) -> None:
    rest, settings = broker
    note_gap(conn, "09:22:40", "09:24:10", source=settings.source)
    clock.at = at("09:24:15")
    first = recover(settings, clock)
    assert (first.quotes, first.gaps, first.waiting, rest.asked.total()) == (4, 0, 1, 1)
    assert rows(conn, "SELECT snapshot_at, bars_at FROM gap_recoveries") == [(clock.at, None)]

    clock.at = at("10:06")
    second = recover(settings, clock)
    assert (second.quotes, second.gaps, second.instruments, second.failed) == (0, 1, 4, 0)
    assert second.hours == ["2026-11-20T09:00"]
    assert rest.asked.total() == 5
    assert rows(conn, "SELECT bars_at, instruments, bars, failed, detail FROM gap_recoveries") == [
        (clock.at, 4, second.bars, 0, "")
    ]
    theirs = {
        (token, int(bar["time_s"])): (bar["open"], bar["high"], bar["low"], bar["close"])
        for index, token in enumerate(of(settings.source, *market.tokens.tolist()))
        for bar in market.minute_bars(index)
        if ns("09:22") <= bar["time_s"] * 10**9 < ns("09:25")
    }
    candles = rows(
        conn,
        "SELECT instrument_token, extract(epoch FROM time)::bigint, source, touches_gap, open, high, low, close"
        " FROM candles_1m",
    )
    assert len(candles) == second.bars > 4
    assert {(token, time): tuple(prices) for token, time, _, _, *prices in candles} == theirs
    assert {(source, touches) for _, _, source, touches, *_ in candles} == {("rest", True)}


def test_what_is_recovered_is_not_asked_for_again(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    rest, settings = broker
    note_gap(conn, "09:22:40", "09:24:10")
    clock.at = at("09:28")
    assert recover(settings, clock).gaps == 1
    asked = rest.asked.total()
    assert recover(settings, clock, again=True) == Recovered()
    assert rest.asked.total() == asked


@pytest.mark.parametrize("source", SOURCES)
def test_quotes_are_kept_apart_from_ticks(broker: tuple[Server, Settings], conn: connection, clock: SetClock) -> None:
    _, settings = broker
    note_gap(conn, "09:22:40", "09:24:10", (RELIANCE, FUTURE), source=settings.source)
    recover(settings, clock)
    quotes = rows(
        conn, "SELECT instrument_token, last_price, volume, previous_close, fetched_at FROM gap_quotes ORDER BY 1"
    )
    assert [token for token, *_ in quotes] == sorted(of(settings.source, RELIANCE, FUTURE))
    assert all(price and volume and close and at == clock.at for _, price, volume, close, at in quotes)
    assert rows(conn, "SELECT count(*) FROM ticks") == [(0,)]


@pytest.mark.parametrize(
    ("gap", "changes"),
    [
        ({"cause": Cause.STOP}, {}),
        ({"cause": Cause.SILENT, "tokens": (RELIANCE,)}, {}),
        ({"ended": None}, {}),
        ({"ended": "09:22:44"}, {}),
        ({"started": "17:00", "ended": "17:05"}, {}),
        ({}, {"retention_days": 1}),
    ],
    ids=["stopped", "one silent", "lasting", "short", "out of session", "long ago"],
)
def test_other_gaps_are_left_alone(conn: connection, gap: dict[str, object], changes: dict[str, object]) -> None:
    note_gap(conn, **({"started": "09:22:40", "ended": "09:24:10"} | gap))  # type: ignore[arg-type]
    later = SetClock(at("18:00") + timedelta(days=2))
    work = due(SETTINGS.model_copy(update=changes), conn, later)
    assert not work.quotes + work.bars + work.waiting


def test_a_segment_that_fell_silent_is_a_gap_to_recover_and_out_of_session_counts_where_sessions_never_end(
    conn: connection,
) -> None:
    note_gap(conn, "09:22:40", "09:24:10", cause=Cause.SILENT)
    note_gap(conn, "17:00", "17:05", gap_id=2)
    work = due(SETTINGS.model_copy(update={"sessions": "always"}), conn, SetClock(at("18:30")))
    assert ([gap.gap_id for gap in work.quotes], [gap.gap_id for gap in work.bars]) == ([], [1, 2])


def test_bars_wait_until_the_last_minute_is_three_minutes_old(conn: connection) -> None:
    note_gap(conn, "09:22:40", "09:24:10")
    early, late = SetClock(at("09:27:59")), SetClock(at("09:28"))
    assert (len(due(SETTINGS, conn, early).bars), len(due(SETTINGS, conn, early).waiting)) == (0, 1)
    assert (len(due(SETTINGS, conn, late).bars), len(due(SETTINGS, conn, late).waiting)) == (1, 0)


def test_an_interrupted_recovery_goes_on_where_it_was(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    rest, settings = broker
    note_gap(conn, "09:22:40", "09:24:10")
    clock.at = at("10:30")
    rest.instead.extend([(HTTPStatus.OK, b"")] * 99)
    assert recover(settings, clock).unfinished.startswith("Of 4 instruments of a gap none could be had: ")
    assert rows(conn, "SELECT count(*) FROM gap_recoveries") == [(0,)]
    rest.instead.clear()
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO broker_fetches SELECT token, %s, %s, %s, 3 FROM unnest(%s) AS token",
            (at("09:20"), at("09:30"), at("10:29"), [RELIANCE, TCS]),
        )
    rest.asked.clear()
    assert recover(settings, clock).gaps == 1
    assert rest.asked == {INTRADAY_PATH: 2}


def test_failures_are_counted_and_asked_for_again_by_a_person_only(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    rest, settings = broker
    note_gap(conn, "09:22:40", "09:24:10")
    clock.at = at("10:30")
    rest.instead.append((HTTPStatus.BAD_REQUEST, error("DH-905", "no such instrument")))
    assert recover(settings, clock).failed == 1
    assert rows(conn, "SELECT failed, detail FROM gap_recoveries") == [(1, "refused (DH-905): 1")]
    assert recover(settings, clock) == Recovered()
    rest.asked.clear()
    assert recover(settings, clock, again=True).failed == 0
    assert rest.asked == {INTRADAY_PATH: 1}
    assert rows(conn, "SELECT failed, detail FROM gap_recoveries") == [(0, "")]


def test_what_the_broker_refuses_does_not_hold_up_the_gaps_after_it(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    rest, settings = broker
    note_gap(conn, "09:22:40", "09:24:10", (RELIANCE,))
    note_gap(conn, "09:25:40", "09:26:10", (RELIANCE,), gap_id=2)
    clock.at = at("10:30")
    rest.instead.append((HTTPStatus.BAD_REQUEST, error("DH-905", "no such instrument")))
    done = recover(settings, clock)
    assert (done.gaps, done.failed, done.unfinished) == (2, 1, "")


def test_a_gap_in_which_the_broker_falls_silent_stays_due_and_keeps_what_came(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest, settings = broker
    monkeypatch.setattr(broker_bars, "PATIENCE", 1)
    monkeypatch.setattr(broker_bars, "CONCURRENT", 1)
    note_gap(conn, "09:20:40", "09:21:10", (RELIANCE,))
    note_gap(conn, "09:22:40", "09:24:10", gap_id=2)
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO broker_fetches VALUES (%s, %s, %s, %s, 3)",
            (RELIANCE, at("09:20"), at("09:30"), at("10:29")),
        )
    clock.at = at("10:30")
    rest.instead.extend([(HTTPStatus.OK, b"")] * 2)
    done = recover(settings, clock)
    assert (done.gaps, done.unfinished.split(":")[0]) == (1, "Of 4 instruments of a gap 1 could be had")
    assert recover(settings, clock).instruments == 4
    assert recover(settings, clock) == Recovered()


def test_instruments_with_many_gaps_in_a_day_are_asked_for_once(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    rest, settings = broker
    for gap_id, minute in enumerate((21, 23, 25, 27)):
        note_gap(conn, f"09:{minute}:40", f"09:{minute + 1}:10", gap_id=gap_id)
    note_gap(conn, "09:21:40", "09:22:10", (RELIANCE,), Cause.RESET, gap_id=9)
    clock.at = at("11:30")
    done = recover(settings, clock)
    assert (done.gaps, done.instruments, done.failed) == (5, 17, 0)
    assert rest.asked == {INTRADAY_PATH: 4}
    [(minutes,)] = rows(conn, "SELECT count(DISTINCT time) FROM candles_1m WHERE source = 'rest'")
    assert minutes == 8


def test_without_an_answer_to_a_request_for_quotes_bars_come_all_the_same(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    rest, settings = broker
    note_gap(conn, "09:22:40", "09:24:10")
    clock.at = at("09:28")
    rest.instead.extend([(HTTPStatus.OK, b"")] * 2)
    done = recover(settings, clock)
    assert (done.quotes, done.gaps) == (0, 1)
    assert "quotes" in done.unfinished


def test_the_liveliest_instruments_come_first(conn: connection) -> None:
    note_gap(conn, "09:22:40", "09:24:10")
    ensure_partitions(conn, ns("09:00"), ns("10:00"))
    with conn, conn.cursor() as cursor:
        for number, token in enumerate([NIFTY, NIFTY, NIFTY, TCS, TCS, FUTURE]):
            cursor.execute(
                "INSERT INTO tick_rows (tick_id, time, instrument_token, tradable, mode) "
                "VALUES (%s, %s, %s, true, 'full')",
                (number, at("09:21"), token),
            )
    [gap] = due(SETTINGS, conn, SetClock(at("10:30"))).bars
    assert gap_instruments(conn, gap) == [NIFTY, TCS, FUTURE, RELIANCE]


def without_token(settings: Settings, source: Source) -> Settings:
    return settings.model_copy(update={f"{source}_token_file": Path("/nowhere")})


@pytest.mark.parametrize("source", SOURCES)
def test_without_credentials_or_a_plan_it_says_so_and_the_gap_stays_due(
    broker: tuple[Server, Settings], conn: connection, clock: SetClock
) -> None:
    rest, settings = broker
    note_gap(conn, "09:22:40", "09:24:10", source=settings.source)
    clock.at = at("10:30")
    with pytest.raises(CredentialsError):
        recover(without_token(settings, settings.source), clock)
    rest.instead.extend([no_data_plan(settings.source)] * 9)
    with pytest.raises(NoDataPlanError):
        recover(settings, clock)
    assert len(due(settings, conn, clock).bars) == 1


def test_each_broker_is_asked_for_its_own_gaps_also_while_the_other_cannot_be(
    settings: Settings, conn: connection, clock: SetClock, market: Market, tmp_path: Path
) -> None:
    insert_instruments(conn, [*TOKENS, *of("kite", *TOKENS)])
    note_gap(conn, "09:22:40", "09:24:10", (RELIANCE, TCS))
    note_gap(conn, "09:25:40", "09:26:10", (NIFTY, RELIANCE, TCS), source="kite")
    both = settings.model_copy(update={"data_source": "kite,dhan"})
    with (
        serving(both, clock, market, tmp_path) as (dhan, online),
        serving_kite(online, clock, market, tmp_path) as (kite, online),
    ):
        clock.at = at("10:06")
        assert recover(online.of("dhan"), SetClock(at("09:25"))).quotes == 2  # it knows nothing of Kite's
        one = recover(without_token(online, "kite"), clock)
        assert (one.gaps, one.instruments, kite.asked.total()) == (1, 2, 0)
        assert "KITE_ACCESS_TOKEN" in one.unfinished
        dhan.asked.clear()
        other = recover(without_token(online, "dhan"), clock)
        assert (other.quotes, other.gaps, other.instruments, other.unfinished) == (3, 1, 3, "")
        assert (dhan.asked.total(), kite.asked.total()) == (0, 4)
        assert recover(online, clock) == Recovered()
    found = rows(conn, "SELECT DISTINCT instrument_token FROM candles_1m WHERE source = 'rest' ORDER BY 1")
    assert [token for (token,) in found] == sorted([*of("kite", NIFTY, RELIANCE, TCS), RELIANCE, TCS])
