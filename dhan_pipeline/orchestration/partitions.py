"""The partitions of the hourly assets, and of the daily ones.

Belongs here: the one definition each that hourly and daily assets and their checks share. Does not: trading hours and
holidays. They are the calendar's (`sessions.py`); an hour or a day in which nothing trades simply stays without a
materialisation.
"""

from datetime import date, timedelta

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.sessions import HOUR_KEY_FORMAT, IST
from dhan_pipeline.settings import Settings

#: Days of hours that are shown where `partitions_start` is not set: 720 hours, which the UI lists without delay.
DEFAULT_DAYS = 30


def hourly_partitions(settings: Settings) -> dg.HourlyPartitionsDefinition:
    """Hours of the IST wall clock, from the start of the first day to the hour that is open now.

    The open hour is a partition (`end_offset=1`) because it is observed while it fills, and because an hour that is
    sealed right after its end would otherwise be missing from the UI's cache for good.
    """
    return dg.HourlyPartitionsDefinition(
        start_date=f"{_first_day(settings):%Y-%m-%d}T00:00", timezone="Asia/Kolkata", fmt=HOUR_KEY_FORMAT, end_offset=1
    )


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Days of the IST calendar, keyed `2026-11-20`, from the first day of the hours to today.

    Today is a partition, because what follows a session is made on the same evening.
    """
    return dg.DailyPartitionsDefinition(
        start_date=f"{_first_day(settings):%Y-%m-%d}", timezone="Asia/Kolkata", fmt="%Y-%m-%d", end_offset=1
    )


def _first_day(settings: Settings) -> date:
    return settings.partitions_start or (Clock().now().astimezone(IST) - timedelta(days=DEFAULT_DAYS)).date()
