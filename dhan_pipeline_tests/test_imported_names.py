"""The page of imported names: every name is where it says, and its examples run against the simulated exchange."""

import ast
import asyncio
import inspect
import re
from collections.abc import Awaitable
from datetime import date
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from dhan_pipeline.feeds.dhan import DhanWebSocketClient, save_token
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.sync_dhan_instruments import parse_dhan_csv, sync_to_database

PAGE = (Path(__file__).parent.parent / "docs" / "imported-names.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", PAGE, re.MULTILINE)

#: What scripts of the existing system import.
KEPT = {
    *("get_dhan_credentials", "check_dhan_token_validity", "get_websocket_url"),
    *("parse_ticker_packet", "parse_quote_packet", "parse_oi_packet", "parse_prev_close_packet"),
    *("parse_full_packet", "parse_disconnect_packet", "parse_market_depth_level"),
    *("DhanWebSocketClient", "DhanResponseHeader", "DhanMarketDepthLevel", "DhanTick"),
    *("EnrichedTick", "InstrumentInfo", "dhan_tick_to_enriched", "load_instruments_cache"),
    *("download_instruments_csv", "parse_dhan_csv", "generate_instrument_token", "sync_to_database"),
}


def test_every_name_that_scripts_import_is_on_the_page() -> None:
    assert {name for name, _ in NAMES} >= KEPT


@pytest.mark.parametrize(("name", "module"), NAMES)
def test_a_name_is_where_the_page_says_and_says_what_it_does(name: str, module: str) -> None:
    found = getattr(import_module(module), name)
    assert inspect.getdoc(found)
    assert name in import_module(module).__all__


def test_the_page_lists_the_parameters_of_the_client() -> None:
    listed = re.search(r"^\| parameter \|.*\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert listed is not None
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]+)\|", listed[1], re.MULTILINE)))
    assert named == list(inspect.signature(DhanWebSocketClient).parameters)


@pytest.mark.parametrize("source", ["kite", "dhan"])
async def test_the_examples_on_the_page_run(
    source: str,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    write_synthetic_master(Path("scrip_master.csv"), 2_000, on=date(2026, 11, 20))
    sync_to_database(database_url, parse_dhan_csv(Path("scrip_master.csv")))
    save_token(Path("token.json"), make_token("1000000001"), "1000000001")
    tokens = [generate_instrument_token("NSE_EQ", 2885), generate_instrument_token("IDX_I", 13)]
    async with DhanSimulator(tokens, rate=500) as simulator:
        monkeypatch.setenv("DATA_SOURCE", source)
        monkeypatch.setenv("DATABASE_URL", database_url)
        monkeypatch.setenv("DHAN_TOKEN_FILE", "token.json")
        monkeypatch.setenv("DHAN_FEED_URL", simulator.feed_url)
        names: dict[str, Any] = {}
        async with asyncio.timeout(20):
            for example in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
                await run(example, names)
    said = capsys.readouterr().out
    assert re.match(r"(RELIANCE|NIFTY) [0-9.]+ ", said)
    assert said.endswith("0 0 0\n"), "it was synced before"


async def run(example: str, names: dict[str, Any]) -> None:
    """Run it as a notebook does."""
    code = compile(example, "docs/imported-names.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, CodeType)
    waiting = FunctionType(code, names)()
    if isinstance(waiting, Awaitable):
        await waiting
