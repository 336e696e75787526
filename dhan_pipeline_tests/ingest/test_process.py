from pathlib import Path

import numpy as np
import pytest

from dhan_pipeline.ingest.process import BlockProcessor, resume
from dhan_pipeline.journal import stretch
from dhan_pipeline.journal.block import Block, first_block_id
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.copy import tick_copy
from dhan_pipeline.store.ticks import StoredBlock
from dhan_pipeline_tests.ingest.feed import (
    EQUITY,
    FUTURE,
    START_NS,
    TOKENS,
    market_messages,
    open_interest,
    previous_close,
    quote,
    record,
    ticker,
)

MIDNIGHT_NS = START_NS + 15 * HOUR_NS


@pytest.fixture
def processor() -> BlockProcessor:
    return BlockProcessor(np.array(TOKENS))


def column(stored: StoredBlock, name: str) -> list[float]:
    return [value for batch in stored.enriched.ticks for value in batch.columns[name].tolist()]


def rows(stored: StoredBlock) -> bytes:
    return tick_copy(stored.enriched.ticks)


def test_a_stored_block_says_what_its_messages_were(processor: BlockProcessor, journal: JournalWriter) -> None:
    [block] = record(journal, [ticker(EQUITY, 100.0), ticker(EQUITY, 0.0)[:-1], open_interest(FUTURE, 5)], START_NS)
    stored = processor.process(block)
    assert (stored.block_id, stored.messages, stored.payload_bytes) == (block.block_id, 3, len(block.payload))
    assert (stored.first_received_ns, stored.last_received_ns) == (START_NS, START_NS + 2_000_000)
    assert (stored.enriched.packets, stored.enriched.rows, stored.enriched.state) == (3, 1, 1)
    assert len(stored.enriched.rejected) == 1
    assert stored.received_ns is block.received_ns
    assert stored.connection is block.connection


def test_later_blocks_carry_what_earlier_ones_said(
    processor: BlockProcessor, journal: JournalWriter, settings: Settings
) -> None:
    said, later = record(
        journal,
        [previous_close(EQUITY, 90.0), open_interest(FUTURE, 500), ticker(EQUITY, 99.0), quote(FUTURE, 10.0)],
        START_NS,
        2,
    )
    resume(processor, settings.journal_dir, settings.capture, said.block_id)
    stored = processor.process(later)
    assert column(stored, "change")[0] == 9.0
    assert [batch.columns["oi"].tolist() for batch in stored.enriched.ticks if "oi" in batch.columns] == [[500]]


def test_nothing_said_yesterday_counts_after_midnight_in_india(
    processor: BlockProcessor, journal: JournalWriter
) -> None:
    [before] = record(journal, [previous_close(EQUITY, 90.0), ticker(EQUITY, 99.0)], MIDNIGHT_NS - 5_000_000)
    [after] = record(journal, [ticker(EQUITY, 99.0)], MIDNIGHT_NS)
    assert column(processor.process(before), "change") == [9.0]
    assert np.isnan(column(processor.process(after), "change")).all()


@pytest.mark.parametrize("stretch_bytes", [1, 3000, stretch.STRETCH_BYTES])
@pytest.mark.parametrize("stopped_after", [0, 3, 17, 29])
def test_a_processor_that_resumes_makes_the_rows_of_one_that_never_stopped(
    processor: BlockProcessor,
    journal: JournalWriter,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    stopped_after: int,
    stretch_bytes: int,
) -> None:
    monkeypatch.setattr(stretch, "STRETCH_BYTES", stretch_bytes)
    blocks: list[Block] = []
    for hour in range(3):
        blocks += record(journal, market_messages(100, seed=hour), START_NS + hour * HOUR_NS)
    whole = [rows(processor.process(block)) for block in blocks]
    resumed = BlockProcessor(np.array(TOKENS))
    resume(resumed, settings.journal_dir, settings.capture, blocks[stopped_after].block_id)
    assert [rows(resumed.process(block)) for block in blocks[stopped_after + 1 :]] == whole[stopped_after + 1 :]


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ([quote(EQUITY, 50.0, close=80.0), previous_close(EQUITY, 90.0), quote(EQUITY, 50.0, close=70.0)], 9.0),
        ([previous_close(EQUITY, 90.0), previous_close(EQUITY, 95.0)], 4.0),
        ([quote(EQUITY, 50.0, close=80.0), quote(EQUITY, 50.0, close=70.0), quote(EQUITY, 50.0)], 29.0),
        ([quote(EQUITY, 50.0, close=80.0), quote(EQUITY, 50.0, close=70.0), quote(EQUITY, 50.0, close=80.0)], 19.0),
        ([previous_close(EQUITY, 90.0), previous_close(EQUITY, 0.0), ticker(EQUITY, -1.0)], 9.0),
        ([open_interest(FUTURE, 7), open_interest(FUTURE, 5), b"torn", quote(EQUITY, 50.0, close=70.0)], 29.0),
    ],
)
def test_blocks_that_are_read_at_once_say_the_same_as_one_after_the_other(
    processor: BlockProcessor, journal: JournalWriter, settings: Settings, said: list[bytes], change: float
) -> None:
    blocks = record(journal, said, START_NS, in_block=1)
    [later] = record(journal, [ticker(EQUITY, 99.0), quote(FUTURE, 10.0)], START_NS + HOUR_NS)
    resumed = BlockProcessor(np.array(TOKENS))
    resume(resumed, settings.journal_dir, settings.capture, blocks[-1].block_id)
    for block in blocks:
        processor.process(block)
    assert rows(resumed.process(later)) == rows(stored := processor.process(later))
    assert change in column(stored, "change")


def test_resuming_is_given_up_when_it_is_asked_to(
    processor: BlockProcessor, journal: JournalWriter, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretch, "STRETCH_BYTES", 1)
    blocks = record(journal, market_messages(100), START_NS)
    asked = iter([False, False, True])
    assert not resume(processor, settings.journal_dir, settings.capture, blocks[-1].block_id, lambda: next(asked))
    assert resume(processor, settings.journal_dir, settings.capture, blocks[-1].block_id)


def test_resuming_reads_no_other_day(processor: BlockProcessor, journal: JournalWriter, settings: Settings) -> None:
    record(journal, [previous_close(EQUITY, 90.0)], START_NS)
    [today] = record(journal, [open_interest(FUTURE, 5)], MIDNIGHT_NS)
    [later] = record(journal, [ticker(EQUITY, 99.0), quote(FUTURE, 10.0)], MIDNIGHT_NS + HOUR_NS)
    resume(processor, settings.journal_dir, settings.capture, today.block_id)
    stored = processor.process(later)
    assert np.isnan(column(stored, "change")).all()
    assert [batch.columns["oi"].tolist() for batch in stored.enriched.ticks if "oi" in batch.columns] == [[5]]


def test_resuming_without_a_journal_begins_with_nothing_known(processor: BlockProcessor, tmp_path: Path) -> None:
    resume(processor, tmp_path, 0, first_block_id(0, START_NS))


def test_instruments_that_are_learnt_keep_what_is_remembered_of_the_others(journal: JournalWriter) -> None:
    few, all_ = np.array(TOKENS[1:2]), np.array(TOKENS)
    processor = BlockProcessor(few)
    blocks = record(
        journal,
        [
            previous_close(EQUITY, 90.0),
            quote(FUTURE, 50.0),
            ticker(EQUITY, 100.0),
            quote(FUTURE, 50.0),
        ],
        START_NS,
        in_block=2,
    )
    before = processor.process(blocks[0])
    assert [rejection.reason for rejection in before.enriched.rejected] == ["unknown instrument"]
    processor.learn(all_)
    after = processor.process(blocks[1])
    assert after.enriched.rejected == []
    assert column(after, "change")[0] == 10.0
