"""Each link of `why`, whole and broken: over a real journal and database, and over a capture that runs."""

import asyncio
import os
import re
import socket
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.diagnosis import machine
from dhan_pipeline.diagnosis.walk import LINKS, Walk, walk
from dhan_pipeline.feeds.by_source import feed_of
from dhan_pipeline.feeds.connection import FeedPolicy
from dhan_pipeline.feeds.simulator.faults import happening, parse_fault
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.ingest.writer import Writer
from dhan_pipeline.journal.reader import captures, list_files, lock_path
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline.store.ledger import write_status
from dhan_pipeline.store.subscribed import record as record_subscribed
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.broker import FUTURE, RELIANCE, TCS, insert_instruments
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.diagnosis.conftest import write_rules
from dhan_pipeline_tests.ingest.feed import (
    BOTH_SOURCES,
    EQUITY,
    SECOND_NS,
    SUBSCRIPTIONS_OF,
    HandClock,
    backlog_of,
    full,
    prepare_capture,
    query,
    record,
    running,
    simulator_of,
)
from dhan_pipeline_tests.ingest.feed import until as wait_until
from dhan_pipeline_tests.ingest.running import ingest
from dhan_pipeline_tests.test_docs import REPOSITORY, sections, text

#: Half past ten of a Friday.
NOW = datetime(2026, 11, 20, 10, 30, tzinfo=IST)
NOW_NS = int(NOW.timestamp()) * SECOND_NS

STATUS: dict[str, Any] = {
    "connections_up": 1,
    "connections": 1,
    "backlog_seconds": 0.0,
    "backlog_blocks": 0,
    "last_packet_at": (NOW - timedelta(seconds=1)).astimezone(UTC).isoformat(),
}


class Way:
    """A capture that reports, RELIANCE (S2885) in its list, and ten packets of it: journaled, stored."""

    def __init__(self, settings: Settings, conn: connection) -> None:
        self.settings = settings
        self.conn = conn
        self.clock = HandClock(NOW_NS)

    def walk(self, symbol: str = "S2885") -> Walk:
        found = walk(self.settings, symbol, self.clock)
        for link in found.links:
            assert link.fix or link.state == "ok", link
            assert not re.search(r"://\w|Traceback", link.found + link.fix)
        return found

    def execute(self, statement: str, *values: object) -> None:
        with self.conn, self.conn.cursor() as cursor:
            cursor.execute(statement, values)

    def reports(self, **status: object) -> None:
        write_status(self.conn, 0, "dhan", STATUS | status)
        self.execute("UPDATE captures SET started_at = %s", NOW - timedelta(hours=1))

    def receive(self, *messages: bytes, ago_s: float = 2.0) -> None:
        """Into the journal, and from there into the table."""
        with closing(JournalWriter(self.settings.journal_dir, 0)) as journal:
            backlog = backlog_of(journal, self.settings)
            writer = Writer(self.settings, self.settings.database_url or "", backlog, self.clock, pytest.fail)
            with running(writer, backlog):
                for block in record(journal, messages, NOW_NS - int(ago_s * SECOND_NS)):
                    backlog.put(block)
                wait_until(lambda: writer.counts.committed_through_ns == journal.last_received_ns)
        os.utime(lock_path(self.settings.journal_dir, 0), (0, 0))  # else this process seems to be a capture that starts


@pytest.fixture
def way(tmp_path: Path, database_url: str, conn: connection) -> Way:
    insert_instruments(conn)
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        database_url=database_url,
        subscriptions_file=tmp_path / "subscriptions.yaml",
    )
    write_rules(settings, conn)
    way = Way(settings, conn)
    way.receive(*[full(EQUITY, 100.0 + number) for number in range(10)])
    way.reports()
    return way


def test_where_every_link_holds_the_last_tick_is_told(way: Way) -> None:
    found = way.walk()
    assert {link.name: link.found for link in found.links if link.state != "ok"} == {}
    assert tuple(link.name for link in found.links) == LINKS
    assert found.broken is None
    assert found.verdict == "All is well: its last tick came 2 s ago."
    said = {link.name: link.found for link in found.links}
    assert said["instrument"] == f"S2885 (NSE_EQ, token {RELIANCE}) is known and active."
    by = f"line 3 of {way.settings.subscriptions_file} (symbols: S2885, S11536)"
    assert said["subscription"] == f"It is in the resolved list in full mode, by {by}."
    assert said["session"] == "NSE_EQ is open: continuous."
    assert said["packet"] == "The last came at 2026-11-20 10:29:58.009 IST, 2 s ago, on connection 4: full."
    assert said["row"].startswith("109.00 at 2026-11-20 10:29:58.009 IST, 2 s ago, stored ")


def test_every_link_has_its_section_in_the_documentation() -> None:
    document = sections(text(REPOSITORY / "docs" / "doctor.md"))
    assert tuple(re.findall(r"^### (.+)$", document["The links of why"], re.MULTILINE)) == LINKS


def nothing(way: Way) -> None:
    """Another instrument is asked about."""


def silent(way: Way) -> None:
    gap = Gap(NOW_NS, 0, NOW_NS - 60 * SECOND_NS, Cause.SILENT, "it had been lively", (RELIANCE,))
    with way.conn, way.conn.cursor() as cursor:
        apply_notes(cursor, 0, [(NOW_NS, gap)])


def lost(way: Way) -> None:
    gap = Gap(NOW_NS, 3, NOW_NS - 60 * SECOND_NS, Cause.RESET, "the connection was reset", (RELIANCE, TCS))
    with way.conn, way.conn.cursor() as cursor:
        apply_notes(cursor, 0, [(NOW_NS, gap)])


def rejected(way: Way) -> None:
    way.execute(
        "INSERT INTO rejected_packets VALUES (1, 0, %s, 0, 'unknown instrument', %s)",
        NOW - timedelta(seconds=1),
        full(EQUITY, 100.0),
    )


def late_list(way: Way) -> None:
    record_subscribed(way.conn, 0, {TCS: Mode.FULL}, NOW - timedelta(hours=1))


def no_journal(way: Way) -> None:
    for capture in captures(way.settings.journal_dir):
        for path in list_files(way.settings.journal_dir, capture):
            path.unlink()


def does(statement: str) -> Callable[[Way], None]:
    return lambda way: way.execute(statement)


def reports(**status: object) -> Callable[[Way], None]:
    return lambda way: way.reports(**status)


MINUTES_AGO = (NOW - timedelta(minutes=5)).isoformat()


@pytest.mark.parametrize(
    ("break_it", "symbol", "broken", "found", "fix"),
    [
        (nothing, "S28855", "instrument", "No instrument is called S28855; near it: S2885.", "dhan-pipeline find"),
        (
            does("UPDATE instruments SET is_active = false"),
            str(RELIANCE),
            "instrument",
            "not in the broker's list",
            "sync-instruments",
        ),
        (
            does("UPDATE instruments SET expiry = '2026-03-26'"),
            str(RELIANCE),
            "instrument",
            "expired on 2026-03-26",
            "dhan-pipeline find",
        ),
        (
            nothing,
            str(FUTURE),
            "subscription",
            "none of the 3 instruments of the resolved list, and no rule selects it",
            "Add it to a rule",
        ),
        (
            lambda way: way.settings.subscriptions_path.unlink(),
            "S2885",
            "subscription",
            "no resolved subscriptions",
            "dhan-pipeline subscriptions",
        ),
        (late_list, "S2885", "subscription", "has not subscribed to it", "Ask again in some seconds"),
        (does("DELETE FROM captures"), "S2885", "capture", "Capture 0 does not run, and should.", "ingest_supervisor"),
        (
            reports(token_problem="The token is over."),
            "S2885",
            "capture",
            "The token is over.",
            "dhan-pipeline token check",
        ),
        (reports(connections_up=0), "S2885", "connection", "0 of 1 are up", "dhan-pipeline gaps"),
        (
            lost,
            "S2885",
            "connection",
            "connection 3 brings nothing since 10:29:00 IST: reset, the connection was reset",
            "network",
        ),
        (
            reports(last_packet_at=MINUTES_AGO),
            "S2885",
            "connection",
            "nothing came through any for 300 s",
            "FEED_SILENCE_S",
        ),
        (
            silent,
            "S2885",
            "packet",
            "It fell silent at 10:29:00 IST, while others went on: it had been lively",
            "A halt",
        ),
        (
            no_journal,
            "S2885",
            "packet",
            "None of the journal's packets of the last 24 h is of it",
            "restart the capture",
        ),
        (
            rejected,
            "S2885",
            "rejected",
            "Rejected today: 1 packet of it, the last at 10:29:59 IST: unknown instrument (1)",
            "redrive",
        ),
        (
            reports(backlog_seconds=12.5, backlog_blocks=99),
            "S2885",
            "writer",
            "12.5 s behind what was received (99 blocks to store)",
            "catches up",
        ),
        (
            reports(backlog_seconds=12.5, backlog_blocks=99, store_problem="No space left on device"),
            "S2885",
            "writer",
            "The database takes nothing of it: No space left on device.",
            "room on its disk",
        ),
        (
            reports(backlog_seconds=12.5, queue_depth=None, workers=0, dead_letters=None),
            "S2885",
            "writer",
            "RabbitMQ is away",
            "Start the broker",
        ),
        (
            reports(backlog_seconds=12.5, queue_depth=40, workers=0, dead_letters=0),
            "S2885",
            "writer",
            "No worker runs",
            "dhan-pipeline worker",
        ),
        (
            reports(backlog_seconds=12.5, queue_depth=40, workers=2, dead_letters=0),
            "S2885",
            "writer",
            "RabbitMQ holds 40 messages for 2 workers",
            "messages of the workers",
        ),
        (
            does("DELETE FROM tick_rows"),
            "S2885",
            "row",
            "none of it of the last 7 days, though the journal has packets",
            "materialise",
        ),
    ],
)
def test_the_first_link_that_is_broken_is_told(
    way: Way, break_it: Callable[[Way], None], symbol: str, broken: str, found: str, fix: str
) -> None:
    break_it(way)
    told = way.walk(symbol)
    assert told.broken == broken
    link = next(link for link in told.links if link.name == broken)
    assert found in link.found
    assert fix in link.fix
    assert broken == "instrument" or told.verdict.startswith(f"The link that broke is `{broken}`: {link.found}")


def test_a_capture_that_the_database_hears_nothing_of_is_not_one_that_does_not_run(way: Way) -> None:
    way.execute("DELETE FROM captures")
    with closing(JournalWriter(way.settings.journal_dir, 0)):
        os.utime(lock_path(way.settings.journal_dir, 0), (0, 0))  # for long
        told = way.walk()
    assert told.broken == "capture"
    assert "its journal is locked, but the database hears nothing of it" in told.verdict


def test_where_none_runs_because_the_disk_is_full_the_disk_is_told(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    way.execute("DELETE FROM captures")
    monkeypatch.setattr(machine, "_FULL", 1 << 60)
    assert "Capture 0 does not run, and should. The journal's disk is full. Make room" in way.walk().verdict


def test_dead_letters_are_worth_a_word(way: Way) -> None:
    way.reports(queue_depth=0, workers=2, dead_letters=3)
    told = way.walk("S2885")
    link = next(link for link in told.links if link.name == "writer")
    assert link.state == "warn"
    assert "3 more could not be stored (dead letters)" in link.found
    assert "redrive --list" in link.fix


def test_a_rule_that_selects_what_the_list_lacks_is_named(way: Way) -> None:
    with way.settings.subscriptions_file.open("a") as file:
        file.write("  - list: watch.csv\n")
    (way.settings.subscriptions_file.parent / "watch.csv").write_text(f"instrument_token\n{FUTURE}\n")
    told = way.walk(str(FUTURE))
    assert told.broken == "subscription"
    assert "line 4 of" in told.verdict
    assert "Run `dhan-pipeline subscriptions`; a capture" in told.verdict


def test_of_one_that_nobody_subscribed_to_no_packet_is_missed(way: Way) -> None:
    told = way.walk(str(FUTURE))
    assert [link.name for link in told.links if link.state == "bad"] == ["subscription"]
    assert next(link.found for link in told.links if link.name == "packet").startswith("None of the journal's packets")


def test_a_market_that_is_closed_breaks_no_link(way: Way) -> None:
    way.clock.at_ns += 86_400 * SECOND_NS
    way.execute("DELETE FROM captures")
    told = way.walk()
    assert told.broken is None
    assert told.verdict == "No link is broken: NSE_EQ is closed, and its last tick came 24 h ago."
    assert {link.name: link.found for link in told.links}["session"].endswith("It opens Mon 2026-11-23 09:00 IST.")


def test_a_capture_that_should_run_for_others_breaks_no_link_of_a_market_that_is_closed(way: Way) -> None:
    way.execute("DELETE FROM captures")
    way.clock.at_ns = int(datetime(2026, 11, 20, 16, 1, tzinfo=IST).timestamp()) * SECOND_NS
    told = way.walk()
    assert told.broken is None
    assert told.verdict.startswith("No link is broken: NSE_EQ is closed, and ")
    [capture] = [link for link in told.links if link.name == "capture"]
    assert (capture.state, capture.found) == ("warn", "Capture 0 does not run, and should.")


def test_without_instruments_and_without_tables_the_command_that_brings_them_is_named(way: Way) -> None:
    way.execute("DELETE FROM instruments")
    [link] = way.walk("S2885").links
    assert link.found.startswith("The database has no instruments of dhan yet")
    assert link.fix.startswith("Run `dhan-pipeline sync-instruments --download`")
    way.execute("DROP TABLE instruments CASCADE")
    [link] = way.walk("NSE:S9").links
    assert link.fix == "Run `dhan-pipeline migrate`."


def test_an_instrument_that_is_quiet_is_worth_a_word(way: Way) -> None:
    way.clock.at_ns += 90 * SECOND_NS
    way.reports(last_packet_at=(NOW + timedelta(seconds=89)).isoformat())
    told = way.walk()
    assert told.broken is None
    assert told.verdict == "No link is broken, but look at `packet`: its last tick came 92 s ago."


def test_what_the_journal_has_later_than_the_table_is_told(way: Way) -> None:
    with closing(JournalWriter(way.settings.journal_dir, 0)) as journal:
        way.clock.at_ns += 20 * SECOND_NS
        record(journal, [full(EQUITY, 111.0)], way.clock.at_ns - SECOND_NS)
    way.reports(last_packet_at=datetime.fromtimestamp(way.clock.at_ns / 1e9, UTC).isoformat())
    told = way.walk()
    assert told.broken == "row"
    assert "the journal has a later packet" in told.verdict


def test_without_the_database_the_list_and_the_journal_still_tell(way: Way) -> None:
    way.settings = way.settings.model_copy(update={"database_url": "postgresql://me:secret@127.0.0.1:1/none"})
    told = way.walk()
    assert told.broken == "writer"
    said = {link.name: link.found for link in told.links}
    assert said["instrument"] == "S2885, by the resolved list, since the database cannot be asked."
    assert said["packet"].endswith(": full.")
    assert said["writer"].startswith("The database cannot be used: ")
    assert "secret" not in told.verdict
    assert way.walk("S28855").broken == "instrument"


def test_a_database_that_takes_connections_and_says_nothing_holds_nobody_up(way: Way) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"postgresql://127.0.0.1:{server.getsockname()[1]}/none"
        told = walk(way.settings.model_copy(update={"database_url": url}), "S2885", way.clock, patience_s=0.2)
    assert told.broken == "instrument"
    assert told.verdict.startswith("No answer within 0 s: the database, or the disk of the journal, hangs.")


@BOTH_SOURCES
async def test_of_a_running_capture_the_connection_that_carries_an_instrument_is_followed(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, source: Source
) -> None:
    settings = Settings(
        _env_file=None,
        data_source=source,
        data_dir=tmp_path / "data",
        database_url=database_url,
        dhan_token_file=tmp_path / "token.json",
        kite_token_file=tmp_path / "token.json",
        subscriptions_file=tmp_path / "subscriptions.yaml",
        sessions="always",
    )
    prepare_capture(settings)
    monkeypatch.setattr(feed_of(settings), "max_instruments", 30)
    subscribed = [each.instrument_token for each in SUBSCRIPTIONS_OF[source]]
    policy = FeedPolicy(first_delay_s=0.05, longest_delay_s=0.1)

    def ask(token: int) -> Walk:
        return walk(settings, str(token), Clock())

    async with simulator_of(settings, rate=2000) as simulator:
        settings = settings.model_copy(update={f"{source}_feed_url": simulator.feed_url})
        async with ingest(settings, policy=policy):
            told: Walk | None = None

            async def whole() -> bool:
                nonlocal told
                told = await asyncio.to_thread(ask, subscribed[-1])
                return told.broken is None and told.verdict.startswith("All is well: its last tick came 0.")

            await until_true(whole)
            assert told is not None
            said = {link.name: link.found for link in told.links}
            assert said["connection"].startswith("Connection 1 carries it; 2 of 2 are up")
            assert "The capture is subscribed to it in" in said["subscription"]
            async with happening(simulator, parse_fault("unreachable")):
                simulator.reset()
                await until(
                    lambda: query(database_url, "SELECT count(*) FROM feed_gaps WHERE ended_at IS NULL") == [(2,)]
                )
                broken = await asyncio.to_thread(ask, subscribed[0])
            assert broken.broken == "connection"
            assert "connection 0 brings nothing since" in broken.verdict


async def until_true(condition: Callable[[], Any]) -> None:
    for _ in range(200):
        if await condition():
            return
    raise AssertionError("it did not come to pass in time")
