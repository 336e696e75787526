"""Whatever happens to a connection: it comes back, what was missed is a gap with its cause, and all else is stored."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dhan_pipeline.feeds.connection import FeedPolicy
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.faults import happening, parse_fault
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.quality import pauses
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.conservation import check
from dhan_pipeline_tests.ingest.feed import CLIENT_ID, SUBSCRIBED, prepare_capture, query
from dhan_pipeline_tests.ingest.running import Running, ingest, stored, with_feed

RATE = 2000.0

#: Waits of seconds and minutes, shrunk.
QUICK = FeedPolicy(
    first_delay_s=0.05,
    longest_delay_s=0.2,
    rest_s=0.5,
    longest_rest_s=1.0,
    token_poll_s=0.05,
    silence_s=3.0,
    open_timeout_s=2.0,
)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        database_url=database_url,
        dhan_token_file=tmp_path / "token.json",
        sessions="always",
    )
    prepare_capture(settings)
    return settings


@asynccontextmanager
async def captured(settings: Settings, policy: FeedPolicy) -> AsyncIterator[tuple[DhanSimulator, Running]]:
    """An exchange and a capture of it that has stored something; ended in order, and nothing was lost but in gaps."""
    url = settings.database_url or ""
    async with (
        DhanSimulator(SUBSCRIBED, rate=RATE, record=True) as simulator,
        ingest(with_feed(settings, simulator), policy=policy) as running,
    ):
        await more(url)
        yield simulator, running
        await more(url)
        # What is on its way when it is asked to stop would be missed after the last gap that is recorded.
        simulator.rate = 0
        simulator.flush()
        await until(lambda: len({line["messages"] for line in running.of_kind("status")[-2:]}) == 1)
    report = check(simulator.logs, settings, url)
    assert report.problems == []
    assert report.journaled > RATE / 2


async def more(database_url: str) -> None:
    """Wait until some more packets are stored."""
    before = stored(database_url)[0]
    await until(lambda: stored(database_url)[0] > before + RATE / 2)


def causes(settings: Settings) -> list[str]:
    rows = query(settings.database_url or "", "SELECT cause FROM feed_gaps WHERE ended_at IS NOT NULL ORDER BY gap_id")
    return [str(cause) for (cause,) in rows]


async def happen(simulator: DhanSimulator, fault: str, lasting_s: float) -> None:
    async with happening(simulator, parse_fault(fault)):
        await asyncio.sleep(lasting_s)  # the fault itself


@pytest.mark.parametrize(
    ("faults", "lasting_s", "cause"),
    [
        ("reset", 0, "reset"),
        ("drop", 0, "reset"),
        ("half", 0, "reset"),
        ("close=1011", 0, "server"),
        ("disconnect=800", 0, "server"),
        ("disconnect=805", 0, "limit"),
        ("reset refuse=429", 1, "limit"),
        ("reset refuse=503", 1, "reset"),
        ("reset unreachable", 1, "reset"),
        ("reset mute", 3, "reset"),
        ("stall", 5, "stall"),
    ],
)
async def test_a_connection_comes_back_and_what_it_missed_has_its_cause(
    settings: Settings, faults: str, lasting_s: float, cause: str
) -> None:
    async with captured(settings, QUICK) as (simulator, running):
        await asyncio.gather(*(happen(simulator, fault, lasting_s) for fault in faults.split()))
        await until(lambda: cause in causes(settings))
        await until(lambda: running.of_kind("status")[-1]["connections_up"] == 1)


@pytest.mark.parametrize("code", [807, 808, 809])
async def test_a_refused_token_costs_the_time_until_there_is_another_one(settings: Settings, code: int) -> None:
    async with captured(settings, QUICK) as (simulator, running):
        await simulator.disconnect(code)
        await until(lambda: any("Waiting for another token" in str(event) for event in running.of_kind("warning")))
        save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=2e6), CLIENT_ID)
        await until(lambda: "token" in causes(settings))


async def test_a_stall_that_ends_by_itself_is_a_gap_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "WATCHED_S", 1.0)
    async with captured(settings, FeedPolicy(silence_s=60.0)) as (simulator, running):
        await until(lambda: len(running.of_kind("status")) > 3)
        await happen(simulator, "stall", 7)
        await until(lambda: causes(settings))
    rows = query(
        settings.database_url or "",
        "SELECT extract(epoch FROM ended_at - started_at)::float > 6, recovery, cardinality(instruments) "
        "FROM feed_gaps WHERE cause = 'stall'",
    )
    assert (True, "packets came again", len(SUBSCRIBED)) in rows
