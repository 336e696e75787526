from collections.abc import Iterator

import httpx
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.clock import Clock
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.ledger import write_status
from dhan_pipeline.store.partitions import ensure_partitions
from dhan_pipeline_tests.broker import RELIANCE, TCS, insert_instruments
from dhan_pipeline_tests.ingest.feed import outage
from dhan_pipeline_tests.page.serving import serving
from dhan_pipeline_tests.status import status


@pytest.fixture
def client(database_url: str, conn: connection) -> Iterator[httpx.Client]:
    """Of a page over a capture that is well, and two instruments; of one there is a tick."""
    insert_instruments(conn, [RELIANCE, TCS])
    now_ns = Clock().now_ns()
    ensure_partitions(conn, now_ns, now_ns + 1)
    write_status(conn, 0, "dhan", status())
    with conn, conn.cursor() as cursor:
        cursor.execute("UPDATE captures SET updated_at = now() + interval '1 hour'")  # it stays fresh
        cursor.execute(
            "INSERT INTO tick_rows (tick_id, time, instrument_token, last_price, day_close, tradable, mode) "
            "VALUES (1, now(), %s, 101, 100, true, 'quote')",
            (RELIANCE,),
        )
    settings = Settings(_env_file=None, data_source="dhan", database_url=database_url, sessions="always")
    with serving(settings) as address, httpx.Client(base_url=address) as opened:
        yield opened


def test_now_is_what_the_database_says(client: httpx.Client) -> None:
    reply = client.get("/now")
    now = reply.json()
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    assert (now["good"], now["headline"]) == (True, "All is well")
    assert now["captures"][0]["ticks"] == 990
    assert now["at"].endswith("+05:30")


def test_an_instrument_is_found_by_its_symbol_and_its_token(client: httpx.Client) -> None:
    found = client.get("/instrument", params={"symbol": "s2885"}).json()
    assert found["instrument"]["instrument_token"] == str(RELIANCE)
    assert (found["tick"]["change"], found["tick"]["bid_prices"]) == (1.0, None)
    assert [price for _, price, _ in found["points"]] == [101.0]
    assert client.get("/instrument", params={"symbol": str(RELIANCE)}).json()["points"] == found["points"]


def test_of_an_instrument_without_ticks_there_is_its_name(client: httpx.Client) -> None:
    found = client.get("/instrument", params={"symbol": "S11536"}).json()
    assert (found["instrument"]["symbol"], found["tick"], found["points"]) == ("S11536", None, [])


@pytest.mark.parametrize("symbol", ["S288", "", "9" * 30, "'; --"])
def test_what_no_instrument_is_called_is_said(client: httpx.Client, symbol: str) -> None:
    reply = client.get("/instrument", params={"symbol": symbol})
    assert reply.status_code == 404
    assert reply.json()["problem"].endswith(".")


def test_while_the_database_is_away_a_sentence_says_so(
    client: httpx.Client, postgres_url: str, database_url: str
) -> None:
    assert client.get("/now").status_code == 200
    with outage(postgres_url, database_url):
        reply = client.get("/now")
        assert reply.status_code == 503
        assert reply.json()["problem"].startswith("The database cannot be used:")
    assert client.get("/now").status_code == 200


def test_who_asks_by_another_name_is_refused(client: httpx.Client) -> None:
    assert client.get("/now", headers={"host": "evil.example"}).status_code == 400


def test_no_other_page_may_read_it_and_it_takes_nothing_from_elsewhere(client: httpx.Client) -> None:
    headers = client.get("/", headers={"origin": "http://evil.example"}).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


def test_the_page_is_small_and_names_no_other_host(client: httpx.Client) -> None:
    size = 0
    for path in ("/", "/live.css", "/live.js", "/icon.svg"):
        reply = client.get(path)
        assert reply.status_code == 200
        size += len(reply.content)
        assert "://" not in reply.text.replace("http://www.w3.org/", "")
    assert size < 40_000
