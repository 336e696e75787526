"""`shadow_comparison`, materialised for real over two feeds in a database."""

from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from psycopg2.extensions import connection
from psycopg2.extras import execute_values

from dhan_pipeline.clock import Clock
from dhan_pipeline.instruments import segment_of, source_of
from dhan_pipeline.orchestration.assets.shadow import SHADOW_COMPARISON, build_shadow_asset
from dhan_pipeline.orchestration.partitions import hourly_partitions
from dhan_pipeline.sessions import HOUR_NS
from dhan_pipeline.settings import Settings
from dhan_pipeline_tests.orchestration.materialising import metadata, why_failed
from dhan_pipeline_tests.two_feeds import DHAN_RELIANCE, HOUR, RELIANCE, START_NS, TCS, Market, honest, store


@pytest.fixture
def settings(tmp_path: Path, database_url: str, conn: connection) -> Settings:
    with conn, conn.cursor() as cursor:
        execute_values(
            cursor,
            "INSERT INTO instruments (instrument_token, source, trading_symbol, exchange_segment, exchange) VALUES %s",
            [
                (token, source_of(token), pair.symbol, segment_of(token).name, "NSE")
                for pair in (RELIANCE, TCS)
                for token in (pair.dhan_token, pair.kite_token)
            ],
        )
    return Settings(
        _env_file=None,
        data_source="kite,dhan",
        data_dir=tmp_path,
        database_url=database_url,
        partitions_start=date(2026, 11, 20),
    )


def materialize(
    settings: Settings, instance: dg.DagsterInstance, now_ns: int = START_NS + HOUR_NS
) -> dg.ExecuteInProcessResult:
    definitions = dg.Definitions(
        assets=[build_shadow_asset(hourly_partitions(settings))],
        jobs=[dg.define_asset_job("by_hand", selection=dg.AssetSelection.assets(SHADOW_COMPARISON))],
        resources={"settings": settings, "clock": Clock(now_ns, speed=1e-9)},
    )
    return definitions.resolve_job_def("by_hand").execute_in_process(
        instance=instance, partition_key=HOUR, raise_on_error=False
    )


def judged(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    [evaluation] = result.get_asset_check_evaluations()
    return evaluation


def test_two_honest_feeds_agree(settings: Settings, instance: dg.DagsterInstance, conn: connection) -> None:
    store(conn, *honest(RELIANCE, 1, 500), *honest(TCS, 2, 500))
    result = materialize(settings, instance)
    said = metadata(result, "shadow_comparison")
    assert (said["dagster/row_count"], said["instruments_without_partner"]) == (2, 0)
    assert said["agreement_percent"] > 99.9
    assert said["seconds_compared"] > 7000
    assert said["dhan_later_by_ms"] == pytest.approx(-150, abs=60)
    assert said["brokers"].splitlines()[0] == "| of the instruments compared | Dhan | Kite |"
    assert said["by_minute"].startswith("![share of the seconds that agree, from 90 % to 100 %](data:image/svg+xml;")
    assert len(said["by_minute"]) < 2500
    agree = judged(result)
    assert (agree.passed, agree.check_name, agree.partition) == (True, "sources_agree", HOUR)
    assert agree.metadata["value"].value == said["agreement_percent"]
    assert instance.get_materialized_partitions(SHADOW_COMPARISON) == {HOUR}


def test_an_instrument_that_differs_is_named_and_shown_with_what_differs(
    settings: Settings, instance: dg.DagsterInstance, conn: connection
) -> None:
    good, [dhan, kite] = honest(TCS, 2, 500), honest(RELIANCE, 1, 500)
    late = kite.time_us > 1800 * 10**6
    kite.price[late] -= 5
    kite.volume[late] = (kite.volume[late] * 1.02).astype(int)
    store(conn, *good, dhan, kite)
    result = materialize(settings, instance)
    said = metadata(result, "shadow_comparison")
    head, _, worst, *others = said["instruments_that_differ_most"].splitlines()
    assert head.count("|") == worst.count("|") == 11
    cells = [cell.strip() for cell in worst.strip("|").split("|")]
    assert (cells[0], cells[3][:2]) == ("RELIANCE", "+5")
    assert float(cells[1]) == pytest.approx(50, abs=1)
    assert cells[6] == "-1.96"
    assert all("TCS" in other for other in others)
    assert said["price_differs_seconds"] == pytest.approx(1800, abs=30)
    agree = judged(result)
    assert (agree.passed, agree.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "RELIANCE" in (agree.description or "")


def test_what_only_one_broker_was_asked_for_is_listed(
    settings: Settings, instance: dg.DagsterInstance, conn: connection
) -> None:
    only_dhan = Market(3, trades=20).feed(TCS.dhan_token, 1)
    nobodys = Market(4, trades=20).feed(DHAN_RELIANCE + 1, 1)
    store(conn, *honest(RELIANCE, 1, 100), only_dhan, nobodys)
    said = metadata(materialize(settings, instance), "shadow_comparison")
    assert said["instruments_without_partner"] == 2
    assert said["without_partner"].splitlines()[2:] == [
        "| NSE_EQ | 1 | 0 | TCS |",
        f"| not in instruments | 1 | 0 | {DHAN_RELIANCE + 1} |",
    ]


def test_where_one_broker_was_not_captured_it_says_so_and_passes(
    settings: Settings, instance: dg.DagsterInstance, conn: connection
) -> None:
    store(conn, honest(RELIANCE, trades=20)[0])
    result = materialize(settings, instance)
    said = metadata(result, "shadow_comparison")
    assert said["nothing_to_compare"] == f"There are only Dhan's ticks of the hour {HOUR}: there is nothing to compare."
    assert said["dagster/row_count"] == 0
    assert judged(result).passed


def test_an_hour_that_is_not_over_is_refused_in_one_sentence(settings: Settings, instance: dg.DagsterInstance) -> None:
    result = materialize(settings, instance, START_NS)
    assert not result.success
    assert why_failed(result) == f"The hour {HOUR} is not over: it is compared afterwards."
