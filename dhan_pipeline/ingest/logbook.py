"""What a capture says of itself, on its way into the database, which may be away meanwhile."""

from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from psycopg2.extensions import connection

from dhan_pipeline.settings import Settings
from dhan_pipeline.store import ledger, subscribed
from dhan_pipeline.ticks import Mode


class Logbook:
    """Remembers what is said until it is written. It is told in the event loop; the thread with the database writes.

    Of what is subscribed every change is written, of the status only the last one.
    """

    def __init__(self, settings: Settings) -> None:
        self._capture, self._source = settings.capture_number, settings.source
        self._status: dict[str, Any] | None = None
        self._waiting: deque[Callable[[connection], None]] = deque()

    def begin(self, modes: Mapping[int, Mode], at: datetime, ended_at: datetime | None) -> None:
        """The capture begins with these. The one before it ended at `ended_at`, if there was one."""
        self._waiting.append(
            partial(subscribed.record, capture=self._capture, modes=dict(modes), at=at, ended_at=ended_at)
        )

    def change(self, changes: Mapping[int, Mode | None], at: datetime) -> None:
        """From `at` on each of these is subscribed in its mode, or, where that is None, no more."""
        self._waiting.append(partial(subscribed.change, capture=self._capture, changes=dict(changes), at=at))

    def say(self, status: dict[str, Any]) -> None:
        """Have the capture's status in the database replaced."""
        self._status = status

    def write(self, conn: connection) -> None:
        """Write what waits, in order. What fails is written again the next time, but for a status."""
        if self._status is not None:
            status, self._status = self._status, None
            ledger.write_status(conn, self._capture, self._source, status)
        while self._waiting:
            self._waiting[0](conn)
            self._waiting.popleft()
