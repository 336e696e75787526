"""Through RabbitMQ: a capture, three workers and the broker on this machine, beside the direct path and the old one.

    python benchmarks/rabbitmq.py [--json] [--rates 2000 20000 50000] [--seconds 20] [--alone]

The same load, the same parts and the same comparison of rows as in `end_to_end`, but that the capture hands its journal
blocks to a private RabbitMQ node, with confirms, and `dhan-pipeline worker`, three times, stores them. The design that
we replace sends a message a tick through the same node to as many workers. All three take turns at a rate that each of
them can hold. Latency of ours through RabbitMQ is that of the oldest message of each part of a block.

CPU a tick leaves out generator and broker. A wrong row ends the run with exit code 1; a time never does.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from benchmarks.end_to_end import (
    BASELINE_INSTRUMENTS,
    BASELINE_RATES,
    BOTH_RATE,
    BOTH_S,
    HELD_MS,
    Measure,
    highest_held,
    measure_baseline,
)
from benchmarks.report import ROUNDS, Spread, arguments, publish, show
from benchmarks.running import INSTRUMENTS, Place, measure, place
from dhan_pipeline_tests.rabbitmq import Node, rabbitmq

RATES = (2_000, 20_000, 50_000)
HIGHER_RATES = (75_000, 100_000, 125_000, 150_000)
SECONDS = 20.0
WORKERS = 3


async def take_turns(contenders: dict[str, Measure]) -> list[dict[str, Any]]:
    """All of them in turn at a rate that each can hold."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, measured in contenders.items():
            taken[name].append(await measured(BOTH_RATE, BOTH_S))
    figures = ("p50_ms", "p99_ms", "cpu_us_per_tick")
    return [
        {"design": name, "rate": BOTH_RATE} | {figure: Spread.of([row[figure] for row in rows]) for figure in figures}
        for name, rows in taken.items()
    ]


async def beside(where: Place, node: Node, rates: Sequence[float], seconds: float) -> dict[str, Any]:
    """The other ways: side by side, and how far each gets."""
    contenders: dict[str, Measure] = {
        "replaced, 3 workers": lambda rate, for_s: measure_baseline(where, node.url, node.pid, WORKERS, rate, for_s),
        "ours, 3 workers": lambda rate, for_s: measure(where, rate, for_s, BASELINE_INSTRUMENTS, broker=node),
        "ours, direct": lambda rate, for_s: measure(where, rate, for_s, BASELINE_INSTRUMENTS),
    }
    side_by_side = await take_turns(contenders)
    show(f"Side by side at {BOTH_RATE:,} ticks/s, {ROUNDS} rounds of {BOTH_S:g} s", side_by_side)
    direct = [await measure(where, rate, seconds) for rate in rates]
    show(f"The direct path, {seconds:g} s each", direct)
    replaced, tried = await highest_held(contenders["replaced, 3 workers"], list(BASELINE_RATES))
    show("The replaced design, 3 workers", tried)
    held, tried = await highest_held(lambda rate, for_s: measure(where, rate, for_s, broker=node), [*HIGHER_RATES])
    show("Higher rates", tried)
    return {
        "side_by_side": side_by_side,
        "direct": direct,
        "highest_held": {"replaced, 3 workers": replaced, "ours, 3 workers": held or max(rates)},
    }


async def main() -> None:
    """Measure each rate, then the other ways, and publish."""
    parser = arguments(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="ticks a second")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="measured at each rate")
    parser.add_argument("--instruments", type=int, default=INSTRUMENTS)
    parser.add_argument("--alone", action="store_true", help="only the rates, without the other ways")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    with place() as where, rabbitmq() as node:
        for rate in chosen.rates:
            rows.append(await measure(where, rate, chosen.seconds, chosen.instruments, broker=node))
            show(f"{rate:,.0f} ticks/s for {chosen.seconds:g} s", rows[-1:])
        if not chosen.alone:
            facts = await beside(where, node, chosen.rates, chosen.seconds)
    highest = facts.get("highest_held", {}).get("ours, 3 workers")
    note = f"Highest rate that held p99 below {HELD_MS:g} ms: {highest:,.0f}" if highest else ""
    title = f"Through RabbitMQ, {WORKERS} workers, full packets of {chosen.instruments:,} instruments"
    publish(title, rows, chosen.json, note=note, **facts)


if __name__ == "__main__":
    asyncio.run(main())
