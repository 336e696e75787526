"""Before the session: is all fit for it? What `doctor` says, as a check of each live feed at 08:45 IST.

Belongs here: when it is asked, and handing the findings to Dagster. Does not: what is looked at (`diagnosis/`). It is
on `live_feed`, which nothing materialises, so that no backfill asks it of a day that is over.
"""

from collections.abc import Sequence

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.diagnosis.findings import Finding, red
from dhan_pipeline.diagnosis.readiness import examine
from dhan_pipeline.orchestration.metadata import table
from dhan_pipeline.orchestration.names import ROLE_TAG, SESSION_TAG, live_feed_key
from dhan_pipeline.orchestration.schedules import TIME_ZONE
from dhan_pipeline.quality.calendar import subscribed_segments
from dhan_pipeline.sessions import IST, session_bounds
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source

READY = "ready"


def build_readiness(settings: Settings) -> dg.Definitions:
    """The check of each source's live feed, the job that asks all of them, and its schedule."""
    sources = settings.sources
    keys = [dg.AssetCheckKey(live_feed_key(source, sources), READY) for source in sources]
    readiness_job = dg.define_asset_job(
        "readiness_job",
        selection=dg.AssetSelection.checks(*keys),
        description="Looks at all that a session needs, as dhan-pipeline doctor does.",
        tags={ROLE_TAG: "readiness"},
    )

    @dg.schedule(
        job=readiness_job,
        name="readiness_schedule",
        cron_schedule="45 8 * * *",
        execution_timezone=TIME_ZONE,
        tags=readiness_job.tags,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="At 08:45 IST of each day with a session of what is subscribed: after the sync of instruments, and"
        " with a quarter of an hour left to mend something.",
    )
    def readiness_schedule(
        context: dg.ScheduleEvaluationContext, settings: dg.ResourceParam[Settings]
    ) -> dg.RunRequest | dg.SkipReason:
        day = context.scheduled_execution_time.astimezone(IST).date()
        trades = settings.sessions == "always" or any(
            session_bounds(day, subscribed_segments(settings.of(source))) for source in settings.sources
        )
        if not trades:
            return dg.SkipReason(f"There is no session on {day}.")
        return dg.RunRequest(run_key=str(day), tags={SESSION_TAG: str(day)})

    return dg.Definitions(
        asset_checks=[_ready(source, sources) for source in sources],
        jobs=[readiness_job],
        schedules=[readiness_schedule],
    )


def _ready(source: Source, sources: Sequence[Source]) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=live_feed_key(source, sources),
        name=READY,
        description="All is fit for the session: what `dhan-pipeline doctor` looks at. Asked at 08:45 IST.",
    )
    def ready(settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]) -> dg.AssetCheckResult:
        return _result(examine(settings.of(source), clock))

    return ready


def _result(findings: Sequence[Finding]) -> dg.AssetCheckResult:
    reds = red(findings)
    warned = [finding.name for finding in findings if finding.state == "warn"]
    if reds:
        description = " ".join(f"{each.found} {each.fix}" for each in findings if each.state == "bad")
    else:
        description = f"Ready, but look at {', '.join(warned)}." if warned else "Ready."
    rows = ((each.state, each.name, each.found, each.fix) for each in findings)
    return dg.AssetCheckResult(
        passed=not reds and not warned,
        severity=dg.AssetCheckSeverity.ERROR if reds else dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={
            "value": float(len(reds)),
            "unit": "red lines",
            "limits": "no line may be red; lines that warn make it a warning",
            "details": table(("state", "look at", "found", "what to do"), rows),
        },
    )
