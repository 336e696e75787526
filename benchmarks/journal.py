"""What the journal costs: writing, recovering and reading blocks of several sizes, beside a plain file in the same run.

    python benchmarks/journal.py [--json]

The material is full packets of a market, one a message. Two contenders write and read the same messages in turn, five
rounds each:

- `journal`: ours. A block is an Arrow IPC message, compressed with zstd and stamped with a CRC, and synced with
  fdatasync before `append` returns;
- `plain`: the least that could be called a journal. The messages' time, connection, length and bytes, joined and
  written in one call a block, and synced likewise.

The difference is the price of the format, and what it saves on disk. CPU is that of the process, system calls included.

- `write`: MB (10^6 bytes of payload) and messages a second; CPU us a message; ms a block, most of it the disk's; bytes
  on disk a message;
- `read`: messages a second out of `read_blocks`, and out of the plain file with a loop over its records;
- `stretches`: the same out of `read_stretches`, which serves who needs many blocks at once;
- `fold`: `resume`, which is that and what packets say about later ones: what a start or a rebuild has to do first;
- `recover`: ms until the journal's writer is open again on a file that ends in half a block.

What is read is compared with what was written by digest, and the torn block has to be cut off exactly. A difference is
a failure (exit code 1). A time never is.
"""

import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.material import HOUR, INSTRUMENTS, Messages, Packets, instrument_tokens, temporary_dir
from benchmarks.report import ROUNDS, Spread, arguments, publish, take_turns, wrong
from dhan_pipeline.ingest.process import BlockProcessor, resume
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.frame import encode
from dhan_pipeline.journal.reader import hour_path, read_blocks, read_stretches
from dhan_pipeline.journal.writer import JournalWriter

SIZES = (40, 400, 4000)

#: Messages a second: all that is written lies in one hour.
RATE = 1000.0

#: Messages that a contender writes in a round, at each size of block.
MESSAGES = 40_000

#: Time, connection, whether text, length.
_RECORD = struct.Struct("<qB?I")

# macOS has no fdatasync.
_sync = getattr(os, "fdatasync", os.fsync)


def digest(messages: Iterable[tuple[Any, Any, bytes]]) -> tuple[str, ...]:
    """Of receive times, of sizes, and of payloads, however they are cut into blocks."""
    hashes = [hashlib.sha256() for _ in range(3)]
    for times, sizes, payload in messages:
        hashes[0].update(np.asarray(times, np.int64).tobytes())
        hashes[1].update(np.asarray(sizes, np.int64).tobytes())
        hashes[2].update(payload)
    return tuple(one.hexdigest() for one in hashes)


class Sizes:
    """All that is measured at one size of block. Each round's messages come after those of the round before."""

    def __init__(self, folder: Path, number: int, in_block: int) -> None:
        tokens = instrument_tokens()
        self._folder = folder
        self._capture = number
        self.in_block = in_block
        self._tokens = tokens
        self._packets = Packets(RATE, tokens=tokens)
        self._journal = JournalWriter(folder, number)
        self._plain = folder / f"plain-{number}"
        self._blocks: list[Messages] = []
        self._written: list[Messages] = []
        self._last: Block | None = None
        self.noted: dict[str, list[float]] = {}
        """What is found beside the messages a second, by name."""

    @property
    def messages(self) -> int:
        """How many were written."""
        return sum(len(block.payloads) for block in self._written)

    def write(self) -> float:
        """Messages a second into the journal, of messages that are new."""
        self._blocks = [self._packets.take(self.in_block) for _ in range(MESSAGES // self.in_block)]
        self._written += self._blocks
        return self._timed("journal", self._append)

    def write_plain(self) -> float:
        """The same messages into the plain file."""
        return self._timed("plain", self._append_plain)

    def read(self) -> float:
        """Messages a second out of the journal."""
        return self._rate(lambda: sum(block.messages for block in read_blocks(self._folder, self._capture)))

    def read_plain(self) -> float:
        """Messages a second out of the plain file."""
        return self._rate(lambda: sum(len(times) for times, _, _ in self._plain_messages()))

    def stretches(self) -> float:
        """Messages a second out of the journal, merged."""
        return self._rate(lambda: sum(len(part.text) for part in read_stretches(self._folder, self._capture)))

    def fold(self) -> float:
        """Messages a second into the state that they leave."""
        assert self._last is not None
        processor = BlockProcessor(self._tokens)
        started = time.perf_counter()
        resume(processor, self._folder, self._capture, self._last.block_id)
        return self.messages / (time.perf_counter() - started)

    def recover(self) -> float:
        """Milliseconds until the writer is open on a file that ends in half a block."""
        assert self._last is not None
        self._journal.close()
        path = hour_path(self._folder, self._capture, HOUR)
        size = path.stat().st_size
        torn = encode(self._last)
        del torn[len(torn) // 2 :]
        with path.open("ab") as file:
            file.write(torn)
        started = time.perf_counter()
        self._journal = JournalWriter(self._folder, self._capture)
        took = time.perf_counter() - started
        if self._journal.last_block_id != self._last.block_id:
            wrong(f"blocks of {self.in_block}: the recovered journal does not end with the last whole block")
        if self._journal.cut_bytes != len(torn) or path.stat().st_size != size:
            wrong(f"blocks of {self.in_block}: {self._journal.cut_bytes} bytes were cut off, {len(torn)} were torn")
        return 1000 * took

    def bytes_a_message(self) -> tuple[float, float]:
        """On disk: of the journal, of the plain file."""
        sizes = hour_path(self._folder, self._capture, HOUR).stat().st_size, self._plain.stat().st_size
        return sizes[0] / self.messages, sizes[1] / self.messages

    def check(self) -> list[str]:
        """Where what is read is not what was written, a sentence each."""
        written = digest(
            (block.received_ns, list(map(len, block.payloads)), b"".join(block.payloads)) for block in self._written
        )
        blocks = read_blocks(self._folder, self._capture)
        stretches = read_stretches(self._folder, self._capture)
        found = {
            "read_blocks": digest((block.received_ns, np.diff(block.offsets), block.payload) for block in blocks),
            "the plain file": digest(self._plain_messages()),
            "read_stretches": digest((s.received_ns, np.diff(s.offsets), s.payload) for s in stretches),
        }
        return [
            f"blocks of {self.in_block}: {name} gives other messages than were written"
            for name, read in found.items()
            if read != written
        ]

    def close(self) -> None:
        """Release the journal's lock."""
        self._journal.close()

    def _append(self, block: Messages) -> None:
        self._last = block.append_to(self._journal)

    def _append_plain(self, block: Messages) -> None:
        # Opened and closed a block: two microseconds, and nothing to keep.
        fd = os.open(self._plain, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            records = []
            for at, payload in zip(block.received_ns, block.payloads, strict=True):
                records += [_RECORD.pack(at, 0, False, len(payload)), payload]
            os.write(fd, b"".join(records))
            _sync(fd)
        finally:
            os.close(fd)

    def _plain_messages(self) -> Iterable[tuple[Sequence[int], Sequence[int], bytes]]:
        data = self._plain.read_bytes()
        times, sizes, payloads = [], [], []
        at = 0
        while at < len(data):
            received_ns, _, _, size = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            times.append(received_ns)
            sizes.append(size)
            payloads.append(data[at : at + size])
            at += size
        return [(times, sizes, b"".join(payloads))]

    def _timed(self, name: str, append: Callable[[Messages], None]) -> float:
        started, cpu = time.perf_counter(), time.process_time()
        for block in self._blocks:
            append(block)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
        self._note(f"{name} write, MB/s", sum(len(p) for b in self._blocks for p in b.payloads) / 1e6 / took)
        self._note(f"{name} write, CPU us a message", 1e6 * cpu / MESSAGES)
        self._note(f"{name} write, ms a block", 1000 * took / len(self._blocks))
        return MESSAGES / took

    def _rate(self, read: Callable[[], int]) -> float:
        started = time.perf_counter()
        if (found := read()) != self.messages:
            wrong(f"blocks of {self.in_block}: {found} messages were read, {self.messages} were written")
        return self.messages / (time.perf_counter() - started)

    def _note(self, name: str, figure: float) -> None:
        self.noted.setdefault(name, []).append(figure)


def figures(of_size: Sizes, found: Mapping[str, Spread]) -> Iterator[tuple[str, Spread | float, Spread | float | str]]:
    """Name, ours, the plain file's."""
    noted = {name: Spread.of(figures) for name, figures in of_size.noted.items()}
    yield "write, messages/s", found["write"], found["write_plain"]
    for name in ("write, MB/s", "write, CPU us a message", "write, ms a block"):
        yield name, noted[f"journal {name}"], noted[f"plain {name}"]
    yield "on disk, bytes a message", *of_size.bytes_a_message()
    yield "read, messages/s", found["read"], found["read_plain"]
    yield "stretches, messages/s", found["stretches"], ""
    yield "fold, messages/s", found["fold"], ""
    yield "recover, ms", found["recover"], ""


def main() -> None:
    """Measure, compare, report."""
    options = arguments(__doc__).parse_args()
    logging.getLogger("dhan_pipeline").setLevel(logging.ERROR)  # the torn blocks are ours
    works = ("write", "write_plain", "read", "read_plain", "stretches", "fold", "recover")
    with temporary_dir() as folder, ExitStack() as stack:
        sizes = [Sizes(folder, number, in_block) for number, in_block in enumerate(SIZES)]
        for of_size in sizes:
            stack.callback(of_size.close)
        found = take_turns(
            {f"{work} {of_size.in_block}": getattr(of_size, work) for of_size in sizes for work in works}
        )
        if problems := [problem for of_size in sizes for problem in of_size.check()]:
            wrong(*problems)
        rows = [
            {"measure": name, "messages a block": of_size.in_block, "journal": ours, "plain": plain}
            for of_size in sizes
            for name, ours, plain in figures(of_size, {work: found[f"{work} {of_size.in_block}"] for work in works})
        ]
    order = [row["measure"] for row in rows]
    rows.sort(key=lambda row: order.index(row["measure"]))
    publish(
        "The journal, beside a plain file",
        rows,
        options.json,
        instruments=INSTRUMENTS,
        rounds=ROUNDS,
        messages_a_round=MESSAGES,
    )


if __name__ == "__main__":
    main()
