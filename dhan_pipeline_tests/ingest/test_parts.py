import random
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2.extensions import connection

from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.ingest.parts import OtherLanesError, PartProcessor
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.ingest.rebuild import rebuild_hours
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.notes import NOTE_CONNECTION, encode_note
from dhan_pipeline.journal.stretch import join
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline.store.copy import tick_copy
from dhan_pipeline.store.ticks import StoredBlocks, write_blocks
from dhan_pipeline.transport.lanes import FIRST_LANE, LANES, lane_of
from dhan_pipeline.transport.message import Part, decode, encode
from dhan_pipeline_tests.ingest import kite_feed
from dhan_pipeline_tests.ingest.feed import (
    CURRENCY,
    EQUITY,
    FUTURE,
    HOUR,
    INDEX,
    SECOND_NS,
    START_NS,
    TOKENS,
    HandClock,
    market_messages,
    open_interest,
    packet,
    previous_close,
    query,
    quote,
    record,
    ticker,
)
from dhan_pipeline_tests.ingest.lanes import parts_of

#: Of the instruments of the feed, one in each lane.
LANE = {
    instrument: int(lane_of(np.array([token]))[0])
    for instrument, token in zip((INDEX, EQUITY, FUTURE, CURRENCY), TOKENS, strict=True)
}


def blocks_of(messages: Iterable[bytes], in_block: int = 10) -> list[Block]:
    """Messages a millisecond apart, in blocks of so many."""
    messages = list(messages)
    blocks = []
    for number, start in enumerate(range(0, len(messages), in_block)):
        part = messages[start : start + in_block]
        blocks.append(
            Block(
                block_id=number,
                received_ns=START_NS + np.arange(start, start + len(part)) * 1_000_000,
                connection=np.zeros(len(part), np.uint8),
                text=np.zeros(len(part), np.bool_),
                payload=b"".join(part),
                offsets=np.array([0, *map(len, part)]).cumsum(),
            )
        )
    return blocks


def rows(stored: Iterable[StoredBlocks]) -> list[tuple[bytes, ...]]:
    """What is stored of each tick, by its place."""
    found = []
    for part in stored:
        for batch in part.enriched.ticks:
            for row in range(len(batch)):
                columns = {name: values[row : row + 1] for name, values in batch.columns.items()}
                scale = None if batch.scale is None else batch.scale[row : row + 1]
                copy = tick_copy([replace(batch, columns=columns, scale=scale)])
                found.append((int(batch.columns["tick_id"][row]).to_bytes(8, "big"), copy))
    return sorted(found)


def rejected(stored: Iterable[StoredBlocks]) -> list[tuple[int, int, int, str, bytes]]:
    """What is kept of each rejected packet, by its place."""
    return sorted(
        (r.block_id, r.position, int(part.stretch.received_ns[r.message]), r.reason, r.payload)
        for part in stored
        for r in part.enriched.rejected
    )


def test_the_instruments_of_these_tests_are_in_all_lanes() -> None:
    assert set(LANE.values()) == set(range(FIRST_LANE, FIRST_LANE + LANES))


@hypothesis_settings(max_examples=20)
@given(st.sampled_from(SOURCES), st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 7))
def test_parts_in_any_order_make_the_rows_of_whole_blocks(
    source: Source, seed: int, in_block: int, in_run: int
) -> None:
    make, tokens = (market_messages, TOKENS) if source == "dhan" else (kite_feed.market_messages, kite_feed.TOKENS)
    read = decoder(Settings(data_source=source))
    blocks = blocks_of(make(60, seed), in_block)
    processor = BlockProcessor(np.array(sorted(tokens)), read)
    whole = [processor.process(join([block])) for block in blocks]
    parts = [part for run in parts_of(blocks, tokens, in_run, read) for part in run]
    random.Random(seed).shuffle(parts)
    worker = PartProcessor(np.array(sorted(tokens)), read)
    stored = [worker.process(decode(encode(part))) for part in parts]
    assert rows(stored) == rows(whole)
    assert rejected(stored) == rejected(whole)
    for name in ("packets", "rows", "state", "control"):
        assert sum(int(getattr(s.enriched, name).sum()) for s in stored) == sum(
            int(getattr(s.enriched, name).sum()) for s in whole
        )


def test_a_message_goes_to_the_lanes_of_its_packets_and_each_takes_its_own() -> None:
    assert LANE[EQUITY] != LANE[CURRENCY]
    both = ticker(EQUITY, 100.0) + ticker(CURRENCY, 200.0) + ticker(EQUITY, 101.0)
    [parts] = parts_of(blocks_of([both, ticker(CURRENCY, 201.0)]), TOKENS)
    by_lane = {part.lane: part for part in parts}
    assert by_lane[LANE[EQUITY]].payload == both
    assert by_lane[LANE[CURRENCY]].payload == both + ticker(CURRENCY, 201.0)
    assert by_lane[LANE[CURRENCY]].first_position.tolist() == [0, 3]
    worker = PartProcessor(np.array(TOKENS))
    places = {
        lane: [place & 0xFFFF for batch in worker.process(part).enriched.ticks for place in batch.columns["tick_id"]]
        for lane, part in by_lane.items()
    }
    assert places[LANE[EQUITY]] == [0, 2]
    assert places[LANE[CURRENCY]] == [1, 3]


def test_what_belongs_to_no_instrument_goes_to_the_first_lane() -> None:
    messages = [packet(ResponseCode.HEARTBEAT, FUTURE), b"", b"\x07\x07\x07"]
    [parts] = parts_of(blocks_of(messages), TOKENS)
    assert [len(part.received_ns) for part in parts] == [3, 0, 0]
    stored = PartProcessor(np.array(TOKENS)).process(parts[0])
    assert (stored.enriched.control.tolist(), len(stored.enriched.rejected)) == ([1], 2)


def test_every_lane_hears_of_every_block() -> None:
    [parts] = parts_of(blocks_of([ticker(EQUITY, 100.0)] * 4, in_block=2), TOKENS)
    worker = PartProcessor(np.array(TOKENS))
    for part in parts:
        assert part.block_ids.tolist() == [0, 1]
        stored = worker.process(part)
        assert stored.hour == HOUR
        assert stored.last_received_ns == START_NS + 3_000_000
        assert stored.enriched.rows.tolist() == ([2, 2] if part.lane == LANE[EQUITY] else [0, 0])


def test_a_part_brings_along_what_was_said_before_it() -> None:
    before, after = blocks_of(
        [previous_close(EQUITY, 90.0), open_interest(FUTURE, 500), ticker(EQUITY, 99.0), quote(FUTURE, 10.0)], 2
    )
    runs = parts_of([before, after], TOKENS, in_run=1)
    worker = PartProcessor(np.array(TOKENS))  # which never saw the first block
    ticks = [batch for part in runs[1] for batch in worker.process(part).enriched.ticks]
    closes = {batch.mode: batch.columns["day_close"].tolist() for batch in ticks}
    assert closes["ticker"] == [90.0]
    assert [batch.columns["oi"].tolist() for batch in ticks if batch.mode == "quote"] == [[500]]


def test_nothing_stays_of_what_another_part_brought() -> None:
    said = parts_of(blocks_of([previous_close(EQUITY, 90.0), ticker(EQUITY, 99.0)]), TOKENS)[0]
    silent = parts_of(blocks_of([ticker(EQUITY, 99.0)]), TOKENS)[0]
    unknown_there = parts_of(blocks_of([ticker(EQUITY, 99.0)]), TOKENS[2:])[0]
    worker = PartProcessor(np.array(TOKENS))
    lane = LANE[EQUITY] - FIRST_LANE
    for part in (silent[lane], unknown_there[lane]):
        worker.process(said[lane])
        [batch] = worker.process(part).enriched.ticks
        assert np.isnan(batch.columns["day_close"]).all()


def test_notes_of_the_capture_are_in_the_first_lane(journal: JournalWriter) -> None:
    note = encode_note(Gap(1, 0, START_NS, Cause.STALL, "nothing came", (TOKENS[0],)))
    block = journal.append([START_NS, START_NS], [NOTE_CONNECTION, 0], [True, False], [note, ticker(EQUITY, 1.0)])
    [parts] = parts_of([block], TOKENS)
    worker = PartProcessor(np.array(TOKENS))
    assert [len(worker.process(part).notes) for part in parts] == [1, 0, 0]


def test_a_part_of_another_number_of_lanes_is_refused() -> None:
    [[part, *_]] = parts_of(blocks_of([ticker(EQUITY, 1.0)]), TOKENS)
    with pytest.raises(OtherLanesError, match="one of 4, and here are 3 lanes"):
        PartProcessor(np.array(TOKENS)).process(replace(part, lanes=4))


def test_an_hour_that_came_in_parts_is_the_one_that_the_journal_says(
    journal: JournalWriter, settings: Settings, conn: connection
) -> None:
    blocks = record(journal, market_messages(600, seed=7), START_NS, 10)
    store_parts(conn, [part for run in parts_of(blocks, TOKENS, in_run=4) for part in run])
    clock = HandClock(START_NS + 7200 * SECOND_NS)
    assert settings.database_url is not None
    [found] = rebuild_hours(settings, settings.database_url, HOUR, HOUR, clock, compare_only=True)
    assert found.same
    kept = query(settings.database_url, "SELECT * FROM rejected_packets ORDER BY block_id, position")
    [rebuilt] = rebuild_hours(settings, settings.database_url, HOUR, HOUR, clock)
    assert rebuilt.same
    assert query(settings.database_url, "SELECT * FROM rejected_packets ORDER BY block_id, position") == kept
    assert query(settings.database_url, "SELECT count(*), max(parts) FROM ingest_ledger") == [(len(blocks), 1)]


def store_parts(conn: connection, parts: Iterable[Part]) -> None:
    """Each in a transaction of its own."""
    worker = PartProcessor(np.array(TOKENS))
    for part in parts:
        write_blocks(conn, [worker.process(part)], HandClock())
