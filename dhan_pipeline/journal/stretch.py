"""Many blocks read as one, for who needs only their packets: what costs is not the bytes of a block, but the calls."""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.frame import Message

#: Payload of a stretch, at least, where that much lies side by side. More is no faster, and needs its memory.
STRETCH_BYTES = 1 << 20

_ZSTD = pa.Codec("zstd")

#: Offset and length of each buffer of a record batch: three columns of two, and one of three.
_BUFFERS = struct.Struct("<18q")
_TEXT, _OFFSETS, _PAYLOAD = 5, 7, 8

#: Before the bytes of a compressed buffer stands how many they were.
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Stretch:
    """The messages of consecutive blocks, as if they were those of one. Message `i` is as in a `Block`."""

    hour_ns: int
    """Start of the hour in which all of it was received: ns since the Unix epoch, UTC."""
    text: NDArray[np.bool_]
    payload: bytes
    offsets: NDArray[np.int64]


def stretches(messages: Iterable[Message], hour_ns: int, whole: Callable[[int], bool]) -> Iterator[Block | Stretch]:
    """Blocks of one hour in order: those whose id is `whole` as they are, the others merged with their neighbours."""
    waiting: list[Message] = []
    size = 0
    for message in messages:
        alone = whole(message.block_id)
        if not alone:
            waiting.append(message)
            size += message.payload_bytes
        if waiting and (alone or size >= STRETCH_BYTES):
            yield merge(waiting, hour_ns)
            waiting, size = [], 0
        if alone:
            yield message.block()
    if waiting:
        yield merge(waiting, hour_ns)


def merge(messages: Sequence[Message], hour_ns: int) -> Stretch:
    """The packets of intact blocks, in the order given."""
    # A call of zstd takes 8 us, whatever its bytes, but as many frames as there are.
    parts: tuple[list[Any], ...] = ([], [], [])
    for message in messages:
        body, places = _buffers(message.data)
        for part, buffer in zip(parts, (_TEXT, _OFFSETS, _PAYLOAD), strict=True):
            offset, length = places[2 * buffer : 2 * buffer + 2]
            part.append(message.data[body + offset + _LENGTH_BYTES : body + offset + length])
    counts = np.array([message.messages for message in messages])
    octets = (counts + 7) // 8
    bits = np.frombuffer(_decompress(parts[0], int(octets.sum())), np.uint8)
    # Each block's bits begin with a new byte.
    skipped = octets.cumsum() - octets
    bit = np.arange(counts.sum()) + (8 * skipped - (counts.cumsum() - counts)).repeat(counts)
    ends = np.frombuffer(_decompress(parts[1], 4 * int((counts + 1).sum())), np.int32)
    # Each block's offsets begin with 0: the difference to it is no message's size.
    sizes = np.delete(np.diff(ends), (counts + 1).cumsum()[:-1] - 1)
    offsets = np.zeros(len(sizes) + 1, np.int64)
    sizes.cumsum(dtype=np.int64, out=offsets[1:])
    return Stretch(
        hour_ns=hour_ns,
        text=np.unpackbits(bits, bitorder="little").take(bit).astype(np.bool_),
        payload=_decompress(parts[2], sum(message.payload_bytes for message in messages)),
        offsets=offsets,
    )


def _decompress(frames: list[bytes], size: int) -> bytes:
    data: bytes = _ZSTD.decompress(b"".join(frames), size, asbytes=True) if size else b""
    return data


def _buffers(data: bytes) -> tuple[int, tuple[int, ...]]:
    """Where the body of a record batch begins, and offset and length of each buffer in it.

    Arrow does not tell, its metadata does: a flatbuffer.
    """

    def field(table: int, number: int) -> int:
        """Where that begins which a field of a table refers to."""
        (vtable,) = struct.unpack_from("<i", data, table)
        (place,) = struct.unpack_from("<H", data, table - vtable + 4 + 2 * number)
        return table + int(place) + int(struct.unpack_from("<I", data, table + place)[0])

    (metadata_length, root) = struct.unpack_from("<II", data, 4)
    batch = field(8 + root, 2)  # Message.header
    return 8 + metadata_length, _BUFFERS.unpack_from(data, field(batch, 2) + 4)  # RecordBatch.buffers
