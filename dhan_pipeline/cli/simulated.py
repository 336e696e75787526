"""Commands without a broker: the simulated exchange, and everything over it."""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dhan_pipeline.cli.common import LONGEST_S, JsonOption, SourceOption, require_dhan, until_signal
from dhan_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from dhan_pipeline.feeds.simulator.faults import Fault

InstrumentsOption = Annotated[int, typer.Option("--instruments", min=1, max=25_000, help="How many instruments trade.")]
RateOption = Annotated[
    float, typer.Option("--rate", min=1, max=10_000_000, help="Ticks a second, over all instruments.")
]


class WithFaults(TyperCommand):
    """A command whose help lists the faults, which it would be slow to import for every other command."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """List them."""
        from dhan_pipeline.feeds.simulator.faults import DEFAULT_FOR_S, FAULTS

        with formatter.section("Faults"):
            formatter.write_dl(FAULTS.items())
            formatter.write_text("")
            formatter.write_text(
                "They begin when the first client asks to connect, or AT seconds later. Those with + go on for"
                f" {DEFAULT_FOR_S:g} s, or FOR; with EVERY, it happens again every so many seconds. For instance"
                " stall@60+20, disconnect=805@30, reset/45."
            )


def demo(
    source: SourceOption = "dhan",
    instruments: InstrumentsOption = 500,
    rate: RateOption = 2000,
    for_s: Annotated[
        float | None,
        typer.Option("--for", min=1, max=LONGEST_S, help="Seconds to run; without it, until Ctrl-C."),
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where journal, database and Dagster's storage are kept.")] = Path(
        "data/demo"
    ),
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port of the Dagster UI on 127.0.0.1; 0 takes a free one.")
    ] = 3000,
    as_json: JsonOption = False,
) -> None:
    """Run the main job over a simulated exchange: feed, journal, PostgreSQL, Dagster. Ctrl-C stops everything."""
    require_dhan(source)
    from dhan_pipeline.demo.run import run_demo

    result = run_demo(
        data_dir=data_dir.resolve(), instruments=instruments, rate=rate, for_s=for_s, port=port, live_line=not as_json
    )
    if as_json:
        print(json.dumps(result))


def simulate(
    source: SourceOption = "dhan",
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the feed listens; port 0 takes a free one.")
    ] = "127.0.0.1:8765",
    rest: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where REST listens: scrip master, tokens, profile.")
    ] = "127.0.0.1:0",
    instruments: Annotated[
        str,
        typer.Option(metavar="N or FILE", help="How many instruments trade, or a file of resolved subscriptions."),
    ] = "500",
    rate: RateOption = 2000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same market.")] = 0,
    master: Annotated[
        Path | None, typer.Option(help="The scrip master to trade and to serve; without it, a synthetic one.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Write a token that the exchange accepts to this file.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE][@AT][+FOR][/EVERY]", help="What goes wrong, and when; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the exchange: a server that speaks the broker's wire protocol over a synthetic market."""
    require_dhan(source)
    faults = [_fault(text) for text in fault or ()]
    import tempfile

    import uvloop

    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.dhan.auth import save_token
    from dhan_pipeline.feeds.simulator import faults as misbehaviour
    from dhan_pipeline.feeds.simulator.dhan import DhanSimulator, choose_instruments
    from dhan_pipeline.feeds.simulator.master import write_synthetic_master
    from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, PIN, TOTP_SECRET, make_token
    from dhan_pipeline.sessions import IST
    from dhan_pipeline.subscriptions import read_subscriptions

    host, port = _host_port(listen, "--listen")
    rest_host, rest_port = _host_port(rest, "--rest")
    if _is_number(instruments):
        if int(instruments) == 0:
            raise typer.BadParameter("at least one instrument has to trade", param_hint="--instruments")
    elif not Path(instruments).exists():
        raise typer.BadParameter(f"{instruments} is neither a number nor a file", param_hint="--instruments")
    if token_file:
        try:
            save_token(token_file, make_token(CLIENT_ID, expires_in=30 * 86_400), CLIENT_ID)
        except OSError as error:
            raise PipelineError(f"The token file {token_file} cannot be written: {error.strerror}.") from error
    with tempfile.TemporaryDirectory() as folder:
        if master is None:
            master = Path(folder) / "scrip_master.csv"
            write_synthetic_master(master, on=Clock().now().astimezone(IST).date(), seed=seed)
        if _is_number(instruments):
            tokens = choose_instruments(master, int(instruments))
        else:
            tokens = [subscription.instrument_token for subscription in read_subscriptions(Path(instruments))]
        simulator = DhanSimulator(
            tokens,
            rate=rate,
            seed=seed,
            host=host,
            port=port,
            rest_host=rest_host,
            rest_port=rest_port,
            master_csv=master,
        )

        async def run(stop: asyncio.Event) -> None:
            try:
                async with simulator:
                    facts = {"feed_url": simulator.feed_url, "rest_url": simulator.rest_url}
                    # Of an account that there is only here: with them, tokens are made as with the broker.
                    facts |= {"client_id": CLIENT_ID, "pin": PIN, "totp_secret": TOTP_SECRET}
                    lines = [f"{name}: {fact}" for name, fact in facts.items()]
                    print(json.dumps(facts) if as_json else "\n".join(lines), flush=True)
                    misbehaving = asyncio.create_task(misbehaviour.run(simulator, faults))
                    await stop.wait()
                    misbehaving.cancel()
                    with suppress(asyncio.CancelledError):
                        await misbehaving
            except OSError as error:
                raise PipelineError(f"The exchange cannot listen: {error.strerror}.") from error

        uvloop.run(until_signal(run))
        sent = {code.name.lower(): count for code, count in simulator.sent.items()}
        print(json.dumps({"sent": sent, "skipped": simulator.skipped}), file=sys.stdout if as_json else sys.stderr)


def _fault(text: str) -> "Fault":
    from dhan_pipeline.feeds.simulator.faults import parse_fault

    try:
        return parse_fault(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _host_port(value: str, option: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not _is_number(port) or int(port) > 65_535:
        raise typer.BadParameter(f"{value} is not HOST:PORT", param_hint=option)
    return host.strip("[]"), int(port)
