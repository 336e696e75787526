"""The wall clock, which the demo and the tests may displace and accelerate.

Everything that asks for the time of day takes a `Clock`, so that a past hour is captured by the same code as a
live one. Durations that only pace our own work (back-off, flush interval) stay on the event loop's clock.
"""

import time
from datetime import UTC, datetime


class Clock:
    """Wall-clock time in nanoseconds since the Unix epoch, UTC.

    `Clock()` is the machine's clock. `Clock(start_ns, speed)` begins at `start_ns` when it is made and runs `speed`
    times as fast as real time. Two processes agree on a displaced clock by sharing all three numbers.
    """

    __slots__ = ("_origin_ns", "_start_ns", "speed")

    def __init__(self, start_ns: int | None = None, speed: float = 1.0, origin_ns: int | None = None) -> None:
        self.speed = speed
        self._origin_ns = time.time_ns() if origin_ns is None else origin_ns
        self._start_ns = start_ns
        if start_ns is None and speed != 1.0:
            raise ValueError("an accelerated clock needs a start")

    def now_ns(self) -> int:
        """The time now, in nanoseconds since the Unix epoch."""
        if self._start_ns is None:
            return time.time_ns()
        return self._start_ns + int((time.time_ns() - self._origin_ns) * self.speed)

    def now(self) -> datetime:
        """The time now, aware, in UTC."""
        return datetime.fromtimestamp(self.now_ns() / 1e9, UTC)

    def elapsed_s(self, since_ns: int) -> float:
        """Real seconds that passed since `since_ns` of this clock: the same number whatever its speed."""
        return (self.now_ns() - since_ns) / 1e9 / self.speed
