import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from kiteconnect import KiteConnect
from kiteconnect.exceptions import TokenException

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.kite_dump import write_synthetic_dump
from dhan_pipeline.feeds.simulator.kite_rest import HISTORICAL_PATH, KiteRest, error
from dhan_pipeline.feeds.simulator.master import write_synthetic_master
from dhan_pipeline.feeds.simulator.tokens import API_KEY, API_SECRET, make_kite_access_token


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dump")
    write_synthetic_master(folder / "dhan.csv", 2_000, on=date(2026, 11, 20))
    write_synthetic_dump(folder / "kite.csv", folder / "dhan.csv")
    return folder / "kite.csv"


@asynccontextmanager
async def serving(dump: Path | None = None) -> AsyncIterator[tuple[KiteRest, httpx.AsyncClient]]:
    server = KiteRest(Clock(), dump)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            yield server, client
    finally:
        await server.aclose()


def signed(token: str, api_key: str = API_KEY) -> dict[str, str]:
    return {"Authorization": f"token {api_key}:{token}", "X-Kite-Version": "3"}


@pytest.fixture(scope="module")
def content(dump: Path) -> bytes:
    return dump.read_bytes()


async def test_the_dump_is_served_compressed_or_plain_whole_or_an_exchanges_part(dump: Path, content: bytes) -> None:
    async with serving(dump) as (_, client):
        whole = await client.get("/instruments", headers=signed(make_kite_access_token()))
        assert (whole.status_code, whole.headers["content-encoding"]) == (200, "gzip")
        assert whole.content == content
        plain = await client.get("/instruments", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == content
        lines = content.decode().splitlines()
        part = await client.get("/instruments/BFO")
        assert part.text.splitlines() == [lines[0], *(line for line in lines if line.endswith(",BFO"))]
        assert (await client.get("/instruments/LSE")).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        signed("x"),
        signed(make_kite_access_token(expires_in=-1)),
        signed(make_kite_access_token(), "another"),
        {"Authorization": f"Bearer {make_kite_access_token()}"},
    ],
)
async def test_wrong_credentials_are_refused_on_every_page(dump: Path, headers: dict[str, str]) -> None:
    async with serving(dump) as (_, client):
        for page in ("/instruments", "/user/profile", f"{HISTORICAL_PATH}/738561/minute", "/quote"):
            answer = await client.get(page, headers=headers)
            assert (answer.status_code, answer.json()["error_type"]) == (403, "TokenException")


async def test_a_login_gets_a_token_once_which_ends_all_others() -> None:
    form = {
        "api_key": API_KEY,
        "request_token": "abc",
        "checksum": sha256(f"{API_KEY}abc{API_SECRET}".encode()).hexdigest(),
    }
    async with serving() as (server, client):
        before = signed(make_kite_access_token())
        assert (await client.get("/user/profile", headers=before)).status_code == 200
        wrong = await client.post("/session/token", data=form | {"checksum": "0"})
        assert (wrong.status_code, wrong.json()["message"]) == (403, "Invalid `checksum`.")
        made = (await client.post("/session/token", data=form)).json()["data"]
        assert (server.made, server.active_token) == (1, made["access_token"])
        assert (await client.get("/user/profile", headers=before)).status_code == 403
        assert (await client.get("/user/profile", headers=signed(made["access_token"]))).status_code == 200
        assert (await client.post("/session/token", data=form)).status_code == 403, "a request token serves once"
        gone = {"api_key": API_KEY, "access_token": made["access_token"]}
        assert (await client.delete("/session/token", params=gone)).json()["data"] is True
        assert (await client.get("/user/profile", headers=signed(made["access_token"]))).status_code == 403


async def test_bars_and_quotes_are_counted_limited_and_given_by_whoever_has_them() -> None:
    headers = signed(make_kite_access_token())
    page = f"{HISTORICAL_PATH}/738561/minute"
    async with serving() as (server, client):
        assert (await client.get(page, headers=headers)).json()["error_type"] == "DataException"
        server.give = lambda request: (HTTPStatus.OK, {"status": "success", "data": {"asked": request.queries["i"]}})
        answer = await client.get("/quote", params={"i": ["NSE:INFY", "408065"]}, headers=headers)
        assert answer.json()["data"] == {"asked": ["NSE:INFY", "408065"]}
        assert (await client.get("/quote", headers=headers)).status_code == 429
        server.instead.append(error("GeneralException", "Something unexpected.", HTTPStatus.BAD_GATEWAY))
        assert (await client.get(page, headers=headers)).status_code == 502
        assert dict(server.asked) == {HISTORICAL_PATH: 2, "/quote": 2}
        assert (await client.get("/orders", headers=headers)).status_code == 404
        assert (await client.put("/user/profile", headers=headers)).status_code == 405


async def test_the_official_client_logs_in_and_reads_the_instruments(dump: Path) -> None:
    async with serving(dump) as (server, _):
        official = KiteConnect(API_KEY, root=f"http://127.0.0.1:{server.port}", disable_ssl=True)
        session = await asyncio.to_thread(official.generate_session, "abc", API_SECRET)
        assert session["access_token"] == official.access_token == server.active_token
        assert (await asyncio.to_thread(official.profile))["user_id"] == session["user_id"]
        named = await asyncio.to_thread(official.instruments, "NSE")
        [nifty] = [row for row in named if row["instrument_token"] == 256265]
        assert (nifty["tradingsymbol"], nifty["segment"], nifty["expiry"]) == ("NIFTY 50", "INDICES", "")
        options = await asyncio.to_thread(official.instruments, "NFO")
        assert {type(row["expiry"]) for row in options} == {date}
        official.set_access_token("another")
        with pytest.raises(TokenException):
            await asyncio.to_thread(official.profile)
