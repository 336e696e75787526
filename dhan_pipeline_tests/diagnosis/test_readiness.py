"""Each line of `doctor`, well and red. What is asked is real; only the clock is set."""

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection
from pydantic import SecretStr

from dhan_pipeline import special_days
from dhan_pipeline.clock import Clock
from dhan_pipeline.diagnosis.account import token_and_plan
from dhan_pipeline.diagnosis.findings import Finding, red
from dhan_pipeline.diagnosis.machine import calendar, disk, judge_open_files
from dhan_pipeline.diagnosis.readiness import PROBES, examine
from dhan_pipeline.diagnosis.running import rabbitmq
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.kite.auth import save_kite_token
from dhan_pipeline.feeds.simulator.kite_rest import KiteRest
from dhan_pipeline.feeds.simulator.tokens import (
    API_KEY,
    CLIENT_ID,
    PIN,
    TOTP_SECRET,
    make_kite_access_token,
    make_token,
)
from dhan_pipeline.journal.holder import Holder, boot_id
from dhan_pipeline.journal.reader import hour_path, lock_path
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import DAY_NS, hour_key
from dhan_pipeline.settings import UP_LOCK, Settings
from dhan_pipeline.store.ledger import write_status
from dhan_pipeline.transport.inlet import inlet
from dhan_pipeline.transport.outlet import outlet
from dhan_pipeline_tests.broker import running
from dhan_pipeline_tests.diagnosis.conftest import RULES, Site, at, well, write_rules
from dhan_pipeline_tests.test_docs import REPOSITORY, sections, text

STATUS: dict[str, Any] = {
    "connections_up": 2,
    "connections": 2,
    "messages_per_second": 1234.5,
    "backlog_seconds": 0.0,
    "token_problem": None,
}


def look(site: Site, patience_s: float = 25.0) -> dict[str, Finding]:
    findings = examine(site.settings, site.clock, patience_s)
    for finding in findings:
        assert finding.fix or finding.state == "ok", finding
        assert finding.found.endswith((".", "?")), finding
        said = finding.found + finding.fix
        assert "eyJ" not in said
        assert not re.search(r"://\w", said)
        assert "Traceback" not in said
    return {finding.name: finding for finding in findings}


@pytest.fixture
def running_site(site: Site) -> Site:
    """A capture reports."""
    write_status(site.conn, 0, "dhan", STATUS)
    return site


def test_where_all_is_well_every_line_says_so(running_site: Site) -> None:
    found = look(running_site)
    assert {name: finding.found for name, finding in found.items() if finding.state != "ok"} == {}
    expected = [name for probe in PROBES for name in probe.names if name != "rabbitmq"]
    assert list(found) == expected
    assert found["capture"].found.endswith("with 2 of 2 connections up, 1,234 messages/s, and 0.0 s to catch up.")
    assert found["subscriptions"].found == "3 of at most 25,000; each is listed and has not expired."
    assert re.match(r"PostgreSQL \d+\.\d+", found["database"].found)


def test_every_line_has_its_section_in_the_documentation() -> None:
    document = sections(text(REPOSITORY / "docs" / "doctor.md"))
    described = re.findall(r"^### (.+)$", document["The lines of doctor"], re.MULTILINE)
    assert described == [name for probe in PROBES for name in probe.names]


def no_token(site: Site) -> Site:
    site.settings.dhan_token_file.unlink()
    return site


def expired_token(site: Site) -> Site:
    save_token(site.settings.dhan_token_file, make_token(CLIENT_ID, expires_in=-5, clock=site.clock), CLIENT_ID)
    return site


def another_token(site: Site) -> Site:
    site.rest.active_token = "another"
    return site


def short_token(site: Site) -> Site:
    save_token(site.settings.dhan_token_file, make_token(CLIENT_ID, expires_in=60, clock=site.clock), CLIENT_ID)
    return site


def no_plan(site: Site) -> Site:
    site.rest.data_plan = "Deactive"
    return site


def no_broker(site: Site) -> Site:
    return site.change(dhan_api_url="http://127.0.0.1:1")


def no_feed(site: Site) -> Site:
    return site.change(dhan_feed_url="ws://127.0.0.1:1")


def wrong_feed(site: Site) -> Site:
    return site.change(dhan_feed_url="https://example.com?token=eyJ0.eyJ1.eyJ2")


def no_database(site: Site) -> Site:
    return site.change(database_url="postgresql://me:eyJ0@127.0.0.1:1/none")


def no_database_yet(site: Site) -> Site:
    return site.change(database_url=None)


def sql(statement: str) -> Callable[[Site], Site]:
    def change(site: Site) -> Site:
        with site.conn, site.conn.cursor() as cursor:
            cursor.execute(statement)
        return site

    return change


def old_master(site: Site) -> Site:
    then_ns = site.clock.now_ns() - int(timedelta(days=4).total_seconds() * 1e9)
    os.utime(site.settings.master_path, ns=(then_ns, then_ns))
    return site


def no_rules(site: Site) -> Site:
    site.settings.subscriptions_file.unlink()
    return site


def no_list(site: Site) -> Site:
    site.settings.subscriptions_path.unlink()
    return site


def unknown_name(site: Site) -> Site:
    write_rules(site.settings, site.conn, RULES + "  - symbols: [RELAINCE]\n")
    return site


def huge_day(site: Site) -> Site:
    path = hour_path(site.settings.journal_dir, 0, hour_key(site.clock.now_ns() - DAY_NS))
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(8 << 40)  # without any block on the disk
    return site


def capture_that(**status: object) -> Callable[[Site], Site]:
    def change(site: Site) -> Site:
        write_status(site.conn, 0, "dhan", STATUS | status)
        return sql("UPDATE captures SET started_at = started_at - interval '1 minute'")(site)

    return change


@pytest.mark.parametrize(
    ("provoke", "name", "found", "fix"),
    [
        (no_token, "token", "There is no token file", "DHAN_PIN and DHAN_TOTP_SECRET"),
        (expired_token, "token", "Its time is over", "Write a new token into"),
        (another_token, "token", "DH-906 Invalid Token", "Write a new token into"),
        (short_token, "token", "but it is needed until", "Write a new token into"),
        (no_plan, "data plan", "no active data plan", "Subscribe to Dhan's data APIs"),
        (no_broker, "clock", "cannot be reached", "DHAN_API_URL"),
        (no_feed, "feed", "Connection refused", "DHAN_FEED_URL"),
        (wrong_feed, "feed", "has to be an address with ws://", "DHAN_FEED_URL"),
        (no_database, "database", "The database cannot be used", "DATABASE_URL"),
        (no_database_yet, "database", "There is no database below", "dhan-pipeline db start"),
        (
            sql("DELETE FROM schema_migrations WHERE name = '0021_instrument_lives'"),
            "migrations",
            "To be applied: 0021_instrument_lives",
            "dhan-pipeline migrate",
        ),
        (
            sql("INSERT INTO schema_migrations VALUES ('9999_later')"),
            "migrations",
            "newer than this program",
            "latest version",
        ),
        (sql("DROP TABLE instruments CASCADE"), "instruments", "lacks our tables", "dhan-pipeline migrate"),
        (sql("UPDATE instruments SET is_active = false"), "instruments", "no active", "sync-instruments --download"),
        (old_master, "instruments", "have expired since", "sync-instruments --download"),
        (no_rules, "subscriptions", "There is no file of rules", "subscriptions.yaml"),
        (no_list, "subscriptions", "no resolved subscriptions", "dhan-pipeline subscriptions"),
        (unknown_name, "subscriptions", "is called RELAINCE", "line 4; `dhan-pipeline find`"),
        (
            sql("UPDATE instruments SET expiry = '2026-03-26' WHERE trading_symbol = 'S2885'"),
            "subscriptions",
            "Of 3, these have expired, or are not listed any more: S2885.",
            "dhan-pipeline subscriptions",
        ),
        (sql("SELECT 1"), "capture", "None runs, and one should", "ingest_supervisor"),
        (capture_that(token_problem="The token is over."), "capture", "The token is over.", "Mend `token`"),
        (
            capture_that(store_problem="No space left on device"),
            "capture",
            "The database takes nothing of it: No space left on device.",
            "room on its disk",
        ),
        (capture_that(connections_up=1), "capture", "1 of 2 connections up", "dhan-pipeline gaps"),
        (huge_day, "disk", "GB (as 20", "Make room"),
    ],
)
def test_each_red_line_says_what_was_found_and_what_to_do(
    site: Site, provoke: Callable[[Site], Site], name: str, found: str, fix: str
) -> None:
    line = look(provoke(site))[name]
    assert line.state == "bad"
    assert found in line.found
    assert fix in line.fix


def test_a_capture_that_the_database_hears_nothing_of_is_not_one_that_does_not_run(site: Site) -> None:
    with closing(JournalWriter(site.settings.journal_dir, 0)):
        os.utime(lock_path(site.settings.journal_dir, 0), (0, 0))  # for long
        line = look(site)["capture"]
    assert line.state == "bad"
    assert line.found.startswith("One runs on this machine, for its journal is locked, but the database hears nothing")
    assert "DATABASE_URL" in line.fix


def test_a_token_file_that_others_may_read_is_worth_a_word(running_site: Site) -> None:
    path = running_site.settings.dhan_token_file
    path.chmod(0o644)
    line = look(running_site)["token"]
    assert line.state == "warn"
    assert line.found.endswith(" Others on this machine may read its file (mode 0644).")
    assert line.fix == f"Run `chmod 600 {path}`."
    expired_token(running_site)
    path.chmod(0o640)
    line = look(running_site)["token"]
    assert (line.state, line.fix.endswith(f" Run `chmod 600 {path}`.")) == ("bad", True)


def test_who_did_not_say_whose_feed_it_is_learns_what_that_means(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_SOURCE", raising=False)
    nothing_set = Settings(_env_file=None, data_dir=site.settings.data_dir, kite_token_file=Path("none.json"))
    means = "DATA_SOURCE is not set, which means Kite: for Dhan, set it to dhan."
    for settings in (nothing_set, nothing_set.of("kite")):
        token, _ = token_and_plan(settings, site.clock)
        assert token.found.endswith(means)
    token, _ = token_and_plan(nothing_set.of("dhan").of("kite"), site.clock)
    assert means not in token.found


def test_a_capture_that_is_on_its_way_is_not_red(site: Site) -> None:
    lock, up = lock_path(site.settings.journal_dir, 0), site.settings.data_dir / UP_LOCK
    with closing(JournalWriter(site.settings.journal_dir, 0)):
        line = look(site)["capture"]
        assert line.state == "warn"
        assert re.fullmatch(r"It is starting, for [\d.]+ s now; that takes 90 s at most\.", line.found)
    os.utime(lock, (time.time() - 100, time.time() - 100))
    assert look(site)["capture"].state == "bad"
    with up.open("wb") as file:
        Holder(os.getpid(), boot_id()).write(file.fileno())
    assert look(site)["capture"].state == "warn"


@pytest.mark.parametrize(("time_of_day", "state"), [("08:55:30", "warn"), ("08:57:00", "bad")])
def test_a_capture_that_has_just_become_due_is_not_red(
    tmp_path: Path, database_url: str, conn: connection, time_of_day: str, state: str
) -> None:
    with well(tmp_path, database_url, conn, at(f"2026-11-20T{time_of_day}")) as site:
        line = look(site.change(sessions="exchange"))["capture"]
    assert line.state == state
    assert line.found.startswith("It is starting, for less than 90 s now") == (state == "warn")


def test_a_capture_that_has_just_started_may_still_connect(site: Site) -> None:
    write_status(site.conn, 0, "dhan", STATUS | {"connections_up": 0})
    line = look(site)["capture"]
    assert (line.state, line.fix) == ("warn", "It has just started, and connects: ask again in a minute.")


def test_what_only_deserves_a_word_is_not_red(running_site: Site) -> None:
    yesterday_ns = running_site.clock.now_ns() - int(timedelta(days=1).total_seconds() * 1e9)
    os.utime(running_site.settings.master_path, ns=(yesterday_ns, yesterday_ns))
    running_site.settings.subscriptions_file.write_text("rules:\n  - symbols: [S2885]\n    mode: quote\n")
    made = running_site.change(dhan_pin=PIN, dhan_totp_secret=TOTP_SECRET)
    found = look(expired_token(made))
    assert red([*found.values()]) == []
    warned = {name: finding.found for name, finding in found.items() if finding.state == "warn"}
    assert warned["token"] == "Its time is over. A new one is made by itself before it is needed."
    assert warned["subscriptions"] == "The rules have come to something else since: 1 more, 3 less."
    assert set(warned) >= {"token", "data plan", "subscriptions"}


@pytest.mark.parametrize(("ahead_s", "state"), [(3, "warn"), (-60, "bad"), (60, "bad")])
def test_a_clock_that_is_not_the_brokers_is_told_by_how_much(
    tmp_path: Path, database_url: str, conn: connection, ahead_s: int, state: str
) -> None:
    ours = Clock()
    with well(tmp_path, database_url, conn, ours, Clock(ours.now_ns() - ahead_s * 10**9)) as site:
        line = look(site)["clock"]
    assert line.state == state
    seconds = re.search(r"Our clock is (\d+) s (ahead of|behind) its", line.found)
    assert seconds is not None
    assert abs(int(seconds[1]) - abs(ahead_s)) <= 1
    assert (seconds[2] == "behind") == (ahead_s < 0)


def test_where_the_broker_cannot_be_asked_the_token_is_unknown_and_not_red(running_site: Site) -> None:
    found = look(no_broker(running_site))
    assert red([*found.values()]) == ["clock"]
    assert found["token"].found.startswith("Not known: Dhan does not give the profile: it cannot be reached;")
    assert " By itself it is good until " in found["token"].found
    assert found["token"].fix == found["data plan"].fix.replace("token", "clock") == "Mend `clock` first."


def test_before_the_session_a_token_has_to_last_until_its_close(
    tmp_path: Path, database_url: str, conn: connection
) -> None:
    morning = at("2026-11-20T08:45:00")
    with well(tmp_path, database_url, conn, morning) as site:
        site = site.change(sessions="exchange")
        save_token(site.settings.dhan_token_file, make_token(CLIENT_ID, clock=morning), CLIENT_ID)
        found = look(site)
        assert found["token"].found.endswith("Sat 2026-11-21 08:45 IST, after today's last close at 16:00.")
        assert found["calendar"].found == "The holidays of 2026 are known."
        assert "The next session is Fri 2026-11-20 from 09:00 to 16:00 IST." in found["capture"].found
        early = make_token(CLIENT_ID, clock=morning, expires_in=3600)
        save_token(site.settings.dhan_token_file, early, CLIENT_ID)
        assert look(site)["token"].state == "bad"


def test_on_a_holiday_nothing_is_red_and_the_next_session_is_told(
    tmp_path: Path, database_url: str, conn: connection
) -> None:
    with well(tmp_path, database_url, conn, at("2026-11-21T12:00:00")) as site:
        found = look(expired_token(site.change(sessions="exchange")))
    assert red([*found.values()]) == []
    next_session = "The next session is Mon 2026-11-23 from 09:00 to 16:00 IST."
    assert found["capture"].found == f"None has to run now. {next_session}"
    assert found["token"].found == "Its time is over. The next session opens Mon 2026-11-23 09:00 IST."


def test_a_year_whose_holidays_nobody_knows_is_red(tmp_path: Path, database_url: str, conn: connection) -> None:
    with well(tmp_path, database_url, conn, at("2035-06-01T08:45:00")) as site:
        line = look(site.change(sessions="exchange"))["calendar"]
    assert line.state == "bad"
    assert "knows no holidays of 2035" in line.found


def test_of_a_line_that_cannot_be_read_in_the_sites_own_calendar_it_is_said_to_correct_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "sessions.csv"
    own.write_text("date,equity\n2026-13-29,closed\n")
    monkeypatch.setattr(special_days, "_of_site", (own,))
    [line] = calendar(Settings(_env_file=None), at("2026-11-20T08:45:00"))
    assert line.state == "bad"
    assert "line 2: 2026-13-29 is no date" in line.found
    assert line.fix.startswith("Correct that file")


@pytest.mark.parametrize(("soft", "state"), [(-1, "ok"), (1024, "ok"), (1000, "warn"), (200, "bad")])
def test_a_process_needs_to_have_many_files_open(soft: int, state: str) -> None:
    line = judge_open_files(soft, 4096)
    assert line.state == state
    assert ("ulimit -n 1024" in line.fix) == (state != "ok")


def test_where_no_more_files_can_be_had_it_is_not_said_to_ask_for_as_many() -> None:
    assert judge_open_files(64, 64).fix.startswith("Raise the hard limit")
    assert "ulimit -n 512" in judge_open_files(64, 512).fix


def test_a_data_directory_that_is_none_is_red_however_large_its_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    [line] = disk(Settings(_env_file=None, data_dir=tmp_path / "file" / "data"), Clock())
    assert line.state == "bad"
    assert line.found.endswith(f"cannot be used: {tmp_path / 'file'} is not a directory.")


def test_without_the_database_what_depends_on_it_is_unknown_and_not_red(site: Site) -> None:
    found = look(no_database(site))
    assert red([*found.values()]) == ["database"]
    unknown = {name for name, finding in found.items() if finding.fix == "Mend `database` first."}
    assert unknown == {"migrations", "instruments", "subscriptions", "capture"}
    assert "cannot be seen from here" in found["disk"].found


@contextmanager
def mute_server() -> Iterator[int]:
    """Takes connections, and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


def test_a_probe_that_gets_no_answer_holds_nothing_up(running_site: Site) -> None:
    with mute_server() as port:
        found = look(running_site.change(dhan_api_url=f"http://127.0.0.1:{port}"), patience_s=0.7)
    assert found["clock"].found == found["token"].found == found["data plan"].found == "No answer within 1 s."
    assert found["database"].state == "ok"


def test_each_broker_has_its_lines_and_what_they_share_is_there_once(
    running_site: Site, tmp_path: Path, conn: connection
) -> None:
    kite_file = tmp_path / "kite.json"
    save_kite_token(kite_file, make_kite_access_token(), API_KEY)
    with running(KiteRest(Clock())) as url:
        both = running_site.change(data_source="dhan,kite", kite_api_url=url, kite_token_file=kite_file)
        findings = examine(both.settings, Clock())
    assert [(finding.name, finding.source) for finding in findings][:3] == [
        ("calendar", None),
        ("clock", "dhan"),
        ("clock", "kite"),
    ]
    of_kite = {finding.name: finding for finding in findings if finding.source == "kite"}
    assert of_kite["clock"].state == "ok"
    assert of_kite["instruments"].found == "The database has no active instruments of kite."
    assert sum(finding.name == "database" for finding in findings) == 1
    assert "eyJ" not in json.dumps([finding.found + finding.fix for finding in findings])


def test_rabbitmq_needs_workers(site: Site, rabbitmq_url: str) -> None:
    def line(url: str = rabbitmq_url) -> Finding:
        (found,) = rabbitmq(site.change(transport="rabbitmq", rabbitmq_url=SecretStr(url)).settings, site.clock)
        return found

    fresh = line()
    assert fresh.state == "warn"
    assert re.match(r"RabbitMQ \d+\.\d+\.\d+, without queues yet", fresh.found)

    async def with_workers() -> tuple[Finding, Finding, Finding]:
        async with outlet(rabbitmq_url) as end, inlet(rabbitmq_url) as worker:
            await end.publish([b"one", None, None])
            without = await asyncio.to_thread(line)
            for lane in (1, 2, 3):
                await worker.consume(lane)
            (delivery,) = await worker.take(1, 5)
            taken = await asyncio.to_thread(line)
            await worker.bury(delivery, "It is none.")
            return without, taken, await asyncio.to_thread(line)

    without, taken, buried = asyncio.run(with_workers())
    assert (without.state, "holds 1 message, and 0 dead letters; " in without.found) == ("bad", True)
    assert without.fix == "Run `dhan-pipeline worker`."
    assert taken.state == "ok"
    assert (buried.state, "redrive --list" in buried.fix) == ("warn", True)
    away = line("amqp://me:secret@127.0.0.1:1/")
    assert (away.state, "secret" in away.found) == ("bad", False)
