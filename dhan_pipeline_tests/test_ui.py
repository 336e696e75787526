"""The Dagster UI as a person uses it: a real browser over the real program, with three captured hours.

The daemon and the web server run in the home that we ship for one machine. Nothing here may need the network.
"""

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import pytest
from playwright.sync_api import Browser, Page, expect
from rich.console import Console

from dhan_pipeline.candles import LATE_S
from dhan_pipeline.clock import Clock
from dhan_pipeline.demo import history
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, make_token
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.journal.reader import hours
from dhan_pipeline.local.services import free_port
from dhan_pipeline.orchestration.build import build_defs
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.digests import hour_digest
from dhan_pipeline.store.engine import connect, create_database
from dhan_pipeline.subscriptions import Subscription, write_subscriptions
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests import program
from dhan_pipeline_tests.broker import NO_BROKER
from dhan_pipeline_tests.browser import in_india
from dhan_pipeline_tests.ingest.feed import add_instruments
from dhan_pipeline_tests.orchestration.conftest import wait_until

pytestmark = pytest.mark.timeout(400)

#: Milliseconds: a run takes seconds, and many more where the machine is busy.
PATIENCE = 120_000

SHARES = [generate_instrument_token(ExchangeSegment.NSE_EQ, number) for number in range(1, 21)]


@dataclass(frozen=True)
class Site:
    """A running Dagster, what it stands on, and the hours that are captured."""

    url: str
    database_url: str
    hours: list[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, template: str) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("ui")
    database_url = create_database(postgres_url, "ui", template=template)
    settings = Settings(
        _env_file=None,
        data_source="dhan",
        data_dir=folder,
        database_url=database_url,
        dhan_token_file=folder / "dhan_token.json",
        sessions="always",
        **NO_BROKER,
    )
    captured = _capture(settings, database_url)
    settings = settings.model_copy(update={"partitions_start": history.first_day(settings)})
    home = folder / "dagster"
    home.mkdir()
    shutil.copy(Path(__file__).parent.parent / "deploy" / "local" / "dagster.yaml", home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        job = build_defs(location="dhan_pipeline", settings=settings).resolve_implicit_global_asset_job_def()
        made = [dg.AssetKey(name) for name in ("raw_packets", "ticks", "candles_1m")]
        for hour in captured:
            assert job.execute_in_process(instance=instance, partition_key=hour, asset_selection=made).success
    with _dagster(settings, home) as url:
        yield Site(url, database_url, captured)


def _capture(settings: Settings, database_url: str) -> list[str]:
    """Three past hours that can have candles, through the wire of the simulated exchange."""
    now_ns = Clock().now_ns() - LATE_S * 1_000_000_000
    save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=1e6), CLIENT_ID)
    add_instruments(database_url, SHARES)
    write_subscriptions(settings.subscriptions_path, [Subscription(token, Mode.FULL, "") for token in SHARES])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HOURS", 3), ("SECONDS_AN_HOUR", 1.0), ("RATE", 1000.0)):
            patch.setattr(history, name, value)
        history.capture_history(settings, database_url, Console(file=StringIO()), now_ns)
    return sorted(hours(settings.journal_dir, history.CAPTURE))


@contextmanager
def _dagster(settings: Settings, home: Path) -> Iterator[str]:
    """Everything but the capture, as a production site has it: its web server's URL, once it answers."""
    port = str(free_port(0))
    given = {name: getattr(settings, name) for name in Settings.model_fields if getattr(settings, name) is not None}
    environment = program.environment(**given) | {"DAGSTER_HOME": str(home)}
    code = ("--module-name", "dhan_pipeline.pipeline_definitions")
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [Path(sys.executable).with_name("dagster"), "dev", "--host", "127.0.0.1", "--port", port, *code],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert server.poll() is None, (home / "log").read_text()
            with suppress(urllib.error.URLError), urllib.request.urlopen(f"{url}/server_info", timeout=5):
                return True
            return False

        try:
            wait_until(answers)
            yield url
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)  # and all that it started
            server.wait()


@dataclass(frozen=True)
class Backfill:
    """A backfill on its way: its page, its hours, and of each the digest and when it was last rebuilt."""

    url: str
    before: dict[str, tuple[str, datetime]]


@pytest.fixture(scope="module")
def backfill(site: Site, browser: Browser) -> Backfill:
    """Of two hours, launched by clicks. It takes the daemon up to a minute, in which other tests look around."""
    before = {hour: _state(site, hour) for hour in site.hours[:2]}
    with in_india(browser) as window:
        page = window.new_page()
        page.goto(f"{site.url}/assets/ticks?view=partitions")
        expect(page.get_by_text("Materialized (3)")).to_be_visible(timeout=PATIENCE)
        page.get_by_text(site.hours[0], exact=True).first.click(timeout=PATIENCE)
        expect(page.get_by_text(before[site.hours[0]][0]).first).to_be_visible(timeout=PATIENCE)  # its digest

        page.get_by_role("button", name="Materialize").first.click(timeout=PATIENCE)
        chosen = page.get_by_role("dialog").get_by_role("textbox").first
        chosen.fill(", ".join(before), timeout=PATIENCE)
        chosen.press("Enter")
        launch = page.get_by_role("button", name="Launch backfill")
        launch.click(timeout=PATIENCE)
        expect(launch).to_be_hidden(timeout=PATIENCE)
        page.goto(f"{site.url}/runs?view=backfills")
        page.locator("a[href*='/runs/b/']").first.click(timeout=PATIENCE)
        expect(page.get_by_text("Partition selection")).to_be_visible(timeout=PATIENCE)
        return Backfill(page.url, before)


def _state(site: Site, hour: str) -> tuple[str, datetime]:
    """The digest of the hour's rows, and when they were last rebuilt."""
    with closing(connect(site.database_url)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT max(rebuilt_at) FROM ingest_ledger WHERE hour = %s", (f"{hour}+05:30",))
        [(rebuilt_at,)] = cursor.fetchall()
        return hour_digest(conn, hour).digest, rebuilt_at


@contextmanager
def changed_by_hand(database_url: str) -> Iterator[None]:
    """The latest tick has another price for a while."""
    change = "UPDATE tick_rows SET last_price = last_price + %s WHERE tick_id = (SELECT max(tick_id) FROM tick_rows)"
    for paise in (5, -5):
        with closing(connect(database_url)) as conn, conn, conn.cursor() as cursor:
            cursor.execute(change, (paise / 100,))
            assert cursor.rowcount == 1
        if paise > 0:
            yield


def test_hours_are_shown_and_a_backfill_of_several_is_launched(backfill: Backfill, page: Page) -> None:
    page.goto(backfill.url)
    for text in ("...".join(backfill.before), "In progress"):
        expect(page.get_by_text(text, exact=True).first).to_be_visible(timeout=PATIENCE)


def test_the_lineage_shows_every_group_and_what_is_in_it(site: Site, page: Page) -> None:
    asked: set[str | None] = set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
    page.goto(f"{site.url}/asset-groups")
    for group in ("reference", "capture", "research", "comparison", "operations"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible(timeout=PATIENCE)
    page.get_by_text("capture", exact=True).last.click()  # the first is in the list at the side
    for asset in ("live_feed", "raw_packets", "ticks"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible(timeout=PATIENCE)
    assert asked <= {"127.0.0.1", None}


def test_an_asset_says_what_it_is_and_where_its_code_is(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/assets/instruments")
    expect(page.get_by_text("The table of every instrument that a list ever named.")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Strike of an option, rupees")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("link", name="Open reference.py")).to_be_visible(timeout=PATIENCE)


def test_a_backfill_shows_how_far_it_is_and_gives_the_same_rows(site: Site, backfill: Backfill, page: Page) -> None:
    page.goto(backfill.url)
    expect(page.get_by_text("100% completed")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(2, timeout=PATIENCE)  # its state, and a column
    page.get_by_role("tab", name="Runs").click()
    expect(page.get_by_text("Success", exact=True)).to_have_count(2, timeout=PATIENCE)
    for hour, (digest, rebuilt_at) in backfill.before.items():
        same_digest, later = _state(site, hour)
        assert same_digest == digest
        assert later > rebuilt_at
    # Its runs are found by their tags, too.
    page.goto(f"{site.url}/runs?q[0]=tag:dhan/role=backfill")
    page.get_by_text("Show runs within backfills").click(timeout=PATIENCE)
    expect(page.get_by_text("Success", exact=True)).to_have_count(2, timeout=PATIENCE)


# After the backfill: the page of a check shows what was found last, of whatever hour.
def test_a_row_that_was_changed_by_hand_fails_a_check_that_says_so(site: Site, page: Page) -> None:
    hour = site.hours[-1]
    with changed_by_hand(site.database_url):
        page.goto(f"{site.url}/assets/ticks?view=checks&checkDetail=digest")
        page.get_by_role("button", name="Execute all").click(timeout=PATIENCE)
        found = page.get_by_text(f"rows of {hour} are not the").first
        expect(found).to_contain_text("something other than this pipeline has changed them", timeout=PATIENCE)
        expect(page.get_by_text("Failed", exact=True).first).to_be_visible(timeout=PATIENCE)
        page.get_by_role("tab", name="Partitions").last.click(timeout=PATIENCE)
        expect(page.get_by_text("Failed (1)", exact=True)).to_be_visible(timeout=PATIENCE)
