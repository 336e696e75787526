"""Moving ticks into TimescaleDB."""

import dataclasses
import sys

from dhan_pipeline.cli.common import JsonOption, open_database, print_json, read_settings


def db_to_timescaledb(as_json: JsonOption = False) -> None:
    """Move the ticks of a database that has kept them in native partitions into a hypertable of TimescaleDB.

    Every row is kept, in one transaction: interrupted, it has changed nothing. Writers and readers of ticks wait for
    it, about a second a million ticks; a capture goes on into its journal and catches up. Run it once the server has
    TimescaleDB. In a hypertable already, ticks get what the licence allows by now.
    """
    from dhan_pipeline.store.to_timescaledb import to_timescaledb

    with open_database(read_settings()) as url:
        moved = to_timescaledb(url, lambda sentence: print(sentence, file=sys.stderr))
    if as_json:
        print_json(dataclasses.asdict(moved))
    elif moved.hours:
        print(f"{moved.rows:,} ticks of {moved.hours:,} hours are in a hypertable now.")
    else:
        print("Ticks are in a hypertable.")
    if moved.licence == "apache":
        print("TimescaleDB's licence here is Apache: no compression, no background jobs.", file=sys.stderr)
