import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.frame import SCHEMA, SCHEMA_MESSAGE, Message, encode, find_message, read_message

messages = st.lists(
    st.tuples(st.integers(0, 2**62), st.integers(0, 255), st.booleans(), st.binary(max_size=300)),
    min_size=1,
    max_size=50,
)


def make_block(rows: list[tuple[int, int, bool, bytes]], block_id: int = 1_795_000_000_000) -> Block:
    received, connection, text, payloads = zip(*rows, strict=True)
    return Block(
        block_id=block_id,
        received_ns=np.array(received, np.int64),
        connection=np.array(connection, np.uint8),
        text=np.array(text, np.bool_),
        payload=b"".join(payloads),
        offsets=np.cumsum([0, *map(len, payloads)], dtype=np.int64),
    )


def stored(tmp_path: Path, data: bytes) -> tuple[int, int]:
    """A descriptor of a file of these bytes, and its size."""
    path = tmp_path / "file"
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY), len(data)


@given(messages)
def test_a_block_comes_back_as_it_was(
    tmp_path: Path, same_block: Callable[[Block, Block], bool], rows: list[tuple[int, int, bool, bytes]]
) -> None:
    block = make_block(rows)
    data = encode(block)
    fd, size = stored(tmp_path, data)
    message = read_message(fd, 0, size)
    os.close(fd)
    assert isinstance(message, Message)
    assert (message.messages, message.payload_bytes) == (len(rows), len(block.payload))
    assert message.end == len(data)
    assert len(data) % 8 == 0
    assert same_block(message.block(), block)


@pytest.mark.parametrize("sizes", [[162] * 3000, [16, 0, 50, 162], [0], [7]])
def test_a_message_has_the_bytes_that_arrow_writes(sizes: list[int]) -> None:
    random = np.random.default_rng(0)
    block = Block(
        block_id=7 << 42 | 1_795_147_200_000,
        received_ns=np.arange(len(sizes)) + 1_795_147_200_000_000_000,
        connection=np.arange(len(sizes)).astype(np.uint8),
        text=random.random(len(sizes)) < 0.5,
        payload=random.bytes(sum(sizes)),
        offsets=np.array([0, *np.cumsum(sizes)]),
    )
    data = bytes(encode(block))
    stamp = re.search(rb"\d{19} \d{10} \d{10} \d{10} [0-9a-f]{8}", data)
    assert stamp is not None
    columns = [block.received_ns, block.connection, block.text]
    payload = [block.payload[start:end] for start, end in pairwise(block.offsets.tolist())]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(values, field.type) for values, field in zip([*columns, payload], SCHEMA, strict=True)],
        schema=SCHEMA,
    )
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1))
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as stream:
        stream.write_batch(batch, {"block": stamp[0]})
    assert SCHEMA_MESSAGE + data == sink.getvalue().to_pybytes()[:-8]


def test_a_message_is_found_behind_bytes_that_look_like_the_beginning_of_one(tmp_path: Path) -> None:
    message = bytes(encode(make_block([(1, 0, False, b"x" * 50)])))
    for junk in (b"", b"\xff", b"\xff" * 5, b"\xff\xff\xff\xff\x00\x02\x00\x00", b"\xff" * 3000, message[:-1]):
        fd, size = stored(tmp_path, junk + message)
        found = find_message(fd, 0, size)
        os.close(fd)
        assert found is not None
        assert found.offset == len(junk)


def test_a_message_is_found_across_the_windows_of_the_search(tmp_path: Path) -> None:
    message = bytes(encode(make_block([(1, 0, False, b"x" * 50)])))
    for offset in range((1 << 20) - 12, (1 << 20) + 2):
        fd, size = stored(tmp_path, bytes(offset) + message)
        found = find_message(fd, 0, size)
        os.close(fd)
        assert found is not None
        assert found.offset == offset


def test_a_stamp_of_size_zero_whose_checksum_is_right_is_no_message(tmp_path: Path) -> None:
    stamp = b"%019d %010d %010d %010d 00000000\0" % (1, 0, 0, 0)
    fd, size = stored(tmp_path, b"\xff\xff\xff\xff\x00\x01\x00\x00" + stamp + bytes(400))
    assert read_message(fd, 0, size) == "the block has no stamp"
    assert find_message(fd, 0, size) is None
    os.close(fd)


def test_the_schema_is_no_block(tmp_path: Path) -> None:
    fd, size = stored(tmp_path, SCHEMA_MESSAGE)
    assert isinstance(read_message(fd, 0, size), str)
    os.close(fd)
