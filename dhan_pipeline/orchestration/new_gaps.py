"""Hours to judge for the gaps that reach into them: again, where they were sealed, or at all, where nothing came.

A connection that stalls is given up after a minute and a half, an instrument is missed after minutes, and where a
capture was killed the next one tells: each such gap may reach back into an hour that is sealed.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from dhan_pipeline.sessions import hour_key


class NewGaps:
    """Hears a capture's events in their order."""

    def __init__(self, hours: Iterable[str], speed: float) -> None:
        """`hours` may have gaps that nobody has judged. `speed` is that of the capture's clock."""
        self._speed = speed
        self._told_by: dict[str, datetime | None] = dict.fromkeys(hours)
        """The hours, with the time of a status line by which their gaps had been told; None until one comes."""

    def hear(self, event: Mapping[str, Any], hours: Collection[str]) -> None:
        """A gap began or is over, and may reach into `hours`. Raises KeyError, ValueError for an event that is none."""
        first = _hour(event["started_at"])
        last = _hour(event["ended_at"]) if event["ended_at"] else max(hours, default="")
        self._told_by.update(dict.fromkeys(hour for hour in hours if first <= hour <= last))

    def stored(self, status: Mapping[str, Any]) -> list[str]:
        """The hours whose gaps are all stored by the time of a status line; each is told once.

        The capture tells a gap before the next status line, and has stored what came before a status line's backlog.
        """
        if not self._told_by:
            return []
        at = datetime.fromisoformat(status["at"])
        stored_to = at - timedelta(seconds=(status["backlog_seconds"] or 0.0) * self._speed)
        self._told_by = {hour: told_by or at for hour, told_by in self._told_by.items()}
        found = [hour for hour, told_by in self._told_by.items() if told_by and told_by <= stored_to]
        for hour in found:
            del self._told_by[hour]
        return found


def _hour(iso: str) -> str:
    return hour_key(int(datetime.fromisoformat(iso).timestamp() * 1e9))
