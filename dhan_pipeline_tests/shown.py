"""What the Dagster UI has of each asset and of what starts runs, in plain text: `shown.txt` is how it should be.

    .venv/bin/python -m dhan_pipeline_tests.shown > dhan_pipeline_tests/shown.txt

Write it anew where a change is meant, and read the difference.
"""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from dhan_pipeline.orchestration.build import build_defs
from dhan_pipeline.settings import Settings

EXPECTED = Path(__file__).with_suffix(".txt")


def definitions() -> dg.Definitions:
    """Those of Dhan's feed. Their server does not exist: definitions must not need one."""
    settings = Settings(_env_file=None, data_source="dhan", database_url="postgresql://127.0.0.1:1/none")
    return build_defs(settings=settings)


def shown(definitions: dg.Definitions) -> str:
    parts = [*map("\n".join, _assets(definitions)), *_instigators(definitions)]
    return "\n\n".join(parts) + "\n"


def _assets(definitions: dg.Definitions) -> Iterator[list[str]]:
    checks = definitions.resolve_asset_graph().asset_check_keys
    for spec in sorted(definitions.resolve_all_asset_specs(), key=lambda spec: spec.key):
        schema = spec.metadata.get("dagster/column_schema")
        references = spec.metadata.get("dagster/code_references")
        facts = {
            "group": spec.group_name,
            "from": _listed(dependency.asset_key.to_user_string() for dependency in spec.deps),
            "owners": _listed(spec.owners),
            "kinds": _listed(spec.kinds),
            "partitions": type(spec.partitions_def).__name__.removesuffix("PartitionsDefinition").lower()
            if spec.partitions_def
            else None,
            "table": spec.metadata.get("dagster/table_name"),
            "columns": schema and len(schema.columns),
            "fresh": _freshness(spec.freshness_policy),
            "code": references and _listed(Path(code.file_path).name for code in references.code_references),
            "checks": _listed(check.name for check in checks if check.asset_key == spec.key),
        }
        yield [f"asset {spec.key.to_user_string()}", *(f"  {name}: {fact}" for name, fact in facts.items() if fact)]


def _freshness(policy: object) -> str | None:
    if not isinstance(policy, dg.FreshnessPolicy):
        return None
    return f"made within {policy.lower_bound_delta} before {policy.deadline_cron} {policy.timezone}"


def _instigators(definitions: dg.Definitions) -> Iterator[str]:
    repository = definitions.get_repository_def()
    for job in sorted(repository.get_all_jobs(), key=lambda job: job.name):
        if not job.name.startswith("__"):
            yield f"job {job.name}\n  tags: {_tags(job.tags)}"
    for schedule in sorted(repository.schedule_defs, key=lambda schedule: schedule.name):
        at = f"{schedule.cron_schedule} {schedule.execution_timezone}"
        yield f"schedule {schedule.name}\n  of: {schedule.job_name}\n  at: {at}\n  tags: {_tags(schedule.tags)}"
    for sensor in sorted(repository.sensor_defs, key=lambda sensor: sensor.name):
        targets = _listed(target.job_name for target in sensor.targets)
        every = f"{sensor.minimum_interval_seconds} s"
        yield f"sensor {sensor.name}\n  of: {targets}\n  every: {every}\n  tags: {_tags(sensor.tags)}"


def _tags(tags: object) -> str:
    assert hasattr(tags, "items")
    return _listed(f"{name}={value}" for name, value in tags.items())


def _listed(words: object) -> str:
    assert hasattr(words, "__iter__")
    return ", ".join(sorted(map(str, words)))


if __name__ == "__main__":
    print(shown(definitions()), end="")
