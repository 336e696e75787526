"""Dhan's access token: where it is kept, how long it lives, the URL that carries it.

A token lives for 24 hours, and an account has one: making a new one ends the old. So tokens are only read here, again
at every connection; one component of the site makes them. https://dhanhq.co/docs/v2/authentication/

Errors are those of `errors`; none of their messages contains the token.
"""

import base64
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from pydantic import SecretStr

from dhan_pipeline.feeds.errors import CredentialsError, SourceError
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
    try:
        content = path.read_text()
    except FileNotFoundError:
        return _from_settings(settings)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CredentialsError(f"The token file {path} (DHAN_TOKEN_FILE) cannot be read: {reason}.") from None
    return _from_file(path, content)


def check_dhan_token_validity(
    credentials: Credentials, margin: timedelta = timedelta(minutes=5), now: datetime | None = None
) -> bool:
    """Whether the token is good for at least `margin` from `now` (aware; the machine's time unless given).

    True for a token that does not say when it expires: only the server knows. Raises nothing.
    """
    return credentials.expires_at is None or credentials.expires_at - (now or datetime.now(UTC)) >= margin


def get_websocket_url(credentials: Credentials, base_url: str = FEED_URL) -> str:
    """The URL of the live feed for these credentials. It contains the token: never log it.

    https://dhanhq.co/docs/v2/live-market-feed/ Raises SourceError if `base_url` is not a ws:// or wss:// address.
    """
    if not _is_websocket_address(base_url):
        # Not quoted: people paste whole URLs, with their token.
        raise SourceError("DHAN_FEED_URL has to be an address with ws:// or wss://, without parameters.")
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
    content = {"access_token": access_token, "client_id": client_id}
    if expiry is not None:
        content["expiry"] = expiry.isoformat()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _is_websocket_address(url: str) -> bool:
    try:
        address = urlsplit(url)
        port = address.port
        (address.hostname or "").encode("idna")  # as connecting will: an empty label raises
    except ValueError:
        return False
    return address.scheme in ("ws", "wss") and bool(address.hostname) and port != 0 and not address.query


def _from_file(path: Path, content: str) -> Credentials:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None  # the error would quote the file
    if not isinstance(fields, dict):
        raise CredentialsError(f"The token file {path} (DHAN_TOKEN_FILE) is not a JSON object.")
    for name in ("access_token", "client_id"):
        if not _text(fields.get(name)):
            raise CredentialsError(f"The token file {path} (DHAN_TOKEN_FILE) has no {name!r}.")
    token = _text(fields["access_token"])
    expires_at = token_expiry(token)
    if expires_at is None and fields.get("expiry"):
        try:
            expires_at = parse_expiry(fields["expiry"])
        except ValueError:
            raise CredentialsError(
                f"The 'expiry' in the token file {path} (DHAN_TOKEN_FILE) is not a usable ISO 8601 time."
            ) from None
    return Credentials(_text(fields["client_id"]), SecretStr(token), expires_at, f"the token file {path}")


def _from_settings(settings: Settings) -> Credentials:
    token = _text(settings.dhan_access_token.get_secret_value() if settings.dhan_access_token else None)
    client_id = _text(settings.dhan_client_id)
    if missing := [name for name, value in (("DHAN_CLIENT_ID", client_id), ("DHAN_ACCESS_TOKEN", token)) if not value]:
        raise CredentialsError(
            f"There is no token file {settings.dhan_token_file} (DHAN_TOKEN_FILE), and {' and '.join(missing)}"
            f" {'is' if len(missing) == 1 else 'are'} not set: make a token with `dhan-pipeline token generate`, or set"
            " DHAN_CLIENT_ID and DHAN_ACCESS_TOKEN."
        )
    return Credentials(client_id, SecretStr(token), token_expiry(token), "the variable DHAN_ACCESS_TOKEN")


def _text(value: Any) -> str:
    """A JSON value as text without surrounding space; "" for none. Client ids are sometimes written as numbers."""
    return str(value).strip() if isinstance(value, str | int) else ""


def parse_expiry(text: Any) -> datetime:
    """An ISO 8601 time, IST unless it names an offset, as UTC. Raises ValueError, also for one that IST cannot show."""
    try:
        expiry = datetime.fromisoformat(text)
        return (expiry if expiry.tzinfo else expiry.replace(tzinfo=IST)).astimezone(IST).astimezone(UTC)
    except (TypeError, OverflowError):
        raise ValueError("not a time") from None


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
