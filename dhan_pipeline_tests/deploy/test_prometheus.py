import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dhan_pipeline.quality.measures import DISK_ERROR_GB, DISK_WARN_GB, STATUS_STALE_S
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.deploy.promtool import PROMETHEUS, metric_names, promtool
from dhan_pipeline_tests.exposition import exposition, series_names

REPOSITORY = PROMETHEUS.parent.parent
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def identity(alert: dict[str, Any]) -> str:
    return f"{alert['alert']}, {alert['labels']['severity']}"


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")


def test_every_alert_fires_when_it_must_and_not_when_it_must_not() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_every_alert_is_tested() -> None:
    tested = (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")
    assert [alert["alert"] for alert in ALERTS if alert["alert"] not in tested] == []


def test_the_metrics_are_named_as_prometheus_wants_it() -> None:
    assert promtool("check", "metrics", stdin=exposition()) == ""


def test_rules_are_about_metrics_that_there_are() -> None:
    assert set().union(*(metric_names(rule["expr"]) for rule in RULES)) <= series_names() | RECORDED


def test_every_rule_that_records_is_used() -> None:
    assert set().union(*(metric_names(alert["expr"]) for alert in ALERTS)) >= RECORDED


@pytest.mark.parametrize("alert", ALERTS, ids=identity)
def test_an_alert_says_what_is_wrong_and_where_to_read_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    file, _, heading = alert["annotations"]["runbook"].partition("#")
    document = (REPOSITORY / file).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", document, re.MULTILINE)
    assert not heading or heading in [title.lower().replace(" ", "-") for title in headings]


@pytest.mark.parametrize(
    ("name", "warning", "critical"),
    [
        ("DhanRejectedHigh", "parser_error_rate_warn", "parser_error_rate_error"),
        ("DhanLatencyHigh", "latency_p99_ms_warn", "latency_p99_ms_error"),
        ("DhanBacklogHigh", "latency_p99_ms_warn", "latency_p99_ms_error"),
        ("DhanGap", "gap_s_warn", "gap_s_error"),
        ("DhanQueueDepthHigh", "queue_depth_warn", "queue_depth_error"),
        ("DhanMemoryHigh", "memory_mb_warn", "memory_mb_error"),
        ("DhanCpuHigh", "cpu_percent_warn", "cpu_percent_error"),
    ],
)
def test_limits_are_the_defaults_of_the_settings(name: str, warning: str, critical: str) -> None:
    found = [re.findall(r"> ([\d.]+)", alert["expr"])[0] for alert in ALERTS if alert["alert"] == name]
    scale = {"ms": 1000, "percent": 100}.get(warning.split("_")[-2], 1)
    defaults = [Settings.model_fields[field].default / scale for field in (warning, critical)]
    assert [float(limit) for limit in found] == defaults


def test_limits_are_those_of_the_live_checks() -> None:
    expressions = {identity(alert): alert["expr"] for alert in ALERTS}
    assert expressions["DhanDiskLow, warning"].endswith(f"< {DISK_WARN_GB:g}e9")
    assert expressions["DhanDiskLow, critical"].endswith(f"< {DISK_ERROR_GB:g}e9")
    assert expressions["DhanStatusStale, critical"].endswith(f"> {STATUS_STALE_S:g}")


def test_the_document_lists_every_alert() -> None:
    document = Path(REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(Dhan\w+)` \|", document, re.MULTILINE)
    assert listed == list(dict.fromkeys(alert["alert"] for alert in ALERTS))
