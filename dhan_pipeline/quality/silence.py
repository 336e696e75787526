"""Which lively instruments fell silent while the rest of their connection went on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What came longer ago than this weighs a third and less: the last minutes are what an instrument is judged by.
MEMORY_S = 300.0

#: It is lively once it was watched for this long, and as many of its packets weigh in: one in 10 s or more.
WATCHED_S = 300.0
LIVELY_PACKETS = 30.0

#: It is silent when nothing came for all of these. Were packets independent, an interval of 40 means would occur once
#: in e^40 packets. Of the slowest that count as lively the mean is known from some 44 packets, and may be too short:
#: that leaves one in (1 + 40/44)^44, or 2e12. 5000 such instruments send 1e7 packets a day.
SILENT_S = 30.0
SILENT_INTERVALS = 40.0
#: Markets come in bursts, which a mean knows nothing of: also so many times the longest interval of the last minutes.
SILENT_LONGEST = 4.0

#: Where more than this share of those on a connection whom one should have heard is silent too, the matter is the
#: connection's, or the market's: the watchdog's, not ours.
COMMON = 0.5

#: Who is silent for longer than this is not watched any more: its session is over.
FORGET_S = 3600.0


class SilenceWatch:
    """Watches the instruments of one capture. Times are receive times in ns; they never step back.

    An instrument's silence is measured in time, and in the packets that its connection brought meanwhile: where the
    connection stalls, or the whole market slows down, nobody misses what nobody sends.
    """

    def __init__(self, connections: NDArray[np.int16], common: float = COMMON) -> None:
        """The connection of each instrument by its index, below 0 for those that are not subscribed.

        `common`: the share of a connection above which a silence is not its instruments' matter.
        """
        self._common = common
        self._watch(connections)
        watched, numbers = len(self._index), int(self._connection.max(initial=0)) + 1
        self._passed = np.zeros(numbers, np.int64)  # packets of each connection
        self._since_ns = np.zeros(watched, np.int64)
        self._last_ns = np.zeros(watched, np.int64)
        self._last_passed = np.zeros(watched, np.int64)
        # Of each instrument's packets, and of the intervals between them: sums in which the past fades.
        self._packets = np.zeros(watched)
        self._seconds = np.zeros(watched)
        self._others = np.zeros(watched)
        self._longest_s = np.zeros(watched)
        self._silent = np.zeros(watched, np.bool_)
        # Silence counts from here, by connection, where most of it was silent before.
        self._excused_ns = np.zeros(numbers, np.int64)
        self._excused_passed = np.zeros(numbers, np.int64)
        self._back: list[tuple[int, int, int]] = []

    def _watch(self, connections: NDArray[np.int16]) -> None:
        self._index = np.flatnonzero(connections >= 0)
        """Index of each watched instrument. Its place here is its place in the arrays of what is known of it."""
        self._place = np.full(len(connections), -1, np.int64)
        self._place[self._index] = np.arange(len(self._index))
        self._connection = connections[self._index].astype(np.int64)

    def change(self, connections: NDArray[np.int16], anew: NDArray[np.bool_]) -> None:
        """The instruments are subscribed so from now on. Of those that are not to begin `anew`, what is known stays."""
        places = self._place
        self._watch(connections)
        before = places[self._index]
        kept = (before >= 0) & ~anew[self._index]
        for name in (
            *("_since_ns", "_last_ns", "_last_passed", "_packets", "_seconds", "_others", "_longest_s"),
            "_silent",
        ):
            old = getattr(self, name)
            new = np.zeros(len(before), old.dtype)
            new[kept] = old[before[kept]]
            setattr(self, name, new)
        more = int(self._connection.max(initial=0)) + 1 - len(self._passed)
        if more > 0:
            for name in ("_passed", "_excused_ns", "_excused_passed"):
                setattr(self, name, np.append(getattr(self, name), np.zeros(more, np.int64)))
        self._back = [back for back in self._back if (at := self._place[back[0]]) >= 0 and kept[at]]

    def reset(self, connection: int) -> None:
        """Forget what was lively, and who is silent, on a connection: after a gap of it, everything begins anew."""
        of_it = self._connection == connection
        self._last_ns[of_it] = 0
        self._packets[of_it] = 0
        self._silent[of_it] = False
        self._back = [back for back in self._back if not of_it[self._place[back[0]]]]

    def update(self, index: NDArray[Any], received_ns: NDArray[Any]) -> None:
        """Packets came of these instruments (indices from 0, in order of receipt)."""
        at = self._place[index]
        if at.min(initial=0) < 0:
            received_ns, at = received_ns[at >= 0], at[at >= 0]
        connection = self._connection[at]
        self._passed += np.bincount(connection, minlength=len(self._passed))
        before_ns = self._last_ns[at]
        interval_s = (received_ns - before_ns) / 1e9
        fresh = interval_s > FORGET_S  # never heard of, too
        if fresh.any():
            self._since_ns[at[fresh]] = received_ns[fresh]
            for values in (self._packets, self._seconds, self._others, self._longest_s):
                values[at[fresh]] = 0.0
            interval_s[fresh] = 0.0
        silent = self._silent[at]
        if silent.any():
            heard, first = np.unique(at[silent], return_index=True)
            self._silent[heard] = False
            for place, before, first_ns in zip(
                heard.tolist(), before_ns[silent][first].tolist(), received_ns[silent][first].tolist(), strict=True
            ):
                self._back.append((int(self._index[place]), before, first_ns))
        # Where an instrument has several packets here, the last one's assignment stands. Each computes from what was
        # before all of them, so that the whole block counts as one interval with several packets at its end.
        fading = np.exp(interval_s / -MEMORY_S)
        passed = self._passed[connection]
        others = np.where(fresh, 0, passed - self._last_passed[at])
        self._seconds[at] = self._seconds[at] * fading + interval_s
        self._others[at] = self._others[at] * fading + others
        self._longest_s[at] = np.maximum(self._longest_s[at] * fading, interval_s)
        self._packets[at] = self._packets[at] * fading
        np.add.at(self._packets, at, 1.0)
        self._last_ns[at] = received_ns
        self._last_passed[at] = passed

    def check(self, now_ns: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """(fell silent: index and last packet's time; were heard again: index, last time before, time now)."""
        lively = (self._packets >= LIVELY_PACKETS) & (self._last_ns - self._since_ns >= WATCHED_S * 1e9)
        packets = np.maximum(self._packets, 1.0)
        mean_s = self._seconds / packets
        silence_s = (now_ns - np.maximum(self._last_ns, self._excused_ns[self._connection])) / 1e9
        passed = self._passed - self._excused_passed
        missed = np.minimum(self._passed[self._connection] - self._last_passed, passed[self._connection])
        silent = (
            lively
            & (silence_s > SILENT_S)
            & (silence_s > SILENT_INTERVALS * mean_s)
            & (silence_s > SILENT_LONGEST * self._longest_s)
            & (missed > SILENT_INTERVALS * self._others / packets)
            & (silence_s < FORGET_S)
        )
        new = silent & ~self._silent
        fell: list[tuple[int, int]] = []
        for connection in np.unique(self._connection[new]).tolist():
            of_it = self._connection == connection
            shortest_s = silence_s[new & of_it].min()
            # Whoever sends ten packets in that time on average, and has sent none, is silent no less.
            expected = lively & of_it & (mean_s < shortest_s / 10)
            quiet = expected & (silence_s > 0.8 * shortest_s)
            if np.count_nonzero(quiet) > self._common * np.count_nonzero(expected):
                self._excused_ns[connection] = now_ns
                self._excused_passed[connection] = self._passed[connection]
                continue
            self._silent |= new & of_it
            fell += [(int(self._index[at]), int(self._last_ns[at])) for at in np.flatnonzero(new & of_it).tolist()]
        back, self._back = self._back, []
        return fell, back
