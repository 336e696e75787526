"""Ticks and candles for research: asked for by symbol and time, wherever they are by now.

    from dhan_pipeline import read_ticks

    ticks = read_ticks(["RELIANCE", "NIFTY"], "2026-11-20 09:15", "2026-11-20 15:30")

Hours that the database holds come from it, days that it no longer holds from the archive; who asks need not know.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date, datetime, time, timedelta
from importlib.util import find_spec
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg2 import errors
from psycopg2.extensions import connection

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.sessions import HOUR_NS, IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store import candles
from dhan_pipeline.store.archive import ORDER, ArchivedDay, archive_schema, archived_days, day_bounds
from dhan_pipeline.store.engine import connect, database_url
from dhan_pipeline.store.lives import read_lives, with_symbols
from dhan_pipeline.store.partitions import instant, partition_starts
from dhan_pipeline.store.rows import read_tick_table
from dhan_pipeline.store.symbols import resolve_symbols

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

#: A time: aware, or of the IST clock; of a date, its midnight in India. As text, ISO 8601.
When = datetime | date | str

Symbols = str | int | Sequence[str | int]
As = Literal["pandas", "polars", "arrow"]
_Bounds = tuple[datetime, datetime]


class ResearchError(PipelineError):
    """What was asked for cannot be had so."""


@overload
def read_ticks(
    symbols: Symbols,
    start: When,
    end: When,
    *,
    columns: Sequence[str] | None = None,
    as_: Literal["pandas"] = "pandas",
    source: Source | None = None,
    settings: Settings | None = None,
) -> "pd.DataFrame": ...
@overload
def read_ticks(
    symbols: Symbols,
    start: When,
    end: When,
    *,
    columns: Sequence[str] | None = None,
    as_: Literal["polars"],
    source: Source | None = None,
    settings: Settings | None = None,
) -> "pl.DataFrame": ...
@overload
def read_ticks(
    symbols: Symbols,
    start: When,
    end: When,
    *,
    columns: Sequence[str] | None = None,
    as_: Literal["arrow"],
    source: Source | None = None,
    settings: Settings | None = None,
) -> pa.Table: ...
def read_ticks(
    symbols: Symbols,
    start: When,
    end: When,
    *,
    columns: Sequence[str] | None = None,
    as_: As = "pandas",
    source: Source | None = None,
    settings: Settings | None = None,
) -> Any:
    """The ticks of instruments that were received in [start, end), by instrument and time.

    `symbols` are what `dhan-pipeline find` understands, as of the last day of the range, or instrument tokens. A time
    without a zone is of the IST clock; a date is its midnight. `columns` are some of `ticks_with_symbols`; without them
    come all. `source` is the broker whose instruments symbols mean; without it, and where both are captured
    (DATA_SOURCE=kite,dhan), the first one named there. `settings` are those of the environment and `.env`, as
    everywhere.

    - `pandas`: indexed by `time`, in IST. Integers that may be absent are Int64, symbols are categories.
    - `polars`: times in IST.
    - `arrow`: times in UTC, with each column's unit and meaning as field metadata.

    Raises ResearchError for times and columns that make no sense, where polars is not installed, and where a file of
    the archive is missing; SymbolError for a symbol that is unknown or ambiguous; DatabaseError.
    """
    _check(as_)
    bounds = _range(start, end)
    names = _known(columns, archive_schema().names)
    settings = settings or Settings()
    with _database(settings) as conn:
        # As of one moment; what is rebuilt or dropped meanwhile comes from one of both all the same.
        conn.set_session(isolation_level="REPEATABLE READ", readonly=True)
        tokens = _tokens(conn, symbols, bounds, source or settings.sources[0])
        parts = [_from_table(conn, tokens, bounds)]
        held = _held_hours(conn, bounds)
        for archived in archived_days(conn):
            missing = _without(_overlap(day_bounds(archived.day), bounds), held)
            if missing:
                parts.append(_from_archive(settings, archived, tokens, missing, names))
    wanted = [name for name in archive_schema().names if name in {*names, *ORDER}]
    filled = [part.select(wanted) for part in parts if part.num_rows]
    table = pa.concat_tables(filled or [parts[0].select(wanted)]).unify_dictionaries()
    if len(filled) > 1:
        table = table.sort_by([(name, "ascending") for name in ORDER])
    return _as(_with_own_words(table.select(names)), as_)


@overload
def read_candles(
    symbols: Symbols,
    start: When,
    end: When,
    minutes: int = 1,
    *,
    as_: Literal["pandas"] = "pandas",
    source: Source | None = None,
    settings: Settings | None = None,
) -> "pd.DataFrame": ...
@overload
def read_candles(
    symbols: Symbols,
    start: When,
    end: When,
    minutes: int = 1,
    *,
    as_: Literal["polars"],
    source: Source | None = None,
    settings: Settings | None = None,
) -> "pl.DataFrame": ...
@overload
def read_candles(
    symbols: Symbols,
    start: When,
    end: When,
    minutes: int = 1,
    *,
    as_: Literal["arrow"],
    source: Source | None = None,
    settings: Settings | None = None,
) -> pa.Table: ...
def read_candles(
    symbols: Symbols,
    start: When,
    end: When,
    minutes: int = 1,
    *,
    as_: As = "pandas",
    source: Source | None = None,
    settings: Settings | None = None,
) -> Any:
    """The bars of 1, 5, 15, 60 or 1440 minutes that begin in [start, end), by instrument and time.

    The columns are those of `candles_1m` and the symbol; for the rest see `read_ticks`. `time` is when a bar begins.
    """
    _check(as_)
    bounds = _range(start, end)
    if minutes not in candles.RELATIONS:
        lengths = ", ".join(map(str, candles.RELATIONS))
        raise ResearchError(f"There are bars of {lengths} minutes, not of {minutes}.")
    settings = settings or Settings()
    with _database(settings) as conn:
        tokens = _tokens(conn, symbols, bounds, source or settings.sources[0])
        bars = candles.read_candles(conn, tokens, *bounds, minutes)
        table = with_symbols(bars, read_lives(conn, tokens, *bounds))
    return _as(table.select([*bars.column_names, "trading_symbol"]), as_)


@contextmanager
def _database(settings: Settings) -> Iterator[connection]:
    with closing(connect(database_url(settings))) as conn:
        try:
            yield conn
        except (errors.UndefinedTable, errors.UndefinedColumn):
            raise ResearchError("The database lacks our tables, or has old ones; run: dhan-pipeline migrate.") from None


def _range(start: When, end: When) -> _Bounds:
    first, last = _instant(start, "start"), _instant(end, "end")
    if first >= last:
        raise ResearchError(f"The range is empty: it starts at {start} and ends before {end}.")
    return first, last


def _instant(when: When, name: str) -> datetime:
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when)
        except ValueError:
            raise ResearchError(
                f"{name} is no time: {when}. Write it like 2026-11-20 09:15, or with a zone behind it."
            ) from None
    elif not isinstance(when, datetime):
        when = datetime.combine(when, time())
    return when if when.tzinfo else when.replace(tzinfo=IST)


def _known(columns: Sequence[str] | None, names: list[str]) -> list[str]:
    if columns is None:
        return names
    if isinstance(columns, str):
        columns = [columns]
    if unknown := [name for name in columns if name not in names]:
        raise ResearchError(f"Ticks have no column {', '.join(unknown)}; they have {', '.join(names)}.")
    return list(columns)


def _tokens(conn: connection, symbols: Symbols, bounds: _Bounds, source: Source) -> list[int]:
    each = [symbols] if isinstance(symbols, str | int | Integral) else symbols  # NumPy's integers, too
    last_day = (bounds[1] - timedelta(microseconds=1)).astimezone(IST).date()
    return sorted(set(resolve_symbols(conn, each, on=last_day, source=source)))


def _held_hours(conn: connection, bounds: _Bounds) -> list[_Bounds]:
    """The hours of which the table holds ticks, in order."""
    hours = [(instant(start_ns), instant(start_ns + HOUR_NS)) for start_ns in partition_starts(conn)]
    starts = [start for start, end in hours if start < bounds[1] and bounds[0] < end]
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT hour, hour + interval '1 hour' FROM unnest(%s::timestamptz[]) AS hour WHERE EXISTS "
            "(SELECT FROM tick_rows WHERE time >= hour AND time < hour + interval '1 hour') ORDER BY hour",
            (starts,),
        )
        return list(cursor.fetchall())


def _overlap(one: _Bounds, other: _Bounds) -> _Bounds:
    return max(one[0], other[0]), min(one[1], other[1])


def _without(range_: _Bounds, held: Sequence[_Bounds]) -> list[_Bounds]:
    """What is left of a range, in order."""
    left, begin = [], range_[0]
    for start, end in held:
        if start < range_[1] and begin < end:
            if begin < start:
                left.append((begin, start))
            begin = end
    if begin < range_[1]:
        left.append((begin, range_[1]))
    return left


def _from_table(conn: connection, tokens: list[int], bounds: _Bounds) -> pa.Table:
    ticks = read_tick_table(
        conn,
        "instrument_token = ANY(%s) AND time >= %s AND time < %s",
        (tokens, *bounds),
        order=", ".join(ORDER),
    )
    return with_symbols(ticks, read_lives(conn, tokens, *bounds))


def _from_archive(
    settings: Settings, archived: ArchivedDay, tokens: list[int], ranges: Sequence[_Bounds], names: Sequence[str]
) -> pa.Table:
    path = settings.data_dir / archived.file
    schema = pa.schema([field for field in archive_schema() if field.name in {*names, *ORDER}])
    within = pc.scalar(False)
    for start, end in ranges:
        within = within | ((pc.field("time") >= _scalar(start)) & (pc.field("time") < _scalar(end)))
    wanted = pc.field("instrument_token").isin(tokens) & within
    try:
        table = pq.read_table(path, columns=schema.names, filters=wanted, partitioning=None)
    except FileNotFoundError:
        raise ResearchError(f"The archive of {archived.day} is not where it should be: {path}.") from None
    return table.cast(schema)


def _with_own_words(table: pa.Table) -> pa.Table:
    """With dictionaries of the words that occur: a row group's has those of other instruments, too."""
    for at, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            words = table[field.name].cast(field.type.value_type).combine_chunks()
            table = table.set_column(at, field, words.dictionary_encode())
    return table


def _scalar(at: datetime) -> pa.Scalar:
    return pa.scalar(at, pa.timestamp("us", "UTC"))


def _check(as_: As) -> None:
    if as_ not in ("pandas", "polars", "arrow"):
        raise ResearchError(f"as_ is pandas, polars or arrow, not {as_}.")
    if as_ == "polars" and find_spec("polars") is None:
        raise ResearchError("polars is not installed: pip install 'dhan-pipeline[research]'.")


def _as(table: pa.Table, as_: As) -> Any:
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if as_ == "pandas":
        return _pandas(table, times)
    if as_ == "polars":
        import polars as pl

        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame.with_columns(pl.col(name).dt.convert_time_zone(str(IST)) for name in times)
    return table


def _pandas(table: pa.Table, times: list[str]) -> "pd.DataFrame":
    import pandas as pd

    texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get, categories=texts)
    for name in times:
        frame[name] = frame[name].dt.tz_convert(IST)
    never_absent = [field.name for field in table.schema if pa.types.is_int64(field.type) and not field.nullable]
    frame = frame.astype(dict.fromkeys(never_absent, "int64"))
    return frame.set_index("time") if "time" in frame else frame
