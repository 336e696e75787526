import threading
from itertools import pairwise

import pytest

from dhan_pipeline.feeds.dhan.client import WIRE
from dhan_pipeline.feeds.dhan.decode import decode
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.ingest.capture import Receiver
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.reader import hour_path, hours, read_blocks
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import POSITION_BITS
from dhan_pipeline_tests.ingest.feed import EQUITY, HOUR, NEXT_HOUR, SECOND_NS, START_NS, HandClock, packet, ticker


class Capture:
    """A receiver whose journal's thread runs when the test says so."""

    def __init__(self, journal: JournalWriter) -> None:
        self.clock = HandClock()
        self.blocks: list[Block] = []
        self.opened = 0
        self.receiver = Receiver(journal, self.clock, self.blocks.append, self.open)

    def open(self) -> None:
        self.opened += 1

    def finish(self) -> list[Block]:
        self.receiver.close()
        self.receiver.run()
        return self.blocks


@pytest.fixture
def capture(journal: JournalWriter) -> Capture:
    return Capture(journal)


def messages(block: Block) -> list[bytes]:
    return [block.payload[start:end] for start, end in pairwise(block.offsets.tolist())]


def test_a_heartbeat_is_kept_and_is_no_sign_of_data(journal: JournalWriter) -> None:
    blocks: list[Block] = []
    clock = HandClock()
    receiver = Receiver(journal, clock, blocks.append, heartbeat_size=1)
    receiver.receive(b"data", 0)
    came_ns = receiver.last_message_ns
    clock.at_ns += SECOND_NS
    receiver.receive(b"\0", 0)
    receiver.receive(b"\0\0\0", 0, 3)
    assert receiver.last_message_ns == came_ns > 0
    receiver.close()
    receiver.run()
    assert [message for block in blocks for message in messages(block)] == [b"data", *[b"\0"] * 4]


def test_messages_are_written_as_they_came_with_time_and_connection(capture: Capture, settings: Settings) -> None:
    sent = [ticker(EQUITY, price) for price in (100.0, 101.0, 102.0)]
    for number, payload in enumerate(sent):
        capture.clock.at_ns += 1
        capture.receiver.receive(payload, number)
    [block] = capture.finish()
    assert messages(block) == sent
    assert block.connection.tolist() == [0, 1, 2]
    first = START_NS + SECOND_NS + 1
    assert block.received_ns.tolist() == [first, first + 1, first + 2]
    [written] = read_blocks(settings.journal_dir, 0)
    assert written.payload == block.payload
    assert capture.receiver.failure is None


def test_a_block_ends_with_the_hour(capture: Capture, settings: Settings) -> None:
    for at_ns in (START_NS + HOUR_NS - 1, START_NS + HOUR_NS, START_NS + 3 * HOUR_NS):
        capture.clock.at_ns = at_ns
        capture.receiver.receive(ticker(EQUITY, 100.0), 0)
    assert [block.hour for block in capture.finish()] == [HOUR, NEXT_HOUR, "2026-11-20T12:00"]
    assert hours(settings.journal_dir, 0) == [HOUR, NEXT_HOUR, "2026-11-20T12:00"]


def test_a_clock_that_steps_back_over_the_hour_puts_no_message_before_an_earlier_one(capture: Capture) -> None:
    for at_ns in (START_NS + HOUR_NS + 5, START_NS + HOUR_NS - 5):
        capture.clock.at_ns = at_ns
        capture.receiver.receive(b"\0" * 8, 0)
    [block] = capture.finish()
    assert block.received_ns.tolist() == [START_NS + HOUR_NS + 5] * 2


def test_a_restart_with_the_clock_behind_goes_on_from_the_journals_last_time(
    capture: Capture, journal: JournalWriter
) -> None:
    capture.receiver.receive(b"\0" * 8, 0)
    capture.finish()
    again = Capture(journal)
    again.clock.at_ns -= SECOND_NS
    again.receiver.receive(b"\0" * 8, 0)
    assert again.receiver.last_received_ns == START_NS + SECOND_NS
    [block] = again.finish()
    assert block.first_received_ns == START_NS + SECOND_NS


def test_text_messages_are_kept_as_such(capture: Capture) -> None:
    capture.receiver.receive("gruß", 0)
    capture.receiver.receive(b"\0" * 8, 0)
    [block] = capture.finish()
    assert block.text.tolist() == [True, False]
    assert messages(block) == ["gruß".encode(), b"\0" * 8]


def test_messages_that_came_together_have_one_receive_time(capture: Capture) -> None:
    sent = [ticker(EQUITY, 100.0 + n) for n in range(12)]
    capture.receiver.receive(b"".join(sent[:9]), 3, 9)
    capture.clock.at_ns += 1
    capture.receiver.receive(sent[9], 4)
    capture.clock.at_ns += 1
    capture.receiver.receive(b"".join(sent[10:]), 3, 2)
    [block] = capture.finish()
    first = START_NS + SECOND_NS
    assert messages(block) == sent
    assert block.received_ns.tolist() == [first] * 9 + [first + 1] + [first + 2] * 2
    assert block.connection.tolist() == [3] * 9 + [4] + [3] * 2
    assert not block.text.any()
    assert capture.receiver.last_message_ns == capture.receiver.last_received_ns == first + 2


def test_one_look_at_the_clock_is_enough_for_all_that_came_together(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick() -> int:
        capture.clock.at_ns += 1
        return capture.clock.at_ns

    monkeypatch.setattr(capture.clock, "now_ns", tick, raising=False)
    capture.receiver.receive(bytes(8) * 70_000, 0, 70_000)
    blocks = capture.finish()
    assert len(blocks) > 1
    assert {at_ns for block in blocks for at_ns in block.received_ns.tolist()} == {START_NS + SECOND_NS + 1}


def test_empty_messages_that_came_together_are_as_many(capture: Capture) -> None:
    capture.receiver.receive(b"", 0, 9)
    [block] = capture.finish()
    assert messages(block) == [b""] * 9


def test_what_came_together_and_finds_no_room_goes_into_further_blocks_in_order(capture: Capture) -> None:
    numbered = [number.to_bytes(8, "big") for number in range(100_000)]
    capture.receiver.receive(b"".join(numbered[:32_760]), 0, 32_760)  # leaves room for 8
    capture.receiver.receive(b"".join(numbered[32_760:32_777]), 1, 17)
    capture.receiver.receive(b"".join(numbered[32_777:]), 2, 100_000 - 32_777)
    blocks = capture.finish()
    assert [block.messages for block in blocks] == [32_768, 32_768, 32_768, 1_696]
    assert [message for block in blocks for message in messages(block)] == numbered
    came_by = [number for block in blocks for number in block.connection.tolist()]
    assert came_by == [0] * 32_760 + [1] * 17 + [2] * (100_000 - 32_777)
    assert len({block.block_id for block in blocks}) == 4


def test_a_message_that_just_fits_ends_its_block_and_the_next_begins_another(capture: Capture) -> None:
    capture.receiver.receive(bytes(8) * 32_767, 0, 32_767)  # leaves room for one
    capture.receiver.receive(bytes(8), 0)
    capture.receiver.receive(bytes(8), 0)
    assert [block.messages for block in capture.finish()] == [32_768, 1]


def test_every_block_that_a_message_begins_is_told_as_open(capture: Capture) -> None:
    assert capture.opened == 0
    capture.receiver.receive(bytes(8), 0)
    capture.receiver.receive(bytes(8), 0)
    assert capture.opened == 1
    capture.receiver.flush()
    assert capture.opened == 1
    capture.receiver.receive(bytes(8) * 40_000, 0, 40_000)
    assert capture.opened == 3
    assert len(capture.finish()) == 3


@pytest.mark.parametrize("at_once", [1, 7, 1_000_000])
@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (packet(ResponseCode.HEARTBEAT, EQUITY), 70_000),
        (b"", 140_000),
        (packet(ResponseCode.HEARTBEAT, EQUITY) * (WIRE.max_message_bytes // 8), 3),
        (b"\xff" * (WIRE.max_message_bytes - 1), 3),
    ],
    ids=["smallest packets", "empty messages", "largest messages", "largest unreadable messages"],
)
def test_no_block_holds_more_packets_than_can_be_numbered(
    capture: Capture, payload: bytes, count: int, at_once: int
) -> None:
    for start in range(0, count, at_once):
        together = min(at_once, count - start)
        capture.receiver.receive(payload * together, 0, together)
    blocks = capture.finish()
    assert sum(block.messages for block in blocks) == count
    for block in blocks:
        assert decode(block.payload, block.offsets, block.text).packets <= 1 << POSITION_BITS
        assert len(block.payload) <= 512 << 10


def test_blocks_grow_while_the_disk_is_slower_than_the_flushes(capture: Capture) -> None:
    nothing_is_open = []
    for _ in range(4):
        capture.receiver.receive(b"\0" * 8, 0)
        nothing_is_open.append(capture.receiver.flush())
    assert nothing_is_open == [True, False, False, False]
    assert [block.messages for block in capture.finish()] == [1, 3]


def test_flushing_nothing_writes_nothing(capture: Capture) -> None:
    assert capture.receiver.flush()
    assert capture.finish() == []


def test_a_journal_that_cannot_be_written_ends_the_thread_and_says_why(capture: Capture, settings: Settings) -> None:
    thread = threading.Thread(target=capture.receiver.run)
    thread.start()
    hour_path(settings.journal_dir, 0, HOUR).mkdir(parents=True)
    capture.receiver.receive(b"\0" * 8, 0)
    capture.receiver.flush()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(capture.receiver.failure, OSError)
    assert "The journal cannot be written" in str(capture.receiver.failure)
    assert capture.blocks == []
