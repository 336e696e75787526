"""Many blocks as one: what costs is not the bytes of a block, but the calls."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhan_pipeline.journal.block import Block, split_block_id
from dhan_pipeline.journal.frame import Message
from dhan_pipeline.sessions import hour_key, hour_start_ns

#: Payload of a stretch, at least, where that much lies side by side. More is no faster, and needs its memory.
STRETCH_BYTES = 1 << 20

#: Blocks in memory are joined as long as they begin within this time (ns), so that who looks at stretches sees it pass.
JOINED_NS = 1_000_000_000

_ZSTD = pa.Codec("zstd")

#: Buffers of a record batch: three columns of two, and one of three.
_BUFFERS = 9
_RECEIVED, _CONNECTION, _TEXT, _OFFSETS, _PAYLOAD = 1, 3, 5, 7, 8

#: Before the bytes of a compressed buffer stands how many they were.
_LENGTH_BYTES = 8


@dataclass(slots=True)  # not frozen: that would be a third of `join` of one block
class Stretch:
    """Consecutive blocks of one capture and one hour, with their messages as if they were those of one block.

    Block `i` has the messages from `first_messages[i]` on and before `first_messages[i + 1]`; never none. Messages are
    as in a `Block`.
    """

    block_ids: NDArray[np.int64]
    first_messages: NDArray[np.int64]
    """Shape (blocks + 1,)."""
    received_ns: NDArray[np.int64]
    connection: NDArray[np.uint8]
    text: NDArray[np.bool_]
    payload: bytes
    offsets: NDArray[np.int64]

    @property
    def capture(self) -> int:
        """Number of the capture that received it."""
        return split_block_id(int(self.block_ids[0]))[0]

    @property
    def hour_ns(self) -> int:
        """Start of the hour of receipt (IST): ns since the Unix epoch, UTC."""
        return hour_start_ns(int(self.received_ns[0]))

    @property
    def last_block_id(self) -> int:
        """Id of the last block."""
        return int(self.block_ids[-1])

    @property
    def last_received_ns(self) -> int:
        """Receive time of the last message."""
        return int(self.received_ns[-1])

    @property
    def hour(self) -> str:
        """Partition key of the hour of receipt (IST)."""
        return hour_key(int(self.received_ns[0]))


def join(blocks: Sequence[Block]) -> Stretch:
    """Consecutive blocks of one hour, at least one."""
    if len(blocks) == 1:
        [block] = blocks
        return Stretch(
            np.array([block.block_id]),
            np.array([0, block.messages]),
            block.received_ns,
            block.connection,
            block.text,
            block.payload,
            block.offsets,
        )
    first_messages = np.array([0, *(block.messages for block in blocks)]).cumsum()
    starts = np.array([0, *(len(block.payload) for block in blocks)]).cumsum()
    offsets = np.concatenate([block.offsets[:-1] for block in blocks]) + starts[:-1].repeat(np.diff(first_messages))
    return Stretch(
        block_ids=np.array([block.block_id for block in blocks]),
        first_messages=first_messages,
        received_ns=np.concatenate([block.received_ns for block in blocks]),
        connection=np.concatenate([block.connection for block in blocks]),
        text=np.concatenate([block.text for block in blocks]),
        payload=b"".join([block.payload for block in blocks]),
        offsets=np.append(offsets, starts[-1]),
    )


def joined(blocks: Iterable[Block]) -> Iterator[Stretch]:
    """Consecutive blocks in order, as stretches that lie within an hour and within `JOINED_NS`.

    Each text begins one, too: so what the capture notes stands before all of a stretch that came after it.
    """
    waiting: list[Block] = []
    for block in blocks:
        if waiting and (
            block.first_received_ns - waiting[0].first_received_ns >= JOINED_NS
            or block.text.any()
            or block.hour != waiting[0].hour
        ):
            yield join(waiting)
            waiting = []
        waiting.append(block)
    if waiting:
        yield join(waiting)


def stretches(messages: Iterable[Message]) -> Iterator[Stretch]:
    """Blocks of one hour in order, merged with their neighbours."""
    waiting: list[Message] = []
    size = 0
    for message in messages:
        waiting.append(message)
        size += message.payload_bytes
        if size >= STRETCH_BYTES:
            yield merge(waiting)
            waiting, size = [], 0
    if waiting:
        yield merge(waiting)


def merge(messages: Sequence[Message]) -> Stretch:
    """Intact blocks of one hour, in the order given."""
    data = b"".join([message.data for message in messages])
    lengths = np.array([len(message.data) for message in messages])
    begins, ends = _buffers(data, lengths.cumsum() - lengths)

    def buffer(number: int, size: int) -> bytes:
        """A buffer of all blocks, of so many bytes together."""
        # A call of zstd takes 8 us, whatever its bytes, but as many frames as there are.
        places = zip(begins[:, number].tolist(), ends[:, number].tolist(), strict=True)
        frames = b"".join([data[begin:end] for begin, end in places])
        found: bytes = _ZSTD.decompress(frames, size, asbytes=True) if size else b""
        return found

    counts = np.array([message.messages for message in messages])
    first_messages = np.zeros(len(counts) + 1, np.int64)
    counts.cumsum(out=first_messages[1:])
    total = int(first_messages[-1])
    octets = (counts + 7) // 8
    bits = np.frombuffer(buffer(_TEXT, int(octets.sum())), np.uint8)
    # Each block's bits begin with a new byte.
    skipped = octets.cumsum() - octets
    bit = np.arange(total) + (8 * skipped - first_messages[:-1]).repeat(counts)
    bounds = np.frombuffer(buffer(_OFFSETS, 4 * (total + len(counts))), np.int32)
    # Each block's offsets begin with 0: the difference to it is no message's size.
    sizes = np.delete(np.diff(bounds), (counts + 1).cumsum()[:-1] - 1)
    offsets = np.zeros(len(sizes) + 1, np.int64)
    sizes.cumsum(dtype=np.int64, out=offsets[1:])
    return Stretch(
        block_ids=np.array([message.block_id for message in messages]),
        first_messages=first_messages,
        received_ns=np.frombuffer(buffer(_RECEIVED, 8 * total), np.int64),
        connection=np.frombuffer(buffer(_CONNECTION, total), np.uint8),
        text=np.unpackbits(bits, bitorder="little").take(bit).astype(np.bool_),
        payload=buffer(_PAYLOAD, sum(message.payload_bytes for message in messages)),
        offsets=offsets,
    )


def _buffers(data: bytes, starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the compressed bytes of the buffers of record batch messages begin and end in `data`, shape (blocks, 9).

    Arrow does not tell, the metadata does: a flatbuffer.
    """

    def read(kind: str, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number at each place."""
        size = np.dtype(kind).itemsize
        windows = np.ndarray((len(data) - size + 1,), f"V{size}", data, strides=(1,))
        return windows[at].view(kind).astype(np.int64)

    def field(table: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Where that begins which a field of a table refers to."""
        place = table + read("<u2", table - read("<i4", table) + 4 + 2 * number)
        return place + read("<u4", place)

    metadata = starts + 8
    batch = field(metadata + read("<u4", metadata), 2)  # Message.header
    first = field(batch, 2) + 4  # RecordBatch.buffers: offset and length of each, in the body
    numbers = first[:, None] + 8 * np.arange(2 * _BUFFERS)
    places = read("<i8", numbers.ravel()).reshape(len(starts), _BUFFERS, 2)
    begins = (metadata + read("<u4", starts + 4))[:, None] + places[:, :, 0]
    return begins + _LENGTH_BYTES, begins + places[:, :, 1]
