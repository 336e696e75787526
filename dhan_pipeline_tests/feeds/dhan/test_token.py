import asyncio
import errno
import logging
import resource
import socket
import stat
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.connection import FeedPolicy
from dhan_pipeline.feeds.dhan import token as module
from dhan_pipeline.feeds.dhan.auth import get_dhan_credentials, save_token
from dhan_pipeline.feeds.dhan.client import Feed
from dhan_pipeline.feeds.dhan.token import (
    can_refresh,
    generate_token,
    read_profile,
    refresh_token,
    renew_token,
    token_report,
)
from dhan_pipeline.feeds.errors import TokenError, TokenLostError
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.rest import PLAN_LASTS
from dhan_pipeline.feeds.simulator.tokens import CLIENT_ID, PIN, TOTP_SECRET, make_token
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.feeds.dhan.received import one_by_one

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
        assert datetime.fromisoformat(good["data_plan_until"]) > datetime.now(UTC) + PLAN_LASTS
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


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write more into any file, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_no_token_is_asked_for_where_it_could_not_be_kept(tmp_path: Path) -> None:
    async with broker(tmp_path) as (simulator, settings):
        with files_of_at_most(1000), pytest.raises(TokenError, match="no file can be written: File too large"):
            await asyncio.to_thread(generate_token, settings, Clock())
        assert [path.name for path in settings.dhan_token_file.parent.iterdir()] == [".dhan_token.json.lock"]
        settings.dhan_token_file.mkdir()
        with pytest.raises(TokenError, match="no file can be written: Is a directory"):
            await asyncio.to_thread(generate_token, settings, Clock())
        assert simulator.rest.made == 0


def fail_to_save(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_renewed_token_that_was_lost_is_not_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with broker(tmp_path) as (simulator, settings):
        save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=7200), CLIENT_ID)
        monkeypatch.setattr(module, "save_token", fail_to_save)
        with pytest.raises(TokenLostError, match=r"A token was made, but .* cannot be written: No space left"):
            await asyncio.to_thread(refresh_token, settings, Clock(), needed_until=datetime.now(UTC) + 10 * HOURS)
        assert simulator.rest.made == 1


async def test_a_token_is_kept_although_its_time_makes_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with broker(tmp_path) as (simulator, settings):
        reply = {"accessToken": "opaque", "expiryTime": "0001-01-01T00:00:00.000"}
        monkeypatch.setattr(simulator.rest, "_make", lambda client_id, consumer: reply)
        await asyncio.to_thread(generate_token, settings, Clock())
        kept = get_dhan_credentials(settings)
        assert (kept.access_token.get_secret_value(), kept.expires_at) == ("opaque", None)
        profile = {"dhanClientId": CLIENT_ID, "tokenValidity": "01/01/0001 00:00"}
        monkeypatch.setattr(simulator.rest, "_profile", lambda token: (HTTPStatus.OK, profile))
        with pytest.raises(TokenError, match="does not say how long the token is valid"):
            await asyncio.to_thread(read_profile, settings, kept)


QUICK = FeedPolicy(
    first_delay_s=0.01,
    longest_delay_s=0.02,
    token_poll_s=0.01,
    refused_token_rest_s=0.05,
    mint_interval_s=0.01,
)


class Listener:
    """What a feed of one connection brings: the CRC-32 of each message of each socket, and the warnings."""

    def __init__(self, settings: Settings, policy: FeedPolicy = QUICK) -> None:
        self.sockets: list[list[int]] = []
        self.warnings: list[str] = []
        self.feed = Feed(
            settings,
            dict.fromkeys(INSTRUMENTS, Mode.FULL),
            lambda payload, _, count: self.sockets[-1].extend(map(crc32, one_by_one(payload, count))),  # type: ignore[arg-type]
            self.warnings.append,
            policy=policy,
            on_connect=lambda _: self.sockets.append([]),
        )

    @property
    def received(self) -> int:
        return sum(map(len, self.sockets))

    async def lost(self, times: int) -> None:
        """Wait until the connection was lost so many times more."""
        before = self.losses
        await until(lambda: self.losses >= before + times)

    @property
    def losses(self) -> int:
        return sum("Dhan's connection 0 is down" in warning for warning in self.warnings)


@asynccontextmanager
async def listening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: FeedPolicy = QUICK, **overrides: Any
) -> AsyncIterator[tuple[DhanSimulator, Settings, Listener]]:
    """A feed with a token, that may make tokens as often as it wants to."""
    monkeypatch.setattr(module, "MINT_INTERVAL_S", 0.0)
    async with broker(tmp_path, **overrides) as (simulator, settings):
        save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=7200), CLIENT_ID)
        listener = Listener(settings, policy)
        running = asyncio.create_task(listener.feed.run())
        await until(lambda: listener.received > 100)
        yield simulator, settings, listener
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def refuse(simulator: DhanSimulator, refusal: int | HTTPStatus) -> None:
    """Refuse every token from now on, and end what stands."""
    if isinstance(refusal, HTTPStatus):
        simulator.faults.refuse = refusal
    else:
        simulator._accept = lambda *_: refusal
    simulator.reset()


@pytest.mark.parametrize("refusal", [808, HTTPStatus.UNAUTHORIZED])
async def test_one_token_is_made_where_the_server_refuses_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | HTTPStatus
) -> None:
    async with listening(tmp_path, monkeypatch) as (simulator, settings, listener):
        await refuse(simulator, refusal)
        await listener.lost(8)
        assert simulator.rest.made == 1
        save_token(settings.dhan_token_file, make_token(CLIENT_ID), CLIENT_ID)
        await until(lambda: simulator.rest.made == 2)
        await listener.lost(8)
        assert simulator.rest.made == 2


async def test_a_token_that_was_useful_is_replaced_when_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path, monkeypatch, replace(QUICK, stable_s=0.0)) as (simulator, _, listener):
        for made in (1, 2):
            simulator.rest.active_token = "none of ours"
            await simulator.disconnect(808)
            await until(lambda: simulator.rest.made == made)  # noqa: B023
            before = listener.received
            await until(lambda: listener.received > before + 100)  # noqa: B023
            assert simulator.rest.made == made


async def test_no_token_is_made_for_a_wrong_client_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(tmp_path, monkeypatch) as (simulator, _, listener):
        await refuse(simulator, 810)
        await listener.lost(4)
        assert simulator.rest.made == 0


async def test_a_failed_attempt_to_make_a_token_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = replace(QUICK, refused_token_rest_s=60.0)
    async with listening(tmp_path, monkeypatch, policy) as (simulator, _, listener):
        simulator.rest._pin = "another"
        simulator.rest.active_token = "none of ours"
        await simulator.disconnect(807)
        await until(lambda: sum("Invalid Pin" in warning for warning in listener.warnings) > 1)
        simulator.rest._pin = PIN
        await until(lambda: len(listener.sockets) == 2)
        assert simulator.rest.made == 1


async def test_a_token_that_was_made_and_lost_is_not_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path, monkeypatch) as (simulator, _, listener):
        monkeypatch.setattr(module, "save_token", fail_to_save)
        await refuse(simulator, 808)
        await listener.lost(8)
        assert simulator.rest.made == 1


@pytest.mark.parametrize("code", [807, 809])
async def test_a_running_feed_makes_itself_a_new_token_and_loses_nothing_that_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async with listening(tmp_path, monkeypatch) as (simulator, settings, listener):
        simulator.rest.active_token = "none of ours"
        await simulator.disconnect(code)
        await until(lambda: len(listener.sockets) == 2 and len(listener.sockets[1]) > 500)
        assert simulator.rest.made == 1
        assert listener.feed.token_expires_at == get_dhan_credentials(settings).expires_at
        simulator.rate = 0
        simulator.flush()
        await until(lambda: listener.received == sum(len(log.crc) for log in simulator.logs))
        assert listener.sockets == [list(log.crc) for log in simulator.logs]


async def test_a_token_that_is_replaced_while_connected_is_used_at_the_next_connection_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path, monkeypatch) as (simulator, settings, listener):
        made = await asyncio.to_thread(renew_token, settings, Clock())
        before = listener.received
        await until(lambda: listener.received > before + 500)
        assert len(listener.sockets) == 1
        assert listener.feed.token_expires_at == made.expires_at
        await simulator.disconnect(807)
        await until(lambda: len(listener.sockets) == 2 and len(listener.sockets[1]) > 500)
        assert simulator.rest.made == 1
        simulator.rate = 0
        simulator.flush()
        await until(lambda: listener.received == sum(len(log.crc) for log in simulator.logs))
        assert listener.sockets == [list(log.crc) for log in simulator.logs]


@contextmanager
def a_server_that_trickles() -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """Its address, and whether it was asked something, and whether it has answered: it takes ten seconds for it."""
    asked, over, answered = threading.Event(), threading.Event(), threading.Event()

    def serve() -> None:
        client, _ = server.accept()
        with client, suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 201\r\n\r\n")
            asked.set()
            for _ in range(200):
                client.sendall(b" ")
                if over.wait(0.05):
                    return
            answered.set()
            client.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked, answered
        over.set()
        thread.join()


def test_a_feed_and_its_loop_end_while_a_server_takes_its_time_with_a_token(tmp_path: Path) -> None:
    with a_server_that_trickles() as (url, asked, answered):
        settings = Settings(
            _env_file=None,
            data_dir=tmp_path,
            dhan_token_file=tmp_path / "token.json",
            dhan_client_id=CLIENT_ID,
            dhan_pin=PIN,  # type: ignore[arg-type]
            dhan_totp_secret=TOTP_SECRET,  # type: ignore[arg-type]
            dhan_auth_url=url,
        )

        async def start_and_stop() -> None:
            feed = asyncio.create_task(Feed(settings, {}, lambda payload, connection, count: None).run())
            await until(asked.is_set)
            feed.cancel()
            await asyncio.wait([feed])

        asyncio.run(start_and_stop())
        assert not answered.is_set()
