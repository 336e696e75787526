import json
import os
import stat
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from dhan_pipeline.feeds.errors import CredentialsError, SourceError
from dhan_pipeline.feeds.kite.auth import (
    Credentials,
    check_kite_token_validity,
    get_kite_credentials,
    get_kite_websocket_url,
    save_kite_token,
    token_expiry,
)
from dhan_pipeline.settings import Settings

SIX = datetime(2026, 8, 7, 0, 30, tzinfo=UTC)  # 06:00 in India


@pytest.fixture
def token_file(tmp_path, monkeypatch):
    for name in ("KITE_TOKEN_FILE", "KITE_API_KEY", "KITE_ACCESS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "kite_token.json"


def settings(token_file, **fields) -> Settings:
    return Settings(_env_file=None, kite_token_file=token_file, **fields)


def write(token_file, **fields) -> None:
    token_file.write_text(json.dumps(fields))


def test_credentials_come_from_the_token_file(token_file):
    write(token_file, access_token="secret", api_key=" key ", login_time="2026-08-06 08:12:00")
    assert get_kite_credentials(settings(token_file)) == Credentials(
        "key", SecretStr("secret"), SIX, f"the token file {token_file}"
    )


def test_without_settings_the_environment_names_the_file(token_file, monkeypatch):
    write(token_file, access_token="secret", api_key="key")
    monkeypatch.setenv("KITE_TOKEN_FILE", str(token_file))
    assert get_kite_credentials().api_key == "key"


def test_credentials_come_from_the_environment_where_there_is_no_file(token_file, monkeypatch):
    monkeypatch.setenv("KITE_API_KEY", "key")
    monkeypatch.setenv("KITE_ACCESS_TOKEN", "secret\n")
    credentials = get_kite_credentials(settings(token_file))
    assert credentials == Credentials("key", SecretStr("secret"), None, "the variable KITE_ACCESS_TOKEN")


@pytest.mark.parametrize(
    ("login_time", "expires_at"),
    [
        ("2026-08-06 08:12:00", SIX),
        ("2026-08-06T18:29:59+00:00", SIX),
        ("2026-08-07T05:59:59", SIX),  # in the night: it dies in the morning
        ("2026-08-07T06:00:00", SIX + timedelta(days=1)),
        ("2026-08-07T00:30:00Z", SIX + timedelta(days=1)),
    ],
)
def test_a_token_dies_at_six_in_the_morning_after_it_was_made(token_file, login_time, expires_at):
    write(token_file, access_token="secret", api_key="key", login_time=login_time)
    assert get_kite_credentials(settings(token_file)).expires_at == expires_at


def test_a_token_of_unknown_age_is_taken_to_be_as_old_as_its_file(token_file):
    write(token_file, access_token="secret", api_key="key")
    written_s = datetime(2026, 8, 6, 3, 0, tzinfo=UTC).timestamp()
    os.utime(token_file, (written_s, written_s))
    assert get_kite_credentials(settings(token_file)).expires_at == SIX


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "The token file {} (KITE_TOKEN_FILE) is not a JSON object with access_token and api_key."),
        (
            '{"access_token": "secret"',
            "The token file {} (KITE_TOKEN_FILE) is not a JSON object with access_token and api_key.",
        ),
        ('{"access_token": "secret"}', "The token file {} (KITE_TOKEN_FILE) has no 'api_key'."),
        ('{"api_key": "key"}', "The token file {} (KITE_TOKEN_FILE) has no 'access_token'."),
        (
            '{"api_key": "key", "access_token": "secret", "login_time": "today"}',
            "The 'login_time' in the token file {} (KITE_TOKEN_FILE) is not a usable ISO 8601 time.",
        ),
    ],
)
def test_a_bad_token_file_is_one_clear_sentence_without_the_token(token_file, content, sentence):
    token_file.write_text(content)
    with pytest.raises(CredentialsError) as caught:
        get_kite_credentials(settings(token_file))
    assert str(caught.value) == sentence.format(token_file)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({}, "KITE_API_KEY and KITE_ACCESS_TOKEN are"),
        ({"kite_api_key": "key"}, "KITE_ACCESS_TOKEN is"),
        ({"kite_access_token": "secret"}, "KITE_API_KEY is"),
    ],
)
def test_missing_credentials_name_the_file_and_the_variables_and_what_to_do(token_file, fields, missing):
    with pytest.raises(CredentialsError) as caught:
        get_kite_credentials(settings(token_file, **fields))
    assert str(caught.value) == (
        f"There is no token file {token_file} (KITE_TOKEN_FILE), and {missing} not set: make a token with"
        " `dhan-pipeline token generate --source kite`, or set KITE_API_KEY and KITE_ACCESS_TOKEN."
    )


@pytest.mark.parametrize(
    ("before_expiry", "valid"), [(timedelta(minutes=5), True), (timedelta(minutes=4, seconds=59), False)]
)
def test_a_token_is_valid_as_long_as_the_margin_is_left(before_expiry, valid):
    credentials = Credentials("key", SecretStr("secret"), SIX, "")
    assert check_kite_token_validity(credentials, now=SIX - before_expiry) is valid


def test_a_token_of_unknown_expiry_passes_as_valid():
    assert check_kite_token_validity(Credentials("key", SecretStr("secret"), None, ""))


def test_the_url_has_both_parameters_encoded():
    url = get_kite_websocket_url(Credentials("my key", SecretStr("a+b&c="), None, ""))
    assert url == "wss://ws.kite.trade?api_key=my+key&access_token=a%2Bb%26c%3D"
    assert parse_qs(urlsplit(url).query)["access_token"] == ["a+b&c="]


@pytest.mark.parametrize("url", ["", "https://ws.kite.trade", "wss://h?access_token=secret"])
def test_a_wrong_feed_address_is_one_clear_sentence_that_does_not_quote_it(url):
    with pytest.raises(SourceError) as caught:
        get_kite_websocket_url(Credentials("key", SecretStr("secret"), None, ""), url)
    assert str(caught.value) == "KITE_FEED_URL has to be an address with ws:// or wss://, without parameters."


def test_printing_credentials_does_not_show_the_token(token_file):
    write(token_file, access_token="secret", api_key="key")
    credentials = get_kite_credentials(settings(token_file))
    assert "secret" not in f"{credentials} {credentials!r}"


def test_a_saved_token_is_read_back_and_private(token_file):
    login_time = datetime(2026, 8, 6, 8, tzinfo=UTC)
    save_kite_token(token_file, "secret", "key", login_time)
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    credentials = get_kite_credentials(settings(token_file))
    assert (credentials.api_key, credentials.expires_at) == ("key", token_expiry(login_time))
    assert [*token_file.parent.iterdir()] == [token_file]
