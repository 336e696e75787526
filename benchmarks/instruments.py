"""The instruments: from a scrip master's CSV to the commit, beside the design that we replace; and look-ups' memory.

    python benchmarks/instruments.py [--json]

The master is made up: 228,000 rows in the detailed layout, of the real one's structure and size. Rows that no feed
carries are left out by both, so some 208,000 instruments are loaded. Two contenders, in turn, and no more than three
rounds, since the second takes its time:

- `sync`: ours, `parse_dhan_csv` and `sync_to_database`, which also keeps versions and deactivates what is missing;
- `replaced`: `csv.DictReader`, a Pydantic model a row, and `execute_batch` of 1000 upserts at a time, into a table with
  fewer columns and no versions.

Each is measured from the opening of the file to the commit: into an empty table (`first`), with the same file again
(`unchanged`), and with a file in which 1 % of the rows have another lot size, 0.5 % are missing and 0.5 % are new
(`changed`). The replaced design writes all rows whatever they say, so it gets the changed file alone, and only once.

Memory: the look-up tables of all instruments, and the same instruments as Pydantic objects in a dictionary, by
tracemalloc.

What the sync says it did has to be what was done to the file, and both tables have to agree in every value that both
have. A difference is a failure (exit code 1). A time never is.
"""

import csv
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from pathlib import Path

import numpy as np
from psycopg2.extensions import connection
from psycopg2.extras import execute_batch

from benchmarks.baseline.models import InstrumentInfo
from benchmarks.material import database, temporary_dir
from benchmarks.report import Spread, arguments, publish, take_turns, wrong
from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.instruments import InstrumentIndex, generate_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.instruments import load_tokens, sync_to_database

ROUNDS = 3
ROWS = 228_000
DAY = date(2026, 11, 20)

#: Rows a statement: the replaced design's.
PAGE = 1000

#: How many instruments of the changed file have another lot size, are missing, are new: shares of the file's rows.
CHANGED, MISSING, NEW = ROWS // 100, ROWS // 200, ROWS // 200

#: Above every id of the made-up master.
FIRST_NEW_ID = 5_000_000

SEGMENTS = {
    "NSE E": "NSE_EQ",
    "NSE D": "NSE_FNO",
    "NSE C": "NSE_CURRENCY",
    "BSE E": "BSE_EQ",
    "BSE D": "BSE_FNO",
    "BSE C": "BSE_CURRENCY",
    "MCX M": "MCX_COMM",
    "NSE I": "IDX_I",
    "BSE I": "IDX_I",
    "MCX I": "IDX_I",
}

NAMES = tuple(InstrumentInfo.model_fields)

#: What both designs keep in the same words. Symbols and names they spell differently.
SHARED = "instrument_token, exchange, exchange_segment, instrument_type, expiry, strike, tick_size, lot_size"


def write_changed_master(path: Path, to: Path) -> None:
    """The same master on another day. What changes are options of NSE, here and there."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    at = {name: header.index(name) for name in ("EXCH_ID", "SEGMENT", "INSTRUMENT", "SECURITY_ID", "LOT_SIZE")}
    options = [
        number
        for number, row in enumerate(rows)
        if (row[at["EXCH_ID"]], row[at["SEGMENT"]], row[at["INSTRUMENT"]][:3]) == ("NSE", "D", "OPT")
        and not any("NSETEST" in field for field in row)
    ]
    chosen = np.random.default_rng(0).choice(options, CHANGED + MISSING + NEW, replace=False).tolist()
    for number in chosen[:CHANGED]:
        rows[number][at["LOT_SIZE"]] = str(2 * float(rows[number][at["LOT_SIZE"]]))
    for new, number in enumerate(chosen[CHANGED + MISSING :]):
        rows.append(list(rows[number]))
        rows[-1][at["SECURITY_ID"]] = str(FIRST_NEW_ID + new)
    missing = set(chosen[CHANGED : CHANGED + MISSING])
    with to.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [header, *(row for number, row in enumerate(rows) if number not in missing)]
        )


def read_models(path: Path) -> Iterator[InstrumentInfo]:
    """The master as the replaced design reads it: a row, a dictionary, a model at a time."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            segment = SEGMENTS.get(f"{row['EXCH_ID']} {row['SEGMENT']}")
            symbol = row["UNDERLYING_SYMBOL"] if row["SEGMENT"] == "E" else row["SYMBOL_NAME"]
            if segment is None or "NSETEST" in symbol:
                continue
            option = row["INSTRUMENT"].startswith("OPT")
            expiry = row["SM_EXPIRY_DATE"]
            tick_size = float(row["TICK_SIZE"]) / (1 if segment == "IDX_I" else 100)
            yield InstrumentInfo(
                instrument_token=generate_instrument_token(segment, row["SECURITY_ID"]),
                security_id=row["SECURITY_ID"],
                exchange_segment=segment,
                trading_symbol=symbol,
                name=row["DISPLAY_NAME"],
                exchange=row["EXCH_ID"],
                instrument_type=row["INSTRUMENT"],
                expiry=None if expiry in ("", "0001-01-01") else date.fromisoformat(expiry),
                strike=float(row["STRIKE_PRICE"]) if option else None,
                tick_size=tick_size or None,
                lot_size=int(float(row["LOT_SIZE"])) or None,
            )


class Contenders:
    """The two ways to bring the table up to date, and what each master has to do to ours."""

    def __init__(self, settings: Settings, conn: connection, folder: Path) -> None:
        self._url = settings.database_url or ""
        self._conn = conn
        self.master, self.changed = folder / "master.csv", folder / "changed.csv"
        write_synthetic_master(self.master, ROWS, on=DAY)
        write_changed_master(self.master, self.changed)
        self.instruments = sum(1 for _ in read_models(self.master))
        """How many are loaded."""
        with conn, conn.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE replaced (instrument_token bigint PRIMARY KEY, security_id text, exchange_segment text, "
                "trading_symbol text NOT NULL, name text, exchange text NOT NULL, instrument_type text, expiry date, "
                "strike numeric(12, 2), tick_size numeric(10, 4), lot_size integer, last_updated timestamptz)"
            )

    def empty(self, *tables: str) -> None:
        """Begin anew."""
        with self._conn, self._conn.cursor() as cursor:
            cursor.execute(f"TRUNCATE {', '.join(tables)}")

    def sync_first(self) -> float:
        """Seconds of ours, into empty tables."""
        self.empty("instruments", "instrument_versions")
        return self._sync(self.master, inserted=self.instruments)

    def sync_unchanged(self) -> float:
        """Seconds of ours, with the same file again."""
        return self._sync(self.master, unchanged=self.instruments)

    def sync_changed(self) -> float:
        """Seconds of ours, with the changed file."""
        unchanged = self.instruments - CHANGED - MISSING
        return self._sync(self.changed, inserted=NEW, updated=CHANGED, deactivated=MISSING, unchanged=unchanged)

    def replaced_first(self) -> float:
        """Seconds of the replaced design, into an empty table."""
        self.empty("replaced")
        return self._replaced(self.master)

    def replaced_changed(self) -> float:
        """Seconds of the replaced design, with the changed file."""
        took = self._replaced(self.changed)
        self._check()
        return took

    def _sync(self, path: Path, **expected: int) -> float:
        started = time.perf_counter()
        result = sync_to_database(self._url, parse_dhan_csv(path))
        took = time.perf_counter() - started
        counts = ("inserted", "updated", "unchanged", "deactivated", "reactivated", "quarantined")
        if differ := [name for name in counts if getattr(result, name) != expected.get(name, 0)]:
            wrong(*(f"{path.name}: {getattr(result, n)} {n}, and not {expected.get(n, 0)}" for n in differ))
        return took

    def _replaced(self, path: Path) -> float:
        places = ", ".join(f"%({name})s" for name in NAMES)
        updates = ", ".join(f"{name} = excluded.{name}" for name in NAMES[1:])
        started = time.perf_counter()
        with self._conn, self._conn.cursor() as cursor:
            execute_batch(
                cursor,
                f"INSERT INTO replaced ({', '.join(NAMES)}, last_updated) VALUES ({places}, now()) "
                f"ON CONFLICT (instrument_token) DO UPDATE SET {updates}, last_updated = now()",
                (model.model_dump() for model in read_models(path)),
                page_size=PAGE,
            )
        return time.perf_counter() - started

    def _check(self) -> None:
        """Both tables hold the same; the replaced one has no word for what is missing."""
        with self._conn, self._conn.cursor() as cursor:
            for one, other in (("instruments", "replaced"), ("replaced", "instruments")):
                cursor.execute(
                    f"SELECT count(*) FROM (SELECT {SHARED} FROM {one} EXCEPT SELECT {SHARED} FROM {other}) t"
                )
                if differ := cursor.fetchall()[0][0]:
                    wrong(f"{differ} rows of {one} are not in {other}")
            cursor.execute("SELECT count(*), count(*) FILTER (WHERE is_active) FROM instruments")
            if (found := cursor.fetchall()[0]) != (self.instruments + NEW, self.instruments + NEW - MISSING):
                wrong("there are {} instruments, of which {} active".format(*found))
            cursor.execute("SELECT count(*), count(*) FILTER (WHERE valid_to IS NULL) FROM instrument_versions")
            versions = self.instruments + NEW + CHANGED
            if (found := cursor.fetchall()[0]) != (versions, self.instruments + NEW - MISSING):
                wrong("there are {} versions, of which {} open".format(*found))


def object_bytes(path: Path) -> int:
    """Memory of a master's instruments as Pydantic objects, by token."""
    tracemalloc.start()
    objects = {model.instrument_token: model for model in read_models(path)}
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del objects
    return size


def main() -> None:
    """Measure, compare, report."""
    options = arguments(__doc__).parse_args()
    with (
        temporary_dir() as folder,
        database() as settings,
        closing(connect(settings.database_url or "")) as conn,
    ):
        contenders = Contenders(settings, conn, folder)
        turns: dict[str, Callable[[], float]] = {
            "sync first": contenders.sync_first,
            "replaced first": contenders.replaced_first,
            "sync unchanged": contenders.sync_unchanged,
            "sync changed": contenders.sync_changed,
        }
        seconds = take_turns(turns, ROUNDS)
        seconds |= take_turns({"replaced changed": contenders.replaced_changed}, rounds=1)
        with conn:
            index = InstrumentIndex(load_tokens(conn, "dhan"))
        tables_mb, objects_mb = index.nbytes / 1e6, object_bytes(contenders.changed) / 1e6
    rows: list[dict[str, Spread | float | str]] = [
        {
            "measure": f"{name}, seconds",
            "ours": seconds[f"sync {name}"],
            "replaced": seconds.get(f"replaced {name}", ""),
        }
        for name in ("first", "unchanged", "changed")
    ]
    rows.append({"measure": "look-ups in memory, MB", "ours": tables_mb, "replaced": objects_mb})
    publish(
        "Instruments, from CSV to commit",
        rows,
        options.json,
        rows_of_the_master=ROWS,
        instruments=contenders.instruments,
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
