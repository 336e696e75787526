"""Commands without a broker: the simulated exchange, and everything over it."""

import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dhan_pipeline.cli.common import LONGEST_S, JsonOption, SourcesOption, parse_sources, print_json, until_signal
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.sources import Source

if TYPE_CHECKING:
    from dhan_pipeline.feeds.simulator.faults import AnyExchange, Fault

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
    source: SourcesOption = "dhan",
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
    sources = parse_sources(source)
    from dhan_pipeline.demo.run import run_demo

    result = run_demo(
        sources=sources,
        data_dir=data_dir.resolve(),
        instruments=instruments,
        rate=rate,
        for_s=for_s,
        port=port,
        live_line=not as_json,
    )
    if as_json:
        print_json(result)


#: How long the tokens of the simulated brokers last, in seconds.
_TOKEN_LASTS_S = 30 * 86_400

#: Options of `simulate` that say what the synthetic market is, and those that say how a recording is sent.
_OF_MARKET = {"instruments": "--instruments", "rate": "--rate", "seed": "--seed"}
_OF_RECORDING = {
    "speed": "--speed",
    "day": "--day",
    "since": "--from",
    "until": "--to",
    "at_once": "--no-wait",
    "shift_times": "--shift-times",
    "once": "--once",
}


def simulate(
    ctx: typer.Context,
    source: SourcesOption = "dhan",
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the feed listens; port 0 takes a free one. Of both brokers: once for each, in their order, or"
            " the second takes a free one.",
            show_default="127.0.0.1:8765",
        ),
    ] = None,
    rest: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where REST listens: instruments, tokens, profile, bars. Of both brokers: once for each.",
            show_default="127.0.0.1:0",
        ),
    ] = None,
    instruments: Annotated[
        str,
        typer.Option(metavar="N or FILE", help="How many instruments trade, or a file of resolved subscriptions."),
    ] = "500",
    rate: RateOption = 2000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same market.")] = 0,
    master: Annotated[
        Path | None,
        typer.Option(
            help="The scrip master of Dhan's to trade and to serve, to Kite's clients as its dump; without it, a"
            " synthetic one. With a journal, the broker's own list of instruments, or none."
        ),
    ] = None,
    token_file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="<path>",
            help="Write a token that the exchange accepts to this file. Of both brokers: once for each.",
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE][@AT][+FOR][/EVERY]", help="What goes wrong, and when; may be repeated."),
    ] = None,
    from_journal: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Send what this journal recorded, instead of a synthetic market; such as data/journal."
        ),
    ] = None,
    speed: Annotated[
        str, typer.Option(metavar="X or max", help="How many times as fast as recorded; max: as fast as clients read.")
    ] = "1",
    day: Annotated[
        str | None, typer.Option(metavar="DAY", help="Only what was recorded on a day (IST), such as 2026-11-20.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Only from then on: ISO 8601, IST unless it names an offset."),
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Only what was recorded before.")] = None,
    at_once: Annotated[
        bool, typer.Option("--no-wait", help="Begin at once, without waiting for a client to subscribe.")
    ] = False,
    shift_times: Annotated[
        bool, typer.Option("--shift-times", help="Move trade times to now; without it, packets are as recorded.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="End when the recording has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the exchange: a server that speaks the broker's wire protocol over a synthetic market, or a recording.

    With both brokers, the same trades go out over both wires.
    """
    sources = parse_sources(source)
    unfit = _OF_RECORDING if from_journal is None else _OF_MARKET
    for name, option in unfit.items():
        given = ctx.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            why = "goes with --from-journal only" if from_journal is None else "does not go with --from-journal"
            raise typer.BadParameter(f"it {why}", param_hint=option)
    faults = [_fault(text, sources) for text in fault or ()]
    for option, places in (("--listen", listen), ("--rest", rest), ("--token-file", token_file)):
        if len(places or ()) > len(sources):
            raise typer.BadParameter("it is given once for each source at most", param_hint=option)
    addresses = _addresses(sources, listen or ["127.0.0.1:8765"], rest or ["127.0.0.1:0"])

    def write_token_files() -> None:
        for of, path in zip(sources, token_file or (), strict=False):
            _write_token_file(of, path)

    if from_journal is not None:
        if len(sources) > 1:
            raise typer.BadParameter("a recording is sent again of one broker at a time", param_hint="--source")
        (name,) = sources
        from dhan_pipeline.cli.recorded import follow, parse_interval, read_recording
        from dhan_pipeline.feeds.simulator.kite_replay import KiteReplay
        from dhan_pipeline.feeds.simulator.player import SETTLED_S
        from dhan_pipeline.feeds.simulator.replay import DhanReplay

        if any(fault.name == "wrong-epoch" for fault in faults):
            raise typer.BadParameter("wrong-epoch does not go with --from-journal", param_hint="--fault")
        interval = parse_interval(day, since, until)
        factor = _speed(speed)
        recording = read_recording(from_journal, *interval, name)
        if master is not None:
            try:
                master.open("rb").close()
            except OSError as error:
                which = "scrip master" if name == "dhan" else "instruments dump"
                raise PipelineError(f"The {which} {master} cannot be read: {error.strerror}.") from error
        replay_of: type[DhanReplay] | type[KiteReplay] = DhanReplay if name == "dhan" else KiteReplay
        addresses[name]["master_csv" if name == "dhan" else "dump_csv"] = master
        replay = replay_of(
            recording.messages,
            speed=factor,
            settled_s=None if at_once else SETTLED_S,
            shift_times=shift_times,
            **addresses[name],
        )

        async def watch(stop: asyncio.Event) -> None:
            if at_once:
                replay.begin()
            await follow(replay, recording, stop, once=once)

        _serve({name: replay}, faults, as_json, write_token_files, watch)
        if replay.failure is not None:
            raise PipelineError(f"The recording cannot be read on: {replay.failure}.") from replay.failure
        return

    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.simulator.dhan import choose_instruments
    from dhan_pipeline.feeds.simulator.exchanges import make_exchanges
    from dhan_pipeline.feeds.simulator.master import write_synthetic_master
    from dhan_pipeline.sessions import IST
    from dhan_pipeline.subscriptions import read_subscriptions

    if _is_number(instruments):
        if int(instruments) == 0:
            raise typer.BadParameter("at least one instrument has to trade", param_hint="--instruments")
    elif not Path(instruments).exists():
        raise typer.BadParameter(f"{instruments} is neither a number nor a file", param_hint="--instruments")
    with tempfile.TemporaryDirectory() as folder:
        if master is None:
            master = Path(folder) / "scrip_master.csv"
            write_synthetic_master(master, on=Clock().now().astimezone(IST).date(), seed=seed)
        if _is_number(instruments):
            tokens = choose_instruments(master, int(instruments))
        else:
            tokens = [subscription.instrument_token for subscription in read_subscriptions(Path(instruments))]
        try:
            if "dhan" in sources:
                addresses["dhan"]["master_csv"] = master
            if "kite" in sources:
                from dhan_pipeline.feeds.simulator.kite_dump import write_synthetic_dump

                addresses["kite"]["dump_csv"] = Path(folder) / "kite_instruments.csv"
                write_synthetic_dump(addresses["kite"]["dump_csv"], master)
            exchanges = make_exchanges(sources, tokens, rate=rate, seed=seed, options=addresses)
        except ValueError as error:
            raise PipelineError(f"Kite cannot trade these instruments: {error}.") from error
        _serve(exchanges, faults, as_json, write_token_files)


def _addresses(sources: Sequence[Source], listen: Sequence[str], rest: Sequence[str]) -> dict[Source, dict[str, Any]]:
    """Where the exchange of each source listens. What is not said is a free port beside the last that was."""

    def places(said: Sequence[str], option: str) -> list[tuple[str, int]]:
        found = [_host_port(value, option) for value in said]
        return found + [(found[-1][0], 0)] * (len(sources) - len(found))

    ends = zip(sources, places(listen, "--listen"), places(rest, "--rest"), strict=True)
    return {
        source: {"host": host, "port": port, "rest_host": rest_host, "rest_port": rest_port}
        for source, (host, port), (rest_host, rest_port) in ends
    }


def _write_token_file(source: Source, path: Path) -> None:
    from dhan_pipeline.feeds.dhan.auth import save_token
    from dhan_pipeline.feeds.kite.auth import save_kite_token
    from dhan_pipeline.feeds.simulator.tokens import API_KEY, CLIENT_ID, make_kite_access_token, make_token

    try:
        if source == "dhan":
            save_token(path, make_token(CLIENT_ID, expires_in=_TOKEN_LASTS_S), CLIENT_ID)
        else:
            save_kite_token(path, make_kite_access_token(expires_in=_TOKEN_LASTS_S), API_KEY)
    except OSError as error:
        raise PipelineError(f"The token file {path} cannot be written: {error.strerror}.") from error


def _credentials(source: Source) -> dict[str, str]:
    """Of an account that there is only here: with them, tokens are made as with the broker."""
    from dhan_pipeline.feeds.simulator.tokens import (
        API_KEY,
        API_SECRET,
        CLIENT_ID,
        PIN,
        TOTP_SECRET,
        make_kite_access_token,
    )

    if source == "dhan":
        return {"client_id": CLIENT_ID, "pin": PIN, "totp_secret": TOTP_SECRET}
    token = make_kite_access_token(expires_in=_TOKEN_LASTS_S)
    return {"api_key": API_KEY, "api_secret": API_SECRET, "access_token": token}


def _serve(
    exchanges: "Mapping[Source, AnyExchange]",
    faults: "list[Fault]",
    as_json: bool,
    write_token_files: Callable[[], None],
    watch: Callable[[asyncio.Event], Awaitable[None]] | None = None,
) -> None:
    """Run the exchanges until a signal, and say where they are and what they have sent. `watch` goes on beside them.

    Token files are written once the exchanges listen: who waits for one can connect.
    """
    import uvloop

    from dhan_pipeline.feeds.simulator import faults as misbehaviour

    async def run(stop: asyncio.Event) -> None:
        async with AsyncExitStack() as listening:
            facts: dict[Source, dict[str, str]] = {}
            for source, exchange in exchanges.items():
                try:
                    await listening.enter_async_context(exchange)
                except OSError as error:
                    raise PipelineError(f"The exchange cannot listen: {error.strerror}.") from error
                facts[source] = {"feed_url": exchange.feed_url, "rest_url": exchange.rest_url, **_credentials(source)}
            write_token_files()
            if as_json:
                print_json(_of_one_or_each(facts))
            else:
                for source, of_it in facts.items():
                    prefix = f"{source}_" if len(facts) > 1 else ""
                    print("\n".join(f"{prefix}{name}: {fact}" for name, fact in of_it.items()), flush=True)
            beside = [asyncio.ensure_future(misbehaviour.run(exchange, faults)) for exchange in exchanges.values()]
            if watch is not None:
                beside.append(asyncio.ensure_future(watch(stop)))
            await stop.wait()
            for task in beside:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    uvloop.run(until_signal(run))
    sent = {
        source: {
            "sent": {exchange.kinds[kind]: count for kind, count in exchange.sent.items()},
            "skipped": exchange.skipped,
        }
        for source, exchange in exchanges.items()
    }
    print(json.dumps(_of_one_or_each(sent)), file=sys.stdout if as_json else sys.stderr)


def _of_one_or_each(said: Mapping[Source, Any]) -> Any:
    """What one exchange says, or what each of several says, by its source."""
    return said if len(said) > 1 else next(iter(said.values()))


def _speed(text: str) -> float | None:
    """How many times as fast; None for as fast as it can be."""
    if text == "max":
        return None
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < math.inf:
        raise typer.BadParameter(f"{text} is neither a number above 0 nor max", param_hint="--speed")
    return factor


def _fault(text: str, sources: Sequence[Source]) -> "Fault":
    from dhan_pipeline.feeds.simulator.faults import parse_fault

    try:
        return parse_fault(text, sources)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _host_port(value: str, option: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not _is_number(port) or int(port) > 65_535:
        raise typer.BadParameter(f"{value} is not HOST:PORT", param_hint=option)
    return host.strip("[]"), int(port)
