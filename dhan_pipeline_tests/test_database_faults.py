"""The database goes away in every way it can: the capture goes on, and catches up while more arrives."""

import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline_tests.child import Child, capture, settled, until
from dhan_pipeline_tests.conservation import check
from dhan_pipeline_tests.ingest.feed import SUBSCRIBED, prepare_capture, query, simulator_of
from dhan_pipeline_tests.proxy import proxy

RATE = 5000.0

#: What a capture that cannot store may hold more in memory: its bounded backlog, and what allocators keep.
GROWTH_MB = 80.0


@pytest.fixture
def server(open_dir: Path) -> Iterator[Path]:
    """The data directory of a server that may be killed."""
    data_dir = open_dir / "victim"
    embedded.start(data_dir)
    yield data_dir
    embedded.stop(data_dir)


@pytest.fixture
def settings(server: Path, tmp_path: Path, source: Source) -> Settings:
    url = embedded.url(server)
    assert url is not None
    with closing(connect(url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    migrate(url)
    settings = Settings(
        _env_file=None,
        data_source=source,
        data_dir=tmp_path / "data",
        database_url=url,
        dhan_token_file=tmp_path / "token.json",
        kite_token_file=tmp_path / "token.json",
    )
    prepare_capture(settings)
    return settings


def postmaster(server: Path) -> int:
    return int(next(server.glob("postgresql-*/data/postmaster.pid")).read_text().split()[0])


def backends(url: str) -> list[int]:
    return [pid for (pid,) in query(url, "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")]  # type: ignore[misc]


def end_capture_sessions(conn: connection) -> None:
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'dhan_pipeline' AND pid <> pg_backend_pid()"
        )


async def goes_on(child: Child, seconds: float) -> None:
    """Wait until so many seconds' messages more were captured, of which Kite's hold several packets."""
    before = child.last_status["messages"]
    rate = RATE if child.events[0]["source"] == "dhan" else RATE / 40
    await until(lambda: child.last_status["messages"] >= before + seconds * rate)


async def nothing_is_stored(child: Child) -> None:
    """Wait until the capture falls behind, and has gone on for some seconds after."""
    await until(lambda: child.last_status["backlog_seconds"] > 1)
    await goes_on(child, 3)


async def survives(
    settings: Settings,
    fault: AbstractContextManager[None],
    through: Callable[[Child], Awaitable[None]] = nothing_is_stored,
    url: str | None = None,
) -> Child:
    """A capture goes through the fault, catches up while more arrives, and ends well.

    The fault lasts until `through` has seen enough. `url` is the capture's own way to the database, if it has one.
    """
    assert settings.database_url is not None
    async with (
        simulator_of(settings, rate=RATE, record=True) as simulator,
        capture(settings, simulator.feed_url, DATABASE_URL=url or settings.database_url) as child,
    ):
        await until(lambda: child.stored > RATE)
        rss_mb = child.last_status["rss_mb"]
        with fault:
            await through(child)
            assert child.last_status["rss_mb"] < rss_mb + GROWTH_MB
        await until(lambda: child.last_status["backlog_seconds"] < 0.5)
        simulator.rate = 0
        simulator.flush()
        await settled(child)
        child.process.send_signal(signal.SIGTERM)
        assert await child.ended() == 0
        assert simulator.skipped == 0
    report = check(simulator.logs, settings, settings.database_url)
    assert (report.problems, report.lost_in_gaps) == ([], 0)
    assert query(settings.database_url, "SELECT count(*) FROM feed_gaps") == [(0,)]
    # The exchange's cumulative volume of a day only grows: rows in the journal's order are in that of the feed.
    assert query(
        settings.database_url,
        "SELECT count(*) FROM (SELECT volume_traded - lag(volume_traded) OVER (PARTITION BY instrument_token, "
        "(time AT TIME ZONE 'Asia/Kolkata')::date ORDER BY tick_id) AS step FROM ticks) AS steps WHERE step < 0",
    ) == [(0,)]
    return child


@contextmanager
def hung(url: str) -> Iterator[None]:
    """The sessions stand, and nobody answers."""
    stopped = backends(url)
    _send(stopped, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(stopped, signal.SIGCONT)


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # a worker of the server's own that has ended
            os.kill(pid, number)


@contextmanager
def killed(server: Path) -> Iterator[None]:
    """Killed with all its processes, as by a machine that is short of memory; started again in the end."""
    os.kill(postmaster(server), signal.SIGKILL)
    yield
    embedded.start(server)


@contextmanager
def read_only(url: str) -> Iterator[None]:
    """Reads are answered, writes are refused."""
    with closing(connect(url)) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute("ALTER DATABASE dhan_pipeline SET default_transaction_read_only = on")
            end_capture_sessions(conn)
            try:
                yield
            finally:
                cursor.execute("SET default_transaction_read_only = off")
                cursor.execute("ALTER DATABASE dhan_pipeline RESET default_transaction_read_only")
                end_capture_sessions(conn)


@contextmanager
def out_of_connections(url: str) -> Iterator[None]:
    """Others hold every connection that there is."""
    with ExitStack() as held:
        first = held.enter_context(closing(connect(url)))
        first.autocommit = True
        end_capture_sessions(first)
        while True:
            try:
                held.enter_context(closing(psycopg2.connect(url)))
            except psycopg2.OperationalError:
                break
        end_capture_sessions(first)
        # What was freed by that is taken, too, before the capture comes back to it.
        while True:
            try:
                held.enter_context(closing(psycopg2.connect(url)))
            except psycopg2.OperationalError:
                break
        yield


async def test_a_server_that_is_killed_and_started_again_gets_everything(settings: Settings, server: Path) -> None:
    child = await survives(settings, killed(server))
    assert any("Nothing can be stored for now" in event.get("message", "") for event in child.events)


async def test_a_server_that_hangs_holds_nothing_up(settings: Settings) -> None:
    await survives(settings, hung(settings.database_url or ""))


async def test_a_capture_that_is_asked_to_end_does_not_wait_for_a_server_that_hangs(settings: Settings) -> None:
    url = settings.database_url or ""
    async with DhanSimulator(SUBSCRIBED, rate=RATE, record=True) as simulator:
        async with capture(settings, simulator.feed_url) as child:
            await until(lambda: child.stored > RATE)
            with hung(url):
                await nothing_is_stored(child)
                simulator.rate = 0
                simulator.flush()
                child.process.send_signal(signal.SIGTERM)
                assert await child.ended() == 0
        simulator.rate = RATE
        async with capture(settings, simulator.feed_url) as child:
            await until(lambda: child.stored > 4 * RATE)  # what waited in the journal, too
            simulator.rate = 0
            simulator.flush()
            await settled(child)
            child.process.send_signal(signal.SIGTERM)
            assert await child.ended() == 0
    assert check(simulator.logs, settings, url).problems == []


async def test_a_database_that_is_read_only_for_a_while_gets_everything_afterwards(settings: Settings) -> None:
    await survives(settings, read_only(settings.database_url or ""))


async def test_a_server_without_a_free_connection_gets_everything_once_there_is_one(settings: Settings) -> None:
    await survives(settings, out_of_connections(settings.database_url or ""))


async def test_a_network_that_swallows_everything_holds_nothing_up(settings: Settings) -> None:
    async with proxy(settings.database_url or "") as network:
        await survives(settings, network.black_hole(), url=network.url)


async def test_a_network_that_cuts_anywhere_neither_loses_nor_doubles_a_row(settings: Settings) -> None:
    randomness = random.Random(7)

    def limit() -> tuple[int, int]:
        """Within a transaction, or between a commit and its answer."""
        return int(10 ** randomness.uniform(6, 7.5)), randomness.randint(8, 40)

    async with proxy(settings.database_url or "") as network:

        async def cut_often(child: Child) -> None:
            await until(lambda: network.cuts >= 8, within_s=120)

        await survives(settings, network.cutting(limit), cut_often, url=network.url)
