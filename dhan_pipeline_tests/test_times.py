from datetime import UTC, datetime

from dhan_pipeline.times import beside, ist, to_minute, to_minute_of_day, to_second

AT = datetime(2026, 11, 20, 20, 45, 2, tzinfo=UTC)


def test_times_are_said_in_ist_wherever_they_come_from() -> None:
    assert to_minute(AT) == "2026-11-21 02:15 IST"
    assert to_second(AT) == "2026-11-21 02:15:02 IST"
    assert to_minute_of_day(AT) == "Sat 2026-11-21 02:15 IST"
    assert to_second(ist(int(AT.timestamp()) * 1_000_000_000)) == to_second(AT)


def test_a_time_is_said_with_its_day_where_that_is_not_today() -> None:
    assert beside(AT, datetime(2026, 11, 21, 12, tzinfo=UTC)) == "02:15:02 IST"
    assert beside(AT, datetime(2026, 11, 20, 18, tzinfo=UTC)) == "2026-11-21 02:15:02 IST"
