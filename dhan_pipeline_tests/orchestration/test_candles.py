"""Candles follow ticks: which hours the sensor asks for, on a real instance."""

from datetime import date
from typing import Any

import dagster as dg
import pytest

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration import candles
from dhan_pipeline.orchestration.assets.candles import CANDLES_1M
from dhan_pipeline.orchestration.candles import HOURS_AT_ONCE, RETRIES, candles_job, candles_sensor
from dhan_pipeline.orchestration.names import TICKS
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.orchestration.conftest import HOUR, NEXT_HOUR

SETTINGS = Settings(_env_file=None, partitions_start=date(2026, 11, 19))

EARLIER = [f"2026-11-19T{hour:02}:00" for hour in range(HOURS_AT_ONCE + 2)]


class Sensor:
    """Looks one time after another, as the daemon lets it."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None

    def look(self, after: str = NEXT_HOUR, minutes: float = 30.0) -> list[str | None]:
        """The hours that it asks for so many minutes after an hour's end."""
        return [request.partition_key for request in self._requests(after, minutes)]

    def keys(self, after: str = NEXT_HOUR) -> list[str | None]:
        return [request.run_key for request in self._requests(after, 60.0)]

    def _requests(self, after: str, minutes: float) -> list[dg.RunRequest]:
        now_ns = parse_hour_key(after) + HOUR_NS + int(minutes * 60e9)
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"settings": SETTINGS, "clock": Clock(now_ns, speed=1e-9)},
        )
        said: Any = candles_sensor(context)
        self.cursor, self.why = said.cursor, said.skip_reason and said.skip_reason.skip_message
        return list(said.run_requests)


@pytest.fixture
def sensor(instance: dg.DagsterInstance) -> Sensor:
    return Sensor(instance)


def materialised(instance: dg.DagsterInstance, *hours: str, rows: int = 7) -> None:
    for hour in hours:
        event = dg.AssetMaterialization(TICKS, partition=hour, metadata={"dagster/row_count": rows})
        instance.report_runless_asset_event(event)


_ENDS = {
    dg.DagsterRunStatus.FAILURE: dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterRunStatus.CANCELED: dg.DagsterEventType.RUN_CANCELED,
}


def ran(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> None:
    """A run of the hour's candles, over or not."""

    @dg.job(name=candles_job.name)
    def job() -> None: ...

    run = instance.create_run_for_job(job, status=status, tags={"dagster/partition": HOUR})
    if run.is_finished:
        instance.report_dagster_event(dg.DagsterEvent(_ENDS[status].value, candles_job.name), run.run_id)


def test_each_hour_of_ticks_is_asked_for_once(sensor: Sensor) -> None:
    assert sensor.look() == []
    materialised(sensor.instance, HOUR, NEXT_HOUR)
    assert sensor.look() == [HOUR, NEXT_HOUR]
    assert sensor.look() == []
    assert sensor.why == "No hour is due."


def test_an_hour_waits_until_no_packet_comes_any_more(sensor: Sensor) -> None:
    materialised(sensor.instance, HOUR, NEXT_HOUR)
    assert sensor.look(NEXT_HOUR, minutes=0.5) == [HOUR]
    assert sensor.look(NEXT_HOUR, minutes=4.9) == []
    assert sensor.why == "No hour is due. Of 1 hour with new ticks packets may still come."
    assert sensor.look(NEXT_HOUR, minutes=5) == [NEXT_HOUR]


def test_an_hour_that_was_rebuilt_is_asked_for_again_under_another_key(sensor: Sensor) -> None:
    materialised(sensor.instance, HOUR)
    first = sensor.keys()
    materialised(sensor.instance, HOUR)
    second = sensor.keys()
    assert (len(first), len(second)) == (1, 1)
    assert first != second


def test_a_long_backfill_is_followed_in_steps(sensor: Sensor) -> None:
    materialised(sensor.instance, *EARLIER)
    assert sensor.look() == EARLIER[:HOURS_AT_ONCE]
    assert sensor.look() == EARLIER[HOURS_AT_ONCE:]


def test_an_hour_whose_candles_the_same_run_made_is_left_alone(sensor: Sensor) -> None:
    materialised(sensor.instance, HOUR)
    sensor.instance.report_runless_asset_event(dg.AssetMaterialization(CANDLES_1M, partition=HOUR))
    assert sensor.look() == []
    materialised(sensor.instance, HOUR)
    assert sensor.look() == [HOUR]


def test_a_run_that_failed_is_made_again_later_and_not_for_ever(
    sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialised(sensor.instance, HOUR)
    keys = set(sensor.keys())
    ran(sensor.instance, dg.DagsterRunStatus.FAILURE)
    assert sensor.look() == []
    monkeypatch.setattr(candles, "RETRY_S", 0.0)
    for _ in range(RETRIES):
        keys |= set(sensor.keys())
        ran(sensor.instance, dg.DagsterRunStatus.STARTED)
        assert sensor.look() == []
        ran(sensor.instance, dg.DagsterRunStatus.FAILURE)
    assert len(keys) == 1 + RETRIES
    assert sensor.look() == []


def test_a_run_that_a_person_made_again_or_ended_is_left_alone(sensor: Sensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candles, "RETRY_S", 0.0)
    for made, status in ((True, dg.DagsterRunStatus.FAILURE), (False, dg.DagsterRunStatus.CANCELED)):
        materialised(sensor.instance, HOUR)
        assert sensor.look() == [HOUR]
        ran(sensor.instance, status)
        if made:
            sensor.instance.report_runless_asset_event(dg.AssetMaterialization(CANDLES_1M, partition=HOUR))
        assert sensor.look() == []


def test_an_hour_that_an_outage_swallowed_has_no_candles_to_make(sensor: Sensor) -> None:
    materialised(sensor.instance, HOUR, rows=0)
    assert sensor.look() == []


def test_hours_before_the_first_partition_do_not_hold_up_those_after_it(sensor: Sensor) -> None:
    materialised(sensor.instance, "2026-10-01T09:00", HOUR)
    assert sensor.look() == [HOUR]
