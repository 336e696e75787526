import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import psycopg2
import pytest

from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.ingest import retrying
from dhan_pipeline.ingest import worker as module
from dhan_pipeline.ingest.parts import PartProcessor
from dhan_pipeline.ingest.rebuild import rebuild_hours
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.ledger import lock_writer
from dhan_pipeline.store.ticks import WrittenDirectlyError
from dhan_pipeline.transport.dead_letters import dead_letters, redrive_dead_letters
from dhan_pipeline.transport.inlet import Delivery, inlet
from dhan_pipeline.transport.lanes import LANES
from dhan_pipeline.transport.message import MessageError, Part, encode, joined
from dhan_pipeline.transport.outlet import Outlet, outlet
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.ingest.feed import (
    BOTH_SOURCES,
    EQUITY,
    HOUR,
    START_NS,
    TOKENS,
    UNKNOWN,
    HandClock,
    add_instruments,
    end_sessions,
    market_messages,
    outage,
    query,
    record,
    ticker,
)
from dhan_pipeline_tests.ingest.lanes import Working, assert_committed_in_order, parts_of, parts_stored, working
from dhan_pipeline_tests.rabbitmq import Node

#: Sessions that wait for a lock.
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

CLOCK = HandClock(START_NS + 60_000_000_000)


@pytest.fixture
def runs(
    journal: JournalWriter, settings: Settings, messages: Callable[..., list[bytes]], tokens: list[int]
) -> list[list[Part]]:
    """200 messages in 20 blocks, published three blocks a time: 7 messages a lane."""
    return parts_of(record(journal, messages(200), START_NS), tokens, decode=decoder(settings))


@pytest.fixture
async def lanes(rabbitmq_url: str) -> AsyncIterator[Outlet]:
    async with outlet(rabbitmq_url) as opened:
        yield opened


async def publish(lanes: Outlet, runs: Iterable[Sequence[Part]]) -> None:
    for parts in runs:
        await lanes.publish([encode(part) for part in parts])


def assert_rows_are_those_of_the_journal(settings: Settings, database_url: str) -> None:
    """As the direct path makes them, to the last bit; and the books add up."""
    (rebuilt,) = rebuild_hours(settings, database_url, HOUR, HOUR, HandClock(START_NS + HOUR_NS), compare_only=True)
    assert rebuilt.same, rebuilt.differences
    assert rebuilt.rows > 0
    [(packets, ticks, others, rejected)] = query(
        database_url,
        "SELECT sum(packets)::int, sum(ticks)::int, sum(state + control)::int, sum(rejected)::int FROM ingest_ledger",
    )
    assert packets == ticks + others + rejected  # type: ignore[operator]
    assert query(database_url, "SELECT count(*), count(DISTINCT tick_id) FROM ticks") == [(ticks, ticks)]
    assert query(database_url, "SELECT count(*) FROM rejected_packets") == [(rejected,)]


@BOTH_SOURCES
async def test_what_comes_through_the_lanes_is_stored_as_the_direct_path_stores_it(
    settings: Settings, database_url: str, rabbitmq_url: str, lanes: Outlet, runs: list[list[Part]]
) -> None:
    async with working(settings, rabbitmq_url, CLOCK) as running:
        await publish(lanes, runs)
        await until(lambda: parts_stored(database_url) == 20 * LANES)
        status = running.worker.status()
        assert (status["lanes"], status["blocks"]) == ([1, 2, 3], 60)
    assert_rows_are_those_of_the_journal(settings, database_url)
    assert (await lanes.depths()).ready == (0, 0, 0)
    assert [event["event"] for event in running.events if event["event"] != "status"] == ["started", "stopped"]
    assert running.warnings == []


def stored_by(parts: Iterable[Part]) -> tuple[set[str], list[list[int]]]:
    """Ticks, and what the ledger says, of parts that are not joined any more."""
    processor = PartProcessor(np.array(sorted(TOKENS), np.int64))
    ticks, books = set(), []
    for part in parts:
        stored = processor.process(part)
        for batch in stored.enriched.ticks:
            names, columns = list(batch.columns), [column.tolist() for column in batch.columns.values()]
            ticks |= {f"{batch.mode} {dict(zip(names, row, strict=True))}" for row in zip(*columns, strict=True)}
        books += np.transpose(list(stored.rows.books.values())).tolist()
    return ticks, books


@pytest.mark.parametrize("seed", range(5))
def test_parts_that_follow_each_other_become_one_with_the_same_rows_and_others_do_not(
    journal: JournalWriter, seed: int
) -> None:
    random = np.random.default_rng(seed)
    runs = parts_of(record(journal, market_messages(400, seed), START_NS), TOKENS, in_run=2)
    for lane in range(LANES):
        parts = [run[lane] for run in runs]
        [whole] = joined(parts)
        assert len(whole.block_ids) == 40
        assert stored_by([whole]) == stored_by(parts)
        # Some are lost, some come again, some come late.
        at = [int(i) for i in random.integers(len(parts), size=5)]
        mixed = [*parts[: at[0]], *(parts[i] for i in at), *parts[at[0] + 1 :]]
        fewer = list(joined(mixed))
        assert len(fewer) < len(mixed)
        assert stored_by(fewer) == stored_by(mixed)


async def test_what_is_delivered_twice_is_stored_once(
    settings: Settings, database_url: str, rabbitmq_url: str, lanes: Outlet, runs: list[list[Part]]
) -> None:
    await publish(lanes, [run for run in runs for _ in range(2)])
    async with working(settings, rabbitmq_url, CLOCK) as running:
        await publish(lanes, reversed(runs))
        await until(lambda: running.worker.counts.blocks == 20 * LANES)
    await until_empty(lanes)
    assert running.worker.counts.blocks == parts_stored(database_url) == 20 * LANES
    assert_rows_are_those_of_the_journal(settings, database_url)


def execute(database_url: str, statement: str) -> None:
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(statement)


async def until_empty(lanes: Outlet) -> None:
    async with asyncio.timeout(20):
        while any((await lanes.depths()).ready):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_workers_share_the_lanes_however_many_they_are(
    settings: Settings, database_url: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BALANCE_S", 0.05)

    def held() -> list[int]:
        lanes = [lane for each in workers for lane in each.worker.lanes]
        assert len(set(lanes)) == len(lanes)
        return sorted((len(each.worker.lanes) for each in workers), reverse=True)

    workers: list[Working] = []
    async with AsyncExitStack() as stack:
        for shares in ([3], [2, 1], [1, 1, 1], [1, 1, 1, 0]):
            workers.append(await stack.enter_async_context(working(settings, rabbitmq_url)))
            await until(lambda shares=shares: held() == shares)  # type: ignore[misc]
        for shares in ([1, 1, 1, 0], [2, 1, 0, 0], [3, 0, 0, 0]):
            next(each for each in workers if each.worker.lanes and not each.stop.is_set()).stop.set()
            await until(lambda shares=shares: held() == shares)  # type: ignore[misc]
    assert [each.warnings for each in workers] == [[]] * 4


async def test_while_lanes_go_from_worker_to_worker_everything_is_stored_once_and_in_order(
    settings: Settings,
    database_url: str,
    rabbitmq_url: str,
    lanes: Outlet,
    journal: JournalWriter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BALANCE_S", 0.02)
    runs = parts_of(record(journal, market_messages(900), START_NS), TOKENS, in_run=1)
    async with working(settings, rabbitmq_url, CLOCK) as first:
        await publish(lanes, runs[:30])
        await until(lambda: len(first.worker.lanes) == 3)
        async with working(settings, rabbitmq_url, CLOCK):
            async with working(settings, rabbitmq_url, CLOCK):
                await publish(lanes, runs[30:60])
            await publish(lanes, runs[60:])
        await until(lambda: parts_stored(database_url) == 90 * LANES)
    assert_rows_are_those_of_the_journal(settings, database_url)
    assert_committed_in_order(database_url)


async def test_when_workers_lose_the_database_others_take_their_lanes_and_order_is_kept(
    settings: Settings,
    postgres_url: str,
    database_url: str,
    rabbitmq_url: str,
    lanes: Outlet,
    journal: JournalWriter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BALANCE_S", 0.02)
    runs = parts_of(record(journal, market_messages(600), START_NS), TOKENS, in_run=1)
    async with working(settings, rabbitmq_url, CLOCK), working(settings, rabbitmq_url, CLOCK):
        for start in range(0, 60, 15):
            await publish(lanes, runs[start : start + 15])
            await until(lambda start=start: parts_stored(database_url) > start * LANES)  # type: ignore[misc]
            end_sessions(postgres_url, database_url)
        await until(lambda: parts_stored(database_url) == 60 * LANES)
    assert_rows_are_those_of_the_journal(settings, database_url)
    assert_committed_in_order(database_url)
    assert await dead_letters(rabbitmq_url) == []


async def test_a_lane_waits_for_what_somebody_holds_who_has_lost_it(
    settings: Settings,
    database_url: str,
    rabbitmq_url: str,
    lanes: Outlet,
    journal: JournalWriter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BALANCE_S", 0.02)
    runs = parts_of(record(journal, market_messages(600), START_NS), TOKENS, in_run=1)
    async with AsyncExitStack() as stack:
        async with inlet(rabbitmq_url, prefetch=25) as zombie:
            await zombie.consume(2)
            await publish(lanes, runs)
            assert await zombie.take(1, timeout_s=20)
            running = await stack.enter_async_context(working(settings, rabbitmq_url, CLOCK))
            await until(lambda: parts_stored(database_url) == 120)
            assert running.worker.lanes == {1, 2, 3}
        await until(lambda: parts_stored(database_url) == 180)
    assert_rows_are_those_of_the_journal(settings, database_url)
    assert_committed_in_order(database_url)


async def test_bytes_that_are_no_message_go_to_the_dead_letters_and_the_next_is_stored(
    settings: Settings, database_url: str, rabbitmq_url: str, lanes: Outlet, runs: list[list[Part]]
) -> None:
    poison = bytearray(encode(runs[0][1]))
    poison[-1] ^= 1
    await publish(lanes, runs[:3])
    await lanes.publish([None, bytes(poison), b""])
    await publish(lanes, runs[3:])
    async with working(settings, rabbitmq_url, CLOCK) as running:
        await until(lambda: running.worker.buried == 2 and parts_stored(database_url) == 20 * LANES)
        letters = await dead_letters(rabbitmq_url)
        assert sorted((letter.lane, letter.body) for letter in letters) == [(2, bytes(poison)), (3, b"")]
        assert all(letter.reason for letter in letters)
        assert await redrive_dead_letters(rabbitmq_url) == 2
        await until(lambda: running.worker.buried == 4)
    assert len(await dead_letters(rabbitmq_url)) == 2
    assert_rows_are_those_of_the_journal(settings, database_url)
    assert len(running.warnings) == 4
    assert running.warnings[0].startswith("A message of lane ")


async def test_a_message_that_cannot_be_stored_is_tried_again_and_then_buried(
    settings: Settings,
    database_url: str,
    rabbitmq_url: str,
    lanes: Outlet,
    runs: list[list[Part]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_TRY_AGAIN_S", (0.0, 0.0))
    first = runs[3][0]
    impossible = replace(first, messages=np.full_like(first.messages, 1 << 40))
    await publish(lanes, runs[:3])
    await lanes.publish([encode(impossible), None, None])
    await publish(lanes, runs[3:])
    async with working(settings, rabbitmq_url, CLOCK) as running:
        await until(lambda: running.worker.buried == 1 and parts_stored(database_url) == 20 * LANES)
    [letter] = await dead_letters(rabbitmq_url)
    assert letter.reason == 'NumericValueOutOfRange: value "1099511627776" is out of range for type integer'
    assert_rows_are_those_of_the_journal(settings, database_url)


async def test_a_database_that_lacks_a_table_for_a_while_is_no_fault_of_the_messages(
    settings: Settings, database_url: str, rabbitmq_url: str, lanes: Outlet, runs: list[list[Part]]
) -> None:
    async with working(settings, rabbitmq_url, CLOCK) as running:
        await until(lambda: running.worker.lanes)
        execute(database_url, "ALTER TABLE ingest_ledger RENAME TO elsewhere")
        await publish(lanes, runs)
        await until(lambda: running.warnings)
        execute(database_url, "ALTER TABLE elsewhere RENAME TO ingest_ledger")
        await until(lambda: parts_stored(database_url) == 20 * LANES)
    [warning] = running.warnings
    assert warning.startswith(
        "Nothing can be stored for now, what comes waits; trying again. The database lacks our tables"
    )
    assert running.worker.buried == 0
    assert_rows_are_those_of_the_journal(settings, database_url)


LACKS_A_TABLE = ("ALTER TABLE ingest_ledger RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO ingest_ledger")
ENDS_WHO_WRITES = (
    "CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'; "
    "CREATE TRIGGER crash BEFORE INSERT ON ingest_ledger FOR EACH STATEMENT EXECUTE FUNCTION crash()",
    "DROP FUNCTION crash CASCADE",
)


@pytest.mark.parametrize(("breaks", "mends"), [LACKS_A_TABLE, ENDS_WHO_WRITES])
async def test_however_long_the_database_refuses_what_comes_it_goes_back_once(
    settings: Settings,
    database_url: str,
    rabbitmq_url: str,
    lanes: Outlet,
    runs: list[list[Part]],
    monkeypatch: pytest.MonkeyPatch,
    breaks: str,
    mends: str,
) -> None:
    monkeypatch.setattr(module, "HOLD_S", 0.0)
    monkeypatch.setattr(retrying, "_RETRY_S", (0.01,))
    tries: list[int] = []
    write_blocks = Mock(wraps=module.write_blocks)
    monkeypatch.setattr(module, "write_blocks", write_blocks)

    def noted(deliveries: list[Delivery]) -> list[list[Delivery]]:
        tries.extend(delivery.tries for delivery in deliveries)
        return batches(deliveries)

    batches = module._batches
    monkeypatch.setattr(module, "_batches", noted)
    execute(database_url, breaks)
    await publish(lanes, runs)
    async with working(settings, rabbitmq_url, CLOCK) as running:
        await until(lambda: write_blocks.call_count >= 10)
        assert not running.worker.lanes
        assert sum((await lanes.depths()).ready) == len(runs) * LANES
        execute(database_url, mends)
        await until_empty(lanes)
        await until(lambda: parts_stored(database_url) == 20 * LANES)
    assert set(tries) == {0, 1}
    assert running.worker.counts.blocks == 20 * LANES
    assert_rows_are_those_of_the_journal(settings, database_url)
    assert_committed_in_order(database_url)


async def test_while_the_capture_itself_writes_its_messages_wait(
    settings: Settings, database_url: str, rabbitmq_url: str, lanes: Outlet, runs: list[list[Part]]
) -> None:
    async with working(settings, rabbitmq_url, CLOCK) as running:
        with closing(connect(database_url)) as writer:
            assert lock_writer(writer, settings.capture)
            await publish(lanes, runs)
            await until(lambda: running.warnings)
            assert parts_stored(database_url) == 0
        await until(lambda: parts_stored(database_url) == 20 * LANES)
    assert len(running.warnings) == 1
    assert running.worker.buried == 0


async def test_when_the_database_comes_back_everything_is_stored(
    settings: Settings,
    postgres_url: str,
    database_url: str,
    rabbitmq_url: str,
    lanes: Outlet,
    runs: list[list[Part]],
) -> None:
    async with working(settings, rabbitmq_url, CLOCK) as running:
        await publish(lanes, runs[:3])
        await until(lambda: parts_stored(database_url) == 9 * LANES)
        with outage(postgres_url, database_url):
            await until(lambda: running.warnings)
            await publish(lanes, runs[3:])
        await until(lambda: running.worker.counts.blocks == 20 * LANES)
        for _ in range(3):
            end_sessions(postgres_url, database_url)
            await until(lambda: len(running.worker.lanes) == LANES)
    assert all(warning.startswith("Nothing can be stored for now") for warning in running.warnings)
    assert_rows_are_those_of_the_journal(settings, database_url)
    assert await dead_letters(rabbitmq_url) == []


async def test_when_the_broker_ends_the_connection_the_worker_makes_another(
    settings: Settings, database_url: str, rabbitmq: Node, rabbitmq_url: str, runs: list[list[Part]]
) -> None:
    async with working(settings, rabbitmq_url, CLOCK) as running:
        await until(lambda: len(running.worker.lanes) == LANES)
        await asyncio.to_thread(rabbitmq.control, "close_all_connections", "--global", "maintenance")
        await until(lambda: running.warnings)
        async with outlet(rabbitmq_url) as lanes:
            await publish(lanes, runs)
        await until(lambda: parts_stored(database_url) == 20 * LANES)
    assert "maintenance" in running.warnings[0]
    assert_rows_are_those_of_the_journal(settings, database_url)


async def test_instruments_that_are_synced_while_it_works_are_known_at_once(
    settings: Settings, database_url: str, rabbitmq_url: str, lanes: Outlet, journal: JournalWriter
) -> None:
    messages = [ticker(UNKNOWN, 5.0), ticker(EQUITY, 6.0), ticker(UNKNOWN, 7.0)]
    parts = parts_of(record(journal, messages, START_NS, in_block=1), TOKENS, in_run=1)
    async with working(settings, rabbitmq_url, CLOCK) as running:
        await until(lambda: running.worker.lanes)
        add_instruments(database_url, [generate_instrument_token(*UNKNOWN)])
        for number, part in enumerate(parts, 1):
            await publish(lanes, [part])
            await until(lambda number=number: parts_stored(database_url) == number * LANES)  # type: ignore[misc]
    assert query(database_url, "SELECT count(*), (SELECT count(*) FROM rejected_packets) FROM ticks") == [(3, 0)]


async def test_a_worker_that_is_asked_to_end_does_not_wait_for_a_database_that_hangs(
    settings: Settings, database_url: str, rabbitmq_url: str, lanes: Outlet, runs: list[list[Part]]
) -> None:
    with pytest.MonkeyPatch.context() as patch, closing(connect(database_url)) as other, other.cursor() as cursor:
        patch.setattr(module, "DRAIN_S", 0.1)
        patch.setattr(module, "_CLOSE_S", 0.1)
        async with working(settings, rabbitmq_url, CLOCK) as running:
            await until(lambda: running.worker.lanes)
            cursor.execute("LOCK TABLE ingest_ledger")
            await publish(lanes, runs)
            await until(lambda: query(database_url, WAITING) != [(0,)])
        assert running.events[-1]["event"] == "stopped"
        other.rollback()
    async with working(settings, rabbitmq_url, CLOCK):
        await until(lambda: parts_stored(database_url) == 20 * LANES)
    assert_rows_are_those_of_the_journal(settings, database_url)


@pytest.mark.parametrize(
    ("error", "of_the_message"),
    [
        (MessageError(""), True),
        (psycopg2.DataError(), True),
        (IndexError(), True),
        (psycopg2.OperationalError(), False),
        (WrittenDirectlyError(""), False),
        (MemoryError(), False),
        (RuntimeError("can't start new thread"), False),
    ],
)
def test_a_message_is_not_to_blame_for_the_state_of_database_or_machine(error: Exception, of_the_message: bool) -> None:
    assert module._is_of_the_messages(error) == of_the_message


def test_a_message_that_was_taken_in_vain_twice_shares_its_transaction_with_no_other() -> None:
    def delivery(name: bytes, tries: int = 0) -> Delivery:
        return Delivery(1, name, tries, None, 0)  # type: ignore[arg-type]

    first, again, suspect, last = (delivery(b"1"), delivery(b"2", 1), delivery(b"3", 2), delivery(b"4"))
    assert list(module._batches([first, again, suspect, last])) == [[first, again], [suspect], [last]]
    large = delivery(bytes(module.BATCH_BYTES))
    assert list(module._batches([first, large, last])) == [[first], [large], [last]]
    assert list(module._batches([])) == []
