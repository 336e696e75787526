"""What a journal holds: blocks of consecutive websocket messages, each with an id that never repeats."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.sessions import hour_key

#: `block_id = capture << NUMBER_BITS | number`. 42 bits of milliseconds last until the year 2109.
NUMBER_BITS = 42

#: Captures are numbered 0 to 31, so that a block id with 16 bits of position below it fits a signed bigint.
MAX_CAPTURE = 31


def make_block_id(capture: int, number: int) -> int:
    """The id of a block. Raises ValueError for a capture or a number out of range."""
    if not 0 <= capture <= MAX_CAPTURE or not 0 <= number < 1 << NUMBER_BITS:
        raise ValueError(f"no block has capture {capture} and number {number}")
    return capture << NUMBER_BITS | number


def split_block_id(block_id: int) -> tuple[int, int]:
    """Capture and number of a block id. The number is the receive time in Unix ms, or a little above in a burst."""
    return block_id >> NUMBER_BITS, block_id & ((1 << NUMBER_BITS) - 1)


def first_block_id(capture: int, at_ns: int) -> int:
    """The lowest id that a block received at or after the instant can have (ns since the Unix epoch, UTC)."""
    return make_block_id(capture, at_ns // 1_000_000)


def next_block_id(capture: int, previous: int | None, first_received_ns: int) -> int:
    """The id of the block after `previous`: it grows with time, and grows even when the clock does not."""
    number = first_received_ns // 1_000_000
    if previous is not None:
        number = max(number, split_block_id(previous)[1] + 1)
    return make_block_id(capture, number)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive messages of one capture, all received within one IST hour. Never empty.

    Message `i` is `payload[offsets[i]:offsets[i + 1]]`. Times are ns since the Unix epoch, UTC, and never step back.
    """

    block_id: int
    received_ns: NDArray[np.int64]
    connection: NDArray[np.uint8]
    text: NDArray[np.bool_]
    """Whether the message was a text frame; its payload is UTF-8 then."""
    payload: bytes
    offsets: NDArray[np.int64]

    @property
    def messages(self) -> int:
        """Number of messages."""
        return len(self.received_ns)

    @property
    def first_received_ns(self) -> int:
        """Receive time of the first message."""
        return int(self.received_ns[0])

    @property
    def last_received_ns(self) -> int:
        """Receive time of the last message."""
        return int(self.received_ns[-1])

    @property
    def hour(self) -> str:
        """Partition key of the hour of receipt (IST)."""
        return hour_key(self.first_received_ns)
