import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from dhan_pipeline.cli.subscriptions import subscriptions
from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.kite.instruments_dump import parse_kite_csv
from dhan_pipeline.feeds.simulator.kite_dump import write_synthetic_dump
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.store.instruments import sync_to_database
from dhan_pipeline.subscriptions import SubscriptionError, read_subscriptions
from dhan_pipeline.windows import read_chains

Subscribe = Callable[..., Result]

RULES = """\
rules:
  - indices: [NIFTY, NOSUCHINDEX]
  - symbols: [RELIANCE, TCS]
    segment: NSE_EQ
  - futures: [NIFTY]
"""


@pytest.fixture
def subscribe(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subscribe:
    """The command over a small market of Dhan's whose derivatives expire in the far future; Kite's is not loaded."""
    write_synthetic_master(tmp_path / "master.csv", 2_000, on=date(2080, 11, 20))
    sync_to_database(database_url, parse_dhan_csv(tmp_path / "master.csv"))
    (tmp_path / "subscriptions.yaml").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("DATA_SOURCE", "dhan")
    app = typer.Typer()
    app.command()(subscriptions)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_each_rule_is_shown_with_what_it_comes_to_and_the_capture_reads_the_result(
    subscribe: Subscribe, tmp_path: Path
) -> None:
    done = subscribe()
    assert done.exit_code == 0
    assert "dhan: 6 of 25,000 instruments" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] for line in lines if line and line[0].isdigit()] == [
        ["2", "1", "1"],
        ["3", "2", "2"],
        ["5", "3", "3"],
    ]
    assert "NOSUCHINDEX" in done.stdout
    read = read_subscriptions(tmp_path / "data" / "subscriptions_dhan.csv")
    assert [subscription.symbol for subscription in read][:3] == ["NIFTY", "RELIANCE", "TCS"]


def test_what_is_wrong_in_the_site_s_file_of_special_days_is_said_beside(subscribe: Subscribe, tmp_path: Path) -> None:
    (tmp_path / "sessions.csv").write_text("date,equity\n2026-11-08,18:15\n")
    done = subscribe("--dry-run", "--json")
    assert done.exit_code == 0
    assert done.stderr.startswith("sessions.csv, line 2: 18:15 is nothing that equity can be; the line is left out.")
    assert json.loads(done.stdout)["subscriptions"] == 6


def test_options_around_the_price_are_shown_with_what_stood_for_it_and_their_chains_are_kept(
    subscribe: Subscribe, tmp_path: Path
) -> None:
    (tmp_path / "subscriptions.yaml").write_text("rules:\n  - options: NIFTY\n    expiries: 1\n    around_spot: 1\n")
    done = subscribe()
    assert "Line 2: around the middle of NIFTY's strikes, until the first price comes." in done.stdout
    assert "followed: NIFTY" in done.stdout
    read = read_subscriptions(tmp_path / "data" / "subscriptions_dhan.csv")
    assert [subscription.symbol for subscription in read if not subscription.moves] == ["NIFTY"]
    [chain] = read_chains(tmp_path / "data" / "chains_dhan.csv")
    assert (chain.underlying_token, chain.around_spot) == (read[-1].instrument_token, 1)
    assert len(chain.strikes) >= len({subscription.symbol[:-3] for subscription in read[:-1]}) > 0
    [rule, _] = json.loads(subscribe("--json").stdout)["rules"]
    assert rule["spots"] == [
        {"underlying": "NIFTY", "instrument_token": chain.underlying_token, "price": None, "at": None}
    ]


def test_a_dry_run_leaves_the_list_as_it_is(subscribe: Subscribe, tmp_path: Path) -> None:
    assert subscribe("--dry-run").exit_code == 0
    assert not (tmp_path / "data" / "subscriptions_dhan.csv").exists()


def test_one_source_without_instruments_does_not_keep_the_other_from_being_written(
    subscribe: Subscribe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_SOURCE", "kite,dhan")
    done = subscribe("--json")
    assert isinstance(done.exception, SubscriptionError)
    assert str(done.exception) == ("There are no instruments of kite; run: dhan-pipeline sync-instruments --download.")
    told = json.loads(done.stdout)
    assert set(told) == {"dhan"}
    assert (told["dhan"]["subscriptions"], told["dhan"]["limit"]) == (6, 25_000)
    assert told["dhan"]["rules"][0]["missing"] == ["NOSUCHINDEX"]
    assert not (tmp_path / "data" / "subscriptions_kite.csv").exists()
    assert len(read_subscriptions(tmp_path / "data" / "subscriptions_dhan.csv")) == 6


def test_the_same_rules_come_to_the_same_names_with_each_source(
    subscribe: Subscribe, database_url: str, tmp_path: Path
) -> None:
    write_synthetic_dump(tmp_path / "dump.csv", tmp_path / "master.csv")
    sync_to_database(database_url, parse_kite_csv(tmp_path / "dump.csv"), source="kite")
    of_one = {source: json.loads(subscribe("--source", source, "--json").stdout) for source in ("dhan", "kite")}
    assert [told["limit"] for told in of_one.values()] == [25_000, 9_000]
    assert of_one["dhan"]["rules"] == of_one["kite"]["rules"]
    assert (tmp_path / "data" / "subscriptions_kite.csv").exists()


def test_without_rules_the_example_is_told(subscribe: Subscribe, tmp_path: Path) -> None:
    (tmp_path / "subscriptions.yaml").unlink()
    assert "subscriptions.example.yaml" in str(subscribe().exception)
