"""The ledger of gaps: what the journal's notes say about times in which packets may have been missed."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection, cursor

from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.journal.notes import Note
from dhan_pipeline.store.partitions import instant


@dataclass(frozen=True, slots=True)
class StoredGap:
    """A row of `feed_gaps`. Times are ns since the Unix epoch, UTC."""

    capture: int
    gap_id: int
    connection: int
    instruments: NDArray[np.int64]
    started_ns: int
    ended_ns: int | None
    """None while it lasts."""
    cause: Cause
    detail: str
    recovery: str


def apply_notes(cur: cursor, capture: int, notes: Iterable[tuple[int, Note]]) -> None:
    """Take over what a capture noted, in order, each with its receive time. Nothing changes when it is told again."""
    for _, note in notes:
        if isinstance(note, Gap):
            _upsert(cur, capture, note)
        elif note.since_ns is not None:
            # Nobody could note the end of what was open when the process before vanished. Its successor goes on from
            # where the journal ended, with gaps of its own.
            cur.execute(
                "UPDATE feed_gaps SET ended_at = greatest(started_at, %s), recovery = 'the process ended' "
                "WHERE capture = %s AND ended_at IS NULL AND gap_id <= %s",
                (instant(note.since_ns), capture, note.last_gap_id),
            )


def _upsert(cur: cursor, capture: int, gap: Gap) -> None:
    cur.execute(
        "INSERT INTO feed_gaps AS old "
        "(capture, gap_id, connection, instruments, started_at, ended_at, cause, detail, recovery) "
        "VALUES (%s, %s, %s, coalesce(%s, '{}'::bigint[]), %s, %s, %s, %s, %s) "
        "ON CONFLICT (capture, gap_id) DO UPDATE SET ended_at = excluded.ended_at, cause = excluded.cause, "
        "detail = excluded.detail, recovery = excluded.recovery, "
        "instruments = CASE WHEN %s THEN excluded.instruments ELSE old.instruments END "
        # What has ended stays as it ended, also when its beginning is told again.
        "WHERE old.ended_at IS NULL",
        (
            capture,
            gap.gap_id,
            gap.connection,
            None if gap.instruments is None else list(gap.instruments),
            instant(gap.started_ns),
            None if gap.ended_ns is None else instant(gap.ended_ns),
            gap.cause.value,
            gap.detail,
            gap.recovery,
            gap.instruments is not None,
        ),
    )


def read_gaps(conn: connection, start_ns: int, end_ns: int) -> list[StoredGap]:
    """The gaps that overlap [`start_ns`, `end_ns`) (ns since the Unix epoch, UTC), by start. Open ones last for ever.

    Leaves the transaction open.
    """
    with conn.cursor() as cur:
        cur.execute(
            "SELECT capture, gap_id, connection, instruments, (extract(epoch FROM started_at) * 1e9)::bigint, "
            "(extract(epoch FROM ended_at) * 1e9)::bigint, cause, detail, recovery FROM feed_gaps "
            "WHERE started_at < %s AND (ended_at IS NULL OR ended_at > %s) ORDER BY started_at, capture, gap_id",
            (instant(end_ns), instant(start_ns)),
        )
        return [
            StoredGap(
                capture, gap_id, number, np.array(instruments, np.int64), started_ns, ended_ns, Cause(cause), *words
            )
            for capture, gap_id, number, instruments, started_ns, ended_ns, cause, *words in cur.fetchall()
        ]
