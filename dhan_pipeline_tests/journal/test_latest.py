from collections.abc import Callable
from pathlib import Path

import pytest

from dhan_pipeline.journal.latest import look_back
from dhan_pipeline.journal.stretch import Stretch
from dhan_pipeline.journal.writer import JournalWriter

SECOND_NS = 1_000_000_000
NOW_NS = 1_790_000_000 * SECOND_NS


@pytest.fixture
def journal_dir(tmp_path: Path) -> Path:
    """A message a minute for two hours, the last a minute ago: each says how many minutes ago it came."""
    writer = JournalWriter(tmp_path, 0)
    for minutes in range(120, 0, -1):
        writer.append([NOW_NS - minutes * 60 * SECOND_NS], [0], [False], [b"%d" % minutes])
    writer.close()
    return tmp_path


def last(*wanted: int) -> Callable[[Stretch], int | None]:
    def find(stretch: Stretch) -> int | None:
        ends = zip(stretch.offsets[:-1].tolist(), stretch.offsets[1:].tolist(), strict=True)
        found = [int(stretch.payload[begin:end]) for begin, end in ends]
        return next((minutes for minutes in reversed(found) if minutes in wanted), None)

    return find


@pytest.mark.parametrize(("wanted", "found"), [((1, 2, 100), 1), ((7, 8), 7), ((100, 119), 100)])
def test_the_last_of_what_is_looked_for_is_found(journal_dir: Path, wanted: tuple[int, ...], found: int) -> None:
    minutes, seen_ns = look_back(journal_dir, 0, NOW_NS, last(*wanted), 60.0)
    assert minutes == found
    assert seen_ns <= NOW_NS - found * 60 * SECOND_NS


def test_what_is_not_there_is_looked_for_a_day_back(journal_dir: Path) -> None:
    assert look_back(journal_dir, 0, NOW_NS, last(500), 60.0) == (None, NOW_NS - 86_400 * SECOND_NS)
    assert look_back(journal_dir, 1, NOW_NS, last(1), 60.0) == (None, NOW_NS - 86_400 * SECOND_NS)


def test_looking_ends_when_its_time_is_over(journal_dir: Path) -> None:
    minutes, seen_ns = look_back(journal_dir, 0, NOW_NS, last(110), 0.0)
    assert minutes is None
    assert seen_ns == NOW_NS - 20 * SECOND_NS  # the step beyond has a message, after which the time was over
