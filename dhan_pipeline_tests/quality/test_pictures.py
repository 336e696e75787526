import re
from xml.etree import ElementTree as ET

import pytest

from dhan_pipeline.gaps import Cause
from dhan_pipeline.quality.gaps import GapPart
from dhan_pipeline.quality.pictures import BAD, Picture, latency_picture, ticks_picture
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.store.flow import LATENCY_LIMITS_MS

NINE = parse_hour_key("2026-11-20T09:00")
SECOND_NS = 10**9


def gap(at_s: float, seconds: float, instruments: int = 5, cause: Cause = Cause.RESET) -> GapPart:
    started_ns = NINE + int(at_s * SECOND_NS)
    ended_ns = started_ns + int(seconds * SECOND_NS)
    return GapPart(0, 0, started_ns, ended_ns, False, started_ns, ended_ns, seconds, cause, "", "", instruments)


def bands(picture: Picture | None) -> list[tuple[int, int]]:
    """Where the picture is red: from, and how far."""
    assert picture is not None
    (path,) = [path for path in ET.fromstring(picture.svg) if path.get("stroke") == BAD]
    return [(int(at), int(width)) for at, width in re.findall(r"M(\d+) 54h(\d+)", path.get("d") or "")]


@pytest.mark.parametrize("minutes", [60, 390, 895])
def test_a_picture_is_small_enough_to_be_shown_in_place(minutes: int) -> None:
    gaps = [gap(at * 20, 7) for at in range(0, 180, 5)]
    picture = ticks_picture([12_345 + 37 * minute for minute in range(minutes)], NINE, gaps)
    assert picture is not None
    assert len(picture.svg) <= 670
    ET.fromstring(picture.svg)


def test_a_gap_is_red_below_its_minutes_and_short_ones_can_be_seen() -> None:
    picture = ticks_picture([100] * 60, NINE, [gap(600, 600), gap(1800, 0.1)])
    assert bands(picture) == [(60, 60), (180, 4)]
    assert picture is not None
    assert picture.words == "ticks a minute, up to 100, and 2 gaps"


def test_gaps_at_the_edge_and_next_to_one_another_stay_within_the_picture() -> None:
    assert bands(ticks_picture([100] * 60, NINE, [gap(3599, 1), gap(600, 1), gap(601, 40)])) == [(60, 4), (356, 4)]


def test_a_silent_instrument_is_no_gap_of_the_picture() -> None:
    picture = ticks_picture([100] * 60, NINE, [gap(600, 600, 1, Cause.SILENT)])
    assert picture is not None
    assert BAD not in picture.svg


def test_the_hour_is_written_below_it_in_indian_time() -> None:
    picture = ticks_picture([100] * 60, NINE, [])
    assert picture is not None
    assert re.findall(r">(\d\d:\d\d)<", picture.svg) == ["09:00", "10:00"]


def test_of_nothing_there_is_no_picture_but_of_an_hour_lost_to_a_gap() -> None:
    assert ticks_picture([0] * 60, NINE, []) is None
    assert latency_picture([0] * 17, 1000) is None
    assert latency_picture([], 1000) is None
    assert bands(ticks_picture([0] * 60, NINE, [gap(0, 3600)])) == [(0, 360)]


def test_latencies_above_the_warning_are_red() -> None:
    counts = [0] * (len(LATENCY_LIMITS_MS) + 1)
    counts[3], counts[10] = 1_000_000, 1  # below 10 ms; from one second to two
    picture = latency_picture(counts, 1000)
    assert picture is not None
    assert picture.svg.count(BAD) == 1
    assert re.findall(r">(\d+k?)<", picture.svg) == ["10", "20", "50", "100", "200", "500", "1k", "2k"]
    slow = latency_picture(counts, 2000)
    assert slow is not None
    assert BAD not in slow.svg
    assert len((latency_picture([9] * 17, 1000) or picture).svg) <= 670
