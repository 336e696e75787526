"""Instruments by what people write."""

import json
from contextlib import closing
from datetime import date
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dhan_pipeline.cli.common import JsonOption, open_database, parse_source, print_json, read_settings


def find(
    text: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="Such as NIFTY, BSE:RELIANCE, NIFTY FUT, NIFTY 26NOV 26000 CE.")
    ],
    on: Annotated[
        str | None, typer.Option(metavar="DAY", help="What it meant on that day (IST), such as 2026-03-20.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="List no more than so many.")] = 20,
    source: Annotated[
        str | None, typer.Option(help="The broker, dhan or kite; without it the first of DATA_SOURCE.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find instruments by what a trader writes, the best match first.

    A month means its last expiry; 26NOV is the day if something expires then, else November 2026. NSE_FNO:49081 is a
    segment and the number in it: Dhan's security id, Kite's exchange token.
    """
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.sessions import IST
    from dhan_pipeline.store.engine import connect
    from dhan_pipeline.store.symbols import find_instruments, not_found

    try:
        day = date.fromisoformat(on) if on is not None else None
    except ValueError:
        raise typer.BadParameter(f"{on} is not a day such as 2026-03-20", param_hint="--on") from None
    if day is not None and day > Clock().now().astimezone(IST).date():
        raise typer.BadParameter("that is still to come", param_hint="--on")
    written = " ".join(text)
    settings = read_settings()
    whose = parse_source(source) if source else settings.sources[0]
    with open_database(settings) as url, closing(connect(url)) as conn:
        found = find_instruments(conn, written, on=day, source=whose)
        if found.empty:
            raise not_found(conn, written, on=day, source=whose)
    rows: list[dict[str, Any]] = json.loads(found.head(limit).to_json(orient="records", date_format="iso"))
    for row in rows:
        row["expiry"] = row["expiry"] and row["expiry"][:10]
    if as_json:
        print_json({"text": written, "on": on, "matches": len(found), "instruments": rows})
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("symbol", "expiry", "segment:id", "token", "name"):
        table.add_column(name, no_wrap=name != "name")
    for row in rows:
        token = row["instrument_token"]
        table.add_row(
            row["trading_symbol"],
            row["expiry"] or "",
            f"{row['exchange_segment']}:{row['security_id'] or token >> 8}" if row["exchange_segment"] else "",
            str(token),
            "" if row["expiry"] else row["name"],
        )
    Console().print(table)
    if len(found) > limit:
        print(f"{len(found) - limit:,} more match.")
