"""Bars of an hour, materialised for real."""

from collections.abc import Callable
from contextlib import closing

import dagster as dg
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.orchestration.assets.candles import CANDLES_1M, build_candle_assets
from dhan_pipeline.orchestration.candles import candles_job
from dhan_pipeline.orchestration.names import TICKS
from dhan_pipeline.orchestration.partitions import hourly_partitions
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.partitions import ensure_partitions, instant
from dhan_pipeline_tests.orchestration.conftest import HOUR, NOW, OPEN_HOUR, Pipeline, Record
from dhan_pipeline_tests.orchestration.materialising import metadata, why_failed

Materialize = Callable[[str], dg.ExecuteInProcessResult]


@pytest.fixture
def materialize(pipeline: Pipeline) -> Materialize:
    definitions = dg.Definitions(
        assets=[dg.AssetSpec(TICKS), *build_candle_assets(hourly_partitions(pipeline.settings))],
        jobs=[candles_job],
        resources={"settings": pipeline.settings, "clock": NOW},
    )
    job = definitions.resolve_job_def("candles_job")
    return lambda hour: job.execute_in_process(instance=pipeline.instance, partition_key=hour, raise_on_error=False)


@pytest.fixture
def trade(conn: connection) -> Record:
    """An instrument trades 10 units a second, so often from so many seconds after an hour's start."""

    def trade(hour: str, from_s: float, seconds: int, token: int = 1 << 40) -> None:
        start_ns = parse_hour_key(hour) + int(from_s * 1e9)
        ensure_partitions(conn, start_ns, start_ns + seconds * 10**9)
        with conn, conn.cursor() as cursor:
            cursor.execute(
                "INSERT INTO tick_rows (tick_id, time, last_trade_time, instrument_token, last_price, volume_traded, "
                "tradable, mode) SELECT n, %(start)s + n * interval '1 s', %(start)s + n * interval '1 s', %(token)s, "
                "100, 10 * n, true, 'full' FROM generate_series(0, %(seconds)s - 1) AS n",
                {"start": instant(start_ns), "token": token, "seconds": seconds},
            )

    return trade


def test_an_hour_is_made_and_what_it_adds_up_to_is_shown(
    pipeline: Pipeline, materialize: Materialize, trade: Record, record_gap: Record
) -> None:
    trade(HOUR, 60, 600)
    trade(HOUR, 60, 60, 1 << 40 | 1)
    record_gap(HOUR, 130, 5)  # of another instrument
    result = materialize(HOUR)
    assert result.success
    shown = metadata(result, "candles_1m")
    picture = shown.pop("bars_a_minute")
    assert shown == {"dagster/row_count": 11, "instruments": 2, "touching_a_gap": 0, "from_the_broker": 0}
    assert picture.startswith("![bars a minute, up to 2](data:image/svg+xml;base64,")
    assert len(picture) < 1000
    assert pipeline.instance.get_materialized_partitions(CANDLES_1M) == {HOUR}
    with closing(connect(pipeline.settings.database_url or "")) as conn, conn, conn.cursor() as cursor:
        cursor.execute("SELECT sum(volume) FROM candles_1m")
        assert cursor.fetchall() == [(5990 + 590,)]


@pytest.mark.parametrize(
    ("hour", "reason"),
    [
        (HOUR, f"The table of ticks holds nothing of the hour {HOUR}."),
        (OPEN_HOUR, f"The hour {OPEN_HOUR} cannot have its candles yet: trades come up to 5 minutes late."),
    ],
)
def test_an_hour_without_ticks_or_still_open_is_refused(materialize: Materialize, hour: str, reason: str) -> None:
    assert why_failed(materialize(hour)) == reason
