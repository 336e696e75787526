"""Outcomes of checks as Dagster's: what a check returns, and what something else than the check itself reports.

Belongs here: what makes an evaluation count for an hour. Does not: judging (`quality/`), and when it is reported.
"""

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from dhan_pipeline.orchestration.metadata import check_metadata
from dhan_pipeline.orchestration.names import TICKS
from dhan_pipeline.quality.outcome import CheckOutcome


def check_result(outcome: CheckOutcome, key: dg.AssetKey | None = None) -> dg.AssetCheckResult:
    """What a check returns; `key` where it may be of several assets."""
    return dg.AssetCheckResult(asset_key=key, **_fields(outcome))


def evaluation(key: dg.AssetKey, outcome: CheckOutcome, **kwargs: Any) -> dg.AssetCheckEvaluation:
    """What Dagster keeps of a check's outcome."""
    return dg.AssetCheckEvaluation(asset_key=key, **_fields(outcome), **kwargs)


def _fields(outcome: CheckOutcome) -> dict[str, Any]:
    return {
        "check_name": outcome.name,
        "passed": bool(outcome.passed),
        "severity": dg.AssetCheckSeverity[outcome.severity],
        "description": outcome.description,
        "metadata": check_metadata(outcome),
    }


def report_hour(
    instance: dg.DagsterInstance, log_event: Callable[..., object], hour: str, outcomes: Sequence[CheckOutcome]
) -> bool:
    """Report checks of an hour of `ticks`, with a run's `log_event`; False, and nothing, if it is not materialised."""
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=TICKS, asset_partitions=[hour]), limit=1
    ).records
    for latest in found:
        # Without its target the UI shows the hour's checks as missing.
        target = AssetCheckEvaluationTargetMaterializationData(
            run_id=latest.run_id, storage_id=latest.storage_id, timestamp=latest.timestamp
        )
        for outcome in outcomes:
            log_event(evaluation(TICKS, outcome, partition=hour, target_materialization_data=target))
    return bool(found)
