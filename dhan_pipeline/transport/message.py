"""What a lane gets of consecutive blocks, as one message: docs/block-messages.md describes the bytes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.errors import PipelineError


class MessageError(PipelineError):
    """The bytes are no message of this version, or are damaged. Says which."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What earlier packets of the day said about every instrument that has a packet in the part. All of shape (n,)."""

    tokens: NDArray[np.int64]
    previous_close: NDArray[np.float64]
    """In rupees. NaN: unknown."""
    announced: NDArray[np.bool_]
    """Whether a packet of its own said the previous close, rather than a field of another one."""
    open_interest: NDArray[np.int64]
    """In units. `NULL_INT`: unknown."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one lane gets of consecutive blocks of one capture and one IST hour.

    Message `i` is `payload[offsets[i]:offsets[i + 1]]`; those of block `b` are `first_messages[b]` to
    `first_messages[b + 1]`, possibly none. Times are ns since the Unix epoch, UTC.
    """

    lane: int
    """1 to `lanes`."""
    lanes: int

    block_ids: NDArray[np.int64]
    """Shape (blocks,), as are the four that follow: facts of the WHOLE blocks, of all lanes together."""
    messages: NDArray[np.int64]
    payload_bytes: NDArray[np.int64]
    first_received_ns: NDArray[np.int64]
    last_received_ns: NDArray[np.int64]

    first_messages: NDArray[np.int64]
    """Shape (blocks + 1,)."""

    received_ns: NDArray[np.int64]
    """Shape (messages of the part,), as are the three that follow."""
    connection: NDArray[np.uint8]
    text: NDArray[np.bool_]
    first_position: NDArray[np.int64]
    """Place in its block of the message's first packet."""

    payload: bytes
    offsets: NDArray[np.int64]
    """Shape (messages of the part + 1,)."""

    remembered: Remembered


def encode(part: Part) -> bytes:
    """The message of a part. Raises ValueError for one that is larger than `decode` accepts."""
    raise NotImplementedError


def decode(body: bytes) -> Part:
    """The part of a message. Raises MessageError, and nothing else, for bytes that are none."""
    raise NotImplementedError
