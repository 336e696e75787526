import time
from datetime import UTC, datetime, timedelta

import pytest

from dhan_pipeline.clock import Clock

NINE_IST_NS = 1_795_145_400_000_000_000  # 2026-11-20 09:00 IST
SECOND_NS = 1_000_000_000


def stopped(monkeypatch: pytest.MonkeyPatch, real_ns: int) -> None:
    """Let the machine's clock show this."""
    monkeypatch.setattr(time, "time_ns", lambda: real_ns)


def test_without_a_start_it_is_the_machines_clock() -> None:
    before = time.time_ns()
    assert before <= Clock().now_ns() <= time.time_ns()


def test_a_displaced_clock_runs_on_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, 5)
    clock = Clock(NINE_IST_NS)
    assert clock.now_ns() == NINE_IST_NS
    stopped(monkeypatch, 5 + SECOND_NS)
    assert clock.now_ns() == NINE_IST_NS + SECOND_NS


def test_an_accelerated_clock_passes_an_hour_in_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, 0)
    clock = Clock(NINE_IST_NS, speed=900.0)
    stopped(monkeypatch, 4 * SECOND_NS)
    assert clock.now_ns() == NINE_IST_NS + 3600 * SECOND_NS


def test_it_tells_the_time_as_aware_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, 0)
    assert Clock(NINE_IST_NS).now() == datetime(2026, 11, 20, 3, 30, tzinfo=UTC)
    assert Clock(NINE_IST_NS).now().utcoffset() == timedelta(0)


def test_elapsed_seconds_are_real_ones_whatever_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, 0)
    clock = Clock(NINE_IST_NS, speed=900.0)
    since_ns = clock.now_ns()
    stopped(monkeypatch, 2 * SECOND_NS)
    assert clock.elapsed_s(since_ns) == 2.0


def test_clocks_with_the_same_numbers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    origin_ns = 10 * SECOND_NS
    stopped(monkeypatch, 12 * SECOND_NS)
    first = Clock(NINE_IST_NS, 60.0, origin_ns)
    stopped(monkeypatch, 15 * SECOND_NS)
    second = Clock(NINE_IST_NS, 60.0, origin_ns)
    assert first.now_ns() == second.now_ns() == NINE_IST_NS + 300 * SECOND_NS


def test_an_accelerated_clock_needs_a_start() -> None:
    with pytest.raises(ValueError, match="needs a start"):
        Clock(speed=2.0)
