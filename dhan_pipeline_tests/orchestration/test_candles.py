"""Candles follow ticks: which hours the sensor asks for, on a real instance."""

from typing import Any

import dagster as dg
import pytest

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.assets.candles import CANDLES_1M
from dhan_pipeline.orchestration.candles import HOURS_AT_ONCE, candles_sensor
from dhan_pipeline.orchestration.names import TICKS
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline_tests.orchestration.conftest import HOUR, NEXT_HOUR

EARLIER = [f"2026-11-19T{hour:02}:00" for hour in range(HOURS_AT_ONCE + 2)]


class Sensor:
    """Looks one time after another, as the daemon lets it."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None

    def look(self, after: str = NEXT_HOUR, minutes: float = 30.0) -> list[str | None]:
        """The hours that it asks for so many minutes after an hour's end."""
        now_ns = parse_hour_key(after) + HOUR_NS + int(minutes * 60e9)
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"clock": Clock(now_ns, speed=1e-9)}
        )
        said: Any = candles_sensor(context)
        self.cursor = said.cursor
        return [request.partition_key for request in said.run_requests]

    def keys(self, after: str = NEXT_HOUR) -> list[str | None]:
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"clock": Clock(parse_hour_key(after) + 2 * HOUR_NS, speed=1e-9)},
        )
        said: Any = candles_sensor(context)
        return [request.run_key for request in said.run_requests]


@pytest.fixture
def sensor(instance: dg.DagsterInstance) -> Sensor:
    return Sensor(instance)


def materialised(instance: dg.DagsterInstance, *hours: str) -> None:
    for hour in hours:
        instance.report_runless_asset_event(dg.AssetMaterialization(TICKS, partition=hour))


def test_each_hour_of_ticks_is_asked_for_once(sensor: Sensor) -> None:
    assert sensor.look() == []
    materialised(sensor.instance, HOUR, NEXT_HOUR)
    assert sensor.look() == [HOUR, NEXT_HOUR]
    assert sensor.look() == []


def test_an_hour_waits_until_no_packet_comes_any_more(sensor: Sensor) -> None:
    materialised(sensor.instance, HOUR, NEXT_HOUR)
    assert sensor.look(NEXT_HOUR, minutes=0.5) == [HOUR]
    assert sensor.look(NEXT_HOUR, minutes=4.9) == []
    assert sensor.look(NEXT_HOUR, minutes=5) == [NEXT_HOUR]


def test_an_hour_that_was_rebuilt_is_asked_for_again_under_another_key(sensor: Sensor) -> None:
    materialised(sensor.instance, HOUR)
    first = sensor.keys()
    assert sensor.look() == [HOUR]
    materialised(sensor.instance, HOUR)
    second = sensor.keys()
    assert sensor.look() == [HOUR]
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
