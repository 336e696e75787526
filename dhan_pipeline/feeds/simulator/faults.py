"""A timetable of what goes wrong at the exchange, for a command line: switches that last, and blows that pass.

A fault is written `NAME[=VALUE][@AT][+FOR][/EVERY]`: seconds after the first client asked to connect, for how many
seconds (those that last), and repeated that often. `stall@60+20`, `reset/45`, `disconnect=805@30`. At 0 s, the first
handshake already meets those that last, and the first connection those that pass.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from dhan_pipeline.feeds.simulator.dhan import DhanExchange, DhanSimulator
from dhan_pipeline.feeds.simulator.exchange import Exchange
from dhan_pipeline.feeds.simulator.kite import KiteSimulator
from dhan_pipeline.sources import SOURCES, Source

AnyExchange = Exchange[Any]

#: Faults by the names that a command line knows, with what they do. Those with `+` last.
FAULTS: dict[str, str] = {
    "stall": "+ connections stand and are pinged, but no packet comes",
    "vanish": "+ the exchange is gone without a word: no packet, no ping, no answer, to new connections either",
    "slow": "+ bytes trickle, in pieces that end anywhere",
    "slow-reader": "+ nothing is taken that clients send: subscriptions and pongs come late",
    "stacked": "+ several packets of several kinds come in a message (Dhan only)",
    "reordered": "+ the messages of a burst come in any order",
    "duplicate-snapshot": "+ what is sent upon subscribing is sent twice",
    "wrong-epoch": "+ trade times are true UTC instead of India's wall clock (Dhan only)",
    "refuse": "+ handshakes are refused with an HTTP status: refuse=429",
    "unreachable": "+ new connections are dropped before the handshake is answered",
    "mute": "+ handshakes are never answered",
    "reset": "TCP reset of every connection",
    "drop": "every connection is closed without a word",
    "close": "every connection is closed with a WebSocket code: close=1011",
    "disconnect": "every client is disconnected with one of Dhan's codes: disconnect=805 (Dhan only)",
    "half": "half a message, and then a reset",
    "huge": "a message that announces 100 MB",
    "garbage": "one message of each kind that no feed should send",
    "text": "an order, an error and a piece of news in text (Kite only)",
}

#: Of those, what one broker's feed alone can do.
_OF_ONE: dict[str, Source] = {"stacked": "dhan", "wrong-epoch": "dhan", "disconnect": "dhan", "text": "kite"}

_VALUES = {"refuse": HTTPStatus.TOO_MANY_REQUESTS, "close": 1011, "disconnect": 805}
_GRAMMAR = re.compile(
    r"(?P<name>[a-z-]+)(=(?P<value>\d+))?(@(?P<at>\d+(\.\d+)?))?(\+(?P<lasts>\d+(\.\d+)?))?(/(?P<every>\d+(\.\d+)?))?"
)

#: How long what lasts goes on where nothing is said, in seconds.
DEFAULT_FOR_S = 10.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault and when it happens, in seconds after the first client asked to connect."""

    name: str
    value: int | None = None
    at_s: float = 0.0
    for_s: float = 0.0
    """How long it goes on; 0 for one that passes at once."""
    every_s: float | None = None


def fits(name: str, source: Source) -> bool:
    """Whether a fault can happen to the feed of that broker."""
    return _OF_ONE.get(name, source) == source


def parse_fault(text: str, sources: Sequence[Source] = SOURCES) -> Fault:
    """The fault that a text says, of one of these feeds. Raises ValueError with a sentence for a person."""
    found = _GRAMMAR.fullmatch(text)
    if found is None or found["name"] not in FAULTS:
        raise ValueError(
            f"{text} is not a fault: it is NAME[=VALUE][@AT][+FOR][/EVERY], and the names are {', '.join(FAULTS)}"
        )
    name = found["name"]
    if not any(fits(name, source) for source in sources):
        raise ValueError(f"{text}: {name} is nothing that {' or '.join(sources)} can do, only {_OF_ONE[name]}")
    if found["value"] is not None and name not in _VALUES:
        raise ValueError(f"{text}: {name} takes no value")
    lasts = FAULTS[name].startswith("+")
    if found["lasts"] is not None and not lasts:
        raise ValueError(f"{text}: {name} passes at once, so it cannot go on for {found['lasts']} s")
    value = int(found["value"]) if found["value"] else _VALUES.get(name)
    if name == "refuse":
        try:
            HTTPStatus(value or 0)
        except ValueError:
            raise ValueError(f"{text}: {value} is not an HTTP status") from None
    for_s = float(found["lasts"] or DEFAULT_FOR_S) if lasts else 0.0
    every_s = float(found["every"]) if found["every"] else None
    if every_s is not None and every_s <= for_s:
        raise ValueError(f"{text}: it is to be repeated before it ends")
    return Fault(name, value, float(found["at"] or 0), for_s, every_s)


async def run(simulator: AnyExchange, faults: Sequence[Fault]) -> None:
    """Have each fault that fits the feed happen at its time, until cancelled; those that last are then undone."""
    async with asyncio.TaskGroup() as group:
        for fault in (fault for fault in faults if fits(fault.name, simulator.source)):
            group.create_task(_repeat(simulator, fault), name=f"fault {fault.name}")


async def _repeat(simulator: AnyExchange, fault: Fault) -> None:
    if fault.at_s:
        await simulator.first_handshake.wait()
        await asyncio.sleep(fault.at_s)
    elif fault.name in _BLOWS:
        await simulator.first_connection.wait()
    while True:
        async with happening(simulator, fault):
            await simulator.first_handshake.wait()
            await asyncio.sleep(fault.for_s)
        if fault.every_s is None:
            return
        await asyncio.sleep(fault.every_s - fault.for_s)


@asynccontextmanager
async def happening(simulator: AnyExchange, fault: Fault) -> AsyncIterator[None]:
    """The fault, for as long as the context lasts; one that passes at once has passed when it begins."""
    async with AsyncExitStack() as undo:
        if fault.name in _BLOWS:
            await _BLOWS[fault.name](simulator, fault.value or 0)
        else:
            undo.callback(_SWITCHES[fault.name](simulator, fault.value or 0))
        yield


def _switch(name: str) -> Callable[[AnyExchange, int], Callable[[], None]]:
    return lambda simulator, _: simulator.faults.hold(simulator.faults, name, True)


def _refuse(simulator: AnyExchange, status: int) -> Callable[[], None]:
    return simulator.faults.hold(simulator.faults, "refuse", HTTPStatus(status))


def _vanish(simulator: AnyExchange, _: int) -> Callable[[], None]:
    release = simulator.faults.hold(simulator.faults, "vanished", True)
    for connection in simulator.connections:
        if connection.is_open:
            connection.vanish()

    def undo() -> None:
        release()
        if not simulator.faults.vanished:
            for connection in simulator.connections:
                if connection.vanished:
                    connection.reset()

    return undo


def _slow_reader(simulator: AnyExchange, _: int) -> Callable[[], None]:
    release = simulator.faults.hold(simulator.faults, "deaf", True)
    for connection in simulator.connections:
        connection.listen(False)

    def undo() -> None:
        release()
        for connection in simulator.connections:
            connection.listen(not simulator.faults.deaf)

    return undo


def _wrong_epoch(simulator: AnyExchange, _: int) -> Callable[[], None]:
    if not isinstance(simulator, DhanSimulator):
        raise ValueError("trade times of a recording are as they were recorded")
    return simulator.faults.hold(simulator.market, "trade_time_offset_s", 0)


_SWITCHES: dict[str, Callable[[AnyExchange, int], Callable[[], None]]] = {
    "stall": _switch("stalled"),
    "slow": _switch("slow"),
    "slow-reader": _slow_reader,
    "stacked": _switch("stacked"),
    "reordered": _switch("reordered"),
    "duplicate-snapshot": _switch("duplicate_snapshot"),
    "unreachable": _switch("unreachable"),
    "mute": _switch("mute"),
    "refuse": _refuse,
    "vanish": _vanish,
    "wrong-epoch": _wrong_epoch,
}


async def _reset(simulator: AnyExchange, _: int) -> None:
    simulator.reset()


async def _drop(simulator: AnyExchange, _: int) -> None:
    for connection in list(simulator.connections):
        connection.drop()


async def _close(simulator: AnyExchange, code: int) -> None:
    await asyncio.gather(*(connection.close(code) for connection in list(simulator.connections)))


async def _disconnect(simulator: AnyExchange, code: int) -> None:
    if not isinstance(simulator, DhanExchange):
        raise ValueError("Kite has no codes that disconnect")
    await simulator.disconnect(code)


async def _half(simulator: AnyExchange, _: int) -> None:
    await simulator.send_half()


async def _huge(simulator: AnyExchange, _: int) -> None:
    for connection in list(simulator.connections):
        connection.send_huge()


async def _garbage(simulator: AnyExchange, _: int) -> None:
    for kind in simulator.garbage:
        simulator.send_garbage(kind)


async def _text(simulator: AnyExchange, _: int) -> None:
    if not isinstance(simulator, KiteSimulator):
        raise ValueError("Dhan's feed has no text")
    simulator.send_text({"type": "order", "data": {"order_id": "220303000308932", "status": "COMPLETE"}})
    simulator.send_text({"type": "error", "data": "Something went wrong"})
    simulator.send_text({"type": "message", "data": "The market closes early today"})


_BLOWS: dict[str, Callable[[AnyExchange, int], Awaitable[None]]] = {
    "reset": _reset,
    "drop": _drop,
    "close": _close,
    "disconnect": _disconnect,
    "half": _half,
    "huge": _huge,
    "garbage": _garbage,
    "text": _text,
}
