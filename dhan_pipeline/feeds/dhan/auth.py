"""Dhan's access token: where it is kept, how long it lives, the URL that carries it.

A token lives for 24 hours, and an account has one: making a new one ends the old. So tokens are only read here, again
at every connection; one component of the site makes them. https://dhanhq.co/docs/v2/authentication/

Errors are those of `errors`; none of their messages contains the token.
"""

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
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
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings

FEED_URL = "wss://api-feed.dhan.co"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What Dhan knows us by. Printing it does not show the token."""

    client_id: str
    access_token: SecretStr
    expires_at: datetime | None
    """When the token's time is over, UTC; None if neither the token nor its file says."""
    source: str
    """The file or the variable that the token came from, for messages to people."""


def get_dhan_credentials(settings: Settings | None = None) -> Credentials:
    """The client id and access token: from the token file, or from the environment where that file does not exist.

    `settings` default to those of the environment (DHAN_TOKEN_FILE; DHAN_CLIENT_ID and DHAN_ACCESS_TOKEN). The file is
    JSON with `access_token`, `client_id`, and optionally `expiry` (ISO 8601, IST unless it names an offset), which
    counts only where the token itself does not say. Whether the token is still valid is not judged.

    Raises CredentialsError naming the file or the variable that is missing or wrong.
    """
    settings = settings or Settings()
    path = settings.dhan_token_file
    fields = read_token_file(path, "DHAN_TOKEN_FILE", ("access_token", "client_id"))
    if fields is None:
        values = {"DHAN_CLIENT_ID": settings.dhan_client_id, "DHAN_ACCESS_TOKEN": settings.dhan_access_token}
        client_id, token = read_variables("dhan", path, values)
        return Credentials(client_id, SecretStr(token), token_expiry(token), "the variable DHAN_ACCESS_TOKEN")
    token = fields["access_token"]
    expires_at = token_expiry(token) or read_time(fields, "expiry", path, "DHAN_TOKEN_FILE")
    return Credentials(fields["client_id"], SecretStr(token), expires_at, f"the token file {path}")


def check_dhan_token_validity(
    credentials: Credentials, margin: timedelta = timedelta(minutes=5), now: datetime | None = None
) -> bool:
    """Whether the token is good for at least `margin` from `now` (aware; the machine's time unless given).

    True for a token that does not say when it expires: only the server knows. Raises nothing.
    """
    return check_token_validity(credentials, margin, now)


def get_websocket_url(credentials: Credentials, base_url: str = FEED_URL) -> str:
    """The URL of the live feed for these credentials. It contains the token: never log it.

    https://dhanhq.co/docs/v2/live-market-feed/ Raises SourceError if `base_url` is not a ws:// or wss:// address.
    """
    check_feed_address(base_url, "DHAN_FEED_URL")
    query = {
        "version": "2",
        "token": credentials.access_token.get_secret_value(),
        "clientId": credentials.client_id,
        "authType": "2",
    }
    return f"{base_url}?{urlencode(query)}"


def save_token(path: Path, access_token: str, client_id: str, expiry: datetime | None = None) -> None:
    """Replace the token file at once and durably, readable by its owner only. `expiry` is aware.

    Readers see the old file or the new one, never a part. Raises OSError.
    """
    fields = {"access_token": access_token, "client_id": client_id}
    if expiry is not None:
        fields["expiry"] = expiry.isoformat()
    write_token_file(path, fields)


def token_expiry(token: str) -> datetime | None:
    """The `exp` claim, UTC, without verifying the signature; None if this is not a JWT that has one."""
    try:
        return datetime.fromtimestamp(_claims(token)["exp"], IST).astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def is_renewable(token: str) -> bool:
    """Whether Dhan renews the token while it lives: it does so for those that a person made on its web site."""
    return _claims(token).get("tokenConsumerType") == "SELF"


def _claims(token: str) -> dict[str, Any]:
    """What a JWT says, unverified; empty for what is none."""
    try:
        claims = token.split(".")[1]
        said = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
