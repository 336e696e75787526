"""The exchanges of one broker or of both over one synthetic market, so that the same trades go out over each wire."""

from collections.abc import Mapping, Sequence
from typing import Any

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.correspondence import dhan_token_of, kite_token_of
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.kite import KiteSimulator
from dhan_pipeline.instruments import source_of
from dhan_pipeline.sources import Source


def make_exchanges(
    sources: Sequence[Source],
    tokens: Sequence[int],
    *,
    rate: float,
    seed: int = 0,
    clock: Clock | None = None,
    options: Mapping[Source, Mapping[str, Any]] | None = None,
) -> dict[Source, DhanSimulator | KiteSimulator]:
    """An exchange for each source, in their order; they trade the instruments of these tokens, of either source.

    `rate` in events a second: each goes out over every wire. `options` are those of `DhanExchange` and `KiteSimulator`.
    All of them have to listen for any to trade. Raises ValueError for an instrument whose number Kite's tokens do not
    hold.
    """
    clock = clock or Clock()
    options = options or {}
    instruments = [token if source_of(token) == "dhan" else dhan_token_of(token) for token in tokens]
    made: dict[Source, DhanSimulator | KiteSimulator] = {}
    if "dhan" in sources:
        made["dhan"] = DhanSimulator(instruments, rate=rate, seed=seed, clock=clock, **options.get("dhan", {}))
    if "kite" in sources:
        made["kite"] = KiteSimulator(
            [kite_token_of(token) for token in instruments],
            rate=rate,
            seed=seed,
            clock=clock,
            trading=made["dhan"].trading if "dhan" in made else None,
            **options.get("kite", {}),
        )
    return {source: made[source] for source in sources}
