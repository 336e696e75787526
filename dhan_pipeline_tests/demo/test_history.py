from datetime import date
from io import StringIO
from pathlib import Path

import pytest
from pydantic import SecretStr
from rich.console import Console

from dhan_pipeline.clock import Clock
from dhan_pipeline.demo import history
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.simulator.correspondence import kite_token_of
from dhan_pipeline.feeds.simulator.tokens import API_KEY, CLIENT_ID, make_kite_access_token, make_token
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.journal.reader import captures, hours
from dhan_pipeline.sessions import HOUR_NS, hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.ingest.feed import add_instruments, query

SHARES = [generate_instrument_token(ExchangeSegment.NSE_EQ, number) for number in range(1, 21)]


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    settings = Settings(
        _env_file=None,
        data_source="kite,dhan",
        data_dir=tmp_path,
        database_url=database_url,
        dhan_token_file=tmp_path / "dhan_token.json",
        kite_token_file=tmp_path / "kite_token.json",
        kite_api_key=API_KEY,
        kite_access_token=SecretStr(make_kite_access_token(expires_in=1e6)),
        sessions="always",
    )
    save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=1e6), CLIENT_ID)
    for source, tokens in (("dhan", SHARES), ("kite", [kite_token_of(token) for token in SHARES])):
        add_instruments(database_url, tokens)
        write_subscriptions(
            settings.of(source).subscriptions_path, [Subscription(token, Mode.FULL, "") for token in tokens]
        )
    return settings


def test_the_hour_before_is_captured_of_both_brokers_and_both_have_the_same_ticks(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOURS", 1), ("SECONDS_AN_HOUR", 4.0), ("RATE", 2000.0)):
        monkeypatch.setattr(history, name, value)
    now_ns = Clock().now_ns()
    before = hour_key(now_ns - HOUR_NS)
    history.capture_history(settings, database_url, Console(file=StringIO()), now_ns)
    assert captures(settings.journal_dir) == [history.CAPTURE, 16 + history.CAPTURE]
    assert {hour for number in captures(settings.journal_dir) for hour in hours(settings.journal_dir, number)} == {
        before
    }
    seen = {
        source: query(
            database_url,
            "SELECT exchange_segment_of(instrument_token), last_trade_time, volume_traded, last_price FROM ticks "
            f"WHERE (instrument_token < 1::bigint << 32) = {source == 'kite'} AND volume_traded > 0 "
            "GROUP BY 1, 2, 3, 4",
        )
        for source in ("dhan", "kite")
    }
    assert len(seen["dhan"]) > 200
    # Of the two brokers, one is subscribed a moment before the other.
    assert len({*seen["dhan"]} ^ {*seen["kite"]}) < 100
    assert history.first_day(settings) == date.fromisoformat(before[:10])


def test_hours_that_one_broker_has_are_not_made_up_anew_for_another(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOURS", 1), ("SECONDS_AN_HOUR", 2.0), ("RATE", 2000.0)):
        monkeypatch.setattr(history, name, value)
    now_ns = Clock().now_ns()
    alone = settings.model_copy(update={"data_source": "dhan"})
    history.capture_history(alone, settings.database_url or "", Console(file=StringIO()), now_ns)
    history.capture_history(settings, settings.database_url or "", Console(file=StringIO()), now_ns)
    assert captures(settings.journal_dir) == [history.CAPTURE]
    history.capture_history(settings, settings.database_url or "", Console(file=StringIO()), now_ns + HOUR_NS)
    assert min(hours(settings.journal_dir, 16 + history.CAPTURE)) >= hour_key(now_ns)
