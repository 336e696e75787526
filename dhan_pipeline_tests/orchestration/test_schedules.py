"""The archive's schedule asks for the day that is over; the retention job drops what expired and is archived."""

from datetime import date, datetime, timedelta

import dagster as dg
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.orchestration.assets.archive import build_archive_asset
from dhan_pipeline.orchestration.partitions import daily_partitions
from dhan_pipeline.orchestration.resources import build_resources
from dhan_pipeline.orchestration.schedules import archive_job, archive_schedule
from dhan_pipeline.sessions import HOUR_NS, IST, parse_hour_key
from dhan_pipeline.store.archive import archive_day
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.store.subscribed import record, subscribed_during
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.orchestration.conftest import HOUR, NOW, Pipeline
from dhan_pipeline_tests.store.batches import AT_NS, make_batch, store

DAY_NS = 24 * HOUR_NS


def retain(pipeline: Pipeline) -> list[str]:
    """Run the retention, and return what it warned of."""
    result = pipeline.definitions().resolve_job_def("retention_job").execute_in_process(instance=pipeline.instance)
    assert result.success
    entries = pipeline.instance.all_logs(result.run_id)
    return [entry.user_message for entry in entries if entry.level == 30]


def partitions(conn: connection) -> set[str]:
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE relkind = 'r'")
        return {name for (name,) in cursor.fetchall()}


@pytest.mark.usefixtures("partitions_ahead")
def test_partitions_older_than_the_retention_are_dropped(pipeline: Pipeline, conn: connection) -> None:
    today = parse_hour_key(HOUR)
    for days in (0, 6, 8):
        ensure_partitions(conn, today - days * DAY_NS, today - days * DAY_NS + 1)
    assert retain(pipeline) == []
    assert partitions(conn) == {"ticks_20261120_09", "ticks_20261114_09"}


@pytest.mark.usefixtures("partitions_ahead")
def test_an_expired_day_with_ticks_stays_until_it_is_archived(pipeline: Pipeline, conn: connection) -> None:
    for days in (8, 9):
        store(conn, [make_batch(Mode.FULL, 3, at_ns=AT_NS - days * DAY_NS)])
    archive_day(conn, pipeline.settings.data_dir, date(2026, 11, 12), NOW)
    assert retain(pipeline) == [
        "Not dropped, because the archive does not hold what the table holds of 2026-11-11: materialise these"
        " partitions of ticks_archive, or set ARCHIVE=off to have expired days dropped without."
    ]
    assert partitions(conn) == {"ticks_20261111_09"}
    archive_day(conn, pipeline.settings.data_dir, date(2026, 11, 11), NOW)
    assert retain(pipeline) == []
    assert partitions(conn) == set()


def test_without_an_archive_expired_days_are_dropped(pipeline: Pipeline, conn: connection) -> None:
    store(conn, [make_batch(Mode.FULL, 3, at_ns=AT_NS - 8 * DAY_NS)])
    without = Pipeline(pipeline.settings.model_copy(update={"archive": "off"}), pipeline.instance)
    assert retain(without) == []
    assert partitions(conn) == set()


def test_what_was_subscribed_is_known_of_the_ticks_that_are_kept(pipeline: Pipeline, conn: connection) -> None:
    now = NOW.now()

    def ended() -> list[int]:
        found = subscribed_during(conn, now - timedelta(days=30), now)
        conn.rollback()
        return [row.instrument_token for row in found]

    for days in (10, 9, 8, 7, 1):
        record(conn, 0, {days: Mode.FULL}, now - timedelta(days=days + 1))
    record(conn, 0, {0: Mode.FULL}, now - timedelta(days=1))
    store(conn, [make_batch(Mode.FULL, 3, at_ns=AT_NS - 9 * DAY_NS)])  # not archived, so it stays
    assert len(retain(pipeline)) == 1
    assert ended() == [0, 1, 7, 8, 9]
    without = Pipeline(pipeline.settings.model_copy(update={"archive": "off"}), pipeline.instance)
    assert retain(without) == []
    assert ended() == [0, 1, 7]


@pytest.mark.usefixtures("partitions_ahead")
def test_days_that_a_reader_holds_up_are_told(pipeline: Pipeline, conn: connection) -> None:
    for days in (8, 9):
        ensure_partitions(conn, AT_NS - days * DAY_NS, AT_NS - days * DAY_NS + 1)
    with conn, conn.cursor() as reader:
        reader.execute("SELECT count(*) FROM ticks")
        assert retain(pipeline) == [
            "Not dropped now, because a transaction that has ticks in use did not end: 2026-11-11, 2026-11-12."
            " The next run tries again; `select * from pg_stat_activity` shows who has one open."
        ]
    assert retain(pipeline) == []


def evaluated(pipeline: Pipeline, at: datetime, **settings: str) -> dg.RunRequest | dg.SkipReason:
    """What the archive's schedule says at a time."""
    days = daily_partitions(pipeline.settings)
    changed = pipeline.settings.model_copy(update=settings)
    resources = build_resources(changed, NOW, [])
    definitions = dg.Definitions(
        [build_archive_asset(days)], jobs=[archive_job], schedules=[archive_schedule], resources=resources
    )
    context = dg.build_schedule_context(
        pipeline.instance,
        scheduled_execution_time=at,
        repository_def=definitions.get_repository_def(),
        resources=resources,
    )
    said = archive_schedule(context)
    assert isinstance(said, dg.RunRequest | dg.SkipReason)
    return said


def test_the_archive_is_made_of_the_day_that_is_over(pipeline: Pipeline, conn: connection) -> None:
    store(conn, [make_batch(Mode.FULL, 3)])
    said = evaluated(pipeline, datetime(2026, 11, 21, 0, 10, tzinfo=IST))
    assert isinstance(said, dg.RunRequest)
    assert said.partition_key == "2026-11-20"


@pytest.mark.parametrize(
    ("settings", "said"), [({"archive": "off"}, "ARCHIVE is off."), ({}, "There are no ticks of 2026-11-21.")]
)
def test_no_archive_is_made_where_it_is_off_or_nothing_was_captured(
    pipeline: Pipeline, conn: connection, settings: dict[str, str], said: str
) -> None:
    store(conn, [make_batch(Mode.FULL, 3)])
    skipped = evaluated(pipeline, datetime(2026, 11, 22, 0, 10, tzinfo=IST) + timedelta(seconds=3), **settings)
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == said


def test_while_the_database_is_away_the_run_is_to_say_so(pipeline: Pipeline) -> None:
    away = "postgresql://postgres@127.0.0.1:1/none"
    assert isinstance(evaluated(pipeline, NOW.now() + timedelta(days=1), database_url=away), dg.RunRequest)
