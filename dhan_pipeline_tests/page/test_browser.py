"""The live page as a person sees it: in a browser, over a capture of the simulated exchange."""

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.engine import connect
from dhan_pipeline.store.gaps import apply_notes
from dhan_pipeline_tests.ingest.feed import SUBSCRIBED, outage, prepare_capture, query, until
from dhan_pipeline_tests.ingest.running import ingest, with_feed
from dhan_pipeline_tests.page.serving import serving

RELIANCE = SUBSCRIBED[2]  # of NSE_EQ, in full mode


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(
        _env_file=None,
        data_source="dhan",
        data_dir=tmp_path,
        database_url=database_url,
        dhan_token_file=tmp_path / "token.json",
        sessions="always",
        memory_mb_warn=1e6,  # the capture shares a process with all tests before this one
        memory_mb_error=1e6,
    )


@pytest.fixture
def address(settings: Settings, database_url: str) -> Iterator[str]:
    """Of the page, while a capture runs and ticks are stored."""
    prepare_capture(settings)
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(
            "UPDATE instruments SET trading_symbol = 'RELIANCE', name = 'Reliance Industries', exchange = 'NSE', "
            "exchange_segment = 'NSE_EQ' WHERE instrument_token = %s",
            (RELIANCE,),
        )
    over = threading.Event()

    async def capture() -> None:
        async with (
            DhanSimulator(SUBSCRIBED, rate=2000) as simulator,
            ingest(with_feed(settings, simulator)) as running,
        ):
            await asyncio.to_thread(over.wait)
            assert running.of_kind("stopped") == []

    thread = threading.Thread(target=asyncio.run, args=(capture(),))
    thread.start()
    try:
        until(lambda: query(database_url, "SELECT FROM captures WHERE status->'segments' ? 'NSE_EQ'"))
        with serving(settings) as url:
            yield url
    finally:
        over.set()
        thread.join()


def miss_a_moment(database_url: str) -> None:
    """A gap is on record, between two seconds of which there are ticks."""
    second_ns = 1_000_000_000
    at_ns = Clock().now_ns() // second_ns * second_ns - second_ns
    gap = Gap(1, 0, at_ns - 300_000_000, Cause.RESET, "it broke", (RELIANCE,), at_ns + 300_000_000, "back")
    with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
        apply_notes(cursor, 0, [(1, gap)])


#: What has to be scrolled sideways to be seen.
TOO_WIDE = """() => [document.documentElement, ...document.querySelectorAll('.scroll')]
  .filter(each => each.scrollWidth > each.clientWidth).map(each => each.innerText)"""

#: What the browser says of a tab that nobody looks at.
HIDE = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => true})"
SHOW = "delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))"


def test_a_person_sees_the_numbers_an_instrument_and_when_the_database_is_away(
    page: Page, address: str, postgres_url: str, database_url: str
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.install()
    page.goto(address)

    expect(page.locator("#verdict")).to_have_text("✓ All is well", timeout=20_000)
    expect(page.locator("#connections")).to_have_text("1 of 1 up")
    expect(page.locator("#rate")).not_to_have_text("0 a second", timeout=20_000)
    expect(page.locator("#segments tbody tr")).to_have_count(2)
    expect(page.locator("#segments tbody tr").first).to_contain_text("always open")
    expect(page.locator("#movers button").first).to_contain_text("%")

    page.fill("#symbol", "reliance")
    page.press("#symbol", "Enter")
    expect(page.locator("#name")).to_have_text("RELIANCE")
    expect(page.locator("#depth tbody tr")).to_have_count(5)
    expect(page.locator("#price")).to_contain_text("₹")
    # Not by a function of ours, which the page's own policy forbids wherever it has to be asked twice.
    expect(page.locator("#chart .price")).to_have_attribute("points", re.compile(r"^(\S+ ){3,}\S+$"), timeout=30_000)

    expect(page.locator("#chart .missed")).to_have_count(0)
    miss_a_moment(database_url)
    expect(page.locator("#gaps")).to_have_text("1 gap")
    expect(page.locator("#chart .missed")).to_have_count(1, timeout=20_000)
    expect(page.locator("#chart .price")).to_have_count(2)

    wide = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 780})  # a phone's
    assert page.evaluate(TOO_WIDE) == []
    page.set_viewport_size(wide)

    page.fill("#symbol", "NO SUCH THING")
    page.press("#symbol", "Enter")
    expect(page.locator("#unknown")).to_contain_text("No instrument is called NO SUCH THING")
    page.locator("#movers button").first.click()
    expect(page.locator("#unknown")).to_be_hidden()

    with outage(postgres_url, database_url):
        expect(page.locator("#away")).to_contain_text("The database", timeout=20_000)
        expect(page.locator("#away")).to_contain_text("What you see is of")
    expect(page.locator("#away")).to_be_hidden(timeout=20_000)

    page.evaluate(HIDE)
    page.clock.run_for(2000)
    before = len(asked)
    page.clock.run_for(10_000)
    assert len(asked) == before
    with page.expect_request("**/now"):
        page.evaluate(SHOW)

    assert all(url.startswith(f"{address}/") for url in asked)
