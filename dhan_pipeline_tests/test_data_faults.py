"""Whatever the exchange sends, the good packets around it are stored, and the bad ones kept with their reason."""

import asyncio
import signal
from pathlib import Path

import pytest

from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.faults import happening, parse_fault
from dhan_pipeline.feeds.simulator.misbehaviour import GARBAGE
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.child import capture, settled, until
from dhan_pipeline_tests.conservation import check
from dhan_pipeline_tests.ingest.feed import SUBSCRIBED, TOKENS, add_instruments, prepare_capture, query

RATE = 2000.0


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    settings = Settings(
        _env_file=None, data_dir=tmp_path / "data", database_url=database_url, dhan_token_file=tmp_path / "token.json"
    )
    prepare_capture(settings)
    add_instruments(database_url, TOKENS)  # garbage is about one of these
    return settings


async def test_garbage_of_every_kind_and_every_way_of_sending_costs_nothing(
    settings: Settings, database_url: str
) -> None:
    async with (
        DhanSimulator(SUBSCRIBED, rate=RATE, record=True) as simulator,
        capture(settings, simulator.feed_url) as child,
    ):
        await until(lambda: child.stored > RATE / 2)
        for way in ("slow", "stacked", "reordered"):
            async with happening(simulator, parse_fault(way)):
                for kind in GARBAGE:
                    simulator.send_garbage(kind)
                before = child.stored
                await until(lambda before=before: child.stored > before + RATE / 2)  # type: ignore[misc]
        simulator.rate = 0
        simulator.flush()
        async with asyncio.timeout(20):
            while any(connection._waiting for connection in simulator.connections):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await settled(child)
        child.process.send_signal(signal.SIGTERM)
        assert await child.ended() == 0
    report = check(simulator.logs, settings, database_url)
    assert (report.problems, report.lost_in_gaps, report.gaps) == ([], 0, {})
    reasons = {reason for (reason,) in query(database_url, "SELECT DISTINCT reason FROM rejected_packets")}
    assert {"empty message", "impossible price", "unknown instrument"} <= reasons
    assert len(reasons) >= 5
    assert query(database_url, "SELECT count(*) FROM rejected_packets WHERE payload IS NULL") == [(0,)]
    assert "Traceback" not in child.log


async def test_a_snapshot_that_comes_twice_is_stored_twice_and_nothing_else_is(
    settings: Settings, database_url: str
) -> None:
    async with (
        DhanSimulator(SUBSCRIBED, rate=0, record=True) as simulator,
        happening(simulator, parse_fault("duplicate-snapshot")),
        capture(settings, simulator.feed_url) as child,
    ):
        await until(lambda: child.stored == 2 * len(SUBSCRIBED))
        await settled(child)
        child.process.send_signal(signal.SIGTERM)
        assert await child.ended() == 0
    assert check(simulator.logs, settings, database_url).problems == []
