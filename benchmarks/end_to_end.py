"""From the socket to the commit: how many ticks a second, how late, at what cost; beside the design that we replace.

    python benchmarks/end_to_end.py [--json] [--rates 2000 20000] [--seconds 60] [--alone]

Everything is real and on this machine: the websocket, the journal with its fdatasync, PostgreSQL, the ledger, and all
live measures. Latency is from the arrival of a message to the commit of its row, of every message, the journal
included. Only the exchange is replaced, by a generator that sends packets made before, in bursts every 5 ms; what it
costs is told apart, as is PostgreSQL. A core is 100 %.

Each rate is measured for a while after a warm-up, then higher ones are tried, for the highest that holds a p99 below
250 ms. The highest of the rates comes after these, for a minute: the server has log files by then that it writes over,
as one that has run for a day has. Each that it has to make costs twice the bytes.

The replaced design takes turns with ours at a rate that it can hold, with one worker and with three, and is tried for
its highest rate, too. It needs RabbitMQ; without, or with `--alone`, it is left out.

After each measurement the stored rows are compared with what was sent: their number, and the sum of their volumes. Any
difference ends the run with exit code 1; a time never does.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from benchmarks.baseline.run import Totals, baseline
from benchmarks.generator import instrument_tokens
from benchmarks.processes import tree_cpu_s
from benchmarks.report import Spread, arguments, publish, show, wrong
from benchmarks.running import CLIENT_ID, INSTRUMENTS, PATIENCE_S, Place, drop, measure, peer, place, prepare
from dhan_pipeline.ingest.latency import LatencyHistogram
from dhan_pipeline.store.engine import connect
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.rabbitmq import RabbitMQMissingError, rabbitmq

RATES = (2_000, 20_000, 100_000, 200_000)

#: Measured at each rate; the highest is what the platform promises to hold for a minute.
SECONDS = 20.0
SECONDS_AT_HIGHEST = 60.0

#: A rate is held where p99 stays below this. Tried for so long, each next one higher by so much.
HELD_MS = 250.0
TRY_S = 6.0
STEP = 1.15
MOST_STEPS = 9

#: Where both designs are measured side by side, in ticks a second; and for how long each time.
BOTH_RATE = 1_000
BOTH_S = 4.0
BOTH_ROUNDS = 3
BASELINE_RATES = (2_000, 3_000, 4_500)
BASELINE_INSTRUMENTS = 500

Measure = Callable[[float, float], Awaitable[dict[str, Any]]]


async def highest_held(measured: Measure, rates: list[float]) -> tuple[float, list[dict[str, Any]]]:
    """The highest of the rates, tried from the first to the first that is not held, and what was measured."""
    held, rows = 0.0, []
    for rate in rates:
        rows.append(await measured(rate, TRY_S))
        if not holds(rows[-1]):
            break
        held = rate
    return held, rows


def holds(row: dict[str, Any]) -> bool:
    """Whether what came was stored in time."""
    return row["p99_ms"] is not None and row["p99_ms"] < HELD_MS


async def measure_baseline(
    where: Place, rabbitmq_url: str, broker_pid: int, workers: int, rate: float, seconds: float
) -> dict[str, Any]:
    """One row of the replaced design, as `running.measure` makes them. The broker is told apart."""
    name = f"baseline_{workers}_{time.monotonic_ns()}"
    environment = prepare(where, name, BASELINE_INSTRUMENTS)
    tokens = dict.fromkeys(instrument_tokens(BASELINE_INSTRUMENTS).tolist(), Mode.FULL)
    async with peer("-m", "benchmarks.generator", str(BASELINE_INSTRUMENTS), "1") as generator:
        url = f"ws://127.0.0.1:{(await generator.hear())['port']}"
        async with baseline(
            url, CLIENT_ID, "token", tokens, environment["DATABASE_URL"], rabbitmq_url, workers
        ) as running:

            def spent_s() -> dict[str, float]:
                of = {what: sum(map(tree_cpu_s, pids)) for what, pids in running.pids.items()}
                return of | {"postgres": where.postgres_s(), "broker": tree_cpu_s(broker_pid)}

            async def until_stored(ticks: int) -> Totals:
                started = time.monotonic()
                while (totals := await running.totals()).stored < ticks:
                    if time.monotonic() > started + PATIENCE_S:
                        break
                    await asyncio.sleep(0.1)
                return totals

            warm = await generator.ask(f"send {min(rate, BOTH_RATE)} 2")
            before, cpu_s = await until_stored(warm["sent"]), spent_s()
            sent = await generator.ask(f"send {rate} {seconds}")
            then, ended = await running.totals(), time.monotonic()
            after = await until_stored(warm["sent"] + sent["sent"])
            whole_s = sent["seconds"] + time.monotonic() - ended
            cpu_s = {what: spent - cpu_s[what] for what, spent in spent_s().items()}
    with closing(connect(environment["DATABASE_URL"])) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT count(*), sum(volume_traded)::bigint FROM baseline_ticks")
        rows = cursor.fetchall()[0]
    if rows != (warm["sent"] + sent["sent"], warm["volume"] + sent["volume"]):
        wrong(f"the replaced design stored {rows[0]} ticks of {warm['sent'] + sent['sent']}, or other volumes")
    drop(where, name)
    latency = LatencyHistogram()
    latency.counts = np.array(after.latency.counts) - np.array(before.latency.counts)
    ours = sum(spent for what, spent in cpu_s.items() if what != "broker")
    return {
        "rate": int(rate),
        "achieved": round((then.stored - before.stored) / sent["seconds"]),
        "p50_ms": latency.percentile(50),
        "p99_ms": latency.percentile(99),
        "p999_ms": latency.percentile(99.9),
        "lost": warm["sent"] + sent["sent"] - after.stored,
        "cpu_pct_by_process": {what: round(100 * spent / whole_s, 1) for what, spent in cpu_s.items()},
        "cpu_us_per_tick": round(1e6 * ours / sent["sent"], 1),
        "broker_us_per_tick": round(1e6 * cpu_s["broker"] / sent["sent"], 1),
    }


async def compare_designs(where: Place) -> dict[str, Any]:
    """Both designs in turn, and the highest rates of the replaced one. Empty where there is no RabbitMQ."""
    with ExitStack() as stack:
        try:
            node = stack.enter_context(rabbitmq())
        except RabbitMQMissingError as error:
            print(f"The replaced design is left out: {error}", file=sys.stderr)
            return {}

        def of(workers: int) -> Measure:
            return lambda rate, seconds: measure_baseline(where, node.url, node.pid, workers, rate, seconds)

        contenders: dict[str, Measure] = {
            "replaced, 1 worker": of(1),
            "replaced, 3 workers": of(3),
            "ours": lambda rate, seconds: measure(where, rate, seconds, BASELINE_INSTRUMENTS),
        }
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for _ in range(BOTH_ROUNDS):
            for name, measured in contenders.items():
                taken[name].append(await measured(BOTH_RATE, BOTH_S))
        side_by_side = [
            {"design": name, "rate": BOTH_RATE}
            | {figure: Spread.of([row[figure] for row in rows]) for figure in ("p50_ms", "p99_ms", "cpu_us_per_tick")}
            for name, rows in taken.items()
        ]
        show(f"Side by side at {BOTH_RATE:,} ticks/s, {BOTH_ROUNDS} rounds of {BOTH_S:g} s", side_by_side)
        highest = {}
        for workers in (1, 3):
            held, rows = await highest_held(of(workers), list(BASELINE_RATES))
            show(f"The replaced design, {workers} worker(s)", rows)
            highest[f"replaced, {workers} worker(s)"] = held
    return {"side_by_side": side_by_side, "highest_held_by_replaced": highest}


async def main() -> None:
    """Measure each rate, then higher ones, then the replaced design; and publish."""
    parser = arguments(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="ticks a second")
    parser.add_argument("--seconds", type=float, help="measured at each rate")
    parser.add_argument("--instruments", type=int, default=INSTRUMENTS)
    parser.add_argument("--alone", action="store_true", help="only the rates, without higher ones and other designs")
    chosen = parser.parse_args()
    facts: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with place() as where:

        async def measured(rate: float) -> None:
            seconds = chosen.seconds or (SECONDS_AT_HIGHEST if rate == max(RATES) else SECONDS)
            rows.append(await measure(where, rate, seconds, chosen.instruments))
            show(f"{rate:,.0f} ticks/s for {seconds:g} s", rows[-1:])

        *lower, highest = sorted(chosen.rates)
        for rate in lower:
            await measured(rate)
        if not chosen.alone:
            first = max((row["rate"] for row in rows if holds(row)), default=highest / STEP)
            higher = [first * STEP**step for step in range(1, MOST_STEPS)]
            held, tried = await highest_held(lambda rate, seconds: measure(where, rate, seconds), higher)
            show(f"Higher rates, {TRY_S:g} s each", tried)
            facts["highest_held"] = held or first
        await measured(highest)
        if not chosen.alone:
            facts |= await compare_designs(where)
    note = f"Highest rate that held p99 below {HELD_MS:g} ms: {facts['highest_held']:,.0f}" if facts else ""
    publish(f"End to end, full packets of {chosen.instruments:,} instruments", rows, chosen.json, note=note, **facts)


if __name__ == "__main__":
    asyncio.run(main())
