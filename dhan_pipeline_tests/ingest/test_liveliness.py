from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.ingest import liveliness as module
from dhan_pipeline.ingest.liveliness import Liveliness
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.instruments import InstrumentIndex, generate_instrument_token
from dhan_pipeline.journal.notes import NOTE_CONNECTION, encode_note
from dhan_pipeline.journal.stretch import join
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import DAY_NS, IST_OFFSET_S, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.ingest.feed import EQUITY, FUTURE, SECOND_NS, START_NS, TOKENS, packet, ticker

EQUITY_TOKEN, FUTURE_TOKEN = TOKENS[1], TOKENS[2]
OTHER_EQUITY = (EQUITY[0], 2886)
OTHER_TOKEN = generate_instrument_token(*OTHER_EQUITY)
THREE = {EQUITY_TOKEN: 3, FUTURE_TOKEN: 3, TOKENS[0]: 3}


class Heard:
    """What the listener heard."""

    def __init__(self) -> None:
        self.fell: list[tuple[tuple[int, ...], int, int]] = []
        self.back: list[tuple[tuple[int, ...], int]] = []

    def silent(self, instruments: tuple[int, ...], connection: int, since_ns: int) -> None:
        self.fell.append((instruments, connection, since_ns))

    def heard(self, instruments: tuple[int, ...], at_ns: int) -> None:
        self.back.append((instruments, at_ns))


class Shown:
    """A liveliness that sees what a journal is given."""

    def __init__(
        self, settings: Settings, journal: JournalWriter, connections: Mapping[int, int] = MappingProxyType(THREE)
    ) -> None:
        self.journal = journal
        self.heard = Heard()
        self.processor = BlockProcessor(np.array([*TOKENS, OTHER_TOKEN]), decoder(settings))
        self.liveliness = Liveliness(settings, connections, self.heard)
        self.liveliness.know(self.processor.instruments)

    def see(self, at_ns: int, *messages: bytes, connection: int = 3) -> None:
        times = [at_ns + n for n in range(len(messages))]
        text = [connection == NOTE_CONNECTION] * len(messages)
        block = self.journal.append(times, [connection] * len(messages), text, messages)
        self.liveliness.see(self.processor.process(join([block])))

    def trade(self, start_ns: int, seconds: int, *instruments: tuple[int, int]) -> int:
        """A packet a second of each; returns when it ended."""
        for second in range(seconds):
            at_ns = start_ns + second * SECOND_NS
            self.see(at_ns, *(ticker(instrument, 100.0) for instrument in instruments))  # type: ignore[arg-type]
        return start_ns + seconds * SECOND_NS


@pytest.fixture
def shown(settings: Settings, journal: JournalWriter) -> Shown:
    return Shown(settings, journal)


INDEX = (0, 13)


def test_a_lively_instrument_that_falls_silent_among_others_is_told_with_its_last_packet(shown: Shown) -> None:
    at_ns = shown.trade(START_NS, 320, EQUITY, FUTURE, INDEX)
    back_ns = shown.trade(at_ns, 60, FUTURE, INDEX)
    [(instruments, connection, since_ns)] = shown.heard.fell
    assert (instruments, connection) == ((EQUITY_TOKEN,), 3)
    assert at_ns - 2 * SECOND_NS <= since_ns < at_ns
    shown.trade(back_ns, 2, EQUITY, FUTURE, INDEX)
    assert shown.heard.back == [((EQUITY_TOKEN,), back_ns // 1000 * 1000)]


def test_a_segment_that_falls_silent_is_told_at_once_and_not_instrument_by_instrument(
    settings: Settings, journal: JournalWriter
) -> None:
    shown = Shown(settings, journal, connections=dict.fromkeys([*TOKENS, OTHER_TOKEN], 3))
    at_ns = shown.trade(START_NS, 320, EQUITY, OTHER_EQUITY, INDEX)
    back_ns = shown.trade(at_ns, 60, INDEX)
    [(instruments, connection, _)] = shown.heard.fell
    assert (set(instruments), connection) == ({EQUITY_TOKEN, OTHER_TOKEN}, 3)
    shown.trade(back_ns, 2, OTHER_EQUITY, INDEX)
    assert shown.heard.back == [(instruments, back_ns // 1000 * 1000)]


def test_a_gap_of_another_connection_changes_nothing(settings: Settings, journal: JournalWriter) -> None:
    shown = Shown(settings, journal, connections=dict.fromkeys([*TOKENS, OTHER_TOKEN], 3) | {FUTURE_TOKEN: 4})
    at_ns = shown.trade(START_NS, 320, EQUITY, OTHER_EQUITY, INDEX)
    note = Gap(at_ns, 4, at_ns, Cause.RESET, ended_ns=at_ns + 1)
    shown.see(at_ns, encode_note(note), connection=NOTE_CONNECTION)
    at_ns = shown.trade(at_ns + SECOND_NS, 60, OTHER_EQUITY, INDEX)
    assert [instruments for instruments, _, _ in shown.heard.fell] == [(EQUITY_TOKEN,)]
    shown.see(at_ns, encode_note(note), connection=NOTE_CONNECTION)
    assert shown.heard.back == []


def test_a_writer_that_begins_again_with_the_same_instruments_goes_on_watching(shown: Shown) -> None:
    at_ns = shown.trade(START_NS, 320, EQUITY, FUTURE, INDEX)
    at_ns = shown.trade(at_ns, 20, FUTURE, INDEX)
    shown.liveliness.know(InstrumentIndex(shown.processor.instruments.tokens))
    shown.trade(at_ns, 40, FUTURE, INDEX)
    assert [instruments for instruments, _, _ in shown.heard.fell] == [(EQUITY_TOKEN,)]


def test_before_the_opening_nobody_is_called_silent(settings: Settings, journal: JournalWriter) -> None:
    shown = Shown(settings.model_copy(update={"sessions": "exchange"}), journal)
    pre_open_ns = parse_hour_key("2026-11-20T09:00")
    at_ns = shown.trade(pre_open_ns, 480, EQUITY, FUTURE, INDEX)
    shown.trade(at_ns, 90, FUTURE, INDEX)
    assert shown.heard.fell == []


def test_trades_of_today_in_a_segment_that_the_calendar_calls_closed_are_noticed(
    settings: Settings, journal: JournalWriter
) -> None:
    shown = Shown(settings.model_copy(update={"sessions": "exchange"}), journal)
    holiday_ns = parse_hour_key("2026-11-24T10:00")

    def trade(at_ns: int, traded_ns: int) -> None:
        traded = traded_ns // SECOND_NS + IST_OFFSET_S
        shown.see(at_ns, packet(ResponseCode.TICKER, EQUITY, 100.0, traded))

    trade(holiday_ns, parse_hour_key("2026-11-23T15:00"))  # what one gets who subscribes on a holiday
    assert shown.liveliness.traded_though_closed == frozenset()
    trade(holiday_ns + 2 * SECOND_NS, holiday_ns)
    assert [segment.name for segment in shown.liveliness.traded_though_closed] == ["NSE_EQ"]
    trade(holiday_ns + 4 * SECOND_NS, parse_hour_key("2026-11-23T15:00"))
    assert [segment.name for segment in shown.liveliness.traded_though_closed] == ["NSE_EQ"]
    trade(holiday_ns + DAY_NS, holiday_ns + DAY_NS)
    assert shown.liveliness.traded_though_closed == frozenset()


def test_after_a_gap_everything_begins_anew(shown: Shown) -> None:
    at_ns = shown.trade(START_NS, 320, EQUITY, FUTURE, INDEX)
    at_ns = shown.trade(at_ns, 60, FUTURE, INDEX)
    note = Gap(at_ns, 3, at_ns, Cause.RESET, ended_ns=at_ns + 1)
    shown.see(at_ns, encode_note(note), connection=NOTE_CONNECTION)
    assert shown.heard.back == [((EQUITY_TOKEN,), 0)]
    shown.trade(at_ns + SECOND_NS, 60, FUTURE, INDEX)
    assert len(shown.heard.fell) == 1


def test_an_instrument_whose_session_is_over_is_not_silent(settings: Settings, journal: JournalWriter) -> None:
    shown = Shown(settings.model_copy(update={"sessions": "exchange"}), journal)
    close_ns = parse_hour_key("2026-11-20T15:00") + 35 * 60 * SECOND_NS  # of equities; futures go on to 15:40
    at_ns = shown.trade(close_ns - 320 * SECOND_NS, 320, EQUITY, FUTURE, INDEX)
    shown.trade(at_ns, 60, FUTURE, INDEX)
    assert shown.heard.fell == []


def test_in_the_closing_auction_nobody_is_called_silent(settings: Settings, journal: JournalWriter) -> None:
    shown = Shown(settings.model_copy(update={"sessions": "exchange"}), journal)
    auction_ns = parse_hour_key("2026-11-20T15:00") + 15 * 60 * SECOND_NS
    at_ns = shown.trade(auction_ns - 320 * SECOND_NS, 320, EQUITY, FUTURE, INDEX)
    shown.trade(at_ns, 90, FUTURE, INDEX)
    assert shown.heard.fell == []


def test_gathered_over_blocks_it_says_the_same_as_block_by_block(
    settings: Settings, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = dict.fromkeys([*TOKENS, OTHER_TOKEN], 3)
    gathered, one_by_one = (Shown(settings, journal, connections=everyone) for _ in range(2))

    def see(at_ns: int, *sent: bytes, connection: int = 3) -> None:
        text = [connection == NOTE_CONNECTION] * len(sent)
        appended = journal.append([at_ns] * len(sent), [connection] * len(sent), text, sent)
        block = gathered.processor.process(join([appended]))
        for shown, waiting_rows in ((gathered, 1 << 14), (one_by_one, -1)):
            monkeypatch.setattr(module, "_WAITING_ROWS", waiting_rows)
            shown.liveliness.see(block)
        assert not one_by_one.liveliness._waiting

    def trade(instrument: tuple[int, int], at_ns: int, *, long: bool) -> bytes:
        traded = at_ns // SECOND_NS + IST_OFFSET_S
        if long:
            return packet(ResponseCode.QUOTE, instrument, 100.0, 5, traded)  # type: ignore[arg-type]
        return packet(ResponseCode.TICKER, instrument, 100.0, traded)  # type: ignore[arg-type]

    random = np.random.default_rng(11)
    away = {EQUITY: [(320, 380), (790, 850)], FUTURE: [(370, 430)], OTHER_EQUITY: [(395, 470)], INDEX: []}
    gathers = 0
    for step in range(4 * 860):
        second = step / 4
        at_ns = START_NS + step * SECOND_NS // 4
        if second == 440:  # in the midst of a silence
            see(at_ns, encode_note(Gap(at_ns, 3, at_ns, Cause.RESET, ended_ns=at_ns + 1)), connection=NOTE_CONNECTION)
        sent = [
            trade(instrument, at_ns, long=long)
            for instrument, silences in away.items()
            if not any(since <= second < until for since, until in silences)
            for long in (random.random(random.integers(0, 4)) < 0.5).tolist()
        ]
        if sent:
            see(at_ns, *sent)
        gathers += len(gathered.liveliness._waiting) > 1
    assert gathers > 1000

    fell, back = gathered.heard.fell, gathered.heard.back
    assert [told[:2] for told in fell] == [told[:2] for told in one_by_one.heard.fell]
    assert [told[0] for told in back] == [told[0] for told in one_by_one.heard.back]
    assert [instruments for instruments, _, _ in fell] == [
        (EQUITY_TOKEN,),
        (FUTURE_TOKEN,),
        (OTHER_TOKEN,),
        (EQUITY_TOKEN,),
    ]
    assert len(back) == len(fell)
    for one, other in zip(fell, one_by_one.heard.fell, strict=True):
        assert abs(one[2] - other[2]) <= SECOND_NS
    for one, other in zip(back, one_by_one.heard.back, strict=True):
        assert abs(one[1] - other[1]) <= SECOND_NS
    assert gathered.liveliness.trade_clock == one_by_one.liveliness.trade_clock == "ok"


def test_trade_times_close_to_receipt_are_those_of_the_clock_that_is_expected(shown: Shown) -> None:
    assert shown.liveliness.trade_clock is None
    shown.trade(START_NS, 300, EQUITY, FUTURE)
    assert shown.liveliness.trade_clock == "ok"


def test_trade_times_in_true_utc_are_noticed(shown: Shown) -> None:
    for second in range(400):
        at_ns = START_NS + second * SECOND_NS
        shown.see(at_ns, packet(ResponseCode.TICKER, EQUITY, 100.0, at_ns // SECOND_NS))
    assert shown.liveliness.trade_clock == "moved"


def test_others_that_come_and_go_leave_what_is_known_of_the_rest(shown: Shown) -> None:
    at_ns = shown.trade(START_NS, 320, EQUITY, FUTURE, INDEX)
    shown.liveliness.change({EQUITY_TOKEN: 3, FUTURE_TOKEN: 3, OTHER_TOKEN: 4}, {TOKENS[0], OTHER_TOKEN})
    # A third of what came on the connection is gone, so more time passes before as much has come without it.
    shown.trade(at_ns, 160, FUTURE, OTHER_EQUITY)
    assert [instruments for instruments, _, _ in shown.heard.fell] == [(EQUITY_TOKEN,)]  # the index is not missed


def test_one_that_is_silent_and_no_longer_subscribed_is_not_silent_any_more(shown: Shown) -> None:
    at_ns = shown.trade(START_NS, 320, EQUITY, FUTURE, INDEX)
    at_ns = shown.trade(at_ns, 60, FUTURE, INDEX)
    assert [instruments for instruments, _, _ in shown.heard.fell] == [(EQUITY_TOKEN,)]
    shown.liveliness.change({FUTURE_TOKEN: 3, TOKENS[0]: 3}, {EQUITY_TOKEN})
    shown.trade(at_ns, 2, FUTURE, INDEX)
    assert shown.heard.back == [((EQUITY_TOKEN,), 0)]


def test_one_in_another_mode_is_watched_anew(shown: Shown) -> None:
    at_ns = shown.trade(START_NS, 320, EQUITY, FUTURE, INDEX)
    shown.liveliness.change(THREE, {EQUITY_TOKEN})
    shown.trade(at_ns, 60, FUTURE, INDEX)
    assert shown.heard.fell == []


def test_a_segment_that_is_silent_ends_being_so_when_others_of_it_are_subscribed(
    settings: Settings, journal: JournalWriter
) -> None:
    equities = {EQUITY_TOKEN: 3, OTHER_TOKEN: 3, FUTURE_TOKEN: 3}
    shown = Shown(settings, journal, equities)
    at_ns = shown.trade(START_NS, 320, EQUITY, OTHER_EQUITY, FUTURE)
    at_ns = shown.trade(at_ns, 60, FUTURE)
    [(silent, _, _)] = shown.heard.fell
    assert set(silent) == {EQUITY_TOKEN, OTHER_TOKEN}
    shown.liveliness.change({EQUITY_TOKEN: 3, FUTURE_TOKEN: 3}, {OTHER_TOKEN})
    shown.trade(at_ns, 5, FUTURE)
    assert shown.heard.back == [(silent, 0)]
