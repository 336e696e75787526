"""The daily assets, materialised for real against a server whose bars are partly wrong."""

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.feeds.simulator.history import BarEdit
from dhan_pipeline.feeds.simulator.kite_rest import KiteRest
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.rest import RestServer, error
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.orchestration.assets.broker import BROKER_CANDLES, CANDLE_RECONCILIATION, build_broker_assets
from dhan_pipeline.orchestration.assets.candles import CANDLES_1M
from dhan_pipeline.orchestration.partitions import daily_partitions
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.broker import DAY, RELIANCE, TCS, at, insert_instruments, ns, of, serving, serving_kite, trade
from dhan_pipeline_tests.feeds.simulator.trading import SetClock
from dhan_pipeline_tests.orchestration.materialising import metadata, why_failed

KEY = str(DAY)
TOMORROW = DAY.replace(day=21)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(at("09:20"))


@pytest.fixture
def broker(
    database_url: str, clock: SetClock, conn: connection, tmp_path: Path
) -> Iterator[tuple[RestServer, Settings]]:
    """Two instruments, subscribed; and candles of ours that are the bars of the broker's."""
    insert_instruments(conn, [RELIANCE, TCS])
    market = Market([RELIANCE, TCS], clock=clock)
    for _ in trade(market, clock, [f"09:{minute}:10" for minute in range(21, 29)], events=20):
        pass
    with conn, conn.cursor() as cursor:
        for index, token in enumerate(market.tokens.tolist()):
            for number, bar in enumerate(market.minute_bars(index)):
                numbers = (bar[name].item() for name in ("time_s", "open", "high", "low", "close", "volume"))
                cursor.execute(
                    "INSERT INTO candles_1m (instrument_token, time, open, high, low, close, volume, ticks, "
                    "touches_gap, starts_late, source) "
                    "VALUES (%s, to_timestamp(%s), %s, %s, %s, %s, %s, 9, false, %s, 'ticks')",
                    (token, *numbers, number == 0),
                )
    settings = Settings(_env_file=None, data_dir=tmp_path / "data", database_url=database_url, partitions_start=DAY)
    subscribe(settings, RELIANCE, TCS)
    clock.at = at("00:20", TOMORROW)
    with serving(settings, clock, market, tmp_path) as both:
        yield both


def subscribe(settings: Settings, *tokens: int) -> None:
    subscriptions = [Subscription(token, Mode.FULL, "X") for token in tokens]
    write_subscriptions(settings.subscriptions_path, subscriptions)


def materialize(
    settings: Settings, clock: SetClock, instance: dg.DagsterInstance, config: dict[str, Any] | None = None
) -> dg.ExecuteInProcessResult:
    definitions = dg.Definitions(
        assets=build_broker_assets(daily_partitions(settings)),
        jobs=[
            dg.define_asset_job("by_hand", selection=dg.AssetSelection.assets(BROKER_CANDLES, CANDLE_RECONCILIATION))
        ],
        resources={"settings": settings, "clock": clock},
    )
    return definitions.resolve_job_def("by_hand").execute_in_process(
        instance=instance,
        partition_key=KEY,
        raise_on_error=False,
        run_config={"ops": {"broker_candles": {"config": config}}} if config else None,
    )


def judged(result: dg.ExecuteInProcessResult, name: str) -> dg.AssetCheckEvaluation:
    [evaluation] = [e for e in result.get_asset_check_evaluations() if e.check_name == name]
    return evaluation


def test_a_day_is_fetched_and_compared_and_both_say_what_they_found(
    broker: tuple[RestServer, Settings], clock: SetClock, instance: dg.DagsterInstance
) -> None:
    rest, settings = broker
    rest.history_edits = [
        BarEdit(RELIANCE, ns("09:25") // 10**9, "high", 1.0),
        BarEdit(RELIANCE, ns("09:26") // 10**9, "volume", 100_000),
        BarEdit(TCS, ns("09:27") // 10**9),
    ]
    result = materialize(settings, clock, instance)
    assert result.success
    fetched = metadata(result, "broker_candles")
    bars = fetched["dagster/row_count"] - 2
    assert (fetched["instruments"], fetched["failed"], fetched["requests"]) == (2, 0, 4)
    assert judged(result, "bars_fetched").passed
    compared = metadata(result, "candle_reconciliation")
    assert (compared["instruments"], compared["bars"], compared["bars_that_differ"]) == (2, bars + 1, 3)
    assert compared["agreement_percent"] == pytest.approx(100 * (1 - 3 / (bars + 1)), abs=0.001)
    assert "| high | 1 | 0 |" in compared["differences"]
    assert "| extra | 1 | 0 |" in compared["differences"]
    # The exchange was open before the first packet.
    assert "| day_volume | 0 | 2 |" in compared["differences"]
    assert compared["instruments_with_most"].splitlines()[2:] == ["| S2885 | 2 | 3 |", "| S11536 | 1 | 2 |"]
    assert len(compared["by_time_of_day"]) < 2000
    agree = judged(result, "candles_agree")
    assert (agree.passed, agree.severity, agree.partition) == (False, dg.AssetCheckSeverity.ERROR, KEY)
    assert agree.metadata["value"].value == compared["agreement_percent"]
    assert instance.get_materialized_partitions(CANDLE_RECONCILIATION) == {KEY}


def test_candles_that_touch_a_gap_are_made_again_with_the_brokers_bars(
    broker: tuple[RestServer, Settings], clock: SetClock, instance: dg.DagsterInstance, conn: connection
) -> None:
    note = Gap(1, 0, ns("09:22:40"), Cause.RESET, "", (RELIANCE,), ns("09:24:10"))
    with conn, conn.cursor() as cursor:
        apply_notes(cursor, 0, [(1, note)])
        cursor.execute("UPDATE candles_1m SET touches_gap = true WHERE time = to_timestamp(%s)", [ns("09:24") // 10**9])
    result = materialize(broker[1], clock, instance)
    assert metadata(result, "broker_candles")["candle_hours_renewed"] == 1
    assert instance.get_materialized_partitions(CANDLES_1M) == {f"{DAY}T09:00"}
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT instrument_token, to_char(time, 'MI') FROM candles_1m WHERE source = 'rest' ORDER BY 2")
        assert cursor.fetchall() == [(RELIANCE, "22"), (RELIANCE, "23"), (RELIANCE, "24")]
    assert metadata(materialize(broker[1], clock, instance), "broker_candles")["candle_hours_renewed"] == 0


def test_candles_stay_as_they_are_once_their_ticks_have_left_the_database(
    broker: tuple[RestServer, Settings], clock: SetClock, instance: dg.DagsterInstance, conn: connection
) -> None:
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE candles_1m SET touches_gap = true")
        cursor.execute(
            "INSERT INTO ingest_ledger SELECT 1, 0, to_timestamp(%s), 1, 1, 1, 0, 0, 0, 9, now(), now(), now(), 1",
            [ns("09:00") // 10**9],
        )
        cursor.execute("SELECT count(*) FROM candles_1m")
        before = cursor.fetchall()
    result = materialize(broker[1], clock, instance)
    assert result.success
    assert metadata(result, "broker_candles")["candle_hours_renewed"] == 0
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM candles_1m WHERE source = 'ticks'")
        assert cursor.fetchall() == before


def test_partial_failure_is_shown_and_checked_and_the_next_run_goes_on(
    broker: tuple[RestServer, Settings], clock: SetClock, instance: dg.DagsterInstance
) -> None:
    rest, settings = broker
    rest.instead.append((HTTPStatus.BAD_REQUEST, error("DH-905", "no such instrument")))
    result = materialize(settings, clock, instance)
    assert result.success
    fetched = metadata(result, "broker_candles")
    assert (fetched["failed"], fetched["failures"].splitlines()[-1]) == (1, "| refused (DH-905) | 1 |")
    check = judged(result, "bars_fetched")
    assert (check.passed, check.severity, check.metadata["value"].value) == (False, dg.AssetCheckSeverity.ERROR, 50.0)
    result = materialize(settings, clock, instance)
    assert (metadata(result, "broker_candles")["fetched_before"], judged(result, "bars_fetched").passed) == (1, True)
    rest.asked.clear()
    assert materialize(settings, clock, instance, {"again": True}).success
    assert rest.asked.total() == 4


def test_without_credentials_it_fails_with_a_sentence(
    broker: tuple[RestServer, Settings], clock: SetClock, instance: dg.DagsterInstance
) -> None:
    poor = broker[1].model_copy(update={"dhan_token_file": Path("/nowhere/token.json")})
    assert "DHAN_ACCESS_TOKEN" in why_failed(materialize(poor, clock, instance))


@pytest.fixture
def both_brokers(
    broker: tuple[RestServer, Settings], clock: SetClock, conn: connection, tmp_path: Path
) -> Iterator[tuple[RestServer, KiteRest, Settings]]:
    """Kite beside Dhan, over the same market; and candles of ours of Kite's instruments, as Dhan's."""
    rest, settings = broker
    assert rest.market
    kite_tokens = of("kite", RELIANCE, TCS)
    insert_instruments(conn, kite_tokens)
    with conn, conn.cursor() as cursor:
        for token, kite_token in zip((RELIANCE, TCS), kite_tokens, strict=True):
            cursor.execute(
                "INSERT INTO candles_1m (instrument_token, time, open, high, low, close, volume, ticks, touches_gap, "
                "starts_late, source) SELECT %s, time, open, high, low, close, volume, ticks, touches_gap, "
                "starts_late, source FROM candles_1m WHERE instrument_token = %s",
                (kite_token, token),
            )
    both = settings.model_copy(update={"data_source": "kite,dhan"})
    subscribe(both.of("kite"), *kite_tokens)
    wrong = [BarEdit(TCS, ns("09:27") // 10**9, "close", 1.0)]
    with serving_kite(both, clock, rest.market, tmp_path, wrong) as (kite, online):
        yield rest, kite, online


def test_both_brokers_are_asked_for_their_own_bars_and_compared_in_one_day(
    both_brokers: tuple[RestServer, KiteRest, Settings], clock: SetClock, instance: dg.DagsterInstance
) -> None:
    rest, kite, settings = both_brokers
    result = materialize(settings, clock, instance)
    assert result.success
    fetched = metadata(result, "broker_candles")
    assert (rest.asked.total(), kite.asked.total()) == (4, 4)
    assert fetched["dagster/row_count"] == fetched["dhan/row_count"] + fetched["kite/row_count"]
    assert (fetched["dhan/instruments"], fetched["kite/instruments"], fetched["kite/failed"]) == (2, 2, 0)
    assert judged(result, "bars_fetched").passed
    compared = metadata(result, "candle_reconciliation")
    assert (compared["instruments"], compared["bars_that_differ"], compared["instruments_left_out"]) == (4, 1, 0)
    assert compared["instruments_with_most"].splitlines()[2] == "| kite S11536 | 1 | 2 |"


def test_what_one_broker_gives_is_kept_and_compared_where_the_other_cannot_be_asked(
    both_brokers: tuple[RestServer, KiteRest, Settings], clock: SetClock, instance: dg.DagsterInstance
) -> None:
    rest, kite, settings = both_brokers
    poor = settings.model_copy(update={"kite_token_file": Path("/nowhere/token.json")})
    nobody = poor.model_copy(update={"dhan_token_file": Path("/nowhere/token.json")})
    assert "KITE_ACCESS_TOKEN" in why_failed(materialize(nobody, clock, instance))
    result = materialize(poor, clock, instance)
    assert result.success
    assert (rest.asked.total(), kite.asked.total()) == (4, 0)
    check = judged(result, "bars_fetched")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "KITE_ACCESS_TOKEN" in (check.description or "")
    compared = metadata(result, "candle_reconciliation")
    assert (compared["instruments"], compared["bars_that_differ"], compared["instruments_left_out"]) == (2, 0, 2)
