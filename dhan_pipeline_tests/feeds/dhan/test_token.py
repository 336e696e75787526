import asyncio
import logging
import stat
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan import token as module
from dhan_pipeline.feeds.dhan.auth import get_dhan_credentials, save_token
from dhan_pipeline.feeds.dhan.client import Feed
from dhan_pipeline.feeds.dhan.connection import FeedPolicy
from dhan_pipeline.feeds.dhan.token import (
    TokenError,
    can_refresh,
    generate_token,
    read_profile,
    refresh_token,
    renew_token,
    token_report,
)
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, PIN, TOTP_SECRET, make_token
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Mode

INSTRUMENTS = [generate_instrument_token(ExchangeSegment.NSE_EQ, number) for number in range(1, 51)]
HOURS = timedelta(hours=1)


@asynccontextmanager
async def broker(tmp_path: Path, **overrides: Any) -> AsyncIterator[tuple[DhanSimulator, Settings]]:
    """The broker, and the settings of an account with PIN and TOTP but without a token."""
    async with DhanSimulator(INSTRUMENTS, rate=3000, record=True) as simulator:
        simulator.rest._generate_interval_s = 0.0
        simulator.rest._generated_at = 0.0
        facts = {
            "data_dir": tmp_path / "data",
            "dhan_token_file": tmp_path / "token" / "dhan_token.json",
            "dhan_client_id": CLIENT_ID,
            "dhan_pin": PIN,
            "dhan_totp_secret": TOTP_SECRET,
            "dhan_api_url": simulator.rest_url,
            "dhan_auth_url": simulator.rest_url,
            "dhan_feed_url": simulator.feed_url,
            **overrides,
        }
        yield simulator, Settings(_env_file=None, **facts)


async def test_a_token_is_made_with_pin_and_totp_and_kept_for_its_owner_only(tmp_path: Path) -> None:
    async with broker(tmp_path) as (simulator, settings):
        made = await asyncio.to_thread(generate_token, settings, Clock())
        kept = get_dhan_credentials(settings)
        assert kept.access_token.get_secret_value() == simulator.rest.active_token
        assert made.access_token == kept.access_token
        assert made.expires_at is not None
        assert timedelta(hours=23) < made.expires_at - datetime.now(UTC) <= timedelta(hours=24)
        assert stat.S_IMODE(settings.dhan_token_file.stat().st_mode) == 0o600


async def test_a_token_that_lives_is_renewed_and_the_old_one_ends(tmp_path: Path) -> None:
    async with broker(tmp_path) as (simulator, settings):
        old = make_token(CLIENT_ID)
        save_token(settings.dhan_token_file, old, CLIENT_ID)
        new = await asyncio.to_thread(renew_token, settings, Clock())
        assert new.access_token.get_secret_value() != old
        assert simulator.rest.judge(CLIENT_ID, old) == 809
        profile = await asyncio.to_thread(read_profile, settings, new)
        assert (profile.client_id, profile.data_plan_active) == (CLIENT_ID, True)


async def test_one_that_is_over_cannot_be_renewed(tmp_path: Path) -> None:
    async with broker(tmp_path) as (_, settings):
        save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=-5), CLIENT_ID)
        with pytest.raises(TokenError, match="time is over, so it cannot be renewed; generate a new one"):
            await asyncio.to_thread(renew_token, settings, Clock())


@pytest.mark.parametrize(
    ("expires_in", "needed_h", "refused", "made"),
    [
        (86_400, 10, False, False),
        (7_200, 10, False, True),
        (-5, 0, False, True),
        (86_400, 0, True, True),
    ],
)
async def test_a_token_is_refreshed_only_if_it_does_not_last_or_was_refused(
    tmp_path: Path, expires_in: float, needed_h: int, refused: bool, made: bool
) -> None:
    async with broker(tmp_path) as (simulator, settings):
        token = make_token(CLIENT_ID, expires_in=expires_in)
        save_token(settings.dhan_token_file, token, CLIENT_ID)
        result = await asyncio.to_thread(
            refresh_token,
            settings,
            Clock(),
            needed_until=datetime.now(UTC) + needed_h * HOURS,
            refused=token if refused else None,
        )
        assert (result is not None) == made
        assert simulator.rest.made == made


async def test_many_who_want_a_token_at_once_make_one(tmp_path: Path) -> None:
    async with broker(tmp_path) as (simulator, settings):
        wanting = [asyncio.to_thread(refresh_token, settings, Clock()) for _ in range(8)]
        results = await asyncio.gather(*wanting)
        assert simulator.rest.made == 1
        assert sum(result is not None for result in results) == 1


async def test_whoever_failed_does_not_try_again_at_once(tmp_path: Path) -> None:
    async with broker(tmp_path, dhan_pin="999999") as (simulator, settings):
        with pytest.raises(TokenError, match="Dhan does not give a token: DH-901 Invalid Pin"):
            await asyncio.to_thread(generate_token, settings, Clock())
        with pytest.raises(TokenError, match=r"asked for \d s ago; Dhan gives one every 130 s at most"):
            await asyncio.to_thread(generate_token, settings, Clock())
        assert simulator.rest.made == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"dhan_totp_secret": "not base32!"}, "DHAN_TOTP_SECRET is not a base32 secret"),
        ({"dhan_totp_secret": TOTP_SECRET[::-1]}, "DH-901 Invalid TOTP"),
        ({"dhan_client_id": None}, "set DHAN_CLIENT_ID"),
        ({"dhan_auth_url": "http://127.0.0.1:1"}, "it cannot be reached"),
        ({"dhan_auth_url": "not an address"}, "it cannot be reached"),
        ({"dhan_token_file": Path("/proc/token.json")}, "is where no file can be written"),
        ({"dhan_pin": None}, "only be made with DHAN_PIN and DHAN_TOTP_SECRET set"),
    ],
)
async def test_what_a_person_got_wrong_is_one_sentence(
    tmp_path: Path, overrides: dict[str, Any], sentence: str
) -> None:
    async with broker(tmp_path, **overrides) as (_, settings):
        with pytest.raises(TokenError, match=sentence) as caught:
            await asyncio.to_thread(generate_token, settings, Clock())
        assert "\n" not in str(caught.value)


async def test_neither_pin_nor_totp_nor_token_is_in_any_log_or_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    async with broker(tmp_path) as (simulator, settings):
        await asyncio.to_thread(generate_token, settings, Clock())
        token = simulator.rest.active_token or ""
        for url in ("http://127.0.0.1:1", simulator.rest_url + "/nowhere"):
            wrong = settings.model_copy(update={"dhan_auth_url": url, "dhan_api_url": url})
            for call in (generate_token, renew_token):
                settings.dhan_token_file.with_name(".dhan_token.json.lock").unlink()
                try:
                    await asyncio.to_thread(call, wrong, Clock())
                except TokenError as error:
                    said.append("".join(traceback.format_exception(error)))
        totps = module.pyotp.TOTP(TOTP_SECRET)
        secrets = [token, PIN, TOTP_SECRET, totps.now(), totps.at(datetime.now(UTC) - timedelta(seconds=30))]
    assert len(said) == 4
    everything = caplog.text + "".join(said)
    assert not [secret for secret in secrets if secret in everything]


async def test_the_report_says_what_is_wrong_and_never_the_token(tmp_path: Path) -> None:
    async with broker(tmp_path) as (simulator, settings):
        await asyncio.to_thread(generate_token, settings, Clock())
        good = await asyncio.to_thread(token_report, settings, Clock())
        assert (good["good"], good["problem"], good["client_id"]) == (True, None, CLIENT_ID)
        assert (simulator.rest.active_token or "") not in str(good)
        simulator.rest.data_plan = "Deactive"
        assert "no active data plan" in (await asyncio.to_thread(token_report, settings, Clock()))["problem"]
        simulator.rest.active_token = "another"
        assert "DH-906 Invalid Token" in (await asyncio.to_thread(token_report, settings, Clock()))["problem"]
        save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=-1), CLIENT_ID)
        assert (await asyncio.to_thread(token_report, settings, Clock()))["problem"] == "Its time is over."


def test_without_pin_and_secret_nothing_can_be_refreshed() -> None:
    assert not can_refresh(Settings(_env_file=None))
    assert not can_refresh(Settings(_env_file=None, dhan_pin="1"))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [807, 809])
async def test_a_running_feed_makes_itself_a_new_token_and_loses_no_message_that_arrived(
    tmp_path: Path, code: int
) -> None:
    async with broker(tmp_path) as (simulator, settings):
        save_token(settings.dhan_token_file, make_token(CLIENT_ID), CLIENT_ID)
        received: list[bytes | str] = []
        warnings: list[str] = []
        feed = Feed(
            settings,
            dict.fromkeys(INSTRUMENTS, Mode.FULL),
            lambda payload, _: received.append(payload),
            warnings.append,
            policy=FeedPolicy(first_delay_s=0.01, token_poll_s=0.01),
        )
        running = asyncio.create_task(feed.run())
        async with asyncio.timeout(20):
            while len(received) < 500:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            simulator.rest.active_token = "none of ours"
            await simulator.disconnect(code)
            before = len(simulator.logs[0].crc)
            while len(received) < before + 500:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert simulator.rest.made == 1
        expires_at = get_dhan_credentials(settings).expires_at
        assert feed.token_expires_at == expires_at
        simulator.rate = 0
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        sent = sum(len(log.crc) for log in simulator.logs)
        assert len(simulator.logs) == 2
    assert before <= len(received) <= sent
