"""Hours are cut on the IST clock, and the open one is among them."""

from datetime import UTC, date, datetime, timedelta

from dagster._core.definitions.partitions.context import partition_loading_context

from dhan_pipeline.orchestration.partitions import DEFAULT_DAYS, daily_partitions, hourly_partitions
from dhan_pipeline.sessions import IST, hour_key
from dhan_pipeline.settings import Settings


def test_a_key_is_the_ist_wall_clock_at_the_start_of_its_hour() -> None:
    hours = hourly_partitions(Settings(_env_file=None, partitions_start=date(2026, 11, 20)))
    window = hours.time_window_for_partition_key("2026-11-20T09:00")
    assert window.start == datetime(2026, 11, 20, 3, 30, tzinfo=UTC)
    assert window.end == datetime(2026, 11, 20, 4, 30, tzinfo=UTC)
    assert hours.get_first_partition_key() == "2026-11-20T00:00"


def test_the_open_hour_is_the_last_partition() -> None:
    hours = hourly_partitions(Settings(_env_file=None, partitions_start=date(2026, 11, 20)))
    at = datetime(2026, 11, 20, 23, 30, tzinfo=IST)
    with partition_loading_context(effective_dt=at):
        assert hours.get_last_partition_key() == hour_key(int(at.timestamp()) * 10**9) == "2026-11-20T23:00"


def test_without_a_start_the_last_thirty_days_are_partitions() -> None:
    today = datetime.now(IST).date()
    first = hourly_partitions(Settings(_env_file=None)).get_first_partition_key()
    assert first in {f"{day - timedelta(days=DEFAULT_DAYS)}T00:00" for day in (today, today + timedelta(days=1))}


def test_a_day_is_an_ist_date_and_today_is_the_last_of_them() -> None:
    days = daily_partitions(Settings(_env_file=None, partitions_start=date(2026, 11, 18)))
    window = days.time_window_for_partition_key("2026-11-20")
    assert window.start == datetime(2026, 11, 19, 18, 30, tzinfo=UTC)
    assert window.end == datetime(2026, 11, 20, 18, 30, tzinfo=UTC)
    with partition_loading_context(effective_dt=datetime(2026, 11, 20, 0, 30, tzinfo=IST)):
        assert days.get_partition_keys() == ["2026-11-18", "2026-11-19", "2026-11-20"]


def test_days_begin_with_the_hours() -> None:
    settings = Settings(_env_file=None)
    assert hourly_partitions(settings).start.date() == daily_partitions(settings).start.date()
