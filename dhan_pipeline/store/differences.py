"""What differs between the rows of an hour and those that are to replace them: found by the server, told by column.

The rows to come are in a temporary table of the transaction, the others in `tick_rows`. The server compares a hash of
each row; only rows that differ are read, and compared column by column as `ticks` has them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from psycopg2.extensions import connection

from dhan_pipeline.store.copy import DEPTH, STORED
from dhan_pipeline.store.digests import ROW_HASH
from dhan_pipeline.store.ledger import hour_bounds
from dhan_pipeline.store.rows import read_tick_table
from dhan_pipeline.ticks import COLUMNS, DEPTH_LEVELS, Mode

#: The temporary tables of a comparison: all rows to come; which rows differ; those of the hour, and those to come.
RENEWED = "renewed_ticks"
_DIFFERING, _OLD, _NEW = "differing_ticks", "old_ticks", "new_ticks"

#: Differences that a comparison keeps.
EXAMPLES = 20

#: Stands for a column where what is stored differs, and what it means does not: NaN for NULL, prices of another scale.
_BYTES = "bytes"

_ROWS_AT_ONCE = 50_000

_PRESENT, _ABSENT = "present", "absent"

# A row that cannot be read, or that is there twice, is no match for one to come: it goes, and that one is added.
_FIND = f"""
WITH old AS MATERIALIZED (
    SELECT tick_id, {ROW_HASH} AS hash,
        mode = ANY(%(modes)s) AND coalesce(octet_length(depth), %(depth)s) = %(depth)s AS readable
    FROM tick_rows t WHERE time >= %(start)s AND time < %(end)s
), single AS (
    SELECT tick_id FROM old GROUP BY tick_id HAVING count(*) = 1 AND bool_and(readable)
), new AS (
    SELECT tick_id, {ROW_HASH} AS hash FROM {RENEWED} t
)
INSERT INTO {_DIFFERING}
SELECT coalesce(new.tick_id, old.tick_id),
    CASE WHEN old.tick_id IS NULL THEN 'added' WHEN new.tick_id IS NULL THEN 'removed' ELSE 'changed' END
FROM (old LEFT JOIN single USING (tick_id)) FULL JOIN new ON new.tick_id = single.tick_id
WHERE old.tick_id IS NULL OR new.tick_id IS NULL OR old.hash <> new.hash
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that differs, or a row that was added or removed."""

    tick_id: int
    time: datetime
    """When its packet was received, UTC."""
    instrument_token: int
    column: str | None
    """None where the row as a whole was `absent` or `present`."""
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Differences:
    """What differs between an hour's rows and those that are to replace them."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    columns: tuple[tuple[str, int], ...] = ()
    """In how many of the changed rows each column of `ticks` differs, in its order; without those that never do.

    `bytes` are those in which none does, and only the way in which they are stored.
    """
    examples: tuple[Difference, ...] = ()
    """The first `EXAMPLES`: of changed rows, then of removed and of added ones, each by tick_id."""


def begin(conn: connection) -> None:
    """Make an empty table `RENEWED` for the rows to come. The transaction's end removes it."""
    with conn.cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE {RENEWED} (LIKE tick_rows) ON COMMIT DROP")


def compare(
    conn: connection, hour: str, each_row: Callable[[Sequence[Difference]], object] | None = None
) -> Differences:
    """Compare the hour's rows with those in `RENEWED`, which stays open to `apply`.

    By column, NULL and NaN are equal. `each_row` gets all differences of one row after another, in the order of
    `examples`. Memory stays flat however many differ. Once a transaction.
    """
    start, end = hour_bounds(hour)
    scope = {"start": start, "end": end, "modes": [mode.value for mode in Mode], "depth": DEPTH.itemsize}
    with conn.cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE {_DIFFERING} (tick_id bigint, kind text) ON COMMIT DROP")
        cursor.execute(_FIND, scope)
        cursor.execute(f"SELECT kind, count(*) FROM {_DIFFERING} GROUP BY kind")
        counts: dict[str, int] = dict(cursor.fetchall())
        for table, rows, kind in (
            (_OLD, "tick_rows WHERE time >= %(start)s AND time < %(end)s", "removed"),
            (_NEW, f"{RENEWED} WHERE true", "added"),
        ):
            # In order, so that it is read in order.
            cursor.execute(f"CREATE TEMPORARY TABLE {table} (LIKE tick_rows, changed boolean) ON COMMIT DROP")
            cursor.execute(
                f"INSERT INTO {table} SELECT t.*, kind = 'changed' FROM (SELECT * FROM {rows}) AS t JOIN (SELECT "
                f"DISTINCT tick_id, kind FROM {_DIFFERING} WHERE kind IN (%(kind)s, 'changed')) AS differing "
                "USING (tick_id) ORDER BY tick_id",
                scope | {"kind": kind},
            )
            cursor.execute(f"CREATE INDEX ON {table} (tick_id)")
    told = _Told(each_row)
    columns = _changed(conn, told)
    for kind, table, sides in (("removed", _OLD, (_PRESENT, _ABSENT)), ("added", _NEW, (_ABSENT, _PRESENT))):
        if counts.get(kind):
            _whole(conn, table, sides, told)
    return Differences(
        counts.get("added", 0), counts.get("removed", 0), counts.get("changed", 0), columns, tuple(told.examples)
    )


def apply(conn: connection, hour: str) -> None:
    """Make the hour's rows those of `RENEWED`, after `compare`, touching only rows that differ."""
    with conn.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM tick_rows WHERE time >= %s AND time < %s AND tick_id IN (SELECT tick_id FROM {_DIFFERING})",
            hour_bounds(hour),
        )
        cursor.execute(f"INSERT INTO tick_rows ({', '.join(STORED)}) SELECT {', '.join(STORED)} FROM {_NEW}")


class _Told:
    """Keeps the first differences, and hands on all of them if somebody wants them."""

    def __init__(self, each_row: Callable[[Sequence[Difference]], object] | None) -> None:
        self._each_row = each_row
        self.examples: list[Difference] = []

    @property
    def enough(self) -> bool:
        return self._each_row is None and len(self.examples) >= EXAMPLES

    def tell(self, of_row: Sequence[Difference]) -> None:
        self.examples.extend(of_row[: EXAMPLES - len(self.examples)])
        if self._each_row is not None:
            self._each_row(of_row)


def _changed(conn: connection, told: _Told) -> tuple[tuple[str, int], ...]:
    """How many of the rows that are on both sides differ in each column."""
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT tick_id FROM (SELECT tick_id, row_number() OVER (ORDER BY tick_id) AS number "
            f"FROM {_NEW} WHERE changed) AS changed WHERE number %% %s = 1 ORDER BY tick_id",
            (_ROWS_AT_ONCE,),
        )
        firsts = [first for (first,) in cursor.fetchall()]
    counts: dict[str, int] = dict.fromkeys((*(column.name for column in COLUMNS), _BYTES), 0)
    for bounds in pairwise([*firsts, 2**63 - 1]):
        before, after = (
            read_tick_table(conn, "changed AND tick_id >= %s AND tick_id < %s", bounds, relation=table, order="tick_id")
            for table in (_OLD, _NEW)
        )
        differs = {name: _differs(before[name], after[name]) for name in before.column_names}
        differs[_BYTES] = ~np.logical_or.reduce(list(differs.values()))
        for name, rows in differs.items():
            counts[name] += int(np.count_nonzero(rows))
        if not told.enough:
            _tell_changed(before, after, differs, told)
    return tuple((name, count) for name, count in counts.items() if count)


def _tell_changed(before: pa.Table, after: pa.Table, differs: dict[str, NDArray[np.bool_]], told: _Told) -> None:
    names = list(differs)
    table = np.column_stack(list(differs.values()))
    for row in range(len(table)):
        if told.enough:
            return
        tick_id, time, token = (after[name][row].as_py() for name in ("tick_id", "time", "instrument_token"))
        found = []
        for name in (names[column] for column in np.flatnonzero(table[row])):
            old, new = (side[name][row].as_py() if name != _BYTES else None for side in (before, after))
            found.append(Difference(tick_id, time, token, name, old, new))
        told.tell(found)


def _whole(conn: connection, table: str, sides: tuple[str, str], told: _Told) -> None:
    """Tell of rows that are on one side only."""
    with conn.cursor("whole_rows") as cursor:
        cursor.itersize = _ROWS_AT_ONCE
        cursor.execute(f"SELECT tick_id, time, instrument_token FROM {table} WHERE NOT changed ORDER BY tick_id")
        for tick_id, time, token in cursor:
            if told.enough:
                return
            told.tell([Difference(tick_id, time, token, None, *sides)])


def _differs(before: pa.ChunkedArray, after: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Where two columns of the same type differ, shape (rows,)."""
    if pa.types.is_list(before.type):
        differs = _differs(pc.is_valid(before), pc.is_valid(after))
        for level in range(DEPTH_LEVELS):
            differs |= _differs(pc.list_element(before, level), pc.list_element(after, level))
    elif pa.types.is_floating(before.type):
        old, new = (np.asarray(side.to_numpy(), np.float64) for side in (before, after))  # NaN for NULL
        differs = (old != new) & ~(np.isnan(old) & np.isnan(new))
    else:
        both_absent = pc.and_(pc.is_null(before), pc.is_null(after))
        same = pc.or_(pc.fill_null(pc.equal(before, after), False), both_absent)
        differs = ~np.asarray(same.to_numpy(), np.bool_)
    return differs
