import json
import os
import stat
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from dhan_pipeline.feeds.dhan.auth import (
    Credentials,
    check_dhan_token_validity,
    get_dhan_credentials,
    get_websocket_url,
    save_token,
)
from dhan_pipeline.feeds.errors import CredentialsError, SourceError
from dhan_pipeline.settings import Settings

# {"exp": 1786076457, "dhanClientId": "1000000001", "tokenConsumerType": "SELF"}
TOKEN = (
    "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzUxMiJ9."
    "eyJleHAiOjE3ODYwNzY0NTcsImRoYW5DbGllbnRJZCI6IjEwMDAwMDAwMDEiLCJ0b2tlbkNvbnN1bWVyVHlwZSI6IlNFTEYifQ."
    "c2lnbmF0dXJl"
)
EXPIRES_AT = datetime(2026, 8, 7, 4, 20, 57, tzinfo=UTC)


@pytest.fixture
def token_file(tmp_path, monkeypatch):
    for name in ("DHAN_TOKEN_FILE", "DHAN_CLIENT_ID", "DHAN_ACCESS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "dhan_token.json"


def settings(token_file, **fields) -> Settings:
    return Settings(_env_file=None, dhan_token_file=token_file, **fields)


def write(token_file, **fields) -> None:
    token_file.write_text(json.dumps(fields))


def test_credentials_come_from_the_token_file(token_file):
    write(token_file, access_token=TOKEN, client_id="1000000001")
    credentials = get_dhan_credentials(settings(token_file))
    assert credentials.client_id == "1000000001"
    assert credentials.access_token.get_secret_value() == TOKEN
    assert credentials.expires_at == EXPIRES_AT
    assert credentials.source == f"the token file {token_file}"


def test_without_settings_the_environment_names_the_file(token_file, monkeypatch):
    write(token_file, access_token=TOKEN, client_id=1000000001)
    monkeypatch.setenv("DHAN_TOKEN_FILE", str(token_file))
    assert get_dhan_credentials().client_id == "1000000001"


def test_credentials_come_from_the_environment_where_there_is_no_file(token_file, monkeypatch):
    monkeypatch.setenv("DHAN_CLIENT_ID", "1000000001")
    monkeypatch.setenv("DHAN_ACCESS_TOKEN", f"{TOKEN}\n")
    credentials = get_dhan_credentials(settings(token_file))
    assert credentials.access_token.get_secret_value() == TOKEN
    assert credentials.expires_at == EXPIRES_AT
    assert credentials.source == "the variable DHAN_ACCESS_TOKEN"


def test_the_file_wins_over_the_environment(token_file):
    write(token_file, access_token=TOKEN, client_id="1000000001")
    credentials = get_dhan_credentials(settings(token_file, dhan_client_id="2", dhan_access_token="other"))
    assert credentials.client_id == "1000000001"


@pytest.mark.parametrize(
    ("expiry", "expected"),
    [
        ("2026-08-07T09:50:57.000", EXPIRES_AT),  # Dhan's own, which is the Indian wall clock
        ("2026-08-07T04:20:57+00:00", EXPIRES_AT),
        ("2026-08-07T04:20:57Z", EXPIRES_AT),
        ("", None),
        (None, None),
    ],
)
def test_the_expiry_in_the_file_counts_where_the_token_does_not_say(token_file, expiry, expected):
    write(token_file, access_token="opaque", client_id="1", expiry=expiry)
    assert get_dhan_credentials(settings(token_file)).expires_at == expected


def test_what_the_token_says_wins_over_the_expiry_in_the_file(token_file):
    write(token_file, access_token=TOKEN, client_id="1", expiry="2020-01-01")
    assert get_dhan_credentials(settings(token_file)).expires_at == EXPIRES_AT


@pytest.mark.parametrize("token", ["opaque", "a.b.c", "a.e30.c", "a.eyJleHAiOiJuZXZlciJ9.c", "a.bnVsbA.c", "a.ü.c"])
def test_a_token_that_is_no_jwt_has_no_known_expiry(token_file, token):
    write(token_file, access_token=token, client_id="1")
    assert get_dhan_credentials(settings(token_file)).expires_at is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "The token file {} (DHAN_TOKEN_FILE) is not a JSON object with access_token and client_id."),
        ("[]", "The token file {} (DHAN_TOKEN_FILE) is not a JSON object with access_token and client_id."),
        (
            '{"access_token": "secret"',
            "The token file {} (DHAN_TOKEN_FILE) is not a JSON object with access_token and client_id.",
        ),
        ('{"access_token": "secret"}', "The token file {} (DHAN_TOKEN_FILE) has no 'client_id'."),
        ('{"client_id": "1"}', "The token file {} (DHAN_TOKEN_FILE) has no 'access_token'."),
        ('{"client_id": "1", "access_token": "  "}', "The token file {} (DHAN_TOKEN_FILE) has no 'access_token'."),
        (
            '{"client_id": "1", "access_token": "secret", "expiry": "tomorrow"}',
            "The 'expiry' in the token file {} (DHAN_TOKEN_FILE) is not a usable ISO 8601 time.",
        ),
        (
            '{"client_id": "1", "access_token": "secret", "expiry": "0001-01-01"}',  # in India, so year 0 in UTC
            "The 'expiry' in the token file {} (DHAN_TOKEN_FILE) is not a usable ISO 8601 time.",
        ),
        ("[" * 100_000, "The token file {} (DHAN_TOKEN_FILE) is not a JSON object with access_token and client_id."),
    ],
)
def test_a_bad_token_file_is_one_clear_sentence_without_the_token(token_file, content, sentence):
    token_file.write_text(content)
    with pytest.raises(CredentialsError) as caught:
        get_dhan_credentials(settings(token_file))
    assert str(caught.value) == sentence.format(token_file)


def test_a_token_file_that_cannot_be_read_says_why(token_file):
    token_file.mkdir()
    with pytest.raises(CredentialsError) as caught:
        get_dhan_credentials(settings(token_file))
    assert str(caught.value) == f"The token file {token_file} (DHAN_TOKEN_FILE) cannot be read: Is a directory."


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({}, "DHAN_CLIENT_ID and DHAN_ACCESS_TOKEN are"),
        ({"dhan_client_id": "1"}, "DHAN_ACCESS_TOKEN is"),
        ({"dhan_access_token": "secret"}, "DHAN_CLIENT_ID is"),
    ],
)
def test_missing_credentials_name_the_file_and_the_variables_and_what_to_do(token_file, fields, missing):
    with pytest.raises(CredentialsError) as caught:
        get_dhan_credentials(settings(token_file, **fields))
    assert str(caught.value) == (
        f"There is no token file {token_file} (DHAN_TOKEN_FILE), and {missing} not set: make a token with"
        " `dhan-pipeline token generate --source dhan`, or set DHAN_CLIENT_ID and DHAN_ACCESS_TOKEN."
    )


@pytest.mark.parametrize(
    ("before_expiry", "valid"), [(timedelta(minutes=5), True), (timedelta(minutes=4, seconds=59), False)]
)
def test_a_token_is_valid_as_long_as_the_margin_is_left(before_expiry, valid):
    credentials = Credentials("1", SecretStr(TOKEN), EXPIRES_AT, "")
    assert check_dhan_token_validity(credentials, now=EXPIRES_AT - before_expiry) is valid


def test_a_token_of_unknown_expiry_passes_as_valid():
    assert check_dhan_token_validity(Credentials("1", SecretStr("opaque"), None, ""))


def test_an_expired_token_is_not_valid_by_the_clock_of_the_machine():
    credentials = Credentials("1", SecretStr(TOKEN), datetime(2020, 1, 1, tzinfo=UTC), "")
    assert not check_dhan_token_validity(credentials, margin=timedelta(0))


def test_the_url_has_the_four_parameters_encoded():
    url = get_websocket_url(Credentials("1000 1", SecretStr("a+b/c&d="), None, ""))
    assert url == "wss://api-feed.dhan.co?version=2&token=a%2Bb%2Fc%26d%3D&clientId=1000+1&authType=2"
    assert parse_qs(urlsplit(url).query)["token"] == ["a+b/c&d="]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api-feed.dhan.co",
        "https://api-feed.dhan.co",
        "ws://",
        "ws://h:x",
        "ws://a..b",
        "wss://h?token=secret",
    ],
)
def test_a_wrong_feed_address_is_one_clear_sentence_that_does_not_quote_it(url):
    with pytest.raises(SourceError) as caught:
        get_websocket_url(Credentials("1", SecretStr("secret"), None, ""), url)
    assert str(caught.value) == "DHAN_FEED_URL has to be an address with ws:// or wss://, without parameters."


def test_printing_credentials_does_not_show_the_token(token_file):
    write(token_file, access_token=TOKEN, client_id="1")
    credentials = get_dhan_credentials(settings(token_file))
    assert TOKEN not in f"{credentials} {credentials!r}"


def test_a_saved_token_is_read_back_and_private(token_file):
    old = os.umask(0)
    try:
        save_token(token_file, TOKEN, "1", datetime(2026, 8, 7, 4, 20, 57, tzinfo=UTC))
    finally:
        os.umask(old)
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert json.loads(token_file.read_text())["expiry"] == "2026-08-07T04:20:57+00:00"
    assert get_dhan_credentials(settings(token_file)).client_id == "1"


def test_saving_replaces_the_file_without_leaving_another(token_file):
    save_token(token_file, "old", "1")
    with token_file.open() as reader:
        save_token(token_file, "new", "1")
        assert json.load(reader)["access_token"] == "old"  # who read meanwhile has the whole old file
    assert json.loads(token_file.read_text())["access_token"] == "new"
    assert [*token_file.parent.iterdir()] == [token_file]


def test_a_token_that_cannot_be_saved_leaves_the_old_one(token_file):
    token_file.mkdir()
    with pytest.raises(OSError, match="directory"):
        save_token(token_file, "new", "1")
    assert [*token_file.parent.iterdir()] == [token_file]
