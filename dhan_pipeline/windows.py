"""The resolved list on disk, with the chains beside it whose windows move through the day.

Whoever changes them holds a lock: a person who applies other rules, and the capture that moves a window.
"""

import csv
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from itertools import groupby
from pathlib import Path

from dhan_pipeline.chains import Chain
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import (
    MAX_SUBSCRIPTIONS,
    Resolution,
    Subscription,
    SubscriptionError,
    read_subscriptions,
    write_subscriptions,
)
from dhan_pipeline.ticks import Mode

_FIELDS = ("chain", "underlying_token", "around_spot", "mode", "expiry", "strike", "instrument_token", "symbol")


def write_resolution(settings: Settings, resolution: Resolution) -> None:
    """Replace the source's resolved list and its chains. A capture that runs takes over what has changed."""
    with _changing(settings.subscriptions_path):
        _write_chains(settings.chains_path, resolution.chains)
        write_subscriptions(settings.subscriptions_path, resolution.subscriptions)


def move_windows(settings: Settings, chains: Sequence[Chain], centres: Mapping[Chain, int]) -> bool:
    """Have the resolved list hold the window of each chain around the strike at this index, and say whether it changed.

    A chain without one keeps what it has. Raises SubscriptionError where the list cannot be read, or would be too long.
    """
    with _changing(settings.subscriptions_path):
        before = read_subscriptions(settings.subscriptions_path, settings.source)
        after = around(before, chains, centres)
        if {s.instrument_token: s.mode for s in after} == {s.instrument_token: s.mode for s in before}:
            return False
        most = MAX_SUBSCRIPTIONS[settings.source]
        if len(after) > most:
            raise SubscriptionError(f"With the options around the price, {len(after)} instruments are over {most}.")
        write_subscriptions(settings.subscriptions_path, after)
    return True


def around(
    subscriptions: Sequence[Subscription], chains: Sequence[Chain], centres: Mapping[Chain, int]
) -> list[Subscription]:
    """The list with each chain's window where its centre is. What is there for another reason stays as it is."""
    listed = {s.instrument_token: s for s in subscriptions if not s.moves}
    held = {s.instrument_token for s in subscriptions if s.moves}
    # Of the underlying, too: its chain may have none of its own, where all in its window is there for another reason.
    followed = {s.follows for s in subscriptions}
    for chain in chains:
        if chain.underlying_token not in followed:
            continue  # of another list
        if chain in centres:
            window = chain.window(centres[chain])
        else:
            window = [option for strike in chain.options for option in strike if option[0] in held]
        for token, symbol in window:
            listed.setdefault(token, Subscription(token, chain.mode, symbol, chain.underlying_token))
    return list(listed.values())


def read_chains(path: Path) -> list[Chain]:
    """The chains of the resolved list; none where there is no file, or none that can be read."""
    chains = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for _, rows in groupby(csv.DictReader(file), lambda row: row["chain"]):
                of_chain = list(rows)
                first = of_chain[0]
                strikes: dict[float, list[tuple[int, str]]] = {}
                for row in of_chain:
                    strikes.setdefault(float(row["strike"]), []).append((int(row["instrument_token"]), row["symbol"]))
                chains.append(
                    Chain(
                        int(first["underlying_token"]),
                        int(first["around_spot"]),
                        Mode(first["mode"]),
                        date.fromisoformat(first["expiry"]),
                        tuple(strikes),
                        tuple(map(tuple, strikes.values())),
                    )
                )
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return []
    return chains


def _write_chains(path: Path, chains: Sequence[Chain]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_FIELDS)
        for number, chain in enumerate(chains, 1):
            about = (number, chain.underlying_token, chain.around_spot, chain.mode.value, chain.expiry.isoformat())
            for strike, options in zip(chain.strikes, chain.options, strict=True):
                writer.writerows((*about, strike, token, symbol) for token, symbol in options)
    part.replace(path)


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
