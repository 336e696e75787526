"""What a lane gets of consecutive blocks, as one message: docs/block-messages.md describes the bytes."""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.sessions import hour_start_ns

#: Three bytes say what it is, one which version.
_MAGIC: Final = b"dbm\x01"

#: Magic and CRC-32 of all that follows; then lane, lanes, how many blocks, messages, instruments, bytes of payload, and
#: what it follows.
_HEAD: Final = struct.Struct("<4sI")
_SIZES: Final = struct.Struct("<HHIIIIq")
_FRAME = _HEAD.size + _SIZES.size

#: Bytes of all columns together. Nothing is allocated for a message that claims more, and it is what RabbitMQ 4 takes.
RAW_LIMIT: Final = 16 << 20

# Level 1, as in the journal: higher ones take more time than the bytes that they save are worth.
_ZSTD: Final = pa.Codec("zstd", 1)


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

    follows: int = 0
    """Id of the block before the first one: what is remembered is what was known after it. 0: unknown."""


def encode(part: Part) -> bytes:
    """The message of a part. Raises ValueError for one that is larger than `RAW_LIMIT`."""
    remembered = part.remembered
    sizes = (len(part.block_ids), len(part.received_ns), len(remembered.tokens), len(part.payload))
    # Differences of what grows, because they compress; sums undo them exactly, also where one overflows.
    values: tuple[NDArray[Any], ...] = (
        part.block_ids,
        part.first_received_ns,
        part.last_received_ns,
        part.messages,
        part.payload_bytes,
        _steps(part.received_ns),
        remembered.tokens,
        remembered.previous_close,
        remembered.open_interest,
        part.first_messages[1:] - part.first_messages[:-1],
        part.offsets[1:] - part.offsets[:-1],
        _steps(part.first_position),
        part.connection,
        part.text,
        remembered.announced,
    )
    columns = [
        array.astype(kind, copy=False).tobytes() for array, (kind, _) in zip(values, _layout(*sizes[:3]), strict=True)
    ]
    raw = b"".join([*columns, part.payload])
    if len(raw) > RAW_LIMIT:
        raise ValueError(f"a message of {len(raw)} bytes is larger than {RAW_LIMIT}")
    frame: bytes = _ZSTD.compress(raw, asbytes=True)
    rest = _SIZES.pack(part.lane, part.lanes, *sizes, part.follows) + frame
    return _HEAD.pack(_MAGIC, zlib.crc32(rest)) + rest


def decode(body: bytes) -> Part:
    """The part of a message. Raises MessageError, and nothing else, for bytes that are none."""
    if len(body) < _FRAME or body[:3] != _MAGIC[:3]:
        raise MessageError("It is no message with parts of blocks.")
    magic, crc = _HEAD.unpack_from(body)
    if magic != _MAGIC:
        raise MessageError(f"The message has version {magic[3]}, this program reads {_MAGIC[3]}: update the older end.")
    if zlib.crc32(memoryview(body)[_HEAD.size :]) != crc:
        raise MessageError("The message is damaged: its checksum does not match.")
    lane, lanes, blocks, messages, instruments, payload_bytes, follows = _SIZES.unpack_from(body, _HEAD.size)
    layout = _layout(blocks, messages, instruments)
    size = sum(np.dtype(kind).itemsize * count for kind, count in layout) + payload_bytes
    if not (1 <= lane <= lanes and blocks and size <= RAW_LIMIT):
        raise MessageError("The message's sizes are impossible.")
    try:
        raw = _ZSTD.decompress(memoryview(body)[_FRAME:], size, asbytes=True)
    except OSError:
        raise MessageError("The message's columns have another size than it says.") from None
    columns: list[NDArray[Any]] = []
    at = 0
    for kind, count in layout:
        columns.append(np.frombuffer(raw, kind, count, at))
        at += columns[-1].nbytes
    (
        block_ids,
        first_received_ns,
        last_received_ns,
        block_messages,
        block_payload_bytes,
        received_ns,
        tokens,
        previous_close,
        open_interest,
        own_messages,
        lengths,
        first_position,
        connection,
        text,
        announced,
    ) = columns
    first_messages, offsets = _starts(own_messages), _starts(lengths)
    if first_messages[-1] != messages or offsets[-1] != payload_bytes:
        raise MessageError("The message's columns do not fit each other.")
    return Part(
        lane=lane,
        lanes=lanes,
        block_ids=block_ids,
        messages=block_messages,
        payload_bytes=block_payload_bytes,
        first_received_ns=first_received_ns,
        last_received_ns=last_received_ns,
        first_messages=first_messages,
        received_ns=np.cumsum(received_ns),
        connection=connection,
        text=text != 0,
        first_position=np.cumsum(first_position, dtype=np.int64),
        payload=raw[at:],
        offsets=offsets,
        remembered=Remembered(tokens, previous_close, announced != 0, open_interest),
        follows=follows,
    )


def joined(parts: Iterable[Part]) -> Iterator[Part]:
    """The same as fewer parts: those of a lane and an hour that follow each other become one, with the rows of both.

    What is remembered of an instrument is what the first of them says that has packets of it. What later ones say comes
    from these packets, so parts with others between them are not joined.
    """
    waiting: list[Part] = []
    for part in parts:
        if waiting and not _is_followed(waiting[-1], part):
            yield _join(waiting)
            waiting = []
        waiting.append(part)
    if waiting:
        yield _join(waiting)


def _is_followed(part: Part, following: Part) -> bool:
    return bool(
        (part.lane, part.lanes) == (following.lane, following.lanes)
        and part.block_ids[-1] == following.follows
        and hour_start_ns(int(part.first_received_ns[0])) == hour_start_ns(int(following.first_received_ns[0]))
    )


def _join(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]

    def together(values: Callable[[Part], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([values(part) for part in parts])

    tokens, first = np.unique(together(lambda part: part.remembered.tokens), return_index=True)
    return Part(
        lane=parts[0].lane,
        lanes=parts[0].lanes,
        block_ids=together(lambda part: part.block_ids),
        messages=together(lambda part: part.messages),
        payload_bytes=together(lambda part: part.payload_bytes),
        first_received_ns=together(lambda part: part.first_received_ns),
        last_received_ns=together(lambda part: part.last_received_ns),
        first_messages=_starts(together(lambda part: np.diff(part.first_messages))),
        received_ns=together(lambda part: part.received_ns),
        connection=together(lambda part: part.connection),
        text=together(lambda part: part.text),
        first_position=together(lambda part: part.first_position),
        payload=b"".join([part.payload for part in parts]),
        offsets=_starts(together(lambda part: np.diff(part.offsets))),
        remembered=Remembered(
            tokens,
            together(lambda part: part.remembered.previous_close)[first],
            together(lambda part: part.remembered.announced)[first],
            together(lambda part: part.remembered.open_interest)[first],
        ),
        follows=parts[0].follows,
    )


def _layout(blocks: int, messages: int, instruments: int) -> tuple[tuple[DTypeLike, int], ...]:
    """Type and number of values of each column, in order; the payload follows. Wide ones first, so all are aligned."""
    return (
        *[("<i8", blocks)] * 5,
        ("<i8", messages),
        ("<i8", instruments),
        ("<f8", instruments),
        ("<i8", instruments),
        ("<u4", blocks),
        ("<u4", messages),
        ("<i4", messages),
        ("u1", messages),
        ("u1", messages),
        ("u1", instruments),
    )


def _steps(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """What each is more than the one before it: `np.cumsum` undoes it."""
    steps = values.copy()
    steps[1:] -= values[:-1]
    return steps


def _starts(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Where each begins that has so many, and behind them where the last one ends."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
