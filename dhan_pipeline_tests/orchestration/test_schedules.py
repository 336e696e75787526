"""The retention job drops what expired and keeps the rest."""

from psycopg2.extensions import connection

from dhan_pipeline.sessions import HOUR_NS, parse_hour_key
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline_tests.orchestration.conftest import HOUR, Pipeline

DAY_NS = 24 * HOUR_NS


def test_partitions_older_than_the_retention_are_dropped(pipeline: Pipeline, conn: connection) -> None:
    today = parse_hour_key(HOUR)
    for days in (0, 6, 8):
        ensure_partitions(conn, today - days * DAY_NS, today - days * DAY_NS + 1)
    job = pipeline.definitions().resolve_job_def("retention_job")
    assert job.execute_in_process(instance=pipeline.instance).success
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE relname ~ '_09$'")
        assert {name for (name,) in cursor.fetchall()} == {"ticks_20261120_09", "ticks_20261114_09"}
