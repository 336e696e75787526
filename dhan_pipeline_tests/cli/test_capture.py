import asyncio
from pathlib import Path

import pytest

from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.ingest.feed import CLIENT_ID, add_instruments, query
from dhan_pipeline_tests.program import run


@pytest.fixture(autouse=True)
def _subscribed(tmp_path: Path) -> None:
    both = Settings(_env_file=None, data_source="kite,dhan", data_dir=tmp_path)
    write_subscriptions(
        both.of("dhan").subscriptions_path, [Subscription(generate_instrument_token("NSE_EQ", 1), Mode.FULL, "X")]
    )
    write_subscriptions(both.of("kite").subscriptions_path, [Subscription(738561, Mode.FULL, "RELIANCE")])


async def test_a_capture_that_cannot_begin_costs_the_other_nothing(tmp_path: Path, database_url: str) -> None:
    add_instruments(database_url, [generate_instrument_token("NSE_EQ", 1)])
    save_token(tmp_path / "token.json", make_token(CLIENT_ID, expires_in=1e7), CLIENT_ID)
    async with DhanSimulator([generate_instrument_token("NSE_EQ", 1)], rate=500) as simulator:
        done = await asyncio.to_thread(
            run,
            *("ingest", "--for", "3"),
            cwd=tmp_path,
            data_source="kite,dhan",
            data_dir=tmp_path,
            database_url=database_url,
            dhan_feed_url=simulator.feed_url,
            dhan_token_file=tmp_path / "token.json",
            kite_token_file="neither.json",
        )
    assert done.returncode == 1
    assert "kite's capture has ended. There is no token file neither.json (KITE_TOKEN_FILE)" in done.stderr
    assert "Traceback" not in done.stderr
    [(ticks,)] = query(database_url, "SELECT count(*) FROM ticks")
    assert isinstance(ticks, int)
    assert ticks > 100


def test_what_ends_each_of_two_captures_is_said_and_whose_a_status_is(tmp_path: Path, database_url: str) -> None:
    done = run(
        "ingest",
        cwd=tmp_path,
        data_source="kite,dhan",
        data_dir=tmp_path,
        database_url=database_url,
        dhan_token_file="none.json",
        kite_token_file="neither.json",
    )
    assert done.returncode == 1
    assert "There is no token file none.json (DHAN_TOKEN_FILE)" in done.stderr
    assert "There is no token file neither.json (KITE_TOKEN_FILE)" in done.stderr
    assert "Traceback" not in done.stderr
    statuses = [line for line in done.stderr.splitlines() if "messages/s" in line]
    assert {line.partition(":")[0] for line in statuses} == {"dhan", "kite"}
