"""The resolved list of subscriptions as a running capture sees it: read again whenever somebody has written it."""

from pathlib import Path

from dhan_pipeline.sources import Source
from dhan_pipeline.subscriptions import read_subscriptions
from dhan_pipeline.ticks import Mode


class SubscriptionList:
    """One list. `changed` and `read` may be called in different threads, one after the other."""

    def __init__(self, path: Path, source: Source) -> None:
        self._path = path
        self._source = source
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> dict[int, Mode]:
        """The mode of each instrument token. Raises SubscriptionError where the list cannot be used."""
        self._seen = self._state()
        return {each.instrument_token: each.mode for each in read_subscriptions(self._path, self._source)}

    def changed(self) -> bool:
        """Whether it is another than the one that was read, or could not be."""
        return self._state() != self._seen

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
