"""Makes access tokens and keeps them alive. A token lives for 24 hours, and a new one ends the one before.

So whoever wants a token asks `refresh_token`: one process at a time, one token in two minutes, and none while the one
in the token file is good. https://dhanhq.co/docs/v2/authentication/

No message, log line or exception holds a token, a PIN, the TOTP secret or a URL with its parameters.
"""

import binascii
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyotp
from pydantic import SecretStr

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.auth import parse_expiry
from dhan_pipeline.feeds.dhan.auth import (
    Credentials,
    check_dhan_token_validity,
    get_dhan_credentials,
    save_token,
    token_expiry,
)
from dhan_pipeline.feeds.errors import CredentialsError, TokenError, TokenLostError, TokenUnjudgedError
from dhan_pipeline.feeds.token_requests import Manners, ask
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings

GENERATE_PATH = "/app/generateAccessToken"
RENEW_PATH = "/v2/RenewToken"
PROFILE_PATH = "/v2/profile"

#: Dhan makes a token every two minutes at most.
MINT_INTERVAL_S = 130.0

#: A token is worth renewing only while it lives, and the request takes a moment.
_RENEW_MARGIN = timedelta(minutes=2)

#: https://dhanhq.co/docs/v2/annexure/#trading-api-error
_MANNERS = Manners("Dhan", "DHAN_API_URL and DHAN_AUTH_URL", "errorCode", ("errorMessage", "message"))

#: More than a token file holds.
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Profile:
    """What Dhan says about the account that a token belongs to."""

    client_id: str
    valid_until: datetime
    """When the token's time is over, UTC."""
    data_plan_active: bool
    segments: str
    data_plan_until: datetime | None = None
    """When the data plan ends, UTC; None if unknown."""


def can_refresh(settings: Settings) -> bool:
    """Whether tokens can be made here: the PIN and the TOTP secret are set."""
    return settings.dhan_pin is not None and settings.dhan_totp_secret is not None


def refresh_token(
    settings: Settings, clock: Clock, *, needed_until: datetime | None = None, refused: str | None = None
) -> Credentials | None:
    """Have a token in the token file that is not `refused` and lasts until `needed_until` (aware; now unless given).

    Returns the new credentials, None if there are good ones already. A token that lives is renewed where Dhan lets it
    be, else one is made with PIN and TOTP. At most one is made in `MINT_INTERVAL_S`, by whatever process.

    Raises TokenError.
    """
    with _single_minter(settings) as lock:
        try:
            credentials = get_dhan_credentials(settings)
        except CredentialsError:
            credentials = None
        now = clock.now()
        margin = max((needed_until or now) - now, timedelta(0))
        if (
            credentials is not None
            and credentials.access_token.get_secret_value() != refused
            and check_dhan_token_validity(credentials, margin, now)
        ):
            return None
        lock.begin()
        made: Credentials | None = None
        if credentials is not None and refused is None and check_dhan_token_validity(credentials, _RENEW_MARGIN, now):
            try:
                made = _ask_for_renewal(settings, credentials)
            except TokenError:
                if not can_refresh(settings):
                    raise
        return _save(settings, made or _ask_for_token(settings, clock))


def generate_token(settings: Settings, clock: Clock) -> Credentials:
    """Make a token with PIN and TOTP, and save it. It ends the one before. Raises TokenError."""
    with _single_minter(settings) as lock:
        lock.begin()
        return _save(settings, _ask_for_token(settings, clock))


def renew_token(settings: Settings, clock: Clock) -> Credentials:
    """Have a token that still lives replaced by a new one, and save it. Dhan does so for tokens of its web site only.

    Raises TokenError, CredentialsError where there is no token.
    """
    with _single_minter(settings) as lock:
        credentials = get_dhan_credentials(settings)
        if not check_dhan_token_validity(credentials, timedelta(0), clock.now()):
            raise TokenError("The access token's time is over, so it cannot be renewed; generate a new one.")
        lock.begin()
        return _save(settings, _ask_for_renewal(settings, credentials))


def read_profile(settings: Settings, credentials: Credentials) -> Profile:
    """What Dhan says about the token and its account. Raises TokenError where it does not accept the token."""
    headers = {"access-token": credentials.access_token.get_secret_value()}
    reply = ask(_MANNERS, "GET", settings.dhan_api_url, PROFILE_PATH, "the profile", headers=headers)
    try:
        until = datetime.strptime(reply["tokenValidity"], "%d/%m/%Y %H:%M").replace(tzinfo=IST)
        return Profile(
            client_id=str(reply["dhanClientId"]),
            valid_until=until.astimezone(UTC),
            data_plan_active=str(reply.get("dataPlan", "")).lower() == "active",
            segments=str(reply.get("activeSegment", "")),
            data_plan_until=_plan_end(reply.get("dataValidity")),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise TokenError("Dhan's profile does not say how long the token is valid.") from None


def token_report(settings: Settings, clock: Clock) -> dict[str, Any]:
    """The token and what Dhan says of it, for a person: `good`, `problem` if not, and facts. Never the token.

    Raises CredentialsError where there is none.
    """
    credentials = get_dhan_credentials(settings)
    now = clock.now()
    report: dict[str, Any] = {
        "good": False,
        "problem": None,
        "client_id": credentials.client_id,
        "source": credentials.source,
        "expires_at": credentials.expires_at.isoformat() if credentials.expires_at else None,
        "seconds_left": round((credentials.expires_at - now).total_seconds()) if credentials.expires_at else None,
        "can_refresh": can_refresh(settings),
    }
    if not check_dhan_token_validity(credentials, timedelta(0), now):
        return report | {"problem": "Its time is over."}
    try:
        profile = read_profile(settings, credentials)
    except TokenError as error:
        return report | {"problem": str(error), "judged": not isinstance(error, TokenUnjudgedError)}
    report |= {
        "data_plan_active": profile.data_plan_active,
        "data_plan_until": profile.data_plan_until.isoformat() if profile.data_plan_until else None,
        "segments": profile.segments,
    }
    if profile.client_id != credentials.client_id:
        return report | {"problem": f"It belongs to the client id {profile.client_id}, not to {credentials.client_id}."}
    if not profile.data_plan_active:
        return report | {"problem": "The account has no active data plan: subscribe to Dhan's data APIs."}
    return report | {"good": True}


def _plan_end(text: Any) -> datetime | None:
    """`2026-12-05 09:37:52.0`, IST, as UTC; None for what is no time: accounts without a plan have none."""
    with suppress(TypeError, ValueError):
        return parse_expiry(text)
    return None


def _ask_for_token(settings: Settings, clock: Clock) -> Credentials:
    if settings.dhan_pin is None or settings.dhan_totp_secret is None:
        raise TokenError("A token can only be made with DHAN_PIN and DHAN_TOTP_SECRET set.")
    client_id = _client_id(settings)
    try:
        totp = pyotp.TOTP(settings.dhan_totp_secret.get_secret_value().replace(" ", "")).at(clock.now())
    except (ValueError, binascii.Error, TypeError):
        raise TokenError("DHAN_TOTP_SECRET is not a base32 secret, such as an authenticator is set up with.") from None
    params = {"dhanClientId": client_id, "pin": settings.dhan_pin.get_secret_value(), "totp": totp}
    reply = ask(_MANNERS, "POST", settings.dhan_auth_url, GENERATE_PATH, "a token", params=params)
    return _made(settings, client_id, reply)


def _ask_for_renewal(settings: Settings, credentials: Credentials) -> Credentials:
    headers = {"access-token": credentials.access_token.get_secret_value(), "dhanClientId": credentials.client_id}
    reply = ask(_MANNERS, "GET", settings.dhan_api_url, RENEW_PATH, "a renewed token", headers=headers)
    return _made(settings, credentials.client_id, reply)


def _client_id(settings: Settings) -> str:
    if settings.dhan_client_id:
        return settings.dhan_client_id
    try:
        return get_dhan_credentials(settings).client_id
    except CredentialsError:
        raise TokenError("A token is made for a client id: set DHAN_CLIENT_ID.") from None


def _made(settings: Settings, client_id: str, reply: Mapping[str, Any]) -> Credentials:
    """The token in Dhan's reply, for the token file."""
    # Dhan documents the names of one of the two replies only.
    data = reply["data"] if isinstance(reply.get("data"), dict) else reply
    token = next((str(data[name]) for name in ("accessToken", "access_token", "token") if data.get(name)), None)
    if token is None:
        raise TokenError("Dhan answered without a token.")
    expires_at = token_expiry(token)
    if expires_at is None and data.get("expiryTime"):
        with suppress(ValueError):
            expires_at = parse_expiry(data["expiryTime"])
    return Credentials(client_id, SecretStr(token), expires_at, f"the token file {settings.dhan_token_file}")


def _save(settings: Settings, made: Credentials) -> Credentials:
    try:
        token = made.access_token.get_secret_value()
        save_token(settings.dhan_token_file, token, made.client_id, made.expires_at)
    except OSError as error:
        raise TokenLostError(
            f"A token was made, but the token file {settings.dhan_token_file} (DHAN_TOKEN_FILE) cannot be written:"
            f" {error.strerror}."
        ) from None
    return made


class _Minter:
    """The lock beside the token file, and in it when a token was last asked for."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def begin(self) -> None:
        """Take note that a token is asked for now.

        Raises TokenError where that was done a moment ago, or where a token could not be kept.
        """
        # The machine's time: that of a demo's clock may lie in the past.
        now_s = datetime.now(UTC).timestamp()
        last = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
        try:
            since_s = now_s - float(last)
        except ValueError:
            since_s = MINT_INTERVAL_S
        # Also where the machine's clock was set back a little.
        if abs(since_s) < MINT_INTERVAL_S:
            raise TokenError(
                f"A token was asked for {max(since_s, 0):.0f} s ago;"
                f" Dhan gives one every {MINT_INTERVAL_S:.0f} s at most."
            )
        try:
            _check_can_be_written(self._path)
            os.pwrite(self._fd, f"{now_s:<31.0f}\n".encode(), 0)
        except OSError as error:
            raise _not_writable(self._path, error) from None


def _check_can_be_written(path: Path) -> None:
    """Raises OSError where a token could not be kept: what Dhan gives ends the token before, and is given once."""
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    with tempfile.TemporaryFile(dir=path.parent) as file:
        file.write(bytes(_PAGE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _not_writable(path: Path, error: OSError) -> TokenError:
    return TokenError(f"The token file {path} (DHAN_TOKEN_FILE) is where no file can be written: {error.strerror}.")


@contextmanager
def _single_minter(settings: Settings) -> Iterator[_Minter]:
    path = settings.dhan_token_file
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _not_writable(path, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield _Minter(fd, path)
    finally:
        os.close(fd)
