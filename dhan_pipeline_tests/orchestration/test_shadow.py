"""When both brokers are compared: the parts of the definitions, and what the sensor asks for."""

from datetime import date
from typing import Any

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.assets.shadow import SHADOW_COMPARISON
from dhan_pipeline.orchestration.names import TICKS
from dhan_pipeline.orchestration.shadow import build_shadow, shadow_sensor
from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.orchestration.conftest import HOUR

BOTH = Settings(_env_file=None, data_source="kite,dhan", partitions_start=date(2026, 11, 20))


def test_hours_are_compared_by_themselves_only_where_both_brokers_are_captured() -> None:
    for settings, parts in ((BOTH, 1), (BOTH.of("kite"), 0), (BOTH.of("dhan"), 0)):
        definitions = build_shadow(settings)
        assert (len(list(definitions.jobs or [])), len(list(definitions.sensors or []))) == (parts, parts)


def test_each_hour_of_ticks_is_asked_for_once_it_is_over_for_long_enough(instance: dg.DagsterInstance) -> None:
    cursor = None

    def look(minutes: float) -> list[str | None]:
        nonlocal cursor
        clock = Clock(parse_hour_key(HOUR) + HOUR_NS + int(minutes * 60e9), speed=1e-9)
        resources = {"settings": BOTH, "clock": clock}
        said: Any = shadow_sensor(dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources))
        cursor = said.cursor
        return [request.partition_key for request in said.run_requests]

    def materialised(key: dg.AssetKey) -> None:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(key, partition=HOUR, metadata={"dagster/row_count": 7})
        )

    assert look(4.9) == []
    materialised(TICKS)
    assert look(4.9) == []
    assert look(5.0) == [HOUR]
    assert look(6.0) == []
    # The other broker's capture was later; and then a person compared the hour.
    materialised(TICKS)
    assert look(7.0) == [HOUR]
    materialised(TICKS)
    materialised(SHADOW_COMPARISON)
    assert look(8.0) == []
