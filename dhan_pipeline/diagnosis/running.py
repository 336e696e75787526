"""What runs, or should: the capture of the session, and RabbitMQ with its workers, where they are in between."""

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta

import psycopg2
from psycopg2.extensions import connection

from dhan_pipeline.amounts import counted, duration
from dhan_pipeline.clock import Clock
from dhan_pipeline.diagnosis.asking import DATABASE_FIRST, asked_database
from dhan_pipeline.diagnosis.findings import Finding, bad, ok, warn
from dhan_pipeline.diagnosis.machine import journal_is_full
from dhan_pipeline.errors import PipelineError, in_words
from dhan_pipeline.journal.holder import held_since
from dhan_pipeline.journal.reader import lock_path
from dhan_pipeline.journal.writer import somebody_writes
from dhan_pipeline.quality.calendar import CAPTURE_START_S, capture_expected, feed_expected, next_session
from dhan_pipeline.quality.now import SILENT_S
from dhan_pipeline.settings import UP_LOCK, Settings
from dhan_pipeline.store.ledger import CaptureStatus, statuses
from dhan_pipeline.times import to_second
from dhan_pipeline.transport.broker import BrokerError, broker_url
from dhan_pipeline.transport.outlet import version_and_depths

_START = (
    "Run `dhan-pipeline up`, or start Dagster, whose sensor `ingest_supervisor` starts the capture. If the sensor is"
    " on, look at the last ingest run."
)

_UNHEARD = "One runs on this machine, for its journal is locked, but the database hears nothing of it."
_LET_HEAR = (
    "Look at the lines `database` and `disk` of `dhan-pipeline doctor`, and whether both have the same DATABASE_URL."
)
CATCHES_UP = "Mend that, such as with room on its disk: the capture then catches up by itself."

#: What a capture may take after its first word until all its connections are up.
_CONNECTING = timedelta(seconds=20)


def capture(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The finding `capture`: it runs in session, with all its connections; else when the next session opens."""
    try:
        with asked_database(settings) as conn:
            found, runs = latest_capture(conn, settings)
    except (PipelineError, psycopg2.errors.UndefinedTable):
        words = f"Not known: it is the database that tells. {when_next(settings, clock)}"
        return [warn("capture", words, DATABASE_FIRST)]
    if found is not None and runs:
        return [_running(settings, clock, found)]
    last = f" The last one spoke at {to_second(found.updated_at)}." if found else ""
    if capture_expected(settings, clock):
        none = f"None runs, and one should, for a session is on, about to open, or just over.{last}"
        return [unheard_of(settings, clock, none)]
    return [ok("capture", f"None has to run now. {when_next(settings, clock)}")]


def unheard_of(settings: Settings, clock: Clock, none: str) -> Finding:
    """The finding `capture` of one that should run, and of which the database hears nothing; `none`: that none runs."""
    if (long := _starting(settings, clock)) is not None:
        most = duration(CAPTURE_START_S)
        return warn("capture", f"It is starting, for {long} now; that takes {most} at most.", "Ask again in a minute.")
    if somebody_writes(settings.journal_dir, settings.capture_number):
        return bad("capture", _UNHEARD, _LET_HEAR)
    if journal_is_full(settings):
        return bad("capture", f"{none} The journal's disk is full.", "Make room: it then starts by itself.")
    return bad("capture", none, _START)


def _starting(settings: Settings, clock: Clock) -> str | None:
    """For how long a capture that should run has been starting; None where nothing starts it, or it is late."""
    locks = (settings.data_dir / UP_LOCK, lock_path(settings.journal_dir, settings.capture_number))
    ages_s = [time.time() - since_s for lock in locks if (since_s := held_since(lock)) is not None]
    earlier = Clock(clock.now_ns() - int(CAPTURE_START_S * 1e9))
    if (age_s := min(ages_s, default=CAPTURE_START_S)) < CAPTURE_START_S:
        return duration(max(age_s, 0.0))
    return None if capture_expected(settings, earlier) else f"less than {duration(CAPTURE_START_S)}"


def latest_capture(conn: connection, settings: Settings) -> tuple[CaptureStatus | None, bool]:
    """What the capture of these settings last said of itself, and whether it runs."""
    found = {each.capture: each for each in statuses(conn)}.get(settings.capture_number)
    return found, found is not None and not found.status.get("stopped") and found.age_s <= SILENT_S


def refused(problem: str) -> str:
    """A sentence on why a capture can store nothing."""
    return f"The database takes nothing of it: {problem.rstrip('.')}."


def when_next(settings: Settings, clock: Clock) -> str:
    """A sentence on the next session of what is subscribed."""
    if settings.sessions == "always":
        return "Sessions never end (SESSIONS=always)."
    session = next_session(settings, clock)
    if session is None:
        return "No session is known of the next two weeks."
    opens, closes = session
    return f"The next session is {opens:%a %Y-%m-%d} from {opens:%H:%M} to {closes:%H:%M} IST."


def _running(settings: Settings, clock: Clock, capture: CaptureStatus) -> Finding:
    status = capture.status
    since = to_second(capture.started_at)
    up, connections = status["connections_up"], status["connections"]
    found = (
        f"Process {capture.pid} on {capture.host} runs since {since}, with {up} of {connections} connections up,"
        f" {status['messages_per_second']:,.0f} messages/s, and {status['backlog_seconds']:.1f} s to catch up."
    )
    if status.get("token_problem"):
        return bad("capture", f"{found} {status['token_problem']}", "Mend `token`: the capture goes on by itself.")
    if problem := status.get("store_problem"):
        return bad("capture", f"{found} {refused(problem)}", CATCHES_UP)
    if up < connections and feed_expected(settings, clock):
        if capture.updated_at - capture.started_at < _CONNECTING:
            return warn("capture", found, "It has just started, and connects: ask again in a minute.")
        fix = "It connects again by itself; `dhan-pipeline gaps` says why each connection was lost."
        return bad("capture", found, fix)
    return ok("capture", found)


def rabbitmq(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The finding `rabbitmq`: it answers, and workers take what waits. None where the capture stores by itself."""
    if settings.transport != "rabbitmq":
        return []
    try:
        version, depths = asyncio.run(version_and_depths(broker_url(settings)))
    except BrokerError as error:
        return [bad("rabbitmq", in_words(error), "Start the broker, or correct RABBITMQ_URL.")]
    if depths is None:
        words = f"RabbitMQ {version}, without queues yet: the first capture or worker makes them."
        return [warn("rabbitmq", words, "Run `dhan-pipeline worker`.")]
    waiting = sum(depths.ready)
    found = f"RabbitMQ {version} holds {counted(waiting, 'message')}, and {counted(depths.dead_letters, 'dead letter')}"
    if not all(depths.consumers):
        return [bad("rabbitmq", f"{found}; from a lane no worker takes them.", "Run `dhan-pipeline worker`.")]
    if waiting > settings.queue_depth_warn:
        fix = "Run another `dhan-pipeline worker`, or look at the database: they are behind."
        return [(bad if waiting > settings.queue_depth_error else warn)("rabbitmq", f"{found}.", fix)]
    if depths.dead_letters:
        fix = "`dhan-pipeline redrive --list` says why; `dhan-pipeline redrive --dead-letters` puts them back."
        return [warn("rabbitmq", f"{found}.", fix)]
    return [ok("rabbitmq", f"{found}; workers take them from every lane.")]
