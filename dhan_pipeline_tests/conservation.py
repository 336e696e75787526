"""The promise, checked: what the exchange gave to a socket is in the journal or in a recorded gap, and what is in the
journal is stored or rejected, exactly once.

TCP keeps order, so what the journal has of a socket is an exact beginning of what the exchange's log has of it. The
lost rest must have been sent while `feed_gaps` says that packets may be missing.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.by_source import decoder
from dhan_pipeline.feeds.simulator.misbehaviour import SentLog
from dhan_pipeline.gaps import Cause
from dhan_pipeline.journal.notes import NOTE_CONNECTION, Started, notes
from dhan_pipeline.journal.reader import read_blocks
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.ingest.feed import query

#: A packet is sent before it is received, and a process that is busy receives it late: what was sent this long before
#: a gap's beginning, which is a receive time, may belong to the gap.
TOLERANCE_NS = 5_000_000_000


@dataclass
class Report:
    """What was sent and what became of it, in messages and packets; and what is wrong, if anything."""

    sockets: int = 0
    sent: int = 0
    journaled: int = 0
    lost_in_gaps: int = 0
    held_back_in_gaps: int = 0
    """Packets that the exchange did not send because nobody read."""
    packets: int = 0
    stored: int = 0
    rejected: int = 0
    gaps: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Number and seconds of the gaps of each cause."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.sent:>12,} messages were given to {self.sockets} sockets",
            f"{self.journaled:>12,} are in the journal",
            f"{self.lost_in_gaps:>12,} were lost, all while a gap is recorded",
            f"{self.held_back_in_gaps:>12,} packets were held back because nobody read, all while a gap is recorded",
            f"{self.packets:>12,} packets in the journal's blocks, our own notes included",
            f"{self.stored:>12,} ticks stored, and {self.rejected:,} packets rejected with their bytes",
        ]
        lines += [
            f"{count:>12,} gaps of cause {cause}, {seconds:,.1f} s" for cause, (count, seconds) in self.gaps.items()
        ]
        return "\n".join([*lines, *(self.problems or ["Nothing lost, nothing twice."])])


Crcs = NDArray[np.uint32]


def check(logs: Sequence[SentLog], settings: Settings, database_url: str) -> Report:
    """Compare the exchange's logs, the journal of the capture and the database."""
    report = Report(sockets=len(logs), sent=sum(len(log.crc) for log in logs))
    gaps = _read_gaps(report, database_url)
    _check_received(report, logs, _segments(settings), gaps)
    _check_stored(report, settings, database_url)
    return report


def _segments(settings: Settings) -> list[tuple[int, Crcs]]:
    """(connection, CRC-32 of each message) of what the journal has of each socket, in order."""
    segments: list[tuple[int, list[int]]] = []
    current: dict[int, list[int]] = defaultdict(list)

    def end(connection: int) -> None:
        if current[connection]:
            segments.append((connection, current.pop(connection)))

    for block in read_blocks(settings.journal_dir, settings.capture_number):
        events = {
            at: note
            for (_, note), at in zip(notes(block), np.flatnonzero(block.connection == NOTE_CONNECTION), strict=True)
        }
        for at in range(block.messages):
            if (note := events.get(at)) is not None:
                if isinstance(note, Started):
                    for connection in list(current):
                        end(connection)
                elif note.cause is not Cause.SILENT and note.cause is not Cause.SUSPENDED and note.ended_ns is None:
                    end(note.connection)
                continue
            payload = block.payload[block.offsets[at] : block.offsets[at + 1]]
            current[int(block.connection[at])].append(crc32(payload))
    for connection in list(current):
        end(connection)
    return [(connection, np.array(crcs, np.uint32)) for connection, crcs in segments]


def _check_received(
    report: Report, logs: Sequence[SentLog], segments: list[tuple[int, Crcs]], gaps: dict[int, list[tuple[int, int]]]
) -> None:
    left = [(np.array(log.sent_ns, np.int64), np.array(log.crc, np.uint32), log) for log in logs]
    for connection, crcs in segments:
        report.journaled += len(crcs)
        # Sockets are matched in the order in which they were opened; a socket of which nothing arrived has no segment.
        for at, (sent_ns, sent_crc, log) in enumerate(left):
            if len(sent_crc) >= len(crcs) and np.array_equal(sent_crc[: len(crcs)], crcs):
                del left[at]
                where = f"socket {log.number}"
                report.lost_in_gaps += _lost_in_gaps(report, sent_ns[len(crcs) :], gaps[connection], where)
                skipped_ns = np.array(log.skipped_ns, np.int64)
                report.held_back_in_gaps += _lost_in_gaps(report, skipped_ns, gaps[connection], where)
                break
        else:
            report.problems.append(
                f"{len(crcs):,} messages of connection {connection} are the beginning of no socket's log."
            )
    every_gap = [gap for of_connection in gaps.values() for gap in of_connection]
    for sent_ns, _, log in left:
        where = f"socket {log.number}, of which nothing arrived"
        report.lost_in_gaps += _lost_in_gaps(report, sent_ns, every_gap, where)


def _lost_in_gaps(report: Report, sent_ns: NDArray[np.int64], gaps: list[tuple[int, int]], where: str) -> int:
    """How many of the messages were sent while a gap is recorded. The others are a problem."""
    within = np.zeros(len(sent_ns), np.bool_)
    for started_ns, ended_ns in gaps:
        within |= (sent_ns >= started_ns - TOLERANCE_NS) & (sent_ns <= ended_ns)
    if outside := int(np.count_nonzero(~within)):
        first = np.datetime64(int(sent_ns[~within][0]), "ns")
        report.problems.append(f"{outside:,} messages of {where} are lost outside of any gap, the first of {first}.")
    return int(np.count_nonzero(within))


def _read_gaps(report: Report, database_url: str) -> dict[int, list[tuple[int, int]]]:
    """Start and end of the gaps of each connection, ns."""
    rows = query(
        database_url,
        "SELECT connection, cause, (extract(epoch FROM started_at) * 1e9)::bigint, "
        "(extract(epoch FROM ended_at) * 1e9)::bigint FROM feed_gaps ORDER BY started_at",
    )
    gaps: dict[int, list[tuple[int, int]]] = defaultdict(list)
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    open_ones: Counter[int] = Counter()
    for connection, cause, started_ns, ended_ns in rows:
        assert isinstance(connection, int)
        assert isinstance(cause, str)
        assert isinstance(started_ns, int)
        counts[cause] += 1
        if ended_ns is None:
            open_ones[connection] += cause != Cause.SILENT
            ended_ns = 1 << 62
        else:
            assert isinstance(ended_ns, int)
            seconds[cause] += (ended_ns - started_ns) / 1e9  # type: ignore[assignment]
            if ended_ns < started_ns:
                report.problems.append(f"A gap of connection {connection} ends before it begins ({cause}).")
        if cause != Cause.SILENT:
            gaps[connection].append((started_ns, ended_ns))
    for connection, number in open_ones.items():
        if number > 1:
            report.problems.append(f"{number} gaps of connection {connection} are open at once.")
    report.gaps = {cause: (counts[cause], float(seconds[cause])) for cause in sorted(counts)}
    return gaps


def _check_stored(report: Report, settings: Settings, database_url: str) -> None:
    """Every packet of the journal is stored or rejected, once."""
    decode = decoder(settings)
    expected = {}
    for block in read_blocks(settings.journal_dir, settings.capture_number):
        expected[block.block_id] = (block.messages, decode(block.payload, block.offsets, block.text).packets)
    ledger = {
        block_id: (messages, packets)
        for block_id, messages, packets in query(
            database_url,  # a block that came in parts has a row for each
            "SELECT block_id, sum(messages)::int, sum(packets)::int FROM ingest_ledger "
            "GROUP BY block_id HAVING count(*) = min(parts)",
        )
    }
    report.packets = sum(packets for _, packets in expected.values())
    if missing := expected.keys() - ledger.keys():
        report.problems.append(f"{len(missing):,} blocks of the journal are not in the ledger.")
    if more := ledger.keys() - expected.keys():
        report.problems.append(f"{len(more):,} blocks of the ledger are not in the journal.")
    if wrong := [block_id for block_id in expected.keys() & ledger.keys() if expected[block_id] != ledger[block_id]]:
        report.problems.append(f"{len(wrong):,} blocks have other counts in the ledger than in the journal.")
    [(packets, ticks, others, rejected)] = query(
        database_url,
        "SELECT coalesce(sum(packets), 0)::bigint, coalesce(sum(ticks), 0)::bigint, "
        "coalesce(sum(state + control), 0)::bigint, coalesce(sum(rejected), 0)::bigint FROM ingest_ledger",
    )
    [(rows, distinct)] = query(database_url, "SELECT count(*), count(DISTINCT tick_id) FROM ticks")
    [(kept,)] = query(database_url, "SELECT count(*) FROM rejected_packets")
    assert isinstance(rows, int)
    assert isinstance(kept, int)
    report.stored, report.rejected = rows, kept
    if packets != ticks + others + rejected:  # type: ignore[operator]
        report.problems.append("packets = ticks + state + control + rejected does not hold in the ledger.")
    if not rows == distinct == ticks:
        report.problems.append(f"The ledger has {ticks} ticks, the table {rows} rows with {distinct} ids.")
    if kept != rejected:
        report.problems.append(f"The ledger has {rejected} rejected packets, the table {kept}.")
