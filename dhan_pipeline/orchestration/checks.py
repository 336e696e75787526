"""The asset checks that run by themselves: on an hour that is over, and on the feed now.

Belongs here: asking, and handing outcomes to Dagster. Does not: thresholds and words (`quality/`), nor the reports of
the ingest run (`ingest.py`), which reports the same checks without being asked.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing

import dagster as dg
import psycopg2

from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.evaluations import check_result, report_hour
from dhan_pipeline.orchestration.names import ROLE_TAG, TICKS, live_feed_key, of_source
from dhan_pipeline.quality.calendar import capture_expected, feed_expected, token_needed_until
from dhan_pipeline.quality.hours import measure_hour
from dhan_pipeline.quality.measures import (
    HOUR_CHECKS,
    LIVE_CHECKS,
    STATUS_STALE_S,
    absent_outcomes,
    closed_outcomes,
    hour_outcomes,
    live_outcomes,
)
from dhan_pipeline.quality.outcome import CheckOutcome
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store import ledger
from dhan_pipeline.store.engine import connect, database_url
from dhan_pipeline.times import to_second

DESCRIPTIONS = {
    "tick_rate": "Ticks a minute while what is subscribed trades: a thin stream may be half a feed.",
    "parser_error_rate": "Packets that could not be decoded or make no sense, of all that arrived.",
    "latency_p99": "From the receipt of a packet to its commit in the database: 99 % are faster.",
    "insert_rate": "Ticks a second that the database takes while some wait for it.",
    "conservation": "Nothing is lost between the socket and the table: every packet is accounted for.",
    "gaps": "Times in session in which a connection brought nothing: what was missed, and why.",
    "completeness": "Something came of every instrument that was subscribed and in session.",
    "digest": "The rows are those that were there before: nobody changed them, and a rebuild comes to the same.",
    "connected": "Every connection to the feed is up, and something arrives.",
    "silent_instruments": "Lively instruments that fell silent while others on their connection went on.",
    "trade_clock": "Trade times follow the clock by which they are read.",
    "token": "The access token is good until the last session of today closes.",
    "memory": "Resident memory of the capture's process.",
    "cpu": "Processor time of the capture's process over a minute.",
    "disk": "The journal has room to grow: without any, the capture ends.",
    "queue_depth": "Workers keep up with what the capture hands to RabbitMQ, where it does.",
}


def build_checks(settings: Settings, hours: dg.HourlyPartitionsDefinition) -> list[dg.AssetChecksDefinition]:
    """The checks of `ticks`, an hour each, and of what is captured now."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # partitioned checks: in use, and covered by our tests
        hour_specs = [
            dg.AssetCheckSpec(name, asset=TICKS, partitions_def=hours, description=DESCRIPTIONS[name])
            for name in HOUR_CHECKS
        ]

    @dg.multi_asset_check(name="complete_hour", specs=hour_specs, can_subset=True)
    def complete_hour(
        context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> Iterator[dg.AssetCheckResult]:
        hour = context.partition_key if context.has_partition_key else _latest_hour(context.instance)
        outcomes = hour_outcomes(measure_hour(settings, hour, clock), settings)
        if context.has_partition_key:
            yield from _results(context, TICKS, outcomes)
        else:  # Dagster takes no result without a partition from a check of partitions
            report_hour(context.instance, context.op_execution_context.log_event, hour, outcomes)

    return [complete_hour, *(_live_checks(source, settings.sources) for source in settings.sources)]


def _latest_hour(instance: dg.DagsterInstance) -> str:
    """What a run is about that "Execute all" started: the page of checks lets nobody choose an hour."""
    hours = instance.get_materialized_partitions(TICKS)
    if not hours:
        raise dg.Failure(description="There is no hour to judge yet: no hour of ticks is over.", allow_retries=False)
    return max(hours)


@dg.op(description="Judges an hour of ticks that is materialised.")
def judge_hour(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> None:
    """Report the checks of the run's hour."""
    hour = context.partition_key
    measures = measure_hour(settings, hour, clock)
    if report_hour(context.instance, context.log_event, hour, hour_outcomes(measures, settings)):
        return
    if measures.journal_messages or measures.messages:
        raise dg.Failure(
            description=f"The hour {hour} of ticks is not materialised: materialise it, and it is judged.",
            allow_retries=False,
        )
    # Who chooses a whole day means the hours that there are.
    context.log.info(f"Nothing came in the hour {hour}: there is nothing to judge.")


def build_checks_job(hours: dg.HourlyPartitionsDefinition) -> dg.JobDefinition:
    """What judges hours again that a person chooses. A job of checks alone has no partitions in Dagster."""

    @dg.job(
        name="hour_checks_job",
        partitions_def=hours,
        description="Judges hours of ticks again and changes nothing. Launch it for an hour, or for several: those"
        " of which nothing came are passed over. To rebuild hours and have them judged, materialise ticks.",
        tags={ROLE_TAG: "hour_checks"},
    )
    def hour_checks_job() -> None:
        judge_hour()

    return hour_checks_job


def _live_checks(source: Source, sources: Sequence[Source]) -> dg.AssetChecksDefinition:
    key = live_feed_key(source, sources)

    @dg.multi_asset_check(
        name=of_source("live", source, sources),
        specs=[dg.AssetCheckSpec(name, asset=key, description=DESCRIPTIONS[name]) for name in LIVE_CHECKS],
        can_subset=True,
    )
    def live(
        context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
    ) -> Iterator[dg.AssetCheckResult]:
        yield from _results(context, key, _live_outcomes(settings.of(source), clock))

    return live


def _live_outcomes(settings: Settings, clock: Clock) -> list[CheckOutcome]:
    """What the capture last wrote into the database about itself, judged."""
    absent = absent_outcomes if capture_expected(settings, clock) else closed_outcomes
    try:
        with closing(connect(database_url(settings))) as conn:
            captures = {status.capture: status for status in ledger.statuses(conn)}
    except psycopg2.OperationalError:
        return absent_outcomes("The database, where the capture's status is kept, cannot be reached.")
    capture = captures.get(settings.capture_number)
    if capture is None:
        return absent("No capture has run yet.")
    if capture.age_s > STATUS_STALE_S:
        return absent(f"The capture last reported at {to_second(capture.updated_at)}.")
    return live_outcomes(
        capture.status, settings, feed_expected(settings, clock), token_until=token_needed_until(settings, clock)
    )


def _results(
    context: dg.AssetCheckExecutionContext, key: dg.AssetKey, outcomes: Sequence[CheckOutcome]
) -> Iterator[dg.AssetCheckResult]:
    selected = context.selected_asset_check_keys
    for outcome in outcomes:
        if dg.AssetCheckKey(key, outcome.name) in selected:
            yield check_result(outcome, key)
