"""When a connection that is lively brought nothing for a while, and then went on by itself."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.journal.block import Block

#: What came longer ago than this weighs a third and less.
MEMORY_S = 300.0

#: A connection's habit is known once it was watched for so long, and as many of its messages weigh in.
WATCHED_S = 20.0
FEWEST = 100.0

#: A pause is longer than so many mean intervals, since markets come in bursts, and than so many times the longest one.
INTERVALS = 40.0
LONGEST = 4.0


#: How often it learns habits, in real seconds. Learning from each block as it comes took 1 % of a core at 100 a second.
_LOOK_S = 1.0


class PauseWatch:
    """Watches the connections of one capture by the receive times of their messages, block by block.

    A connection whose messages are rare by habit has no pauses: nobody can tell one from a quiet minute.
    """

    def __init__(self, shortest_s: float, speed: float = 1.0, heartbeat_size: int = 0) -> None:
        """`shortest_s`: real seconds below which nothing counts. `speed`: that of the clock of the receive times.

        Messages of `heartbeat_size` bytes, or less, are what comes in a pause; 0: there are none of the kind.
        """
        self._heartbeat_size = heartbeat_size
        self._shortest_s = shortest_s
        self._speed = speed
        self._habits: dict[int, _Habit] = {}
        self._last_ns: dict[int, int] = {}
        self._waiting: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
        self._look_ns = 0

    def see(self, block: Block) -> Iterator[tuple[int, int, int]]:
        """The pauses that end in the block: connection, last message before and first one after (ns, UTC)."""
        of_block, at_ns = block.connection, block.received_ns
        if self._heartbeat_size:
            data = np.diff(block.offsets) > self._heartbeat_size
            of_block, at_ns = of_block[data], at_ns[data]
        self._waiting.append((of_block, at_ns))
        if not self._may_end_a_pause(of_block, at_ns) and block.last_received_ns < self._look_ns:
            return
        self._look_ns = block.last_received_ns + int(_LOOK_S * 1e9 * self._speed)
        connections, times = map(np.concatenate, zip(*self._waiting, strict=True))
        self._waiting.clear()
        for connection in np.flatnonzero(np.bincount(connections)).tolist():
            received_ns = times[connections == connection]
            habit = self._habits.setdefault(connection, _Habit(int(received_ns[0])))
            for since_ns, until_ns in habit.pauses(received_ns, self._shortest_s, self._speed):
                yield connection, since_ns, until_ns

    def forget(self, connection: int) -> None:
        """Learn the connection's habit anew. For another thread than `see`."""
        self._habits.pop(connection, None)

    def _may_end_a_pause(self, connection: NDArray[np.uint8], received_ns: NDArray[np.int64]) -> bool:
        """Whether a connection is heard again after some time. It takes account of the messages."""
        numbers, found = connection.tobytes(), False
        for number in set(numbers):
            first_ns = int(received_ns[numbers.index(number)])
            found |= first_ns - self._last_ns.get(number, first_ns) >= self._shortest_s * 1e9 * self._speed
            self._last_ns[number] = int(received_ns[numbers.rindex(number)])
        return found


class _Habit:
    """How the messages of one connection follow one another. Seconds are real ones."""

    def __init__(self, first_ns: int) -> None:
        self._last_ns = first_ns
        self._watched_s = self._seconds = self._messages = self._longest_s = 0.0

    def pauses(self, received_ns: NDArray[np.int64], shortest_s: float, speed: float) -> Iterator[tuple[int, int]]:
        times = np.concatenate(([self._last_ns], received_ns))
        intervals_s = np.diff(times) / (1e9 * speed)
        if self._watched_s >= WATCHED_S and self._messages >= FEWEST and intervals_s.max() >= shortest_s:
            limit_s = max(shortest_s, INTERVALS * self._seconds / self._messages, LONGEST * self._longest_s)
            for at in np.flatnonzero(intervals_s >= limit_s).tolist():
                yield int(times[at]), int(times[at + 1])
            intervals_s = intervals_s[intervals_s < limit_s]  # a pause is no habit
        passed_s = float(intervals_s.sum())
        fading = float(np.exp(-passed_s / MEMORY_S))
        self._last_ns = int(received_ns[-1])
        self._watched_s += passed_s
        self._seconds = self._seconds * fading + passed_s
        self._messages = self._messages * fading + len(received_ns)
        self._longest_s = max(self._longest_s * fading, float(intervals_s.max(initial=0.0)))
