"""The ingest run: an op that keeps the capture as a child process and reports what it says.

Belongs here: which line of the capture becomes which Dagster event, and when. Does not: the capture (`ingest/`), the
process and its pipes (`child.py`), when a run is started or ended (`supervisor.py`).

Only the op's main thread reports, and only with `context.log_event`: it writes at once, attributes the event to the
run, and may repeat a check of a partition. Nothing that goes wrong while reporting ends the capture; it is tried again.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.errors import DagsterExecutionInterruptedError

from dhan_pipeline.clock import Clock
from dhan_pipeline.gaps import Cause
from dhan_pipeline.orchestration.child import CaptureChild
from dhan_pipeline.orchestration.evaluations import evaluation, report_hour
from dhan_pipeline.orchestration.metadata import (
    heartbeat_metadata,
    raw_packets_metadata,
    ticks_metadata,
    ticks_version,
)
from dhan_pipeline.orchestration.names import (
    CAPTURE_TAG,
    NEEDS_PERSON_TAG,
    RAW_PACKETS,
    ROLE_TAG,
    SESSION_TAG,
    SOURCE_TAG,
    STOP_AT_TAG,
    STOP_TAG,
    TICKS,
    live_feed_key,
    of_source,
)
from dhan_pipeline.orchestration.new_gaps import NewGaps
from dhan_pipeline.orchestration.resources import settings_environment
from dhan_pipeline.quality.calendar import feed_expected, hours_in_session, session_name, token_needed_until
from dhan_pipeline.quality.gap_words import event_in_words
from dhan_pipeline.quality.gaps import GapPart
from dhan_pipeline.quality.hours import hour_gaps, measure_hour
from dhan_pipeline.quality.measures import (
    HourMeasures,
    absent_outcomes,
    closed_outcomes,
    gaps_outcome,
    hour_outcomes,
    live_outcomes,
)
from dhan_pipeline.quality.outcome import CheckOutcome
from dhan_pipeline.sessions import DAY_NS, hour_key, parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source

log = logging.getLogger(__name__)

#: The open hour is observed this often: a heartbeat for the supervisor. More would bloat the event log.
HEARTBEAT_S = 60.0

#: A report that failed, because Dagster's storage or the database is away, is tried again after this long.
RETRY_S = 5.0

#: An hour that another capture has not stored to its end is judged after this long all the same.
OTHERS_S = 60.0

#: How often the run looks whether it was told to stop or declared dead. Costs a read of Dagster's storage.
POLL_S = 2.0

#: Live checks are judged this often, and reported when there is news of them; those that fail also in the longer
#: interval, for their words become alerts, and all of them in the longest.
LIVE_JUDGE_S = 5.0
LIVE_FAILING_S = 15.0
LIVE_REPORT_S = 300.0

#: Gaps that a run tells in its log. A connection that comes and goes all day would make the run's page slow.
GAPS_TOLD = 500

#: Seconds of status lines over which the live error rate is taken.
LIVE_WINDOW_S = 60


def build_ingest_job(settings: Settings, source: Source, hours: dg.HourlyPartitionsDefinition) -> dg.JobDefinition:
    """The job of one capture. It has no end of its own: the supervisor or a person stops it."""
    first_hour = hours.get_first_partition_key() or ""
    supervisor = of_source("ingest_supervisor", source, settings.sources)

    @dg.op(
        name=of_source("capture_feed", source, settings.sources),
        description="Keeps the capture as a child process and reports its heartbeats, its complete hours and checks.",
    )
    def capture_feed(
        context: dg.OpExecutionContext,
        settings: dg.ResourceParam[Settings],
        clock: dg.ResourceParam[Clock],
        capture_command: dg.ResourceParam[list[str]],
    ) -> None:
        _Supervision(context, settings, source, clock, capture_command, first_hour).run()

    @dg.job(
        name=of_source("ingest_job", source, settings.sources),
        description=f"Captures the feed for as long as the session lasts. Started and ended by {supervisor};"
        " terminate it to stop capturing until you launch it again.",
        # Ahead of the queue: each second without capture is lost for good.
        tags={
            ROLE_TAG: "ingest",
            SOURCE_TAG: source,
            CAPTURE_TAG: str(settings.of(source).capture_number),
            "dagster/priority": "10",
        },
        executor_def=dg.in_process_executor,
    )
    def ingest_job() -> None:
        capture_feed()

    return ingest_job


class _Supervision:
    """One capture from start to end, seen from the run that keeps it."""

    def __init__(
        self,
        context: dg.OpExecutionContext,
        settings: Settings,
        source: Source,
        clock: Clock,
        command: Sequence[str],
        first_hour: str,
    ) -> None:
        self._context = context
        self._instance = context.instance
        self._live_key = live_feed_key(source, settings.sources)
        self._others = len(settings.sources) > 1
        """Whether other captures write into the same hours."""
        self._settings = settings = settings.of(source)
        self._clock = clock
        # Older hours are not shown, or their rows have expired.
        expired = hour_key(clock.now_ns() - settings.retention_days * DAY_NS)
        self._first_hour = max(first_hour, expired)
        materialized = self._instance.get_materialized_partitions
        self._sealed = materialized(RAW_PACKETS) & materialized(TICKS)
        """Hours that are materialised, or are being measured."""
        self._to_measure: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        """Hours to measure; True: only their gaps, of which some became known after the hour was sealed."""
        self._again: dict[tuple[str, bool], float] = {}
        """Those whose report failed, and when to try again."""
        self._waited: Counter[str] = Counter()
        """How often an hour was not judged because another capture had not stored all of its own."""
        self._new_gaps = NewGaps(self._unjudged_hours(), clock.speed)
        self._gaps_told = 0
        self._statuses: deque[dict[str, Any]] = deque(maxlen=LIVE_WINDOW_S)
        self._live: dict[str, CheckOutcome] = {}
        """What was last reported of each live check."""
        self._heartbeat_due = self._poll_due = 0.0
        self._judge_due = time.monotonic() + LIVE_JUDGE_S
        self._failing_due = self._live_due = 0.0
        self._needs_person: str | None = None
        self._disown_tags()
        self._child = CaptureChild(command, {**os.environ, **settings_environment(settings)})

    def run(self) -> None:
        """Report until the capture ends or is to end; then let it flush, and report what is left."""
        threading.Thread(target=self._measure, name="measure-hours", daemon=True).start()
        asked_to_stop = None
        ending = "The ingest run was interrupted."
        try:
            while asked_to_stop is None and not self._child.ended:
                if event := self._child.next_event(0.5):
                    self._handle(event)
                    # While Dagster's storage is away each report takes 12 s to fail: never one a status line.
                    for event in self._child.remaining_events():
                        self._handle(event)
                self._report_what_is_due()
                asked_to_stop = self._asked_to_stop()
            ending = "The capture ended by itself."
        finally:
            code = self._child.stop()
            for event in self._child.remaining_events():
                self._handle(event)
            if code:
                ending = f"The capture ended with {_exit(code)}: {self._child.last_words or 'it said nothing.'}"
            if asked_to_stop is None or code:
                self._report_live(absent_outcomes(ending), every=True)
            else:
                self._report_live(closed_outcomes(f"The capture was asked to stop: {asked_to_stop}"), every=True)
        if code:
            if self._needs_person is not None:
                tags = {NEEDS_PERSON_TAG: self._needs_person, SESSION_TAG: session_name(self._settings, self._clock)}
                self._safely("who has to act", lambda: self._instance.add_run_tags(self._context.run_id, tags))
            raise dg.Failure(description=ending, allow_retries=False)

    def _handle(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "status"}:
                self._statuses.append(event)
                for hour in self._new_gaps.stored(event):
                    self._to_measure.put((hour, hour in self._sealed))
                    self._sealed.add(hour)
            case {"event": "hour_complete", "hour": str(hour)}:
                if hour >= self._first_hour and hour not in self._sealed:
                    self._sealed.add(hour)
                    self._to_measure.put((hour, False))
            case {"event": "hour_measured", "measures": HourMeasures() as measures}:
                if not _is_worth_telling(measures):
                    self._sealed.discard(measures.hour)
                elif self._waits(measures) or not self._safely(
                    f"reporting the hour {measures.hour}", lambda: self._seal(measures)
                ):
                    self._again[measures.hour, False] = time.monotonic() + RETRY_S
            case {"event": "gaps_measured", "hour": str(hour), "gaps": gaps}:
                if not self._safely(f"reporting the gaps of {hour}", lambda: self._report_gaps(hour, gaps)):
                    self._again[hour, True] = time.monotonic() + RETRY_S
            case {"event": "hour_not_measured", "hour": str(hour), "gaps_only": bool(gaps_only)}:
                self._again[hour, gaps_only] = time.monotonic() + RETRY_S
            case {"event": "started", "pid": pid}:
                self._log(logging.INFO, f"The capture started as process {pid}.")
            case {"event": "stopped", "reason": reason}:
                self._log(logging.INFO, f"The capture stopped: {reason}.")
            case {"event": "subscriptions", "message": str(message)}:
                self._log(logging.INFO, message)
            case {"event": "warning", "message": str(message)}:
                self._log(logging.WARNING, message)
            case {"event": "gap"}:
                self._safely("a gap", lambda: self._hear_of_gap(event))
            case {"event": "error", "message": str(message)}:
                self._log(logging.ERROR, message)
                if event.get("permanent"):
                    self._needs_person = message
            case _:
                self._log(logging.INFO, f"The capture says: {event}")

    def _waits(self, measures: HourMeasures) -> bool:
        """Whether to leave an hour to the other captures for a while: each has its own last blocks to store."""
        if not self._others or measures.blocks >= measures.journal_blocks:
            return False
        self._waited[measures.hour] += 1
        return self._waited[measures.hour] * RETRY_S <= OTHERS_S

    def _report_what_is_due(self) -> None:
        now = time.monotonic()
        for measure in [measure for measure, due in self._again.items() if due <= now]:
            del self._again[measure]
            self._to_measure.put(measure)
        if not self._statuses:
            return
        if now >= self._heartbeat_due:
            done = self._safely("the heartbeat", self._beat)
            self._heartbeat_due = time.monotonic() + (HEARTBEAT_S if done else RETRY_S)
        if now >= self._judge_due:
            self._judge_due = now + LIVE_JUDGE_S
            every = now >= self._live_due
            failing = now >= self._failing_due
            if every:
                self._live_due = now + LIVE_REPORT_S
            if failing:
                self._failing_due = now + LIVE_FAILING_S
            self._report_live(self._judge(), every, failing)

    def _asked_to_stop(self) -> str | None:
        """Why the run is to end, else None. Raises DagsterExecutionInterruptedError where Dagster has given it up."""
        if time.monotonic() < self._poll_due:
            return None
        self._poll_due = time.monotonic() + POLL_S
        try:
            run = self._instance.get_run_by_id(self._context.run_id)
        except Exception as error:
            log.warning("The run's status cannot be read, the capture goes on: %s", error)
            return None
        if run is None or run.is_finished or run.status == dg.DagsterRunStatus.CANCELING:
            # Terminated while nobody could signal this process, or declared dead: end now, a successor may be waiting.
            raise DagsterExecutionInterruptedError
        return run.tags.get(STOP_TAG) or None

    def _disown_tags(self) -> None:
        """Drop what was said of another run: one that a person launches from it inherits its tags."""
        of_another = [tag for tag in (STOP_TAG, STOP_AT_TAG, NEEDS_PERSON_TAG) if self._context.run.tags.get(tag)]
        if of_another:
            tags = dict.fromkeys(of_another, "")
            self._safely("its tags", lambda: self._instance.add_run_tags(self._context.run_id, tags))

    def _unjudged_hours(self) -> list[str]:
        """Hours that a run which died may not have come to judge: its last one again, and those since then."""
        if not self._sealed:
            return []
        last = max(self._sealed)
        since_ns = parse_hour_key(max(last, self._first_hour))
        return sorted({last} | hours_in_session(self._settings, since_ns, self._clock.now_ns()))

    def _judge(self) -> list[CheckOutcome]:
        return live_outcomes(
            self._statuses[-1],
            self._settings,
            feed_expected(self._settings, self._clock),
            earlier=self._statuses[0],
            token_until=token_needed_until(self._settings, self._clock),
        )

    def _hear_of_gap(self, event: dict[str, Any]) -> None:
        """Tell of a gap that began or ended, and remember the hours into which it reaches back."""
        hours = set(self._sealed)
        if event["ended_at"]:
            # In those that it covers nothing may have come: the capture has nothing to say of them.
            started_ns, ended_ns = (
                int(datetime.fromisoformat(event[name]).timestamp() * 1e9) for name in ("started_at", "ended_at")
            )
            hours |= hours_in_session(self._settings, max(started_ns, parse_hour_key(self._first_hour)), ended_ns)
        self._new_gaps.hear(event, {hour for hour in hours if hour >= self._first_hour})
        began = event["ended_at"] is None
        self._gaps_told += began
        if self._gaps_told <= GAPS_TOLD:
            self._log(logging.WARNING if began else logging.INFO, event_in_words(event))
        elif self._gaps_told == GAPS_TOLD + 1 and began:
            self._log(logging.WARNING, "There are many gaps: more are not told here. `dhan-pipeline gaps` lists all.")

    def _beat(self) -> None:
        status = self._statuses[-1]
        for key, metadata in zip((RAW_PACKETS, TICKS), heartbeat_metadata(status), strict=True):
            self._context.log_event(dg.AssetObservation(key, partition=status["hour"], metadata=metadata))

    def _seal(self, measures: HourMeasures) -> None:
        """Materialise a complete hour, and judge it."""
        report = self._context.log_event
        hour = measures.hour
        report(dg.AssetMaterialization(RAW_PACKETS, partition=hour, metadata=raw_packets_metadata(measures)))
        ticks = dg.AssetMaterialization(
            TICKS,
            partition=hour,
            metadata=ticks_metadata(measures),
            tags={DATA_VERSION_TAG: ticks_version(measures).value},
        )
        report(ticks)
        self._report_hour(hour, hour_outcomes(measures, self._settings))

    def _report_gaps(self, hour: str, gaps: Sequence[GapPart]) -> None:
        """Judge the gaps of a sealed hour again."""
        if gaps:
            self._report_hour(hour, [gaps_outcome(hour, gaps, self._settings)])

    def _report_hour(self, hour: str, outcomes: Sequence[CheckOutcome]) -> None:
        """Report checks of an hour that is materialised; else nothing, since sealing it will report all."""
        report_hour(self._instance, self._context.log_event, hour, outcomes)

    def _report_live(self, outcomes: Sequence[CheckOutcome], every: bool, failing: bool = False) -> None:
        """Report live checks: `every` one, or those of which there is news, and with `failing` those that fail.

        Runless, because a run's evaluations of one check overwrite each other and keep the time of the first.
        """
        for outcome in outcomes:
            if every or (failing and not outcome.passed) or _is_news(outcome, self._live.get(outcome.name)):
                event = evaluation(self._live_key, outcome)
                if not self._safely("a live check", partial(self._instance.report_runless_asset_event, event)):
                    return  # nor will the others be reported now
                self._live[outcome.name] = outcome

    def _measure(self) -> None:
        """Measure complete hours, in a thread: reading a busy hour of the journal takes longer than a heartbeat may."""
        while True:
            hour, gaps_only = self._to_measure.get()
            try:
                if gaps_only:
                    self._child.put({"event": "gaps_measured", "hour": hour, "gaps": hour_gaps(self._settings, hour)})
                else:
                    measures = measure_hour(self._settings, hour, self._clock)
                    self._child.put({"event": "hour_measured", "measures": measures})
            except Exception as error:
                log.warning("The hour %s cannot be measured now and is tried again: %s", hour, error)
                self._child.put({"event": "hour_not_measured", "hour": hour, "gaps_only": gaps_only})

    def _log(self, level: int, message: str) -> None:
        self._safely("a message", lambda: self._context.log.log(level, message))

    def _safely(self, what: str, report: Callable[[], object]) -> bool:
        """Whether reporting succeeded. The capture goes on while Dagster's storage is away."""
        try:
            report()
        except Exception as error:
            with contextlib.suppress(Exception):
                log.warning("Dagster could not be told (%s), the capture goes on: %s", what, error)
            return False
        return True


def _is_worth_telling(measures: HourMeasures) -> bool:
    """Whether something came in the hour, or should have. Hours for which a person stopped the capture are no news."""
    return bool(measures.journal_blocks or measures.blocks) or any(gap.cause is not Cause.STOP for gap in measures.gaps)


def _is_news(outcome: CheckOutcome, last: CheckOutcome | None) -> bool:
    """Whether a check's state changed, or its number has become known: else a start's "not yet" stands for minutes."""
    return (
        last is None
        or (outcome.passed, outcome.severity) != (last.passed, last.severity)
        or (outcome.value is not None and last.value is None)
    )


def _exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
