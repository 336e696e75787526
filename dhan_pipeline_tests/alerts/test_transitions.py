"""When a change is told: once it has held, and once."""

from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.alerts.transitions import RELAPSE_S, Change, Level, Patience, Reading, Standing, advance, unchanged

OK, WARN, ERROR = Level.OK, Level.WARN, Level.ERROR
PATIENCE = Patience(worse_s=20, better_s=60)
NOW = 1_800_000_000.0


def told(*readings: tuple[float, Level], patience: Patience = PATIENCE) -> list[tuple[float, Level, Level]]:
    """When what is told of levels that are read at so many seconds."""
    standing: Standing | None = None
    changes = []
    for seconds, level in readings:
        standing, change = advance(standing, Reading(level=level, at_s=NOW + seconds), NOW + seconds, patience)
        if change is not None:
            changes.append((seconds, change.before, change.after))
    return changes


def every(step_s: float, *stretches: tuple[float, Level]) -> list[tuple[float, Level]]:
    """Readings every so many seconds, over stretches of so many seconds of a level."""
    readings, at_s = [], 0.0
    for seconds, level in stretches:
        end_s = at_s + seconds
        while at_s < end_s:
            readings.append((at_s, level))
            at_s += step_s
    return readings


def test_warn_error_and_back_are_told_once_each() -> None:
    assert told(*every(5, (100, OK), (100, WARN), (200, ERROR), (300, OK))) == [
        (120, OK, WARN),
        (220, WARN, ERROR),
        (460, ERROR, OK),
    ]


def test_a_blip_is_not_told() -> None:
    assert told(*every(5, (100, OK), (15, ERROR), (100, OK))) == []


def test_a_short_relief_is_not_told() -> None:
    assert told(*every(5, (30, ERROR), (50, OK), (100, ERROR))) == [(20, OK, ERROR)]


def test_what_gets_better_in_jumps_is_told_once_it_has_not_been_as_bad_for_a_minute() -> None:
    assert told(*every(5, (30, ERROR), (20, OK), (20, WARN), (25, OK))) == [(20, OK, ERROR), (90, ERROR, OK)]
    assert told(*every(5, (30, ERROR), (20, OK), (45, WARN))) == [(20, OK, ERROR), (90, ERROR, WARN)]


def test_a_level_that_was_found_a_while_ago_is_told_at_first_sight() -> None:
    _, change = advance(None, Reading(level=ERROR, at_s=NOW - 30), NOW, PATIENCE)
    assert change == Change(before=OK, after=ERROR, since_s=NOW - 30, lasted_s=None)


def test_a_recovery_says_how_long_it_was_bad() -> None:
    standing, _ = advance(None, Reading(level=ERROR, at_s=NOW - 30), NOW, PATIENCE)
    _, change = advance(standing, Reading(level=OK, at_s=NOW + 100), NOW + 170, PATIENCE)
    assert change == Change(before=ERROR, after=OK, since_s=NOW + 100, lasted_s=130)


def test_each_relapse_has_to_be_well_for_twice_as_long_before_that_is_told() -> None:
    relapse = [(30, ERROR), (400, OK)]
    changes = told(*every(5, *relapse, *relapse, *relapse))
    assert [at_s for at_s, _, after in changes if after == OK] == [90, 430 + 30 + 120, 860 + 30 + 240]


def test_after_a_quarter_of_an_hour_of_being_well_nothing_is_remembered() -> None:
    standing = Standing(told=OK, since_s=NOW, relapses=2)
    reading = Reading(level=OK, at_s=NOW)
    assert advance(standing, reading, NOW + RELAPSE_S - 1, PATIENCE) == (standing, None)
    assert advance(standing, reading, NOW + RELAPSE_S, PATIENCE) == (None, None)


def test_an_earlier_hour_that_is_well_does_not_mend_a_later_one() -> None:
    standing = Standing(told=ERROR, seen=ERROR, since_s=NOW, partition="2026-11-20T10:00")
    earlier = Reading(level=OK, at_s=NOW + 1, partition="2026-11-18T10:00")
    assert advance(standing, earlier, NOW + 1000, PATIENCE) == (standing, None)
    for hour in ("2026-11-20T10:00", "2026-11-20T11:00"):
        _, change = advance(standing, earlier.model_copy(update={"partition": hour}), NOW + 1000, PATIENCE)
        assert change is not None
        assert change.after == OK


def test_an_hour_that_is_as_bad_as_the_one_before_is_not_told() -> None:
    standing = Standing(told=WARN, seen=WARN, since_s=NOW, partition="2026-11-20T10:00")
    after, change = advance(standing, Reading(level=WARN, at_s=NOW, partition="2026-11-20T11:00"), NOW + 1000, PATIENCE)
    assert change is None
    assert after is not None
    assert after.partition == "2026-11-20T11:00"


def test_what_is_about_to_be_told_is_told_without_a_new_reading() -> None:
    standing, _ = advance(
        Standing(told=ERROR, seen=ERROR, since_s=NOW), Reading(level=OK, at_s=NOW + 10), NOW + 10, PATIENCE
    )
    assert standing is not None
    _, change = advance(standing, unchanged(standing), NOW + 70, PATIENCE)
    assert change is not None
    assert change.after == OK


@given(st.lists(st.tuples(st.floats(0.1, 200), st.sampled_from(Level)), max_size=25))
def test_any_levels_are_told_in_turn_at_most_once_a_stretch_and_end_as_they_are(
    stretches: list[tuple[float, Level]],
) -> None:
    readings = every(7, *stretches, (1500, stretches[-1][1])) if stretches else []
    changes = told(*readings)
    assert all(before != after for _, before, after in changes)
    assert [before for _, before, _ in changes] == [OK, *(after for _, _, after in changes)][: len(changes)]
    merged = [level for n, (_, level) in enumerate(readings) if n == 0 or readings[n - 1][1] != level]
    assert len(changes) <= len(merged)
    if readings:
        assert (changes[-1][2] if changes else OK) == readings[-1][1]
    for at_s, before, after in changes:
        held = [level for seconds, level in readings if at_s - PATIENCE.worse_s <= seconds <= at_s]
        assert held[-1] == after
        assert all(level > before for level in held) or all(level < before for level in held)
