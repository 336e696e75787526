from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.rest import RestServer
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.sessions import IST

COMPACT = "/api-data/api-scrip-master.csv"
DETAILED = "/api-data/api-scrip-master-detailed.csv"


@asynccontextmanager
async def serving(master_csv: Path | None = None, clock: Clock | None = None) -> AsyncIterator[httpx.AsyncClient]:
    server = RestServer(clock or Clock(), master_csv)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
            yield client
    finally:
        await server.aclose()


@pytest.mark.parametrize(
    ("header", "path", "other"),
    [("SEM_EXM_EXCH_ID,SEM_SEGMENT", COMPACT, DETAILED), ("EXCH_ID,SEGMENT", DETAILED, COMPACT)],
)
async def test_the_master_is_served_whole_under_the_path_of_its_layout(
    tmp_path: Path, header: str, path: str, other: str
) -> None:
    master = tmp_path / "master.csv"
    master.write_text(header + "\n" + "NSE,E\n" * 500_000)
    async with serving(master) as client:
        response = await client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/csv"
        assert response.content == master.read_bytes()
        assert (await client.get(other)).status_code == 404


async def test_a_master_that_does_not_exist_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path / "missing.csv") as client:
        assert (await client.get(COMPACT)).status_code == 404
    async with serving() as client:
        assert (await client.get(COMPACT)).status_code == 404


async def test_each_answer_tells_the_time_of_the_servers_clock() -> None:
    clock = Clock(start_ns=1_790_000_000_900_000_000, speed=1e-9)
    async with serving(clock=clock) as client:
        assert (await client.get(COMPACT)).headers["date"] == "Mon, 21 Sep 2026 14:13:20 GMT"


async def test_without_a_market_it_says_that_there_are_no_bars() -> None:
    headers = {"access-token": make_token(CLIENT_ID)}
    async with serving() as client:
        answer = await client.post("/v2/charts/intraday", json={}, headers=headers)
    assert (answer.status_code, answer.json()["errorMessage"]) == (400, "a recording has neither bars nor quotes")


async def test_a_client_that_leaves_during_the_download_disturbs_nobody(tmp_path: Path) -> None:
    master = tmp_path / "master.csv"
    master.write_text("EXCH_ID,SEGMENT\n" + "NSE,E\n" * 5_000_000)
    async with serving(master) as client:
        async with client.stream("GET", DETAILED) as response:
            assert response.status_code == 200
        assert (await client.get("/v2/profile")).status_code == 401


async def test_the_profile_says_how_long_the_token_is_valid() -> None:
    async with serving() as client:
        response = await client.get("/v2/profile", headers={"access-token": make_token("1100000001")})
    profile = response.json()
    assert response.status_code == 200
    assert profile["dhanClientId"] == "1100000001"
    assert profile["dataPlan"] == "Active"
    valid_until = datetime.strptime(profile["tokenValidity"], "%d/%m/%Y %H:%M").replace(tzinfo=IST)
    assert 23 < (valid_until - datetime.now(IST)).total_seconds() / 3600 <= 24


@pytest.mark.parametrize("headers", [{}, {"access-token": "x"}, {"access-token": make_token("1", expires_in=-1)}])
async def test_a_profile_without_a_valid_token_is_refused(headers: dict[str, str]) -> None:
    async with serving() as client:
        response = await client.get("/v2/profile", headers=headers)
    assert response.status_code == 401
    assert response.json()["errorCode"] == "DH-901"


async def test_other_pages_and_methods_do_not_exist() -> None:
    async with serving() as client:
        assert (await client.get("/v2/orders")).status_code == 404
        assert (await client.post("/v2/profile")).status_code == 405
