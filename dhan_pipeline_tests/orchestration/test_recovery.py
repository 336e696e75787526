"""When the broker is asked, and when not, and why; against a real server."""

from collections.abc import Iterator
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.rest import RestServer, error
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.orchestration.assets.broker import build_broker_assets
from dhan_pipeline.orchestration.assets.candles import CANDLES_1M, build_candle_assets
from dhan_pipeline.orchestration.partitions import daily_partitions, hourly_partitions
from dhan_pipeline.orchestration.recovery import (
    gap_recovery_job,
    gap_recovery_sensor,
    reconciliation_job,
    reconciliation_schedule,
)
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import capture_number
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline_tests.broker import RELIANCE, TCS, at, insert_instruments, ns, of, serving, trade
from dhan_pipeline_tests.feeds.simulator.trading import SetClock

DAY, TOMORROW = date(2026, 11, 20), date(2026, 11, 21)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(at("09:20"))


@pytest.fixture
def broker(
    database_url: str, clock: SetClock, conn: connection, tmp_path: Path
) -> Iterator[tuple[RestServer, Settings]]:
    insert_instruments(conn, [RELIANCE, TCS])
    market = Market([RELIANCE, TCS], clock=clock)
    for _ in trade(market, clock, ["09:22:50", "09:23:10"], events=20):
        pass
    settings = Settings(_env_file=None, data_dir=tmp_path / "data", database_url=database_url, partitions_start=DAY)
    clock.at = at("10:30")
    with serving(settings, clock, market, tmp_path) as both:
        yield both


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def note_gap(conn: connection, gap_id: int = 1) -> None:
    gap = Gap(gap_id, 0, ns("09:22:40"), Cause.RESET, "", (RELIANCE, TCS), ns("09:24:10"))
    with conn, conn.cursor() as cursor:
        apply_notes(cursor, 0, [(gap_id, gap)])


def definitions(settings: Settings, clock: Clock) -> dg.Definitions:
    return dg.Definitions(
        assets=[*build_candle_assets(hourly_partitions(settings)), *build_broker_assets(daily_partitions(settings))],
        jobs=[gap_recovery_job, reconciliation_job],
        sensors=[gap_recovery_sensor],
        schedules=[reconciliation_schedule],
        resources={"settings": settings, "clock": clock},
    )


def run(settings: Settings, clock: Clock, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = definitions(settings, clock).resolve_job_def("gap_recovery_job")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def look(settings: Settings, clock: Clock, instance: dg.DagsterInstance) -> str:
    """What the sensor says; empty where it requests a run."""
    context = dg.build_sensor_context(instance=instance, resources={"settings": settings, "clock": clock})
    result = gap_recovery_sensor(context)
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return "" if isinstance(result, dg.RunRequest) else result.skip_message or ""


def test_all_of_it_resolves(broker: tuple[RestServer, Settings], clock: SetClock) -> None:
    dg.Definitions.validate_loadable(definitions(broker[1], clock))


def test_a_gap_is_recovered_by_one_run_that_makes_the_candles_of_its_hour_anew(
    broker: tuple[RestServer, Settings], conn: connection, clock: SetClock, instance: dg.DagsterInstance
) -> None:
    _, settings = broker
    assert look(settings, clock, instance) == "No gap has anything left to be fetched."
    note_gap(conn)
    assert look(settings, clock, instance) == ""
    assert run(settings, clock, instance).success
    assert instance.get_materialized_partitions(CANDLES_1M) == {"2026-11-20T09:00"}
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT DISTINCT source FROM candles_1m")
        assert cursor.fetchall() == [("rest",)]
    assert look(settings, clock, instance) == "No gap has anything left to be fetched."


def test_a_fresh_gap_waits_for_its_bars_only(
    broker: tuple[RestServer, Settings], conn: connection, clock: SetClock, instance: dg.DagsterInstance
) -> None:
    _, settings = broker
    note_gap(conn)
    clock.at = at("09:24:30")
    assert look(settings, clock, instance) == ""
    assert run(settings, clock, instance).success
    assert look(settings, clock, instance) == "No gap has anything left to be fetched. 1 are too fresh for bars."


def test_one_run_at_a_time(
    broker: tuple[RestServer, Settings], conn: connection, clock: SetClock, instance: dg.DagsterInstance
) -> None:
    _, settings = broker
    note_gap(conn)
    job = definitions(settings, clock).resolve_job_def("gap_recovery_job")
    alive = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert look(settings, clock, instance) == f"Run {alive.run_id[:8]} is at it."


def test_a_recovery_that_failed_is_not_tried_again_at_once(
    broker: tuple[RestServer, Settings], conn: connection, clock: SetClock, instance: dg.DagsterInstance
) -> None:
    rest, settings = broker
    note_gap(conn)
    rest.data_plan = "Deactive"
    result = run(settings, clock, instance)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "data APIs" in str(failure.step_failure_data.user_failure_data)
    assert look(settings, clock, instance).startswith("The last recovery failed; the next one starts in")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"database_url": "postgresql://127.0.0.1:1/none"}, "The database cannot be used: "),
        ({"database_url": None}, "There is no database below "),
        ({"dhan_token_file": Path("/nowhere/token.json")}, "DHAN_ACCESS_TOKEN"),
    ],
    ids=["away", "none yet", "no credentials"],
)
def test_the_sensor_says_why_it_does_nothing(
    broker: tuple[RestServer, Settings],
    conn: connection,
    clock: SetClock,
    instance: dg.DagsterInstance,
    changes: dict[str, Any],
    said: str,
) -> None:
    note_gap(conn)
    assert said in look(broker[1].model_copy(update=changes), clock, instance)


def test_a_broker_that_cannot_be_asked_holds_up_its_own_gaps_only(
    broker: tuple[RestServer, Settings], conn: connection, clock: SetClock, instance: dg.DagsterInstance
) -> None:
    both = broker[1].model_copy(update={"data_source": "kite,dhan", "kite_token_file": Path("/nowhere/token.json")})
    tokens = of("kite", RELIANCE)
    insert_instruments(conn, tokens)
    gap = Gap(1, 0, ns("09:22:40"), Cause.RESET, "", tuple(tokens), ns("09:24:10"))
    with conn, conn.cursor() as cursor:
        apply_notes(cursor, capture_number("kite", 0), [(1, gap)])
    assert "KITE_ACCESS_TOKEN" in look(both, clock, instance)
    note_gap(conn)
    assert look(both, clock, instance) == ""
    result = run(both, clock, instance)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "KITE_ACCESS_TOKEN" in str(failure.step_failure_data.user_failure_data)
    assert "1 gap was recovered" in "".join(record.message for record in instance.all_logs(result.run_id))
    assert "KITE_ACCESS_TOKEN" in look(both, clock, instance)


def test_a_recovery_that_is_not_done_fails_and_shows_what_it_did(
    broker: tuple[RestServer, Settings], conn: connection, clock: SetClock, instance: dg.DagsterInstance
) -> None:
    rest, settings = broker
    note_gap(conn)
    clock.at = at("09:40")
    rest.instead.append((HTTPStatus.BAD_REQUEST, error("DH-905", "no quotes")))
    result = run(settings, clock, instance)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "no quotes" in str(failure.step_failure_data.user_failure_data)
    assert "1 gap was recovered" in "".join(record.message for record in instance.all_logs(result.run_id))
    assert look(settings, clock, instance) == "No gap has anything left to be fetched."


def at_night(settings: Settings, clock: SetClock) -> dg.RunRequest | dg.SkipReason:
    """What it does about the night after the day, three days later."""
    clock.at = at("10:00", date(2026, 11, 23))
    context = dg.build_schedule_context(
        resources={"settings": settings, "clock": clock}, scheduled_execution_time=at("00:20", TOMORROW)
    )
    result = reconciliation_schedule(context)
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def test_each_night_the_day_before_is_compared_if_it_has_ticks(
    broker: tuple[RestServer, Settings], conn: connection, clock: SetClock
) -> None:
    _, settings = broker
    result = at_night(settings, clock)
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message == "There are no ticks of 2026-11-20."
    ensure_partitions(conn, ns("09:00"), ns("10:00"))
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tick_rows (tick_id, time, instrument_token, tradable, mode) VALUES (1, %s, %s, true, 'full')",
            (at("09:21"), RELIANCE),
        )
    result = at_night(settings, clock)
    assert isinstance(result, dg.RunRequest)
    assert result.partition_key == str(DAY)
    assert isinstance(at_night(settings.model_copy(update={"data_source": "kite,dhan"}), clock), dg.RunRequest)
    for broken, why in (
        (settings.model_copy(update={"dhan_token_file": Path("/nowhere/token.json")}), "DHAN_ACCESS_TOKEN"),
        (settings.model_copy(update={"database_url": "postgresql://127.0.0.1:1/none"}), "cannot be used"),
        (settings.of("kite"), "KITE_ACCESS_TOKEN"),
    ):
        result = at_night(broken, clock)
        assert isinstance(result, dg.SkipReason)
        assert why in (result.skip_message or "")
