"""Special days as files say them: ours is sound, the site's is read line by line."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from dhan_pipeline.special_days import MARKETS, problems, special_days, use_special_days

HEADER = "date,equity,currency,commodity,occasion\n"


@pytest.fixture
def holidays(tmp_path: Path) -> Path:
    return tmp_path / "holidays.csv"


@pytest.fixture
def own(tmp_path: Path, holidays: Path) -> Iterator[Path]:
    use_special_days(holidays, tmp_path / "sessions.csv")
    yield tmp_path / "sessions.csv"
    use_special_days(tmp_path / "none", tmp_path / "none")


def test_our_own_table_is_sound() -> None:
    assert problems() == ()
    days = special_days()
    assert list(days) == sorted(days)
    for day, cells in days.items():
        assert cells
        for market in MARKETS:
            cell = cells.get(market, "")
            assert day.weekday() >= 5 or cell != "open", (day, market)
            assert day.weekday() < 5 or cell != "closed", (day, market)


def test_a_later_file_wins_cell_by_cell(own: Path, holidays: Path) -> None:
    holidays.write_text(HEADER + "2027-01-26,closed,closed,closed,\n2027-03-22,closed,closed,evening,\n")
    own.write_text(HEADER + "2027-03-22,,open,,\n2026-12-25,open,,,\n")
    days = special_days()
    assert days[date(2027, 1, 26)] == {"equity": "closed", "currency": "closed", "commodity": "closed"}
    assert days[date(2027, 3, 22)] == {"equity": "closed", "currency": "open", "commodity": "evening"}
    assert days[date(2026, 12, 25)] == {"equity": "open", "currency": "closed", "commodity": "closed"}
    assert problems() == ()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("26-11-2026,closed,,,", "26-11-2026 is no date such as 2026-11-08"),
        (",closed,,,", "nothing is no date such as 2026-11-08"),
        ("2026-11-30,shut,,,", "shut is nothing that equity can be"),
        ("2026-11-30,evening,,,", "evening is nothing that equity can be"),
        ("2026-11-30,,,9:00-17:00,", "9:00-17:00 is nothing that commodity can be"),
        ("2026-11-30,,18:15-17:15,,", "18:15-17:15 is nothing that currency can be"),
        ("2026-11-30,09:15-10:00 09:45-11:00,,,", "09:15-10:00 09:45-11:00 is nothing that equity can be"),
        ("2026-11-30,closed,,,mourning, and no trade", "it has more than 5 cells"),
        ("2026-11-27,closed,,,", "2026-11-27 is there twice"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_left_out_and_the_others_hold(own: Path, line: str, problem: str) -> None:
    own.write_text(f"{HEADER}2026-11-27,,,evening,\n{line}\n2026-12-01,closed,,,\n")
    assert problems() == (f"{own}, line 3: {problem}; the line is left out.",)
    days = special_days()
    assert date(2026, 11, 30) not in days
    assert days[date(2026, 11, 27)] == {"commodity": "evening"}
    assert days[date(2026, 12, 1)] == {"equity": "closed"}


def test_of_many_wrong_lines_the_first_is_shown_and_the_others_are_counted(own: Path) -> None:
    own.write_text(HEADER + "a,,,,\nb,,,,\nc,,,,\n")
    (problem,) = problems()
    assert problem.startswith(f"{own}, line 2: a is no date")
    assert problem.endswith(" 2 more lines of it are wrong.")


@pytest.mark.parametrize("content", [b"day;equity\n2026-11-30;closed\n", b"", b"date,stocks\n"])
def test_a_file_with_other_columns_is_refused(own: Path, content: bytes) -> None:
    own.write_bytes(content)
    (problem,) = problems()
    assert (
        problem == f"{own}, line 1: the columns are date,equity,currency,commodity,occasion; nothing of the file holds."
    )


@pytest.mark.parametrize("content", [b"date,equity\n2026-11-30,\xff\xfe\n", b"\x89PNG\x00\x00"])
def test_a_file_that_is_no_text_is_refused(own: Path, content: bytes) -> None:
    own.write_bytes(content)
    assert problems() == (f"{own} cannot be read: it is not a text file.",)


def test_a_file_that_cannot_be_opened_is_said(own: Path) -> None:
    own.mkdir()
    assert problems() == (f"{own} cannot be read: Is a directory.",)


def test_a_spreadsheet_s_mark_at_the_beginning_does_not_matter(own: Path) -> None:
    own.write_bytes(b"\xef\xbb\xbfdate,equity\r\n2026-11-30,closed\r\n")
    assert special_days()[date(2026, 11, 30)] == {"equity": "closed"}
    assert problems() == ()
