from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dhan_pipeline.enrich import derived
from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.ingest.process import BlockProcessor, resume
from dhan_pipeline.journal import stretch
from dhan_pipeline.journal.block import Block, first_block_id
from dhan_pipeline.journal.notes import NOTE_CONNECTION, encode_note
from dhan_pipeline.journal.stretch import join
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.copy import tick_copy
from dhan_pipeline.store.ticks import StoredBlocks, rows_of
from dhan_pipeline_tests.ingest.feed import (
    EQUITY,
    FUTURE,
    SECOND_NS,
    START_NS,
    TOKENS,
    UNKNOWN,
    full,
    market_messages,
    open_interest,
    packet,
    previous_close,
    quote,
    record,
    ticker,
)

MIDNIGHT_NS = START_NS + 15 * HOUR_NS


@pytest.fixture
def processor() -> BlockProcessor:
    return BlockProcessor(np.array(TOKENS))


def column(stored: StoredBlocks, name: str) -> list[float]:
    return [
        value
        for batch in stored.enriched.ticks
        for value in (dict(batch.columns) | derived(batch.columns))[name].tolist()
    ]


def rows(stored: StoredBlocks) -> bytes:
    return tick_copy(stored.enriched.ticks)


def test_a_stored_block_says_what_its_messages_were(processor: BlockProcessor, journal: JournalWriter) -> None:
    [block] = record(journal, [ticker(EQUITY, 100.0), ticker(EQUITY, 0.0)[:-1], open_interest(FUTURE, 5)], START_NS)
    stored = processor.process(join([block]))
    assert stored.stretch.block_ids.tolist() == [block.block_id]
    assert stored.stretch.received_ns is block.received_ns
    assert stored.stretch.connection is block.connection
    assert (stored.enriched.packets, stored.enriched.rows, stored.enriched.state) == (3, 1, 1)
    assert [(r.block_id, r.position) for r in stored.enriched.rejected] == [(block.block_id, 1)]


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
    stored = processor.process(join([later]))
    assert column(stored, "change")[0] == 9.0
    assert [batch.columns["oi"].tolist() for batch in stored.enriched.ticks if "oi" in batch.columns] == [[500]]


def test_nothing_said_yesterday_counts_after_midnight_in_india(
    processor: BlockProcessor, journal: JournalWriter
) -> None:
    [before] = record(journal, [previous_close(EQUITY, 90.0), ticker(EQUITY, 99.0)], MIDNIGHT_NS - 5_000_000)
    [after] = record(journal, [ticker(EQUITY, 99.0)], MIDNIGHT_NS)
    assert column(processor.process(join([before])), "change") == [9.0]
    assert np.isnan(column(processor.process(join([after])), "change")).all()


@pytest.mark.parametrize(
    ("source", "stopped_after", "stretch_bytes"),
    [
        *(("dhan", after, size) for after in (0, 3, 17, 29) for size in (1, 3000, stretch.STRETCH_BYTES)),
        ("kite", 17, 3000),
    ],
    indirect=["source"],
)
def test_a_processor_that_resumes_makes_the_rows_of_one_that_never_stopped(
    journal: JournalWriter,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    messages: Callable[..., list[bytes]],
    tokens: list[int],
    stopped_after: int,
    stretch_bytes: int,
) -> None:
    monkeypatch.setattr(stretch, "STRETCH_BYTES", stretch_bytes)
    blocks: list[Block] = []
    for hour in range(3):
        blocks += record(journal, messages(100, seed=hour), START_NS + hour * HOUR_NS)
    processor, resumed = (BlockProcessor(np.array(tokens), decoder(settings)) for _ in range(2))
    whole = [rows(processor.process(join([block]))) for block in blocks]
    resume(resumed, settings.journal_dir, settings.capture_number, blocks[stopped_after].block_id)
    assert [rows(resumed.process(join([block]))) for block in blocks[stopped_after + 1 :]] == whole[stopped_after + 1 :]


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
        processor.process(join([block]))
    assert rows(resumed.process(join([later]))) == rows(stored := processor.process(join([later])))
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
    stored = processor.process(join([later]))
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
    before = processor.process(join([blocks[0]]))
    assert [rejection.reason for rejection in before.enriched.rejected] == ["unknown instrument"]
    processor.learn(all_)
    after = processor.process(join([blocks[1]]))
    assert after.enriched.rejected == []
    assert column(after, "change")[0] == 10.0


def note(gap_id: int) -> bytes:
    return encode_note(Gap(gap_id, 1, START_NS, Cause.RESET))


#: What may arrive: everything of a market, good and bad, and what a few instruments say about their later packets.
MESSAGES = [(message, False, 1) for message in market_messages(60, seed=5)] + [
    *((message, False, 2) for message in (b"", b"\xff", full(EQUITY, 5.0)[:-1], ticker(EQUITY, -1.0))),
    *((previous_close(EQUITY, price), False, 0) for price in (90.0, 0.0, 80.0)),
    *((quote(FUTURE, 10.0, close=close), False, 0) for close in (0.0, 9.0, 8.0)),
    *((open_interest(FUTURE, value), False, 0) for value in (5, 7)),
    *((packet(ResponseCode.TICKER, EQUITY, 5.0, START_NS // SECOND_NS + ahead), False, 3) for ahead in (0, 30_000)),
    *((packet(ResponseCode.TICKER, UNKNOWN, 5.0, 1) * count, False, 4) for count in (1, 3)),
    (b"{}", True, 1),
    (note(1), True, NOTE_CONNECTION),
    (note(2), True, NOTE_CONNECTION),
    (note(3), False, NOTE_CONNECTION),
]


@st.composite
def cut(draw: st.DrawFn) -> list[list[Block]]:
    """Blocks of any messages, gathered in any way."""
    groups: list[list[Block]] = []
    block_id, at_ns = first_block_id(3, START_NS), START_NS
    for _ in range(draw(st.integers(1, 4))):
        groups.append([])
        for _ in range(draw(st.integers(1, 6))):
            payloads, text, connection = zip(
                *draw(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=6)), strict=True
            )
            at_ns += draw(st.integers(0, 10**9))
            block_id += draw(st.integers(1, 3))
            groups[-1].append(
                Block(
                    block_id,
                    at_ns + np.arange(len(text)) * 1_500,
                    np.array(connection, np.uint8),
                    np.array(text),
                    b"".join(payloads),
                    np.array([0, *map(len, payloads)]).cumsum(),
                )
            )
    return groups


def everything(parts: list[StoredBlocks]) -> tuple[Any, ...]:
    """What blocks become in the database: the ledger's rows, rejected packets, notes, and the ticks mode by mode."""
    rows = [rows_of(part) for part in parts]
    batches = sorted((batch for part in parts for batch in part.enriched.ticks), key=lambda batch: batch.mode)
    return (
        {name: np.concatenate([part.books[name] for part in rows]).tolist() for name in rows[0].books},
        [rejected for part in rows for rejected in part.rejected],
        [note for part in parts for note in part.notes],
        tick_copy(batches),
    )


def state(processor: BlockProcessor) -> list[bytes]:
    return [getattr(processor._state, name).tobytes() for name in ("previous_close", "announced", "open_interest")]


@given(cut())
@hypothesis_settings(max_examples=300, deadline=None)
def test_blocks_become_the_same_however_many_of_them_come_at_once(groups: list[list[Block]]) -> None:
    alone, together, folding = (BlockProcessor(np.array(TOKENS)) for _ in range(3))
    blocks = [block for group in groups for block in group]
    expected = [alone.process(join([block])) for block in blocks]
    found = [together.process(join(group)) for group in groups]
    for group in groups:
        folding.fold(join(group))
    assert everything(found) == everything(expected)
    assert state(together) == state(folding) == state(alone)
    books = everything(found)[0]
    assert books["block_id"] == [block.block_id for block in blocks]
    assert books["messages"] == [block.messages for block in blocks]
    assert books["payload_bytes"] == [len(block.payload) for block in blocks]
    assert books["first_received"] == [block.first_received_ns // 1000 for block in blocks]
    assert books["last_received"] == [block.last_received_ns // 1000 for block in blocks]
    others = zip(*(books[name] for name in ("ticks", "state", "control", "rejected")), strict=True)
    assert books["packets"] == list(map(sum, others))
