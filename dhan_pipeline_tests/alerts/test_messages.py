"""The words of alerts."""

import pytest

from dhan_pipeline.alerts.messages import SHOWN, Alert, as_json, hour_in_words, summary, text, title
from dhan_pipeline.alerts.transitions import Level
from dhan_pipeline.sessions import parse_hour_key

#: 14:05:42 IST.
NOW = parse_hour_key("2026-11-20T14:00") / 1e9 + 342
CONNECTED = Alert(
    name="live_feed/connected",
    after=Level.ERROR,
    before=Level.OK,
    text="No connection is up.",
    at_s=NOW,
    since_s=NOW - 30,
    url="http://host:3000/assets/live_feed?view=checks&checkDetail=connected",
)


def test_a_message_says_what_since_when_and_where_there_is_more() -> None:
    assert title([CONNECTED]) == "ERROR: live_feed/connected"
    assert text([CONNECTED]).splitlines() == [
        "No connection is up.",
        "Since 14:05:12 IST.",
        "http://host:3000/assets/live_feed?view=checks&checkDetail=connected",
    ]


def test_a_measure_has_its_value_with_the_unit_and_the_limits() -> None:
    measured = CONNECTED.model_copy(update={"value": "2,340 ms", "limits": "warns above 1000 ms"})
    assert "Found: 2,340 ms. Limits: warns above 1000 ms." in text([measured])


def test_a_recovery_says_how_long_it_was_bad() -> None:
    well = CONNECTED.model_copy(update={"after": Level.OK, "before": Level.ERROR, "lasted_s": 200.0})
    assert title([well]) == "OK again: live_feed/connected"
    assert "Since 14:05:12 IST, after 3 min of ERROR." in text([well])


def test_a_change_between_bad_and_worse_says_what_it_was() -> None:
    assert title([CONNECTED.model_copy(update={"before": Level.WARN})]) == "ERROR (was WARN): live_feed/connected"


def test_an_hour_is_named_and_one_that_was_judged_again_is_not_taken_for_now() -> None:
    of_now = CONNECTED.model_copy(update={"name": "ticks/gaps", "partition": "2026-11-20T13:00"})
    of_old = of_now.model_copy(update={"partition": "2026-11-18T10:00"})
    assert title([of_now]) == "ERROR: ticks/gaps, the hour 13:00 to 14:00 IST of 2026-11-20"
    assert "does not mean now" not in text([of_now])
    assert "the hour 10:00 to 11:00 IST of 2026-11-18, which was judged again; it does not mean now." in text([of_old])


def test_several_are_one_message_with_a_line_each() -> None:
    several = [
        CONNECTED.model_copy(update={"name": f"live_feed/{n}", "text": f"{n} is {'long ' * 100}"})
        for n in range(SHOWN + 3)
    ]
    several[0] = several[0].model_copy(update={"after": Level.OK, "before": Level.WARN})
    assert title(several) == "23 alerts: 22 ERROR, 1 OK"
    lines = text(several, "A note.").splitlines()
    assert lines[0].startswith("OK again: live_feed/0: 0 is long long")
    assert lines[SHOWN:] == ["And 3 more.", "http://host:3000/assets/live_feed", "A note."]
    assert max(map(len, lines)) < 200
    assert len(as_json(several)["alerts"]) == SHOWN + 3


def test_what_has_the_same_cause_is_one_line() -> None:
    several = [CONNECTED.model_copy(update={"name": name}) for name in ("live_feed/gaps", "live_feed/disk")]
    several.append(CONNECTED.model_copy(update={"name": "ticks/gaps", "partition": "2026-11-20T13:00"}))
    assert text(several).splitlines()[:2] == [
        "ERROR: live_feed/gaps, live_feed/disk: No connection is up.",
        "ERROR: ticks/gaps, the hour 13:00 to 14:00 IST of 2026-11-20: No connection is up.",
    ]


def test_what_fails_where_alerts_begin_is_one_alert() -> None:
    begun = summary([CONNECTED, CONNECTED.model_copy(update={"name": "ingest_job"})], NOW)
    assert title([begun]) == "ERROR: alerts begin"
    assert "again:\nERROR: live_feed/connected, ingest_job: No connection is up." in text([begun])


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        ("2026-11-20T23:00", "the hour 23:00 to 00:00 IST of 2026-11-20"),
        ("2026-11-20", "the day 2026-11-20"),
        ("north", "north"),
    ],
)
def test_partitions_are_said_as_hours_and_days(partition: str, words: str) -> None:
    assert hour_in_words(partition) == words
