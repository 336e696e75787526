"""Ten minutes at 50,000 ticks a second, checkpoints and all; and a database that is away for a minute at 100,000.

    python benchmarks/endurance.py [--json] [--minutes 10]

Latency is what every message took from its arrival to the commit of its row. `loop_pause_ms` is the longest that the
capture's event loop was late, `gc_pause_ms` the longest that Python's garbage collector held it up, `rss_mb` the most
memory that the capture had, all read once a second while it ran. During the outage the journal goes on, and latency is
how long rows had to wait for the database. What is stored is compared with what was sent, as in `end_to_end`.
"""

import asyncio

from benchmarks.report import arguments, publish, show
from benchmarks.running import measure, place

RATE = 50_000
OUTAGE_RATE = 100_000
OUTAGE_S = 60.0

#: Measured before and after the outage; what waits has to be caught up with after that.
AROUND_S = 20.0


async def main() -> None:
    """Measure both and publish."""
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="at 50,000 ticks/s")
    chosen = parser.parse_args()
    with place() as where:
        long = await measure(where, RATE, 60 * chosen.minutes)
        show(f"{chosen.minutes:g} minutes", [long])
        outage = await measure(where, OUTAGE_RATE, OUTAGE_S + AROUND_S, outage_s=OUTAGE_S)
    rows = [{"what": f"{chosen.minutes:g} minutes"} | long, {"what": f"{OUTAGE_S:g} s without database"} | outage]
    publish("Endurance, full packets of 5,000 instruments", rows, chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
