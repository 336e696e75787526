"""Asks about Kite's access token, and makes the day's one of what a login gives.

The login itself is a person's, in a browser: no machine makes a token alone, and none is renewed.
https://kite.trade/docs/connect/v3/user/

No message, log line or exception holds a token, the API secret or a URL with its parameters.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from pydantic import SecretStr

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.auth import parse_expiry
from dhan_pipeline.feeds.errors import CredentialsError, TokenError, TokenLostError, TokenUnjudgedError
from dhan_pipeline.feeds.kite.auth import (
    Credentials,
    check_kite_token_validity,
    get_kite_credentials,
    save_kite_token,
    token_expiry,
)
from dhan_pipeline.feeds.token_requests import Manners, ask
from dhan_pipeline.settings import Settings

LOGIN_URL = "https://kite.zerodha.com/connect/login"
SESSION_PATH = "/session/token"
PROFILE_PATH = "/user/profile"

#: https://kite.trade/docs/connect/v3/exceptions/
_MANNERS = Manners("Kite", "KITE_API_URL", "error_type", ("message",))

_VERSION = {"X-Kite-Version": "3"}


@dataclass(frozen=True, slots=True)
class Profile:
    """What Kite says about the account that a token belongs to."""

    user_id: str
    exchanges: str


def login_url(settings: Settings) -> str:
    """Where a person logs in. The address that the browser is sent to afterwards has the request token.

    Raises TokenError where the API key is unknown.
    """
    return f"{LOGIN_URL}?{urlencode({'v': 3, 'api_key': _api_key(settings)})}"


def generate_token(settings: Settings, clock: Clock, request_token: str) -> Credentials:
    """Make the day's token of a login's request token, and save it. A request token lasts for minutes, and works once.

    `request_token` may also be the whole address that the browser was sent to. Raises TokenError.
    """
    api_key = _api_key(settings)
    if settings.kite_api_secret is None:
        raise TokenError("A token can only be made with KITE_API_SECRET set, the secret of your Kite Connect app.")
    request_token = _request_token(request_token)
    secret = settings.kite_api_secret.get_secret_value().strip()
    request = {
        "api_key": api_key,
        "request_token": request_token,
        "checksum": hashlib.sha256(f"{api_key}{request_token}{secret}".encode()).hexdigest(),
    }
    said = ask(_MANNERS, "POST", settings.kite_api_url, SESSION_PATH, "a token", headers=_VERSION, data=request)
    data = said["data"] if isinstance(said.get("data"), dict) else {}
    token = data.get("access_token")
    if not isinstance(token, str) or not token:
        raise TokenError("Kite answered without a token.")
    made_at = clock.now()
    with suppress(ValueError):
        made_at = parse_expiry(data.get("login_time"))
    path = settings.kite_token_file
    try:
        save_kite_token(path, token, api_key, made_at)
    except OSError as error:
        raise TokenLostError(
            f"A token was made, but the token file {path} (KITE_TOKEN_FILE) cannot be written: {error.strerror}."
            " Log in again for another."
        ) from None
    return Credentials(api_key, SecretStr(token), token_expiry(made_at), f"the token file {path}")


def read_profile(settings: Settings, credentials: Credentials) -> Profile:
    """What Kite says about the token's account. Raises TokenError where it does not accept the token."""
    token = credentials.access_token.get_secret_value()
    headers = {**_VERSION, "Authorization": f"token {credentials.api_key}:{token}"}
    said = ask(_MANNERS, "GET", settings.kite_api_url, PROFILE_PATH, "the profile", headers=headers)
    data = said.get("data")
    if not isinstance(data, dict) or not data.get("user_id"):
        raise TokenError("Kite's profile does not say whose it is.")
    exchanges = data.get("exchanges")
    return Profile(str(data["user_id"]), ", ".join(map(str, exchanges)) if isinstance(exchanges, list) else "")


def token_report(settings: Settings, clock: Clock) -> dict[str, Any]:
    """The token and what Kite says of it, for a person: `good`, `problem` if not, and facts. Never the token.

    Raises CredentialsError where there is none.
    """
    credentials = get_kite_credentials(settings)
    now = clock.now()
    report: dict[str, Any] = {
        "good": False,
        "problem": None,
        "api_key": credentials.api_key,
        "source": credentials.source,
        "expires_at": credentials.expires_at.isoformat() if credentials.expires_at else None,
        "seconds_left": round((credentials.expires_at - now).total_seconds()) if credentials.expires_at else None,
        "can_refresh": False,
    }
    if not check_kite_token_validity(credentials, timedelta(0), now):
        return report | {
            "problem": "Its time is over: log in for another (`dhan-pipeline token generate --source kite`)."
        }
    try:
        profile = read_profile(settings, credentials)
    except TokenError as error:
        return report | {"problem": str(error), "judged": not isinstance(error, TokenUnjudgedError)}
    return report | {"good": True, "user_id": profile.user_id, "exchanges": profile.exchanges}


def _api_key(settings: Settings) -> str:
    if settings.kite_api_key:
        return settings.kite_api_key.strip()
    try:
        return get_kite_credentials(settings).api_key
    except CredentialsError:
        raise TokenError("A login is for a Kite Connect app: set KITE_API_KEY.") from None


def _request_token(text: str) -> str:
    """The request token in the address that the browser was sent to, or the text itself."""
    values: list[str] = []
    with suppress(ValueError):
        values = parse_qs(urlsplit(text.strip()).query).get("request_token", [])
    return values[0] if values else text.strip()
