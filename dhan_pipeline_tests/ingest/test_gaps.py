from collections.abc import Collection
from typing import Any

import pytest

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.ingest.gaps import GapKeeper
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.journal.notes import Note, Started
from dhan_pipeline_tests.ingest.feed import SECOND_NS, START_NS, TOKENS, HandClock

TOKEN = TOKENS[1]


class Kept:
    """A keeper, its clock, its notes and what it emitted."""

    def __init__(self, last_id: int = 0) -> None:
        self.clock = HandClock()
        self.notes: list[Note] = []
        self.events: list[dict[str, Any]] = []
        self.gaps = GapKeeper(
            self.notes.append,
            self.events.append,
            lambda connection: (TOKENS[connection + 1],),
            self.session_seconds,
            self.clock,
            last_id,
        )
        self.open_segments: set[ExchangeSegment] = set(ExchangeSegment)

    def session_seconds(self, started_ns: int, ended_ns: int, segments: Collection[ExchangeSegment]) -> float:
        return (ended_ns - started_ns) / SECOND_NS if self.open_segments & set(segments) else 0.0

    def later(self, seconds: float) -> int:
        """The clock, so much later."""
        self.clock.at_ns += int(seconds * SECOND_NS)
        return self.clock.at_ns

    @property
    def last(self) -> Gap:
        note = self.notes[-1]
        assert isinstance(note, Gap)
        return note


@pytest.fixture
def kept() -> Kept:
    return Kept()


def lost(kept: Kept, cause: Cause = Cause.RESET, since_ns: int | None = None, connection: int = 0) -> None:
    kept.gaps.down(connection, PipelineError("the connection was lost"), cause, since_ns)


def test_a_lost_connection_is_noted_at_once_with_its_last_sign_of_life_and_its_instruments(kept: Kept) -> None:
    lost(kept, since_ns=START_NS)
    gap = kept.last
    assert (gap.connection, gap.started_ns, gap.cause) == (0, START_NS, Cause.RESET)
    assert (gap.detail, gap.instruments, gap.ended_ns) == ("the connection was lost", (TOKEN,), None)
    assert kept.events[-1]["event"] == "gap"
    assert kept.events[-1]["ended_at"] is None


def test_the_first_message_ends_the_gap_and_says_nothing_new_about_its_instruments(kept: Kept) -> None:
    lost(kept, since_ns=START_NS)
    at_ns = kept.later(3)
    kept.gaps.message(0)
    gap = kept.last
    assert gap.gap_id == kept.notes[0].gap_id  # type: ignore[union-attr]
    assert (gap.ended_ns, gap.instruments, gap.recovery) == (at_ns, None, "connected and subscribed again")
    assert kept.events[-1]["seconds"] == 4.0


def test_later_messages_are_not_noted(kept: Kept) -> None:
    lost(kept, since_ns=START_NS)
    kept.gaps.message(0)
    count = len(kept.notes)
    kept.gaps.message(0)
    kept.gaps.message(1)
    assert len(kept.notes) == count


def test_attempts_that_fail_belong_to_the_gap_that_is_open(kept: Kept) -> None:
    lost(kept, since_ns=START_NS)
    lost(kept)
    lost(kept)
    assert len(kept.notes) == 1


def test_a_token_or_a_limit_that_keeps_the_connection_away_becomes_the_cause(kept: Kept) -> None:
    lost(kept, since_ns=START_NS)
    kept.gaps.down(0, PipelineError("the token's time is over"), Cause.TOKEN, None)
    kept.gaps.down(0, PipelineError("the token's time is over"), Cause.TOKEN, None)
    assert [note.cause for note in kept.notes] == [Cause.RESET, Cause.TOKEN]
    assert (kept.last.detail, kept.last.started_ns) == ("the token's time is over", START_NS)
    kept.gaps.message(0)
    assert kept.last.cause is Cause.TOKEN


def test_a_connection_that_never_stood_misses_packets_from_the_first_failure_on(kept: Kept) -> None:
    at_ns = kept.later(1)
    lost(kept)
    assert kept.last.started_ns == at_ns


def test_a_process_begins_where_the_journal_ends_on_every_connection() -> None:
    kept = Kept(last_id=START_NS)
    kept.gaps.begin(2, Started(7, START_NS, Cause.HOST_DOWN, 0))
    assert kept.notes[0] == Started(7, START_NS, Cause.HOST_DOWN, 0)
    gaps = [note for note in kept.notes if isinstance(note, Gap)]
    assert [(gap.connection, gap.started_ns, gap.cause) for gap in gaps] == [
        (0, START_NS, Cause.HOST_DOWN),
        (1, START_NS, Cause.HOST_DOWN),
    ]
    kept.gaps.message(1)
    assert (kept.last.connection, kept.last.recovery) == (1, "the capture ran again")


def test_the_first_process_of_all_has_missed_nothing(kept: Kept) -> None:
    kept.gaps.begin(2, Started(7, None, Cause.RESTART, 0))
    assert kept.notes == [Started(7, None, Cause.RESTART, 0)]


def test_ids_grow_even_when_the_clock_stands_still_or_is_behind_the_journal() -> None:
    kept = Kept(last_id=START_NS + 100 * SECOND_NS)
    lost(kept)
    lost(kept, connection=1)
    first, second = (note.gap_id for note in kept.notes if isinstance(note, Gap))
    assert START_NS + 100 * SECOND_NS < first < second


def test_a_process_that_stood_still_missed_what_came_meanwhile_on_connections_that_stood(kept: Kept) -> None:
    lost(kept, since_ns=START_NS)
    since_ns = kept.clock.at_ns
    until_ns = kept.later(60)
    kept.gaps.suspended(range(2), since_ns)
    opened, ended = kept.notes[1:]
    assert isinstance(opened, Gap)
    assert isinstance(ended, Gap)
    assert (opened.connection, opened.cause, ended.started_ns, ended.ended_ns) == (
        1,
        Cause.SUSPENDED,
        since_ns,
        until_ns,
    )


def test_what_cannot_be_read_any_more_is_a_gap_of_every_connection(kept: Kept) -> None:
    kept.gaps.damaged(2, START_NS, START_NS + SECOND_NS, "09.arrows: 12 bytes at offset 40 are lost")
    ended = [note for note in kept.notes if isinstance(note, Gap) and note.ended_ns]
    assert [(gap.connection, gap.started_ns, gap.ended_ns, gap.cause) for gap in ended] == [
        (0, START_NS, START_NS + SECOND_NS, Cause.DISK),
        (1, START_NS, START_NS + SECOND_NS, Cause.DISK),
    ]


def test_a_silent_instrument_is_a_gap_of_its_own_and_does_not_count_among_those_of_connections(kept: Kept) -> None:
    kept.gaps.silent((TOKEN,), 0, START_NS)
    kept.gaps.silent((TOKEN,), 0, START_NS)
    assert (kept.last.instruments, kept.last.cause, len(kept.notes)) == ((TOKEN,), Cause.SILENT, 1)
    assert kept.gaps.status()["silent"] == [TOKEN]
    kept.gaps.heard((TOKEN,), START_NS + 5 * SECOND_NS)
    assert (kept.last.ended_ns, kept.last.recovery) == (START_NS + 5 * SECOND_NS, "packets came again")
    assert kept.gaps.status() | {"silent": [], "silent_count": 0, "gaps": 0, "gap_recent_s": 0.0} == kept.gaps.status()


def test_instruments_that_find_no_room_are_a_gap_that_lasts(kept: Kept) -> None:
    kept.gaps.shed(TOKENS)
    assert (kept.last.cause, kept.last.instruments, kept.last.ended_ns) == (Cause.LIMIT, tuple(TOKENS), None)
    kept.later(7)
    assert (kept.gaps.status()["gap_open_s"], kept.gaps.status()["gap_cause"]) == (7.0, "limit")


def test_a_silent_segment_lasts_like_the_gap_of_a_connection(kept: Kept) -> None:
    silent = (TOKENS[1], TOKENS[1] + 1)
    kept.gaps.silent(silent, 0, kept.clock.at_ns)
    assert (kept.last.cause, kept.last.instruments, kept.last.detail) == (
        Cause.SILENT,
        silent,
        "nothing came of NSE_EQ",
    )
    kept.later(7)
    status = kept.gaps.status()
    assert (status["gap_open_s"], status["silent"], status["silent_count"]) == (7.0, list(silent), 2)
    kept.gaps.heard(silent, kept.clock.at_ns)
    status = kept.gaps.status()
    assert (status["gap_open_s"], status["gap_recent_s"], status["silent_count"]) == (0.0, 7.0, 0)


def test_a_pause_of_a_lively_connection_is_a_gap_that_is_told_when_it_is_over(kept: Kept) -> None:
    since_ns = kept.clock.at_ns
    until_ns = kept.later(8)
    kept.gaps.paused(0, since_ns, until_ns)
    [gap] = kept.notes
    assert isinstance(gap, Gap)
    assert (gap.started_ns, gap.ended_ns, gap.cause, gap.instruments) == (since_ns, until_ns, Cause.STALL, (TOKEN,))
    status = kept.gaps.status()
    assert (kept.gaps.count, status["gap_recent_s"], status["gap_cause"]) == (1, 8.0, "stall")


def test_an_outage_is_no_pause_of_its_own_however_close_its_beginning_is_to_the_last_message(kept: Kept) -> None:
    last_message_ns = kept.clock.at_ns
    lost(kept, since_ns=last_message_ns - 1000)
    kept.later(60)
    kept.gaps.message(0)
    kept.gaps.paused(0, last_message_ns, kept.clock.at_ns + 1000)
    assert len(kept.notes) == 2
    since_ns = kept.clock.at_ns + 1000
    kept.gaps.paused(0, since_ns, since_ns + 6 * SECOND_NS)
    assert (kept.last.started_ns, kept.last.cause) == (since_ns, Cause.STALL)


def test_of_a_pause_only_what_no_other_gap_explains_is_told(kept: Kept) -> None:
    since_ns = kept.clock.at_ns
    lost(kept, since_ns=kept.later(2))
    until_ns = kept.later(8)
    kept.gaps.message(0)
    kept.gaps.paused(0, since_ns, until_ns)
    assert len(kept.notes) == 2
    lost_ns = kept.later(6)
    lost(kept, since_ns=lost_ns)
    kept.gaps.message(0)
    kept.gaps.paused(0, until_ns, kept.clock.at_ns)
    gap = kept.last
    assert (gap.cause, gap.started_ns, gap.ended_ns) == (Cause.STALL, until_ns, lost_ns)


def test_the_status_tells_the_seconds_in_session_of_the_oldest_open_gap_and_of_the_longest_recent_one(
    kept: Kept,
) -> None:
    lost(kept, since_ns=kept.clock.at_ns)
    kept.later(2)
    lost(kept, since_ns=kept.clock.at_ns, connection=1)
    kept.later(2)
    assert kept.gaps.status()["gap_open_s"] == 4.0
    kept.gaps.message(0)
    kept.gaps.message(1)
    status = kept.gaps.status()
    assert (status["gap_open_s"], status["gap_recent_s"], status["gaps"]) == (0.0, 4.0, 2)
    kept.later(301)
    assert (kept.gaps.status()["gap_recent_s"], kept.gaps.status()["gap_cause"]) == (0.0, "")


def test_a_stop_that_was_asked_for_is_told_apart_unless_the_capture_does_not_come_back() -> None:
    kept = Kept(last_id=START_NS)
    kept.later(300)
    kept.gaps = GapKeeper(
        kept.notes.append, kept.events.append, lambda _: (TOKEN,), kept.session_seconds, kept.clock, START_NS
    )
    kept.gaps.begin(2, Started(1, START_NS, Cause.STOP, 0))

    def seconds() -> tuple[float, ...]:
        status = kept.gaps.status()
        return tuple(status[name] for name in ("gap_open_s", "gap_recent_s", "gap_stopped_s"))

    since = kept.clock.at_ns - START_NS
    assert seconds() == (0.0, 0.0, since / SECOND_NS)
    kept.gaps.message(0)
    kept.later(61)
    assert seconds() == (since / SECOND_NS + 61, 0.0, since / SECOND_NS)
    kept.gaps.message(1)
    assert seconds() == (0.0, 0.0, since / SECOND_NS + 61)
    lost(kept, since_ns=kept.clock.at_ns)
    kept.later(7)
    kept.gaps.message(0)
    assert seconds() == (0.0, 7.0, since / SECOND_NS + 61)


def test_seconds_out_of_session_do_not_count(kept: Kept) -> None:
    kept.open_segments = {ExchangeSegment.NSE_FNO}
    lost(kept, since_ns=START_NS)
    assert kept.gaps.status()["gap_open_s"] == 0.0


def test_instruments_that_are_added_while_a_connection_is_away_are_missed_too(kept: Kept) -> None:
    instruments = [TOKENS[1]]
    kept.gaps = GapKeeper(
        kept.notes.append, kept.events.append, lambda _: instruments, kept.session_seconds, kept.clock, 0
    )
    kept.gaps.joined(0)
    assert kept.notes == []
    lost(kept, since_ns=START_NS)
    instruments[:] = [TOKENS[2]]
    kept.gaps.joined(0)
    assert kept.last.instruments == (TOKENS[1], TOKENS[2])
    assert (kept.last.started_ns, kept.gaps.count) == (START_NS, 1)
    kept.later(5)
    kept.gaps.message(0)
    assert kept.last.ended_ns == kept.clock.at_ns


def test_the_want_of_what_found_no_room_ends_when_nobody_wants_it_any_more(kept: Kept) -> None:
    kept.gaps.shed(TOKENS[1:3])
    kept.later(60)
    kept.gaps.wanted({TOKENS[2]})
    assert kept.gaps.status()["gap_open_s"] == 60.0
    kept.gaps.wanted({TOKENS[0]})
    assert kept.last.recovery == "they are no longer to be subscribed"
    assert kept.gaps.status()["gap_open_s"] == 0.0


def test_the_seconds_of_gaps_that_are_over_are_found_once_however_often_the_status_is_asked_for() -> None:
    kept = Kept()
    asked = []

    def session_seconds(started_ns: int, ended_ns: int, segments: Collection[ExchangeSegment]) -> float:
        asked.append(started_ns)
        return (ended_ns - started_ns) / SECOND_NS

    kept.gaps = GapKeeper(kept.notes.append, kept.events.append, lambda _: (TOKEN,), session_seconds, kept.clock, 0)
    for number in range(50):
        lost(kept, since_ns=kept.clock.at_ns)
        kept.later(1 + number / 100)
        kept.gaps.message(0)
    assert [kept.gaps.status()["gap_recent_s"] for _ in range(3)] == [1.49] * 3
    assert len(asked) == 50
