"""Through RabbitMQ: a capture and three workers, beside the direct path and the design that we replace.

    python benchmarks/rabbitmq.py [--json] [--rates 2000 50000] [--seconds 20] [--rounds 3] [--highest] [--alone]

The same load, the same real parts and the same comparison of rows as in `end_to_end`; but that the capture hands its
journal blocks to a private RabbitMQ node, with confirms, and three workers store what comes. The direct path takes
turns with it, at the same rates; and so does the replaced design, which sends a message a tick through the same node
to as many workers, at 2,000 a second. Each is started anew every round. With `--highest`, higher rates are
tried for both that use RabbitMQ, for the highest that holds a p99 below 250 ms. `--alone` leaves out the others.

Latency is from the arrival of a message to the commit of its row, counted message by message by whoever commits.
`cpu_us_per_tick` is capture, workers and PostgreSQL; what the broker takes is told apart, as is the generator.

After each round the stored rows are compared with what was sent. Any difference ends the run with exit code 1; a time
never does.
"""

import asyncio
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.end_to_end import HELD_MS, Measure, highest_held, holds, measure_baseline
from benchmarks.report import Spread, arguments, publish, show
from benchmarks.running import INSTRUMENTS, WORKERS, Place, measure, place, running
from dhan_pipeline_tests.rabbitmq import Node, RabbitMQMissingError, rabbitmq

RATES = (2_000, 10_000, 20_000, 50_000)
HIGHER = (65_000, 80_000, 100_000, 125_000, 150_000)

#: Of the replaced design: where it is measured beside the others, at the limit of a small machine, and what is tried.
REPLACED_RATE = 2_000
REPLACED_TRIED = (1_000, 1_500, 2_000, 3_000, 4_500, 6_000)

#: Each rate is measured for so long in each round, after a moment at that rate.
SECONDS = 3.0
ROUNDS = 2
SETTLE_S = 1.5

THROUGH, DIRECT, REPLACED = "RabbitMQ", "direct", "replaced"

#: Of each round, while the next one is measured.
SHOWN = ("path", "rate", "achieved", "p50_ms", "p99_ms", "p999_ms", "lost", "cpu_us_per_tick")

Rows = list[dict[str, Any]]


async def measure_path(
    where: Place, broker: Node | None, rates: Sequence[float], seconds: float, instruments: int
) -> Rows:
    """All rates of one capture, one after another; with a broker through it."""
    path = THROUGH if broker else DIRECT
    async with running(where, instruments, broker=broker) as capture:
        return [{"path": path} | await capture.measure(rate, seconds, warm_up_s=SETTLE_S) for rate in rates]


async def one_round(where: Place, node: Node, chosen: Namespace) -> Rows:
    """Each of the designs in turn."""
    of_round = chosen.rates, chosen.seconds, chosen.instruments
    rows = await measure_path(where, node, *of_round)
    if not chosen.alone:
        rows += await measure_path(where, None, *of_round)
        replaced = await measure_baseline(where, node.url, node.pid, WORKERS, REPLACED_RATE, chosen.seconds)
        rows.append({"path": REPLACED} | replaced)
    return rows


def summed_up(rounds: Sequence[Rows]) -> Rows:
    """A row for each path and rate, of all rounds. Rows of a round are in the same order in each."""
    return [_summed_up(rows) for rows in zip(*rounds, strict=True)]


def _summed_up(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = rows[0]

    def spread(name: str) -> Spread:
        return Spread.of([row[name] for row in rows])

    return {
        "path": first["path"],
        "rate": first["rate"],
        "achieved": round(spread("achieved").median),
        "p50_ms": spread("p50_ms"),
        "p99_ms": spread("p99_ms"),
        "p999_ms": spread("p999_ms").median,
        "lost": sum(row["lost"] for row in rows),
        "cpu_pct_by_process": {
            name: Spread.of([row["cpu_pct_by_process"][name] for row in rows]).median
            for name in first["cpu_pct_by_process"]
        },
        "cpu_us_per_tick": spread("cpu_us_per_tick"),
        "broker_us_per_tick": spread("broker_us_per_tick").median if "broker_us_per_tick" in first else 0.0,
        "rss_mb": {
            name: max(row[figure] for row in rows)
            for name, figure in {"capture": "rss_mb", "a worker": "worker_rss_mb"}.items()
            if figure in first
        },
    }


async def try_higher(where: Place, node: Node, rows: Rows, instruments: int) -> dict[str, float]:
    """The highest rate that each design holds through RabbitMQ; 0 where it holds none. `rows`: what was measured."""
    measured = [{"rate": row["rate"], "p99_ms": row["p99_ms"].median} for row in rows if row["path"] == THROUGH]
    first = max((row["rate"] for row in measured if holds(row)), default=0.0)
    attempts: dict[str, tuple[Measure, list[float]]] = {
        THROUGH: (
            lambda rate, seconds: measure(where, rate, seconds, instruments, broker=node),
            [rate for rate in HIGHER if rate > first],
        ),
        REPLACED: (
            lambda rate, seconds: measure_baseline(where, node.url, node.pid, WORKERS, rate, seconds),
            [*REPLACED_TRIED],
        ),
    }
    highest = {THROUGH: first, REPLACED: 0.0}
    for path, (of_path, rates) in attempts.items():
        held, tried = await highest_held(of_path, rates)
        if tried:
            show(f"Higher rates, {path}", [{name: row[name] for name in SHOWN if name in row} for row in tried])
        highest[path] = held or highest[path]
    return highest


async def main() -> None:
    """Measure in turn, then higher rates, and publish. Without RabbitMQ there is nothing to measure."""
    parser = arguments(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="ticks a second")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="measured at each rate, each round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--instruments", type=int, default=INSTRUMENTS)
    parser.add_argument("--highest", action="store_true", help="try higher rates, too")
    parser.add_argument("--alone", action="store_true", help="only the path through RabbitMQ")
    chosen = parser.parse_args()
    rounds: list[Rows] = []
    facts: dict[str, Any] = {"rounds": chosen.rounds, "seconds": chosen.seconds}
    note = ""
    try:
        with rabbitmq() as node, place() as where:
            for number in range(1, chosen.rounds + 1):
                rounds.append(await one_round(where, node, chosen))
                show(f"Round {number}", [{name: row[name] for name in SHOWN} for row in rounds[-1]])
            rows = summed_up(rounds)
            if chosen.highest and not chosen.alone:
                facts["highest_held"] = await try_higher(where, node, rows, chosen.instruments)
                held = ", ".join(f"{path} {rate:,.0f}" for path, rate in facts["highest_held"].items())
                note = f"Highest rate that held p99 below {HELD_MS:g} ms: {held}"
    except RabbitMQMissingError as error:
        print(f"Nothing is measured: {error}", file=sys.stderr)
        return
    title = f"Through RabbitMQ with {WORKERS} workers, full packets of {chosen.instruments:,} instruments"
    publish(title, rows, chosen.json, note=note, **facts)


if __name__ == "__main__":
    asyncio.run(main())
