"""Materialising as the UI does, and what came of it."""

from typing import Any

import dagster as dg

from dhan_pipeline_tests.orchestration.conftest import Pipeline


def run_job(pipeline: Pipeline, name: str) -> dg.ExecuteInProcessResult:
    return (
        pipeline.definitions()
        .resolve_job_def(name)
        .execute_in_process(instance=pipeline.instance, raise_on_error=False)
    )


def materialize(pipeline: Pipeline, key: dg.AssetKey, hour: str) -> dg.ExecuteInProcessResult:
    """As the UI does: the asset, and every check on it."""
    selection = dg.AssetSelection.assets(key)
    definitions = dg.Definitions.merge(
        pipeline.definitions(), dg.Definitions(jobs=[dg.define_asset_job("by_hand", selection=selection)])
    )
    return definitions.resolve_job_def("by_hand").execute_in_process(
        instance=pipeline.instance, partition_key=hour, raise_on_error=False
    )


def why_failed(result: dg.ExecuteInProcessResult) -> str:
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    data = event.step_failure_data.user_failure_data
    assert data is not None
    return data.description or ""


def metadata(result: dg.ExecuteInProcessResult, key: str) -> dict[str, Any]:
    for event in result.get_asset_materialization_events():
        if event.asset_key == dg.AssetKey(key):
            return {name: value.value for name, value in event.materialization.metadata.items()}
    raise AssertionError(f"{key} was not materialised")
