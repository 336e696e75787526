"""The capture as a child: its lines arrive, it ends when asked, and it never outlives its parent's interest."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dhan_pipeline.orchestration.child import CaptureChild

FAKE = (sys.executable, str(Path(__file__).with_name("fake_capture.py")))


@pytest.fixture
def start() -> Iterator[Callable[..., CaptureChild]]:
    children: list[CaptureChild] = []

    def start(*arguments: str, mode: str = "") -> CaptureChild:
        child = CaptureChild([*FAKE, *arguments], {**os.environ, "CAPTURE": "0", "FAKE_CAPTURE": mode})
        children.append(child)
        return child

    yield start
    for child in children:
        child.stop(0)


def wait_for(child: CaptureChild, name: str) -> dict[str, Any]:
    while event := child.next_event(20):
        if event["event"] == name:
            return event
    raise AssertionError(f"no {name} event arrived")


def test_its_lines_arrive_in_order(start: Callable[..., CaptureChild]) -> None:
    child = start("2026-11-20T09:00")
    assert wait_for(child, "started")["pid"] == child.pid
    assert wait_for(child, "status")["packets"] == 100
    assert wait_for(child, "hour_complete")["hour"] == "2026-11-20T09:00"


def test_it_flushes_when_its_input_closes_and_its_last_words_are_read(start: Callable[..., CaptureChild]) -> None:
    child = start()
    wait_for(child, "started")
    assert not child.ended
    assert child.stop() == 0
    assert child.ended
    assert [event["event"] for event in child.remaining_events()][-2:] == ["status", "stopped"]


def test_one_that_does_not_flush_in_time_is_killed(start: Callable[..., CaptureChild]) -> None:
    child = start(mode="deaf")
    wait_for(child, "started")
    assert child.stop(0.2) == -signal.SIGKILL


def test_a_refusal_to_start_is_kept_as_its_last_words(
    start: Callable[..., CaptureChild], capsys: pytest.CaptureFixture[str]
) -> None:
    child = start(mode="refuse")
    assert child.stop() == 1
    assert child.last_words == "Process 42 captures already."
    assert capsys.readouterr().err == "Process 42 captures already.\n"


def test_an_error_event_is_its_last_words(start: Callable[..., CaptureChild]) -> None:
    child = start(mode="die")
    assert child.stop() == 1
    assert child.last_words == "The token has expired."


def test_a_line_that_is_not_an_event_becomes_a_warning(start: Callable[..., CaptureChild]) -> None:
    assert "this is no JSON" in wait_for(start(mode="noisy"), "warning")["message"]


def test_stopping_one_that_is_gone_tells_how_it_went(start: Callable[..., CaptureChild]) -> None:
    child = start()
    wait_for(child, "started")
    os.kill(child.pid, signal.SIGKILL)
    assert child.stop() == -signal.SIGKILL
