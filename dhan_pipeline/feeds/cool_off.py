"""A rest that the server asked for, kept in a file so that restarting does not shorten it."""

import asyncio
import contextlib
import math
import time
from pathlib import Path

from dhan_pipeline.feeds.connection import DEFAULT_POLICY, FeedPolicy
from dhan_pipeline.sources import Source


def cool_off_file(source: Source) -> str:
    """Where, below the data directory, a rest is kept: its end in Unix seconds, and how many came before it."""
    return f"{source}_cool_off"


class CoolOff:
    """A time without new connections.

    Dhan blocks accounts, not addresses, so it counts for every connection and every process with this data directory.
    """

    def __init__(self, path: Path, policy: FeedPolicy = DEFAULT_POLICY) -> None:
        self._path = path
        self._policy = policy
        self._until_s, self._times = self._read()
        # A rest long past says nothing about the next.
        if time.time() - self._until_s > policy.longest_rest_s:
            self._times = 0

    def start(self, at_least_s: float = 0.0) -> None:
        """Begin to rest, longer each time until `reset`, and for `at_least_s` if the policy lets a rest be that long.

        A rest that has begun is not prolonged.
        """
        if self.remaining_s() > 0:
            return
        self._times += 1
        self._until_s = time.time() + self._policy.rest(self._times, at_least_s)
        self._write()

    def reset(self) -> None:
        """The server is content: the next rest is a short one."""
        if self._times:
            self._times = 0
            self._write()

    def remaining_s(self) -> float:
        """Seconds left of the rest, of the machine's time; 0 when there is none."""
        until_s = max(self._until_s, self._read()[0])
        # Whatever the file says or the clock did, no rest is longer than the longest.
        return min(max(until_s - time.time(), 0.0), self._policy.longest_rest_s * 1.25)

    async def wait(self) -> None:
        """Return when the rest is over."""
        await asyncio.sleep(self.remaining_s())

    def _read(self) -> tuple[float, int]:
        with contextlib.suppress(OSError, ValueError):
            until, _, times = self._path.read_text().partition(" ")
            if math.isfinite(until_s := float(until)):
                return until_s, int(times or 0)
        return 0.0, 0

    def _write(self) -> None:
        # Where the disk is full, resting still works until the next restart.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_name(f"{self._path.name}.part")
            part.write_text(f"{self._until_s:.3f} {self._times}")
            part.replace(self._path)
