import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from dhan_pipeline_tests.deploy.promtool import PROMETHEUS, metric_names, promtool
from dhan_pipeline_tests.exposition import series_names

GRAFANA = PROMETHEUS.parent / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "dhan.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]


def test_panels_have_numbers_of_their_own_and_lie_beside_each_other() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert one["x"] + one["w"] <= 24


def test_every_panel_says_what_it_shows() -> None:
    assert [panel["title"] for panel in PANELS if panel["type"] != "row" and not panel["description"]] == []


def test_expressions_are_about_metrics_that_there_are() -> None:
    assert set().union(*map(metric_names, EXPRESSIONS)) <= series_names()


def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    variables = {"$__rate_interval": "1m", "$instance": ".*"}
    filled = [re.sub(r"\$\w+", lambda name: variables[name[0]], expression) for expression in EXPRESSIONS]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(filled)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(EXPRESSIONS)} rules found" in promtool("check", "rules", "panels.yml", cwd=tmp_path)


def test_every_panel_asks_the_source_that_is_chosen() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]} == {
        "datasource": "datasource",
        "instance": "query",
    }
    asked = [panel["datasource"] for panel in PANELS if panel["type"] != "row"]
    asked += [target["datasource"] for panel in PANELS for target in panel.get("targets", ())]
    assert all(source == chosen for source in asked)


def test_grafana_is_told_where_prometheus_and_the_dashboards_are() -> None:
    provisioning = GRAFANA / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    [provider] = yaml.safe_load((provisioning / "dashboards" / "dhan.yml").read_text())["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards")
