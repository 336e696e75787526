"""Kite's access token: where it is kept, how long it lives, the URL that carries it.

A login makes one a day. It dies at six the next morning, India's time, and says nothing of that itself. So it is only
read here, again at every connection. https://kite.trade/docs/connect/v3/user/

Errors are those of `errors`; none of their messages contains the token.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

from pydantic import SecretStr

from dhan_pipeline.feeds.auth import (
    check_feed_address,
    check_token_validity,
    read_time,
    read_token_file,
    read_variables,
    write_token_file,
)
from dhan_pipeline.feeds.errors import CredentialsError
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings

FEED_URL = "wss://ws.kite.trade"

#: The hour of the day, India's time, at which all tokens die.
LAST_HOUR = 6


@dataclass(frozen=True, slots=True)
class Credentials:
    """What Kite knows us by. Printing it does not show the token."""

    api_key: str
    access_token: SecretStr
    expires_at: datetime | None
    """When the token's time is over, UTC; None if it is not known when it was made."""
    source: str
    """The file or the variable that the token came from, for messages to people."""


def get_kite_credentials(settings: Settings | None = None) -> Credentials:
    """The API key and access token: from the token file, or from the environment where that file does not exist.

    `settings` default to those of the environment (KITE_TOKEN_FILE; KITE_API_KEY and KITE_ACCESS_TOKEN). The file is
    JSON with `api_key`, `access_token`, and optionally `login_time` (ISO 8601, IST unless it names an offset), which is
    when the token was made; without it, that is taken to be when the file was written. Whether the token is still valid
    is not judged.

    Raises CredentialsError naming the file or the variable that is missing or wrong.
    """
    settings = settings or Settings()
    path = settings.kite_token_file
    fields = read_token_file(path, "KITE_TOKEN_FILE", ("access_token", "api_key"))
    if fields is None:
        values = {"KITE_API_KEY": settings.kite_api_key, "KITE_ACCESS_TOKEN": settings.kite_access_token}
        try:
            api_key, token = read_variables("kite", path, values)
        except CredentialsError as error:
            if "data_source" in settings.model_fields_set:
                raise
            raise CredentialsError(
                f"{error} DATA_SOURCE is not set, which means Kite: for Dhan, set it to dhan."
            ) from None
        return Credentials(api_key, SecretStr(token), None, "the variable KITE_ACCESS_TOKEN")
    made_at = read_time(fields, "login_time", path, "KITE_TOKEN_FILE") or _written_at(path)
    expires_at = token_expiry(made_at) if made_at else None
    return Credentials(fields["api_key"], SecretStr(fields["access_token"]), expires_at, f"the token file {path}")


def check_kite_token_validity(
    credentials: Credentials, margin: timedelta = timedelta(minutes=5), now: datetime | None = None
) -> bool:
    """Whether the token is good for at least `margin` from `now` (aware; the machine's time unless given).

    True for a token of which it is not known when it was made: only the server knows. Raises nothing.
    """
    return check_token_validity(credentials, margin, now)


def get_kite_websocket_url(credentials: Credentials, base_url: str = FEED_URL) -> str:
    """The URL of the live feed for these credentials. It contains the token: never log it.

    https://kite.trade/docs/connect/v3/websocket/ Raises SourceError if `base_url` is not a ws:// or wss:// address.
    """
    check_feed_address(base_url, "KITE_FEED_URL")
    query = {"api_key": credentials.api_key, "access_token": credentials.access_token.get_secret_value()}
    return f"{base_url}?{urlencode(query)}"


def save_kite_token(path: Path, access_token: str, api_key: str, login_time: datetime | None = None) -> None:
    """Replace the token file at once and durably, readable by its owner only. `login_time` is aware.

    Readers see the old file or the new one, never a part. Raises OSError.
    """
    fields = {"access_token": access_token, "api_key": api_key}
    if login_time is not None:
        fields["login_time"] = login_time.isoformat()
    write_token_file(path, fields)


def token_expiry(made_at: datetime) -> datetime:
    """When a token that was made then (aware) dies, UTC: at the next six o'clock in the morning, India's time."""
    local = made_at.astimezone(IST)
    dies_at = local.replace(hour=LAST_HOUR, minute=0, second=0, microsecond=0)
    return (dies_at if local < dies_at else dies_at + timedelta(days=1)).astimezone(UTC)


def _written_at(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:  # replaced or removed meanwhile
        return None
