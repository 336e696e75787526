"""Each asset, materialised for real: a file, a database, a journal."""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import ExchangeSegment
from dhan_pipeline.journal.writer import JournalWriter
from dhan_pipeline.orchestration.names import RAW_PACKETS, TICKS
from dhan_pipeline.quality.measures import HOUR_CHECKS
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.subscriptions import read_subscriptions
from dhan_pipeline_tests.orchestration.conftest import HOUR, OPEN_HOUR, Pipeline, Record

MASTER = """\
SEM_EXM_EXCH_ID,SEM_SEGMENT,SEM_SMST_SECURITY_ID,SEM_INSTRUMENT_NAME,SEM_EXPIRY_CODE,SEM_TRADING_SYMBOL,SEM_LOT_UNITS,\
SEM_CUSTOM_SYMBOL,SEM_EXPIRY_DATE,SEM_STRIKE_PRICE,SEM_OPTION_TYPE,SEM_TICK_SIZE,SEM_EXPIRY_FLAG,SEM_EXCH_INSTRUMENT_TYPE,\
SEM_SERIES,SM_SYMBOL_NAME
NSE,E,2885,EQUITY,0,RELIANCE,1.0,Reliance Industries,,,XX,10.0000,NA,ES,EQ,RELIANCE INDUSTRIES LTD
NSE,E,11536,EQUITY,0,TCS,1.0,Tata Consultancy,,,XX,5.0000,NA,ES,EQ,TATA CONSULTANCY SERV LT
NSE,I,13,INDEX,0,NIFTY,1.0,Nifty 50,,,XX,5.0000,NA,INDEX,X,NIFTY
"""
RELIANCE = 2885

Materialize = Callable[..., dg.ExecuteInProcessResult]


class Master(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = MASTER.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def master_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Master) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/master.csv"
        server.shutdown()
        thread.join()


@pytest.fixture
def pipeline(pipeline: Pipeline, master_url: str, tmp_path: Path) -> Pipeline:
    rules = tmp_path / "subscriptions.yaml"
    rules.write_text("rules:\n  - indices: [NIFTY]\n  - symbols: [RELIANCE, NOBODY]\n")
    settings = pipeline.settings.model_copy(update={"dhan_scrip_master_url": master_url, "subscriptions_file": rules})
    return Pipeline(settings, pipeline.instance)


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


def capture(pipeline: Pipeline, hour: str, *prices: float) -> None:
    """A journal's hour: a block of one message, a ticker packet of RELIANCE in it, for each price."""
    start_ns = parse_hour_key(hour)
    with closing(JournalWriter(pipeline.settings.journal_dir, 0)) as writer:
        for i, price in enumerate(prices):
            trade_time = start_ns // 10**9 + 19_800 + i
            packet = struct.pack("<BHBIfI", 2, 16, ExchangeSegment.NSE_EQ, RELIANCE, price, trade_time)
            writer.append([start_ns + i * 10**9], [0], [False], [packet])


def test_the_instrument_sync_downloads_loads_and_resolves(pipeline: Pipeline) -> None:
    result = run_job(pipeline, "instrument_sync_job")
    assert result.success
    master = metadata(result, "scrip_master")
    assert (master["dagster/row_count"], master["layout"], master["quarantined"]) == (3, "compact", 0)
    assert "| NSE_EQ | 2 |" in master["segments"]
    assert metadata(result, "instruments")["inserted"] == 3
    subscriptions = metadata(result, "subscriptions")
    assert (subscriptions["dagster/row_count"], subscriptions["missing"]) == (2, 1)
    assert [s.symbol for s in read_subscriptions(pipeline.settings.subscriptions_path)] == ["NIFTY", "RELIANCE"]


def test_what_a_person_can_mend_is_said_in_one_sentence(pipeline: Pipeline) -> None:
    pipeline.settings.subscriptions_file.unlink()
    result = run_job(pipeline, "instrument_sync_job")
    assert why_failed(result).startswith("There is no file of rules")


def test_an_hour_of_the_journal_is_verified_and_counted(pipeline: Pipeline) -> None:
    capture(pipeline, HOUR, 2890.5, 2891.0)
    result = materialize(pipeline, RAW_PACKETS, HOUR)
    assert result.success
    counts = metadata(result, "raw_packets")
    assert (counts["blocks"], counts["messages"], counts["bytes"], counts["damaged"]) == (2, 2, 32, 0)
    assert counts["first_received"] == parse_hour_key(HOUR) / 1e9


def test_an_hour_that_the_journal_does_not_hold_is_refused(pipeline: Pipeline) -> None:
    assert why_failed(materialize(pipeline, RAW_PACKETS, HOUR)) == f"The journal holds nothing of the hour {HOUR}."


@pytest.mark.parametrize("key", [RAW_PACKETS, TICKS])
def test_an_hour_of_which_nothing_came_is_refused_with_the_gap_that_swallowed_it(
    pipeline: Pipeline, record_gap: Record, key: dg.AssetKey
) -> None:
    record_gap(HOUR, -600, 5000, Cause.HOST_DOWN, "the machine was off")
    record_gap(HOUR, 0, 20, Cause.SILENT, gap_id=2)
    assert why_failed(materialize(pipeline, key, HOUR)) == (
        f"The journal holds nothing of the hour {HOUR}."
        " Nothing came from 08:50:00.000 to 10:13:20.000 IST: host down, the machine was off."
    )


def test_the_gaps_of_an_hour_are_shown_beside_it_and_judged_whenever_it_is_materialised(
    pipeline: Pipeline, record_gap: Record
) -> None:
    assert run_job(pipeline, "instrument_sync_job").success
    capture(pipeline, HOUR, 2890.5)
    record_gap(HOUR, 60, 12.5, Cause.STALL, "nothing came")
    raw = metadata(materialize(pipeline, RAW_PACKETS, HOUR), "raw_packets")
    assert (raw["gap_seconds"], raw["silent_instruments"]) == (12.5, 0)
    assert "| 2 | 1 | 09:01:00.000 | 09:01:12.500 | 12.5 | stall | nothing came |" in raw["gaps"]
    record_gap(HOUR, 600, 90, gap_id=2)
    result = materialize(pipeline, TICKS, HOUR)
    (judged,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "gaps"]
    assert (judged.passed, judged.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert judged.metadata["value"].value == 90.0
    assert "| 2 | 1 | 09:10:00.000 | 09:11:30.000 | 90.0 |" in str(judged.metadata["details"].value)


@pytest.mark.parametrize("key", [RAW_PACKETS, TICKS])
def test_an_hour_that_is_still_open_is_refused(pipeline: Pipeline, key: dg.AssetKey) -> None:
    capture(pipeline, OPEN_HOUR, 2890.5)
    assert "is still open" in why_failed(materialize(pipeline, key, OPEN_HOUR))


def test_materialising_an_hour_of_ticks_rebuilds_it_and_judges_it(pipeline: Pipeline, conn: connection) -> None:
    assert run_job(pipeline, "instrument_sync_job").success
    capture(pipeline, HOUR, 2890.5, 2891.0, 2891.5)
    result = materialize(pipeline, TICKS, HOUR)
    assert result.success
    assert metadata(result, "ticks")["dagster/row_count"] == 3
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT last_price FROM ticks ORDER BY tick_id")
        assert cursor.fetchall() == [(2890.5,), (2891.0,), (2891.5,)]
    assert pipeline.instance.get_materialized_partitions(TICKS) == {HOUR}
    evaluations = result.get_asset_check_evaluations()
    assert {(e.check_name, e.partition, e.passed) for e in evaluations} == {(name, HOUR, True) for name in HOUR_CHECKS}
    assert all(evaluation.target_materialization_data for evaluation in evaluations)
