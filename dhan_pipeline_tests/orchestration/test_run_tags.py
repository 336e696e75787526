import dagster as dg
import pytest

from dhan_pipeline.orchestration.run_tags import missing_tags
from dhan_pipeline_tests.orchestration.conftest import HOUR, Pipeline, Record


@pytest.mark.parametrize(
    ("tags", "missing"),
    [
        ({}, {"dhan/role": "by_hand"}),
        ({"dagster/partition": HOUR}, {"dhan/role": "by_hand", "dhan/session": "2026-11-20"}),
        (
            {"dagster/partition": "2026-11-20", "dagster/backfill": "abcd"},
            {"dhan/role": "backfill", "dhan/session": "2026-11-20"},
        ),
        ({"dhan/role": "candles", "dagster/partition": HOUR}, {"dhan/session": "2026-11-20"}),
        ({"dhan/role": "ingest", "dhan/session": "2026-11-20"}, {}),
    ],
)
def test_a_run_lacks_what_nobody_has_said_of_it(tags: dict[str, str], missing: dict[str, str]) -> None:
    assert missing_tags(tags) == missing


def test_what_a_person_materialises_can_be_found_by_its_role_and_its_day(
    pipeline: Pipeline, record_hour: Record
) -> None:
    record_hour(HOUR)
    job = pipeline.definitions().resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey("raw_packets")]
    assert job.execute_in_process(instance=pipeline.instance, asset_selection=keys, partition_key=HOUR).success
    tags = {"dhan/role": "by_hand", "dhan/session": "2026-11-20"}
    assert len(pipeline.instance.get_runs(dg.RunsFilter(tags=tags))) == 1
