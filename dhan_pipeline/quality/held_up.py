"""Why what a capture received is stored late: now, by its status line; in an hour, by what it noted of those lines.

Where a capture writes itself, only the database can be the cause. With workers, RabbitMQ and they can be, too: times in
the ledger do not tell which it was, so the capture counts the seconds in which each was.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from dhan_pipeline.sessions import hour_key
from dhan_pipeline.store.flow import WAITING_S

Holder = Literal["database", "rabbitmq", "workers", "busy"]

_NOW: dict[Holder, str] = {
    "database": "the database does not keep up or was away: look at its load, locks, checkpoints and disk",
    "rabbitmq": "RabbitMQ is away: start it, or correct RABBITMQ_URL",
    "workers": "no worker runs: start one with `dhan-pipeline worker`",
    "busy": "the workers or the database do not keep up or were away: look at the workers' messages, and how many they"
    " are",
}

_THEN: dict[Holder, str] = {
    "database": "the database did not keep up or was away: look at its load, locks, checkpoints and disk",
    "rabbitmq": "RabbitMQ was away: see that it stays up, and that RABBITMQ_URL is right",
    "workers": "no worker ran: see that `dhan-pipeline worker` runs",
    "busy": "the workers or the database did not keep up or were away: look at the workers' messages, and how many they"
    " are",
}

_UNKNOWN = (
    "RabbitMQ, the workers or the database were away or did not keep up: the warnings of the ingest run of that time"
    " say which"
)

#: So many hours are remembered: one is judged when all of it is stored.
_HOURS = 4


def held_up(status: Mapping[str, Any]) -> str:
    """Why what a capture received is stored late or not at all, as far as it knows, and what to do about it."""
    if problem := status.get("store_problem"):
        return f"the database takes nothing ({problem.rstrip('.')}): mend that, the capture then catches up by itself"
    return _NOW[_holder(status)]


def held_up_then(waits: Mapping[str, int], by_workers: bool) -> str:
    """The same of an hour. `waits`: `Waits.by_hour` of it. `by_workers`: whether workers stored what waited."""
    seconds = {of: waits[of] for of in _THEN if waits.get(of)}
    if not seconds:
        return _UNKNOWN if by_workers else _THEN["database"]
    first, *others = sorted(seconds, key=lambda of: -seconds[of])
    also = [f"; for {seconds[of]:,} s {_THEN[of].partition(':')[0]}" for of in others]
    return _THEN[first] + "".join(also)


def _holder(status: Mapping[str, Any]) -> Holder:
    if status.get("store_problem") or "queue_depth" not in status:
        return "database"
    if status["queue_depth"] is None:
        return "rabbitmq"
    if status.get("workers") is None:  # the database tells which workers there are
        return "database"
    return "busy" if status["workers"] else "workers"


class Waits:
    """What a capture's status lines said of who held up the ticks of each of the last hours."""

    def __init__(self) -> None:
        self.by_hour: dict[str, Counter[str]] = {}
        """Seconds by `Holder`, by the partition key of the hour in which what waited was received."""

    def see(self, status: Mapping[str, Any]) -> None:
        """Take account of a status line; there is one a second."""
        waiting_s = status["backlog_seconds"] or 0.0
        if waiting_s > WAITING_S:
            since = datetime.fromisoformat(status["at"]).timestamp() - waiting_s
            self.by_hour.setdefault(hour_key(int(since * 1e9)), Counter())[_holder(status)] += 1
            for hour in sorted(self.by_hour)[:-_HOURS]:
                del self.by_hour[hour]
