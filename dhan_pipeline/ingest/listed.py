"""The resolved list of subscriptions as a running capture sees it: read again whenever somebody has written it.

That may be the capture itself: it has the option chains in the list follow the price of their underlying. So the list
is always what is subscribed, also for a capture that starts after this one.
"""

from collections.abc import Mapping
from pathlib import Path

from dhan_pipeline.chains import Chain
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import read_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline.windows import move_windows, read_chains

_State = tuple[int, int, int]


class SubscriptionList:
    """The list of one capture. Its methods may be called in different threads, one after the other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: _State | None = None
        self._ours: _State | None = None
        """The list as `follow` wrote it last."""
        self._chains_seen: _State | None = None
        self._chains: list[Chain] = []
        self._centres: dict[Chain, int] = {}
        """Where the window of each chain is in the list, as far as is known."""

    def read(self) -> dict[int, Mode]:
        """The mode of each instrument token. Raises SubscriptionError where the list cannot be used."""
        path = self._settings.subscriptions_path
        self._seen = _state(path)
        if self._seen != self._ours:
            self._centres = {}
        return {each.instrument_token: each.mode for each in read_subscriptions(path, self._settings.source)}

    def changed(self) -> bool:
        """Whether it is another than the one that was read, or could not be."""
        return _state(self._settings.subscriptions_path) != self._seen

    def underlyings(self) -> set[int]:
        """Instrument tokens whose prices the chains of the list follow."""
        if (state := _state(self._settings.chains_path)) != self._chains_seen:
            self._chains_seen = state
            self._chains = read_chains(self._settings.chains_path)
            self._centres = {}
        return {chain.underlying_token for chain in self._chains}

    def follow(self, prices: Mapping[int, float]) -> None:
        """Write the list anew where prices, by instrument token, have moved on from the middle of a window.

        Raises SubscriptionError where that cannot be; it is not tried again before they move on.
        """
        # Of a price that is not known for a while, as after an outage, the place of before counts on.
        centres = self._centres | {
            chain: chain.at_the_money(prices[chain.underlying_token], self._centres.get(chain))
            for chain in self._chains
            if chain.underlying_token in prices
        }
        if centres != self._centres:
            self._centres = centres
            if move_windows(self._settings, self._chains, centres):
                self._ours = _state(self._settings.subscriptions_path)


def _state(path: Path) -> _State | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
