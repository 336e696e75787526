import pytest

from dhan_pipeline.amounts import counted, duration, first_of, measured


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.34, "0.3 s"),
        (4, "4 s"),
        (12.4, "12 s"),
        (119, "119 s"),
        (720, "12 min"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (50 * 3600, "2 d 2 h"),
        (72 * 3600, "3 d"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_count_goes_with_its_noun() -> None:
    assert [counted(number, "gap") for number in (0, 1, 1234)] == ["0 gaps", "1 gap", "1,234 gaps"]
    assert [counted(number, "index", "indices") for number in (1, 2)] == ["1 index", "2 indices"]


@pytest.mark.parametrize(
    ("number", "unit", "words"),
    [
        (1.0, "rows", "1 row"),
        (1.0, "ticks a minute", "1 tick a minute"),
        (1.0, "ms", "1 ms"),
        (1.0, "", "1"),
        (2_340.5, "rows", "2,340.5 rows"),
    ],
)
def test_one_is_said_of_one(number: float, unit: str, words: str) -> None:
    assert measured(number, unit) == words


def test_of_many_names_the_first_are_said_and_how_many_more_there_are() -> None:
    assert first_of(["a", "b"]) == "a, b"
    assert first_of([*"abcdefg"]) == "a, b, c, d, e and 2 more"
    assert first_of(["a", "b", "c"], 1, between="; ") == "a and 2 more"
