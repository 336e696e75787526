"""The instruments that ticks are named by, for scripts. The capture has `load_tokens`, research `find`."""

from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc
from psycopg2 import errors
from psycopg2.extensions import connection

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.dhan.enriched import InstrumentsCache
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.engine import database_url as url_of
from dhan_pipeline.store.instruments import read_instrument_table


def load_instruments_cache(database: str | connection | None = None, source: Source = "dhan") -> InstrumentsCache:
    """The active instruments of a source, by exchange segment and security id (of Kite: the exchange's token).

    `database` is a URL in either spelling, or a psycopg2 connection, which is left as it was, open; without it, the
    database of the settings. The cache of 228,000 instruments takes some 40 MB. It is as of now: load it again after a
    sync, and give the new one the packets from then on. Raises DatabaseError, PipelineError where the instruments table
    is missing.
    """
    if isinstance(database, connection):
        return _cache(database, source)
    with closing(connect(database or url_of(Settings()))) as conn:
        return _cache(conn, source)


def _cache(conn: connection, source: Source) -> InstrumentsCache:
    try:
        table = read_instrument_table(conn, source)
    except (errors.UndefinedTable, errors.UndefinedColumn):
        raise PipelineError("The database has no instruments table of ours yet; run: dhan-pipeline migrate.") from None
    table = table.filter(pc.field("exchange_segment").is_valid())  # the existing system's rows have none
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and field.name not in ("trading_symbol", "name", "isin"):
            table = table.set_column(at, field.name, table[field.name].dictionary_encode())
    return InstrumentsCache(table.combine_chunks())
