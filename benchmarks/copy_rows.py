"""Rows a second into PostgreSQL, by the rows of a transaction: our writer beside the two ways of the replaced design.

    python benchmarks/copy_rows.py [--json]

Three contenders write the same ticks (full packets) in turn, five rounds each, into one embedded server:

- `write_blocks`: ours, as the capture calls it. In one transaction the rows, built into a binary COPY, and their ledger
  rows; blocks of at most 1000 messages.
- `execute_batch` and `execute_values` of psycopg2, 1000 rows a page, into a plain table with the columns that `ticks`
  shows and a primary key. Their rows are tuples of Python values already when the time begins; ours are arrays, as
  decoding leaves them. They get fewer rows, since only the rate counts, and their table stays the smaller one.

Time runs from the first statement to the end of the last commit. Afterwards the rows of every table are compared by
count and fingerprint. A difference is a failure (exit code 1). A time never is.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from psycopg2.extensions import connection
from psycopg2.extras import execute_batch, execute_values

from benchmarks.material import START_NS, HandClock, Packets, database, instrument_tokens, temporary_dir
from benchmarks.report import ROUNDS, arguments, publish, take_turns, wrong
from dhan_pipeline.enrich import derived
from dhan_pipeline.ingest.process import BlockProcessor
from dhan_pipeline.journal.reader import JournalReader
from dhan_pipeline.journal.stretch import joined
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.ledger import redrives
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline.store.ticks import StoredBlocks, write_blocks
from dhan_pipeline.ticks import COLUMNS, NULL_INT, TickBatch

SIZES = (200, 1000, 4000, 20_000)

#: Rows that each contender writes in a round, at least; and a transaction at least.
OUR_ROWS = 40_000
THEIR_ROWS = 2_000

#: Messages of a block.
IN_BLOCK = 1000
#: Rows a statement: the replaced design's.
PAGE = 1000

CAPTURE = 0

#: Messages a second. All are received within the hour.
RATE = 1000.0

NAMES = [column.name for column in COLUMNS]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = tuple[Any, ...]


class Contenders:
    """The three ways to write. Ours comes first in each round, and says which ticks the others get."""

    def __init__(self, conn: connection, source: "Source") -> None:
        self._conn = conn
        self._source = source
        self._clock = HandClock(START_NS)
        ensure_partitions(conn, START_NS, START_NS + HOUR_NS)
        with conn:
            self._redrives = redrives(conn, CAPTURE)
        self._rows: list[list[Row]] = []
        self.written = 0
        """Rows that ours has written."""

    def ours(self, size: int) -> float:
        """Rows a second, a transaction of `size` rows at a time."""
        transactions = [self._source.blocks(size) for _ in range(max(OUR_ROWS // size, 1))]
        theirs = transactions[: max(THEIR_ROWS // size, 1)]
        self._rows = [[row for block in blocks for row in rows_of(block)] for blocks in theirs]
        started = time.perf_counter()
        for blocks in transactions:
            count = sum(len(part.stretch.block_ids) for part in blocks)
            if len(write_blocks(self._conn, blocks, self._clock, self._redrives)) != count:
                wrong("a block was not written, though it was new")
        took = time.perf_counter() - started
        self.written += size * len(transactions)
        return size * len(transactions) / took

    def batch(self, size: int) -> float:
        """Rows a second of `execute_batch`."""
        values = ", ".join(["%s"] * len(NAMES))
        return self._replaced(partial(execute_batch, page_size=PAGE), f"INSERT INTO batch_{size} VALUES ({values})")

    def values(self, size: int) -> float:
        """Rows a second of `execute_values`."""
        return self._replaced(partial(execute_values, page_size=PAGE), f"INSERT INTO values_{size} VALUES %s")

    def _replaced(self, execute: Callable[..., object], statement: str) -> float:
        started = time.perf_counter()
        for rows in self._rows:
            with self._conn, self._conn.cursor() as cursor:
                execute(cursor, statement, rows)
        return sum(map(len, self._rows)) / (time.perf_counter() - started)


class Source:
    """Ticks without end: a market's packets through the journal, the decoder and the enrichment."""

    def __init__(self, journal: JournalWriter, reader: JournalReader) -> None:
        tokens = instrument_tokens()
        self._journal, self._reader = journal, reader
        self._packets = Packets(RATE, tokens=tokens)
        self._processor = BlockProcessor(tokens)

    def blocks(self, size: int) -> list[StoredBlocks]:
        """The next `size` ticks."""
        for start in range(0, size, IN_BLOCK):
            self._packets.take(min(IN_BLOCK, size - start)).append_to(self._journal)
        return [self._processor.process(stretch) for stretch in joined(self._reader.blocks())]


def rows_of(block: StoredBlocks) -> list[Row]:
    """The rows of blocks as psycopg2 takes them."""
    return [row for batch in block.enriched.ticks for row in zip(*_columns(batch), strict=True)]


def _columns(batch: TickBatch) -> list[Sequence[Any]]:
    columns: list[Sequence[Any]] = []
    stored = {**batch.columns, **derived(batch.columns)}
    for column in COLUMNS:
        values = stored.get(column.name)
        if column.name == "mode":
            columns.append([str(batch.mode)] * len(batch))
        elif values is None:
            columns.append([None] * len(batch))
        elif column.kind == "timestamptz":
            columns.append([None if us == NULL_INT else _EPOCH + timedelta(microseconds=us) for us in values.tolist()])
        else:
            columns.append(_absent_as_none(values.tolist()))
    return columns


def _absent_as_none(values: list[Any]) -> list[Any]:
    if values and isinstance(values[0], list):
        return [_absent_as_none(some) for some in values]
    # NaN is the one number that differs from itself.
    return [None if value != value or value == NULL_INT else value for value in values]


def make_tables(conn: connection) -> None:
    """The tables of the replaced design, one for each contender and size."""
    columns = ", ".join(f'"{c.name}" {c.kind}{" NOT NULL" if c.required else ""}' for c in COLUMNS)
    with conn, conn.cursor() as cursor:
        for name in [f"{way}_{size}" for way in ("batch", "values") for size in SIZES]:
            cursor.execute(f"CREATE TABLE {name} ({columns}, PRIMARY KEY (instrument_token, time, tick_id))")


def check(conn: connection, written: int) -> list[str]:
    """Where the tables' rows differ, a sentence each."""
    problems = []
    select = ", ".join(f't."{name}"' for name in NAMES)
    # As text, since that shows every bit of a number, and is the same wherever the value comes from.
    fingerprint = "SELECT count(*), coalesce(sum(('x' || left(md5(r::text), 16))::bit(64)::bigint), 0) FROM ({}) r"
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM ticks")
        if (stored := cursor.fetchall()[0][0]) != written:
            problems.append(f"ticks has {stored} rows, {written} were written")
        for size in SIZES:
            for table in (f"batch_{size}", f"values_{size}"):
                cursor.execute(fingerprint.format(f"SELECT {select} FROM {table} t"))
                theirs = cursor.fetchall()[0]
                same = f"SELECT {select} FROM ticks t JOIN {table} USING (instrument_token, time, tick_id)"
                cursor.execute(fingerprint.format(same))
                ours = cursor.fetchall()[0]
                least = ROUNDS * max(THEIR_ROWS // size, 1) * size
                if theirs[0] != least:
                    problems.append(f"{table} has {theirs[0]} rows, {least} were written")
                if theirs != ours:
                    problems.append(f"the {theirs[0]} rows of {table} are not those of ticks")
    return problems


def main() -> None:
    """Measure, compare, report."""
    options = arguments(__doc__).parse_args()
    with (
        temporary_dir() as folder,
        database() as settings,
        closing(connect(settings.database_url or "")) as conn,
        closing(JournalWriter(folder, CAPTURE)) as journal,
    ):
        make_tables(conn)
        contenders = Contenders(conn, Source(journal, JournalReader(folder, CAPTURE)))
        ways = {
            "write_blocks": contenders.ours,
            "execute_batch": contenders.batch,
            "execute_values": contenders.values,
        }
        spreads = take_turns({f"{way} {size}": partial(ways[way], size) for size in SIZES for way in ways})
        if problems := check(conn, contenders.written):
            wrong(*problems)
    rows = []
    for size in SIZES:
        found = {way: spreads[f"{way} {size}"] for way in ways}
        times = found["write_blocks"].median / found["execute_batch"].median
        rows.append({"rows a transaction": size, **found, "times execute_batch": round(times, 1)})
    publish("Rows a second into PostgreSQL", rows, options.json, instruments=len(instrument_tokens()), rounds=ROUNDS)


if __name__ == "__main__":
    main()
