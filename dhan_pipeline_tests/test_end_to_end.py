"""The capture as a person or a run starts it: a process of its own, over the exchange's wire, into PostgreSQL."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.reader import list_files, read_blocks
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline_tests.child import PROGRAM, capture, environment, settled, until
from dhan_pipeline_tests.ingest.feed import (
    BOTH_SOURCES,
    assert_stored_exactly_once,
    prepare_capture,
    query,
    simulator_of,
)

RATE = 5000.0


@pytest.fixture
def settings(tmp_path: Path, database_url: str, source: Source) -> Settings:
    settings = Settings(
        _env_file=None,
        data_source=source,
        data_dir=tmp_path / "data",
        database_url=database_url,
        dhan_token_file=tmp_path / "token.json",
        kite_token_file=tmp_path / "token.json",
    )
    prepare_capture(settings)
    return settings


#: What either exchange counts its control packets under: heartbeats, text, market status.
CONTROL = (0, -1, 7)


def data_packets(settings: Settings, blocks: Iterable[Block]) -> int:
    """Packets of the feed that are about an instrument, or cannot be read."""
    read = [decoder(settings)(block.payload, block.offsets, block.text) for block in blocks]
    return sum(decoded.packets - sum(decoded.control.values()) for decoded in read)


def data_sent(sent: Counter[int]) -> int:
    return sum(count for code, count in sent.items() if code not in CONTROL)


@BOTH_SOURCES
async def test_killed_in_the_middle_and_started_again_every_packet_is_stored_exactly_once(
    settings: Settings, database_url: str
) -> None:
    number = settings.capture_number
    async with simulator_of(settings, rate=RATE) as simulator:
        async with capture(settings, simulator.feed_url) as killed:
            await until(lambda: killed.stored > RATE / 2)
            killed.process.kill()
            assert await killed.ended() == -signal.SIGKILL
        before = [block.block_id for block in read_blocks(settings.journal_dir, number)]

        # A block of which half had reached the disk.
        newest = list_files(settings.journal_dir, number)[-1]
        whole = newest.stat().st_size
        with newest.open("r+b") as file:
            part = file.read()[-3000:]
            file.write(b"\xff\xff\xff\xff" + part[:1500])

        async with capture(settings, simulator.feed_url) as child:
            await until(lambda: child.stored > RATE / 2)
            simulator.rate = 0
            simulator.flush()
            sent = data_sent(simulator.sent)
            [connection] = simulator.connections
            sent_to_child = data_sent(connection.sent)
            await settled(child)
            child.process.send_signal(signal.SIGTERM)
            assert await child.ended() == 0
    assert f"Cut 1504 bytes of an unfinished block off the end of {newest}" in child.log
    assert newest.stat().st_size >= whole

    blocks = list(read_blocks(settings.journal_dir, number, on_corruption=lambda damage: pytest.fail(str(damage))))
    assert [block.block_id for block in blocks[: len(before)]] == before
    assert data_packets(settings, blocks[len(before) :]) == sent_to_child
    assert len(before) < len(blocks)
    assert data_packets(settings, blocks) <= sent
    assert_stored_exactly_once(settings, database_url)
    assert query(database_url, "SELECT sum(rejected)::int FROM ingest_ledger") == [(0,)]


@BOTH_SOURCES
async def test_when_its_standard_input_closes_the_capture_stores_everything_and_ends_well(
    settings: Settings, database_url: str
) -> None:
    async with simulator_of(settings, rate=RATE) as simulator, capture(settings, simulator.feed_url) as child:
        await until(lambda: child.stored > RATE / 2)
        assert child.process.stdin is not None
        child.process.stdin.close()
        assert await child.ended() == 0
    kinds = [event["event"] for event in child.events]
    assert kinds[0] == "started"
    assert child.events[0]["pid"] == child.process.pid
    assert kinds[-1] == "stopped"
    assert set(kinds) <= {"started", "status", "hour_complete", "stopped"}
    last = [event for event in child.events if event["event"] == "status"][-1]
    assert query(database_url, "SELECT sum(messages)::int, sum(ticks)::int FROM ingest_ledger") == [
        (last["messages"] + 1, last["ticks"])  # the capture noted that it started
    ]
    assert_stored_exactly_once(settings, database_url)


async def test_a_supervisor_that_dies_takes_no_data_with_it(settings: Settings, database_url: str) -> None:
    async with simulator_of(settings, rate=RATE) as simulator, capture(settings, simulator.feed_url) as child:
        await until(lambda: child.stored > RATE / 2)
        for pipe in (0, 1):
            transport = child.process._transport.get_pipe_transport(pipe)  # type: ignore[attr-defined]
            transport.close()
        await child.ended()
    assert_stored_exactly_once(settings, database_url)
    assert "Traceback" not in child.log


async def test_a_second_capture_is_refused_with_a_sentence(settings: Settings) -> None:
    async with simulator_of(settings, rate=100.0) as simulator, capture(settings, simulator.feed_url) as first:
        await until(lambda: first.events)
        async with capture(settings, simulator.feed_url) as second:
            assert await second.ended() == 1
        sentence = f"Capture {settings.capture_number} is already running: process {first.process.pid} holds its lock."
        assert second.events == [{"event": "error", "message": sentence, "permanent": False}]
        assert second.log == f"dhan-pipeline: {sentence}\n"
        first.process.send_signal(signal.SIGTERM)
        assert await first.ended() == 0


async def test_a_supervisor_that_does_not_read_holds_nothing_up(settings: Settings, database_url: str) -> None:
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    async with simulator_of(settings, rate=RATE) as simulator:
        process = await asyncio.create_subprocess_exec(
            *(PROGRAM, "ingest", "--supervised"),
            stdin=PIPE,
            stdout=full,
            env=environment(settings, simulator.feed_url),
            cwd=settings.data_dir.parent,
        )
        try:
            stored = "SELECT coalesce(sum(ticks), 0)::int FROM ingest_ledger"
            await until(lambda: query(database_url, stored)[0][0] > RATE)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(unread)
            os.close(full)
            if process.stdin is not None:
                process.stdin.close()
    assert_stored_exactly_once(settings, database_url)
