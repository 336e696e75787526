"""Keeps the books of gaps while a capture runs: what the connections go through becomes notes in the journal.

Belongs to the event loop, like the connections. A gap is noted when it begins, so that a crash cannot hide it, and
again when it ends; what a crash leaves open is ended by the next process, whose own gaps begin where the journal ends.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.instruments import ExchangeSegment, exchange_segments, segment_of
from dhan_pipeline.journal.notes import Note, Started

#: A lively connection that brings nothing for this long has a gap, also where it goes on by itself. In real seconds.
SHORTEST_PAUSE_S = 5.0

#: A gap that ended counts as recent for this long.
RECENT_S = 300.0

#: For so long after its start a capture that had been asked to stop may take to connect; what lasts longer is a fault.
_STARTING_S = 60.0

#: How the silence of an instrument ends that is watched no more.
_UNWATCHED = "its connection was lost, its day ended, or it is no longer subscribed"

#: Causes that explain why a lost connection stays lost, whatever it was lost for.
_EXPLAINING = frozenset({Cause.TOKEN, Cause.LIMIT, Cause.PLAN})

#: How much of an interval (ns since the Unix epoch, UTC) lies in sessions of the segments, in seconds.
SessionSeconds = Callable[[int, int, Collection[ExchangeSegment]], float]


class GapKeeper:
    """The gaps of one capture since its process began."""

    def __init__(
        self,
        note: Callable[[Note], None],
        emit: Callable[[dict[str, Any]], None],
        instruments: Callable[[int], Sequence[int]],
        session_seconds: SessionSeconds,
        clock: Clock,
        last_id: int,
    ) -> None:
        """`note` writes into the journal, `instruments` tells those of a connection, and no gap of an earlier process
        has an id above `last_id`.
        """
        self._note = note
        self._emit = emit
        self._instruments = instruments
        self._session_seconds = session_seconds
        self._clock = clock
        self._last_id = last_id
        self._began_ns = clock.now_ns()
        self._open: dict[int, Gap] = {}
        self._silent: dict[tuple[int, ...], Gap] = {}
        self._shed: list[Gap] = []
        self._ended: list[tuple[Gap, float]] = []
        """Those that ended lately, each with its seconds in session: of 5,000 instruments these take 1 ms to find."""
        self.count = 0
        """Gaps of connections since the process began."""

    def begin(self, connections: int, started: Started) -> None:
        """Note that the process began, and that each connection has missed everything since the journal's end."""
        self._note(started)
        if started.since_ns is not None:
            for connection in range(connections):
                self._begin(connection, started.since_ns, started.cause, "", self._instruments(connection))

    def down(self, connection: int, error: PipelineError, cause: Cause, since_ns: int | None) -> None:
        """A connection was lost, its last sign of life being `since_ns`; or, without that, could not be made."""
        gap = self._open.get(connection)
        if gap is None:
            at_ns = self._clock.now_ns() if since_ns is None else since_ns
            self._begin(connection, at_ns, cause, str(error), self._instruments(connection))
        elif cause in _EXPLAINING and cause is not gap.cause:
            self._open[connection] = replace(gap, cause=cause, detail=str(error))
            self._note(replace(self._open[connection], instruments=None))

    def message(self, connection: int) -> None:
        """A connection's first message comes."""
        gap = self._open.pop(connection, None)
        if gap is not None:
            again = "the capture ran again" if gap.cause in _BETWEEN_PROCESSES else "connected and subscribed again"
            self._end(gap, max(self._clock.now_ns(), gap.started_ns), again)

    def joined(self, connection: int) -> None:
        """Instruments were added to a connection: while it is away, their packets are missed, too."""
        gap = self._open.get(connection)
        if gap is None:
            return
        instruments = tuple(dict.fromkeys((*(gap.instruments or ()), *self._instruments(connection))))
        if instruments != gap.instruments:
            self._open[connection] = replace(gap, instruments=instruments)
            self._note(self._open[connection])

    def suspended(self, connections: Collection[int], since_ns: int) -> None:
        """Nothing was received from `since_ns` until now, because the process stood still."""
        now_ns = self._clock.now_ns()
        for connection in connections:
            if connection not in self._open:
                self._begin(
                    connection, since_ns, Cause.SUSPENDED, "the process stood still", self._instruments(connection)
                )
                self._end(self._open.pop(connection), max(now_ns, since_ns), "the process went on")

    def paused(self, connection: int, since_ns: int, until_ns: int) -> None:
        """A lively connection brought nothing between the two; what another gap explains is not told again."""
        for gap in (*(gap for gap, _ in self._ended), *self._open.values()):
            meanwhile = gap.started_ns < until_ns and (gap.ended_ns is None or gap.ended_ns > since_ns)
            if gap.connection == connection and gap.cause is not Cause.SILENT and meanwhile:
                until_ns = gap.started_ns
        if until_ns - since_ns >= SHORTEST_PAUSE_S * 1e9 * self._clock.speed:
            gap = self._make(connection, since_ns, Cause.STALL, "nothing came", self._instruments(connection))
            self._end(gap, until_ns, "packets came again", instruments=gap.instruments)
            self.count += 1

    def damaged(self, connections: int, since_ns: int, until_ns: int, detail: str) -> None:
        """What was received between the two can no longer be read from the journal."""
        for connection in range(connections):
            gap = self._new(connection, since_ns, Cause.DISK, detail, self._instruments(connection))
            self._end(gap, until_ns, "what follows was read")

    def shed(self, instruments: Sequence[int]) -> None:
        """These are no longer subscribed, because the broker's limits have no room for them."""
        self._shed.append(
            self._new(0, self._clock.now_ns(), Cause.LIMIT, "the broker's limit has no room for them", instruments)
        )

    def wanted(self, instruments: Collection[int]) -> None:
        """These are to be subscribed now: what the limits had no room for, and nobody wants any more, is no gap."""
        for gap in [gap for gap in self._shed if not any(token in instruments for token in gap.instruments or ())]:
            self._shed.remove(gap)
            self._end(gap, max(self._clock.now_ns(), gap.started_ns), "they are no longer to be subscribed")

    def silent(self, instruments: tuple[int, ...], connection: int, since_ns: int) -> None:
        """An instrument that was lively sent nothing after `since_ns`, or all those of a segment on a connection."""
        if instruments not in self._silent:
            segment = segment_of(instruments[0]).name
            detail = "it had been lively" if len(instruments) == 1 else f"nothing came of {segment}"
            self._silent[instruments] = self._new(connection, since_ns, Cause.SILENT, detail, instruments, count=False)

    def heard(self, instruments: tuple[int, ...], at_ns: int) -> None:
        """One of them sent a packet again; 0 where their silence is no longer watched."""
        gap = self._silent.pop(instruments, None)
        if gap is not None:
            if at_ns:
                self._end(gap, at_ns, "packets came again")
            else:
                self._end(gap, max(self._clock.now_ns(), gap.started_ns), _UNWATCHED)

    def status(self) -> dict[str, Any]:
        """The gaps' part of a status line; seconds are those in session.

        A capture that was asked to stop and has just been started again is told apart: nothing of it is a fault.
        """
        now_ns = self._clock.now_ns()
        horizon_ns = now_ns - int(RECENT_S * 1e9 * self._clock.speed)
        self._ended = [(gap, seconds) for gap, seconds in self._ended if (gap.ended_ns or 0) > horizon_ns]
        lasting, recent, stopped = [(0.0, "")], [(0.0, "")], [(0.0, "")]
        starting = now_ns - self._began_ns < _STARTING_S * 1e9 * self._clock.speed
        for gap in (*self._open.values(), *self._shed, *self._silent.values()):
            if gap.cause is not Cause.SILENT or not _is_of_one(gap):
                of = stopped if starting and gap.cause is Cause.STOP else lasting
                of.append((self._seconds(gap, now_ns), gap.cause.value))
        for gap, seconds in self._ended:
            (stopped if gap.cause is Cause.STOP else recent).append((seconds, gap.cause.value))
        open_s, open_cause = max(lasting)
        recent_s, recent_cause = max(recent)
        silent = sorted(token for instruments in self._silent for token in instruments)
        return {
            "gaps": self.count,
            "gap_open_s": open_s,
            "gap_recent_s": recent_s,
            "gap_cause": open_cause if open_s else recent_cause,
            "gap_stopped_s": max(stopped)[0],
            "silent": silent[:20],
            "silent_count": len(silent),
        }

    def _begin(self, connection: int, started_ns: int, cause: Cause, detail: str, instruments: Sequence[int]) -> None:
        self._open[connection] = self._new(connection, started_ns, cause, detail, instruments)

    def _new(
        self,
        connection: int,
        started_ns: int,
        cause: Cause,
        detail: str,
        instruments: Sequence[int],
        count: bool = True,
    ) -> Gap:
        gap = self._make(connection, started_ns, cause, detail, instruments)
        self._note(gap)
        self.count += count
        self._tell(gap)
        return gap

    def _make(self, connection: int, started_ns: int, cause: Cause, detail: str, instruments: Sequence[int]) -> Gap:
        self._last_id = max(self._clock.now_ns(), self._last_id + 1)
        return Gap(self._last_id, connection, started_ns, cause, detail, tuple(instruments))

    def _end(self, gap: Gap, ended_ns: int, recovery: str, instruments: tuple[int, ...] | None = None) -> None:
        """Note the end, with the instruments where the beginning was not noted."""
        ended = replace(gap, ended_ns=ended_ns, recovery=recovery)
        self._note(replace(ended, instruments=instruments))
        if gap.cause is not Cause.SILENT or not _is_of_one(gap):
            self._ended.append((ended, self._seconds(ended, ended_ns)))
        self._tell(ended)

    def _tell(self, gap: Gap) -> None:
        self._emit(
            {
                "event": "gap",
                "connection": gap.connection,
                "instruments": len(gap.instruments or ()),
                "cause": gap.cause,
                "detail": gap.detail,
                "started_at": _iso(gap.started_ns),
                "ended_at": None if gap.ended_ns is None else _iso(gap.ended_ns),
                "seconds": round(((gap.ended_ns or self._clock.now_ns()) - gap.started_ns) / 1e9, 3),
                "recovery": gap.recovery,
            }
        )

    def _seconds(self, gap: Gap, until_ns: int) -> float:
        return round(self._session_seconds(gap.started_ns, until_ns, exchange_segments(gap.instruments or ())), 3)


def _is_of_one(gap: Gap) -> bool:
    return len(gap.instruments or ()) == 1


_BETWEEN_PROCESSES = frozenset({Cause.STOP, Cause.RESTART, Cause.HOST_DOWN, Cause.DISK})


def _iso(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat()
