import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.errors import CredentialsError, TokenError, TokenLostError
from dhan_pipeline.feeds.kite.auth import get_kite_credentials, save_kite_token, token_expiry
from dhan_pipeline.feeds.kite.token import generate_token, login_url, read_profile, token_report
from dhan_pipeline.feeds.simulator.kite_rest import KiteRest
from dhan_pipeline.feeds.simulator.tokens import API_KEY, API_SECRET, make_kite_access_token
from dhan_pipeline.settings import Settings


@asynccontextmanager
async def broker(tmp_path: Path, **overrides: Any) -> AsyncIterator[tuple[KiteRest, Settings]]:
    """The broker, and the settings of an account without a token."""
    rest = KiteRest(Clock())
    await rest.start()
    facts = {
        "data_source": "kite",
        "kite_api_url": f"http://127.0.0.1:{rest.port}",
        "kite_token_file": tmp_path / "token" / "kite_token.json",
        "kite_api_key": API_KEY,
        "kite_api_secret": API_SECRET,
        **overrides,
    }
    try:
        yield rest, Settings(_env_file=None, **facts)
    finally:
        await rest.aclose()


@asynccontextmanager
async def answering(body: bytes) -> AsyncIterator[str]:
    """The address of a server that answers everything with this."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_token_is_made_of_a_login_and_kept_for_its_owner_only(tmp_path: Path) -> None:
    async with broker(tmp_path) as (rest, settings):
        made = await asyncio.to_thread(generate_token, settings, Clock(), " a-login ")
        kept = get_kite_credentials(settings)
        assert kept == made
        assert kept.access_token.get_secret_value() == rest.active_token
        assert kept.expires_at == token_expiry(Clock().now())
        assert stat.S_IMODE(settings.kite_token_file.stat().st_mode) == 0o600
        profile = await asyncio.to_thread(read_profile, settings, kept)
        assert profile.user_id == "AB1234"
        assert profile.exchanges.startswith("NSE, NFO, ")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"kite_api_secret": "wrong"}, "Kite does not give a token: TokenException Invalid `checksum`."),
        ({"kite_api_secret": None}, "A token can only be made with KITE_API_SECRET set"),
        ({"kite_api_key": None}, "A login is for a Kite Connect app: set KITE_API_KEY."),
        ({"kite_api_url": "http://127.0.0.1:1"}, "it cannot be reached; is KITE_API_URL right?"),
        ({"kite_api_url": "http://.com"}, "it cannot be reached; is KITE_API_URL right?"),
        ({"kite_token_file": Path("/proc/token.json")}, r"A token was made, but the token file .* cannot be written"),
    ],
)
async def test_why_no_token_was_made_is_one_clear_sentence_without_secrets(
    tmp_path: Path, overrides: dict[str, Any], sentence: str
) -> None:
    async with broker(tmp_path, **overrides) as (rest, settings):
        with pytest.raises(TokenError, match=sentence) as caught:
            await asyncio.to_thread(generate_token, settings, Clock(), "a-login")
        assert isinstance(caught.value, TokenLostError) == bool(rest.made)
    told = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert not [secret for secret in (API_SECRET, "a-login", rest.active_token) if secret and secret in told]


def test_the_login_is_for_the_app_of_the_settings_or_of_the_token_file(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, kite_token_file=tmp_path / "kite.json", kite_api_key="a key")
    assert login_url(settings) == "https://kite.zerodha.com/connect/login?v=3&api_key=a+key"
    save_kite_token(tmp_path / "kite.json", "secret", "filed")
    assert login_url(settings.model_copy(update={"kite_api_key": None})).endswith("&api_key=filed")


async def test_a_token_is_good_as_long_as_kite_takes_it(tmp_path: Path) -> None:
    async with broker(tmp_path) as (rest, settings):
        save_kite_token(settings.kite_token_file, make_kite_access_token(), API_KEY)
        report = await asyncio.to_thread(token_report, settings, Clock())
        assert (report["good"], report["problem"], report["can_refresh"]) == (True, None, False)
        assert 0 < report["seconds_left"] <= 86_400
        rest.active_token = "another"
        report = await asyncio.to_thread(token_report, settings, Clock())
        assert report["good"] is False
        assert report["problem"].startswith("Kite does not give the profile: TokenException Incorrect")


async def test_a_token_whose_time_is_over_is_not_offered(tmp_path: Path) -> None:
    async with broker(tmp_path) as (_, settings):
        save_kite_token(settings.kite_token_file, "secret", API_KEY, Clock().now() - timedelta(days=2))
        offline = settings.model_copy(update={"kite_api_url": "http://127.0.0.1:1"})
        report = await asyncio.to_thread(token_report, offline, Clock())
        assert (
            report["problem"] == "Its time is over: log in for another (`dhan-pipeline token generate --source kite`)."
        )


def test_a_token_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="There is no token file"):
        token_report(Settings(_env_file=None, kite_token_file=tmp_path / "kite.json"), Clock())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"{}", "Kite's profile does not say whose it is."),
        (b'{"status":"success","data":[]}', "Kite's profile does not say whose it is."),
        *(
            (body, "Kite does not give the profile: its answer, HTTP status 200, is not JSON.")
            for body in (b"<html>", b"\xff", b"[" * 100_000)
        ),
        (b"[]", "Kite does not give the profile: HTTP status 200."),
    ],
)
async def test_an_answer_of_another_shape_is_one_clear_sentence(tmp_path: Path, answer: bytes, sentence: str) -> None:
    async with broker(tmp_path) as (_, settings), answering(answer) as url:
        save_kite_token(settings.kite_token_file, "secret", API_KEY)
        odd = settings.model_copy(update={"kite_api_url": url})
        report = await asyncio.to_thread(token_report, odd, Clock())
        assert report["problem"] == sentence


async def test_a_token_that_no_header_can_carry_is_not_good(tmp_path: Path) -> None:
    async with broker(tmp_path) as (_, settings):
        save_kite_token(settings.kite_token_file, "sécret", API_KEY)
        report = await asyncio.to_thread(token_report, settings, Clock())
        assert report["problem"] == "Kite does not give the profile: the access token has characters that none has."
