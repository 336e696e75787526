"""A sealed hour is judged again once a gap that reaches into it is stored, and only then."""

from datetime import datetime, timedelta

import pytest

from dhan_pipeline.orchestration.new_gaps import NewGaps
from dhan_pipeline.sessions import IST

SEALED = {"2026-11-19T15:00", "2026-11-20T09:00", "2026-11-20T10:00"}
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=IST)


def gap(started: str, ended: str | None = None) -> dict[str, str | None]:
    started, ended = (
        time and datetime.fromisoformat(f"2026-11-{time}").replace(tzinfo=IST).isoformat() for time in (started, ended)
    )
    return {"event": "gap", "started_at": started, "ended_at": ended}


def status(after_s: float, backlog_s: float | None = 0.0) -> dict[str, object]:
    return {"at": (NOON + timedelta(seconds=after_s)).isoformat(), "backlog_seconds": backlog_s}


@pytest.mark.parametrize(
    ("event", "hours"),
    [
        (gap("20T10:59:20"), {"2026-11-20T10:00"}),
        (gap("20T09:59:20"), {"2026-11-20T09:00", "2026-11-20T10:00"}),
        (gap("20T09:59:20", "20T09:59:30"), {"2026-11-20T09:00"}),
        (gap("19T15:59:00", "20T09:30:00"), {"2026-11-19T15:00", "2026-11-20T09:00"}),
        (gap("20T11:00:00"), set()),
        (gap("20T11:10:00", "20T11:20:00"), set()),
    ],
)
def test_the_sealed_hours_that_a_gap_reaches_into_are_judged_again(
    event: dict[str, str | None], hours: set[str]
) -> None:
    news = NewGaps([], speed=1.0)
    news.hear(event, SEALED)
    assert set(news.stored(status(0))) == hours
    assert news.stored(status(1)) == []


def test_not_before_everything_up_to_the_telling_is_stored() -> None:
    news = NewGaps([], speed=1.0)
    news.hear(gap("20T10:59:20"), SEALED)
    assert news.stored(status(0, backlog_s=300)) == []
    assert news.stored(status(60, backlog_s=60.5)) == []
    assert news.stored(status(61, backlog_s=0.03)) == ["2026-11-20T10:00"]


def test_a_later_gap_of_the_same_hour_makes_it_wait_anew() -> None:
    news = NewGaps([], speed=1.0)
    news.hear(gap("20T10:59:20"), SEALED)
    assert news.stored(status(0, backlog_s=0.5)) == []
    news.hear(gap("20T10:59:30"), SEALED)
    assert news.stored(status(1, backlog_s=0.5)) == []
    assert news.stored(status(2, backlog_s=0.5)) == ["2026-11-20T10:00"]


def test_a_backlog_is_as_long_as_the_clock_is_fast() -> None:
    news = NewGaps(["2026-11-20T10:00"], speed=60.0)
    assert news.stored(status(0, backlog_s=0.5)) == []
    assert news.stored(status(60, backlog_s=1.5)) == []
    assert news.stored(status(120, backlog_s=1.5)) == ["2026-11-20T10:00"]


def test_hours_that_nobody_may_have_judged_are_judged_as_soon_as_all_is_stored() -> None:
    news = NewGaps(["2026-11-20T10:00"], speed=1.0)
    assert news.stored(status(0, backlog_s=None)) == ["2026-11-20T10:00"]


def test_without_sealed_hours_nothing_is_judged_again() -> None:
    news = NewGaps([], speed=1.0)
    news.hear(gap("20T10:59:20"), set())
    assert news.stored(status(0)) == []
