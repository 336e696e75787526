"""What `doctor` says is a check of the live feed, asked before each day's sessions and by no backfill."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import dagster as dg
import pytest

from dhan_pipeline.diagnosis.readiness import PROBES
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.orchestration.names import LIVE_FEED
from dhan_pipeline.orchestration.readiness import READY
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.orchestration.conftest import Pipeline


@pytest.fixture
def away(pipeline: Pipeline) -> Pipeline:
    """Nobody answers."""
    nobody = {
        "dhan_api_url": "http://127.0.0.1:1",
        "dhan_feed_url": "ws://127.0.0.1:1",
        "dhan_token_file": pipeline.settings.data_dir / "token.json",
        "subscriptions_file": pipeline.settings.data_dir / "subscriptions.yaml",
    }
    return Pipeline(pipeline.settings.model_copy(update=nobody), pipeline.instance)


def test_the_check_has_the_lines_as_a_table_and_the_number_of_red_ones_as_its_value(away: Pipeline) -> None:
    job = away.definitions().resolve_job_def("readiness_job")
    (check,) = job.execute_in_process(instance=away.instance).get_asset_check_evaluations()
    assert (check.asset_key, check.check_name, check.partition) == (LIVE_FEED, READY, None)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    rows = str(check.metadata["details"].value).splitlines()[2:]
    names = [row.split(" | ")[1] for row in rows]
    assert names == [name for probe in PROBES for name in probe.names if name != "rabbitmq"]
    reds = [name for row, name in zip(rows, names, strict=True) if row.startswith("| bad ")]
    assert reds == ["clock", "feed", "token", "instruments", "subscriptions", "capture"]
    assert check.metadata["value"].value == len(reds)
    assert "The feed's server takes no connection: Connection refused." in (check.description or "")


def scheduled(pipeline: Pipeline, at: str, segments: Sequence[ExchangeSegment], settings: Settings) -> Any:
    subscriptions = [Subscription(generate_instrument_token(segment, 1), Mode.FULL, "X") for segment in segments]
    write_subscriptions(settings.subscriptions_path, subscriptions)
    schedule = pipeline.definitions().resolve_schedule_def("readiness_schedule")
    context = dg.build_schedule_context(
        pipeline.instance,
        scheduled_execution_time=datetime.fromisoformat(at).replace(tzinfo=IST),
        resources={"settings": settings},
    )
    return schedule(context)


@pytest.mark.parametrize(
    ("at", "segment", "asked"),
    [
        ("2026-11-20T08:45:00", ExchangeSegment.NSE_EQ, True),
        ("2026-11-21T08:45:00", ExchangeSegment.NSE_EQ, False),
        ("2026-11-24T08:45:00", ExchangeSegment.NSE_EQ, False),
        ("2026-11-24T08:45:00", ExchangeSegment.MCX_COMM, True),  # the evening
    ],
)
def test_it_is_asked_on_days_with_a_session_of_what_is_subscribed(
    pipeline: Pipeline, at: str, segment: ExchangeSegment, asked: bool
) -> None:
    settings = pipeline.settings.model_copy(update={"sessions": "exchange"})
    said = scheduled(pipeline, at, [segment], settings)
    assert isinstance(said, dg.RunRequest if asked else dg.SkipReason)
    if asked:
        assert said.run_key == at[:10]


def test_where_sessions_never_end_it_is_asked_every_day(pipeline: Pipeline) -> None:
    said = scheduled(pipeline, "2026-11-21T08:45:00", [ExchangeSegment.NSE_EQ], pipeline.settings)
    assert isinstance(said, dg.RunRequest)
