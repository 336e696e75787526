import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from dhan_pipeline.cli.find import find
from dhan_pipeline.feeds.dhan.scrip_master import parse_dhan_csv
from dhan_pipeline.feeds.kite.instruments_dump import parse_kite_csv
from dhan_pipeline.feeds.simulator.kite_dump import write_synthetic_dump
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.store.instruments import sync_to_database
from dhan_pipeline.store.symbols import SymbolError

Find = Callable[..., Result]


@pytest.fixture
def found(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Find:
    """The command over a small market whose derivatives expire in the far future."""
    write_synthetic_master(tmp_path / "master.csv", 2_000, on=date(2080, 11, 20))
    sync_to_database(database_url, parse_dhan_csv(tmp_path / "master.csv"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)
    app = typer.Typer()
    app.command()(find)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_instruments_are_listed_the_best_match_first(found: Find) -> None:
    done = found("reliance")
    assert done.exit_code == 0
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(" RELIANCE")]
    assert lines[0][:3] == ["RELIANCE", "NSE_EQ:2885", "1103806597957"]
    assert lines[1][1] == "BSE_EQ:500325"
    assert lines[2][0].startswith("RELIANCE-")


def test_several_words_are_one_text_and_a_limit_leaves_out_the_rest(found: Find) -> None:
    done = found("NIFTY", "FUT", "--limit", "1")
    assert done.exit_code == 0
    assert done.stdout.count("NIFTY-") == 1
    assert "2 more match." in done.stdout


def test_json_is_one_object(found: Find) -> None:
    told = json.loads(found("NIFTY", "FUT", "--json", "--limit", "2").stdout)
    assert (told["text"], told["on"], told["matches"], len(told["instruments"])) == ("NIFTY FUT", None, 3, 2)
    first = told["instruments"][0]
    assert (first["exchange_segment"], first["expiry"][:4], first["strike"]) == ("NSE_FNO", "2080", None)


def test_what_is_not_found_is_an_error_that_says_what_is_near(found: Find) -> None:
    done = found("RELAINCE")
    assert done.exit_code == 1
    assert isinstance(done.exception, SymbolError)
    assert str(done.exception) == "No instrument is called RELAINCE; near it: RELIANCE."


def test_the_source_is_the_settings_or_the_one_asked_for(
    found: Find, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_synthetic_dump(tmp_path / "dump.csv", tmp_path / "master.csv")
    sync_to_database(database_url, parse_kite_csv(tmp_path / "dump.csv"), source="kite")
    asked = found("NIFTY", "--source", "kite", "--limit", "1").stdout
    assert ["NIFTY", "50", "IDX_I:1001", "256265"] in [line.split()[:4] for line in asked.splitlines()]
    monkeypatch.setenv("DATA_SOURCE", "kite")
    assert found("NIFTY", "--limit", "1").stdout == asked
    assert "IDX_I:13" in found("NIFTY", "--source", "dhan", "--limit", "1").stdout
    assert found("NIFTY", "--source", "upstox").exit_code == 2


@pytest.mark.parametrize(("day", "why"), [("2026-02-30", "is not a day"), ("9999-12-31", "still to come")])
def test_a_day_that_is_none_or_to_come_is_wrong_usage(found: Find, day: str, why: str) -> None:
    done = found("NIFTY", "--on", day)
    assert done.exit_code == 2
    assert why in " ".join(done.stderr.split())


def test_a_day_of_the_past_is_told_in_the_answer(found: Find) -> None:
    told = json.loads(found("NIFTY", "--on", "2026-03-20", "--json", "--limit", "1").stdout)
    assert (told["on"], told["instruments"][0]["security_id"]) == ("2026-03-20", 13)
