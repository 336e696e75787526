"""Everything on this machine, over the real feed."""

from typing import Annotated

import typer

from dhan_pipeline.cli.common import JsonOption, print_json, read_settings


def up(
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port of the Dagster UI on 127.0.0.1; 0 takes a free one.")
    ] = 3000,
    as_json: JsonOption = False,
) -> None:
    """Run everything on this machine over the real feed, from the settings: PostgreSQL, Dagster, the capture.

    It needs a token, and rules that say what to capture. What is missing is said first. PostgreSQL is started unless
    DATABASE_URL names one; Dagster's home is made in DATA_DIR unless DAGSTER_HOME names one; instruments are synced
    unless today's are. A capture runs while a session is open. Ctrl-C stops everything.

    With --json, the addresses are printed once all runs.
    """
    settings = read_settings()
    from dhan_pipeline.local.up import run_up

    run_up(
        settings,
        port=port,
        live_line=not as_json,
        on_start=lambda addresses: print_json(addresses) if as_json else None,
    )
