"""Dhan's scrip master into the instruments table, under the name and with the options of old.

    python -m dhan_pipeline.sync_dhan_instruments --db-url URL (--download | --csv-path FILE) [--batch-size N]

is `dhan-pipeline sync-instruments --source dhan`, exit codes and sentences included. The functions are those that the
command calls:

    path = download_instruments_csv(url, Path("scrip_master.csv"))
    print(sync_to_database(database_url, parse_dhan_csv(path), batch_size=50_000))
"""

import sys

from dhan_pipeline import cli
from dhan_pipeline.feeds.dhan.scrip_master import download_instruments_csv, generate_instrument_token, parse_dhan_csv
from dhan_pipeline.store.instruments import sync_to_database

__all__ = ["download_instruments_csv", "generate_instrument_token", "main", "parse_dhan_csv", "sync_to_database"]


def main() -> None:
    """Run the command with the arguments of this one, and exit with its code."""
    sys.argv[1:1] = ["sync-instruments", "--source", "dhan"]
    cli.main()


if __name__ == "__main__":
    main()
