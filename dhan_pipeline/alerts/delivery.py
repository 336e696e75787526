"""Alerts on their way: what waits for which destination, when it is tried again, and when it is given up.

The state is small and becomes JSON. Alerts of a destination leave in the order in which they came.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from dhan_pipeline.alerts.channels import DeliveryError
from dhan_pipeline.alerts.messages import Alert
from dhan_pipeline.amounts import counted, duration

#: More alerts than this that wait for one destination become one message.
MANY = 5

#: A destination that takes nothing is tried again after 15, 30, 60… seconds, at most this many.
FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 600.0

#: An alert that nobody took is given up after so long: then it is no news any more.
GIVE_UP_S = 6 * 3600.0

#: So many wait for one destination, the newest ones.
MOST_WAITING = 50

#: A tick of Dagster's sensors may take a minute in all.
ROUND_S = 30.0

Send = Callable[[str, Sequence[Alert], str], None]


class Queue(BaseModel):
    """What waits for one destination."""

    model_config = ConfigDict(frozen=True)

    waiting: tuple[Alert, ...] = ()
    failures: int = 0
    """In a row."""
    failing_since_s: float = 0.0
    next_s: float = 0.0
    """When it is tried again, in Unix seconds."""
    problem: str = ""
    lost: int = 0
    """Alerts that were given up since it last took one."""


Outbox = dict[str, Queue]


def post(outbox: Outbox, alerts: Mapping[str, Sequence[Alert]]) -> Outbox:
    """Put alerts into the queues of their destinations."""
    after = dict(outbox)
    for destination, new in alerts.items():
        queue = after.get(destination, Queue())
        waiting = (*queue.waiting, *new)
        lost = queue.lost + max(len(waiting) - MOST_WAITING, 0)
        after[destination] = queue.model_copy(update={"waiting": waiting[-MOST_WAITING:], "lost": lost})
    return after


def deliver(outbox: Outbox, now_s: float, send: Send, round_s: float = ROUND_S) -> tuple[Outbox, list[str]]:
    """Send what is due, and give up what is too old; returns what is left, and the destinations that took something.

    `send` raises DeliveryError where a destination does not take a message. No new message begins after `round_s`.
    """
    began = time.monotonic()
    after: Outbox = {}
    took = []
    for destination, queue in outbox.items():
        queue = _without_the_old(queue, now_s)
        while queue.waiting and queue.next_s <= now_s and time.monotonic() - began < round_s:
            count = 1 if len(queue.waiting) <= MANY else len(queue.waiting)
            # Of what changed more than once meanwhile, only how it is now.
            latest = {alert.name: alert for alert in queue.waiting[:count]}
            try:
                send(destination, list(latest.values()), _note(queue))
            except DeliveryError as error:
                queue = _failed(queue, now_s, error)
            else:
                queue = Queue(waiting=queue.waiting[count:])
                took.append(destination)
        if queue != Queue():
            after[destination] = queue
    return after, list(dict.fromkeys(took))


def problems(outbox: Outbox) -> list[str]:
    """A sentence for each destination that does not take what waits for it, or that lost something."""
    return [
        f"{destination}: {queue.problem}" + (f" Given up so far: {counted(queue.lost, 'alert')}." if queue.lost else "")
        for destination, queue in outbox.items()
        if queue.problem
    ]


def progress(outbox: Outbox, now_s: float) -> list[str]:
    """A sentence for each destination for which something waits: how it was tried, and when that is next."""
    return [
        f"Waiting for {destination}: {counted(len(queue.waiting), 'alert')}; tried {_times(queue.failures)} in"
        f" {duration(now_s - queue.failing_since_s)}, and next in {duration(max(queue.next_s - now_s, 0.0))}."
        for destination, queue in outbox.items()
        if queue.failures and queue.waiting
    ]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _note(queue: Queue) -> str:
    return f"Before this, {counted(queue.lost, 'alert')} could not be delivered here." if queue.lost else ""


def _failed(queue: Queue, now_s: float, error: DeliveryError) -> Queue:
    failures = queue.failures + 1
    pause_s = max(min(FIRST_PAUSE_S * 2.0 ** (failures - 1), LONGEST_PAUSE_S), error.retry_after_s)
    return queue.model_copy(
        update={
            "failures": failures,
            "failing_since_s": queue.failing_since_s or now_s,
            "next_s": now_s + pause_s,
            "problem": str(error),
        }
    )


def _without_the_old(queue: Queue, now_s: float) -> Queue:
    fresh = tuple(alert for alert in queue.waiting if now_s - alert.at_s < GIVE_UP_S)
    if len(fresh) == len(queue.waiting):
        return queue
    lost = queue.lost + len(queue.waiting) - len(fresh)
    return queue.model_copy(update={"waiting": fresh, "lost": lost})
