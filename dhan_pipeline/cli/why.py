"""Why does nothing come of an instrument?"""

from dataclasses import asdict
from typing import Annotated

import typer

from dhan_pipeline.cli.common import JsonOption, parse_source, print_findings, print_json, read_settings
from dhan_pipeline.errors import PipelineError


def why(
    symbol: Annotated[
        list[str], typer.Argument(metavar="SYMBOL", help="As `find` takes it: RELIANCE, NIFTY FUT, NSE_FNO:49081.")
    ],
    source: Annotated[
        str | None, typer.Option(help="The broker, dhan or kite; without it the first of DATA_SOURCE.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Walk the way of an instrument's packets, and say which link broke. Changes nothing.

    Instrument, subscription, session, capture, connection, last packet in the journal, rejected packets, writer, last
    row. Exits 1 where a link is broken; a market that is closed breaks none.
    """
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.diagnosis.walk import walk

    settings = read_settings()
    found = walk(settings.of(parse_source(source) if source else settings.sources[0]), " ".join(symbol), Clock())
    if as_json:
        facts = {"symbol": found.symbol, "source": found.source, "instrument_token": found.instrument_token}
        verdict = {"broken": found.broken, "verdict": found.verdict}
        print_json({**facts, **verdict, "links": [asdict(link) for link in found.links]})
    else:
        print_findings(found.links)
    if found.broken:
        raise PipelineError(found.verdict)
    if not as_json:
        print(found.verdict)
