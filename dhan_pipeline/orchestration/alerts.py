"""The sensor that tells people: of checks that changed, of runs that fail or are stuck. Its cursor is its memory.

Belongs here: what becomes of signals in a tick, and how it is seen that alerts arrive. Does not: what Dagster knows
(`health.py`), when a change is told, in which words, and how it gets to people (`alerts/`).

A tick reads the latest evaluation of each check, the runs that changed, and those that are not over: three queries,
and nothing is written where nothing changed. What a destination did not take stays in the cursor and is tried again; a
tick that sent something and then could not save its cursor sends it again, for twice is better than never.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from pydantic import BaseModel, ConfigDict, ValidationError

from dhan_pipeline.alerts.channels import NOTHING_SET, Channels, configured, send, try_out
from dhan_pipeline.alerts.delivery import Outbox, deliver, post, problems, progress
from dhan_pipeline.alerts.messages import Alert, summary, title
from dhan_pipeline.alerts.rules import Rules, RulesError, all_destinations, load_rules, unset
from dhan_pipeline.alerts.signals import begin, by_destination, observe
from dhan_pipeline.alerts.transitions import Level, Standing
from dhan_pipeline.amounts import first_of
from dhan_pipeline.clock import Clock
from dhan_pipeline.orchestration.health import (
    changed_runs,
    check_signals,
    check_subject,
    run_signals,
    still_signals,
    stuck_signals,
)
from dhan_pipeline.orchestration.names import OPERATIONS, OWNERS
from dhan_pipeline.settings import Settings

ALERTS = dg.AssetKey("alerts")
DELIVERED = dg.AssetCheckKey(ALERTS, "delivered")

#: How often the sensor looks. The daemon wakes every 5 s: asking for just a multiple of that would make it skip once.
INTERVAL_S = 14


class State(BaseModel):
    """The cursor: what was told, and what waits. JSON; what is well is not in it."""

    model_config = ConfigDict(frozen=True)

    standings: dict[str, Standing] = {}
    runs_s: float = 0.0
    """The newest change of a run that was seen, in Unix seconds."""
    runs: dict[str, str] = {}
    """Statuses of the runs that changed shortly before."""
    outbox: Outbox = {}
    reported: str | None = None
    """What was last said of `delivered`: empty, WARN or ERROR."""


@dg.sensor(
    name="alert_sensor",
    minimum_interval_seconds=INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells people of checks that changed, and of runs that fail or are stuck: through Slack, e-mail, a"
    " webhook or Telegram, whichever is set. What was not taken is tried again; the check"
    " delivered of the asset alerts says so.",
)
def alert_sensor(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.SensorResult:
    """Look, tell, and remember what was told. Launches nothing."""
    channels, wrong = configured(settings)
    if not channels:
        if context.cursor:
            context.update_cursor("")  # what is told later begins anew
        return dg.SensorResult(skip_reason=" ".join([NOTHING_SET, *wrong]))
    rules, problem = _rules(settings, channels)
    wrong += problem

    assert context.repository_def is not None
    instance, graph, now_s = context.instance, context.repository_def.asset_graph, clock.now_ns() / 1e9
    ui = (settings.dagster_url or "").rstrip("/")
    before = _read(context.cursor)
    keys = graph.asset_check_keys - {DELIVERED}
    unfinished = instance.get_run_records(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    signals = check_signals(instance, graph, keys, ui) + stuck_signals(instance, graph, unfinished, now_s, ui)
    if before is None:
        standings, failing = begin(signals, rules, now_s)
        state = State(standings=standings, runs_s=now_s)
        posts = {there: [summary(alerts, now_s)] for there, alerts in by_destination(failing, rules, channels).items()}
    else:
        changed, runs_s, runs = changed_runs(instance, before.runs_s, before.runs)
        signals += run_signals(instance, graph, changed, ui)
        signals += still_signals(before.standings, signals, now_s)
        checks = {check_subject(key) for key in keys}
        standings = {s: told for s, told in before.standings.items() if s in checks or not s.startswith("check ")}
        standings, alerts = observe(standings, signals, rules, now_s)
        state = before.model_copy(update={"standings": standings, "runs_s": runs_s, "runs": runs})
        posts = by_destination(alerts, rules, channels)

    outbox = {there: queue for there, queue in state.outbox.items() if there.partition(":")[0] in channels}
    outbox, took = deliver(post(outbox, posts), now_s, partial(send, settings))
    problem = [*problems(outbox), *wrong]
    reported = "" if not problem else "ERROR" if any(queue.lost for queue in outbox.values()) else "WARN"
    events = [_delivered(reported, problem, channels)] if reported != state.reported else []
    state = state.model_copy(update={"outbox": outbox, "reported": reported})
    if state != before:
        context.update_cursor(state.model_dump_json(exclude_defaults=True))
    return dg.SensorResult(
        skip_reason=" ".join(_in_words(state, posts, took, [*problem, *progress(outbox, now_s)])), asset_events=events
    )


def _rules(settings: Settings, channels: Channels) -> tuple[Rules, list[str]]:
    """A person's rules, and what is wrong with them. Rules that cannot be read keep nobody from being told."""
    try:
        rules = load_rules(settings.alerts_file)
    except RulesError as error:
        return Rules(), [f"{error} Until that is mended nothing is muted, and every channel gets everything."]
    return rules, unset(rules, channels)


def _read(cursor: str | None) -> State | None:
    """What the last tick remembered; None where there is nothing, or another version's."""
    try:
        return State.model_validate_json(cursor) if cursor else None
    except ValidationError:
        return None


def _in_words(
    state: State, posts: Mapping[str, Sequence[Alert]], took: Sequence[str], problem: Sequence[str]
) -> Iterator[str]:
    told = list(dict.fromkeys(title([alert]) for alerts in posts.values() for alert in alerts))
    if told:
        yield f"To tell: {first_of(told, between='; ')}."
    if took:
        yield f"Taken by {', '.join(took)}."
    if not told and not took:
        yield "Nothing new."
    poor = [
        f"{subject.partition(' ')[2]} {s.told.name}" for subject, s in state.standings.items() if s.told != Level.OK
    ]
    if poor:
        yield f"Not OK: {first_of(sorted(poor))}."
    yield from problem


alerts_asset = dg.AssetSpec(
    ALERTS,
    group_name=OPERATIONS,
    owners=OWNERS,
    description="What people are told: each change of a check, and runs that fail or are stuck. `alert_sensor` sends it"
    " to the channels that are set.\n\nExecute its check to send a test message to each.",
)


@dg.asset_check(
    asset=ALERTS,
    name=DELIVERED.name,
    description="Alerts get to whom they are for. The sensor reports it where a destination does not take one, and when"
    " it does again; run here, it sends a test message to each.",
)
def alerts_delivered(settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
    """Try each destination out."""
    channels, wrong = configured(settings)
    rules, problem = _rules(settings, channels)
    wrong += problem
    attempts = try_out(settings, all_destinations(rules, channels))
    wrong += [f"{attempt.destination}: {attempt.problem}" for attempt in attempts if attempt.problem]
    if not channels:
        wrong.append(NOTHING_SET)
    took = ", ".join(attempt.destination for attempt in attempts if not attempt.problem)
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join([f"A test message was taken by {took}." if took else "", *wrong]).strip(),
    )


def _delivered(reported: str, problem: Sequence[str], channels: Channels) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=ALERTS,
        check_name=DELIVERED.name,
        passed=not reported,
        severity=dg.AssetCheckSeverity[reported or "WARN"],
        description=" ".join(problem) or f"All that was told was taken. Channels: {', '.join(channels)}.",
        metadata={},
    )
