"""What every broker's access token has: a file that is replaced at once, a time that is over, a URL that carries it.

Errors are those of `errors`; none of their messages contains a token, nor a URL.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import SecretStr

from dhan_pipeline.feeds.errors import CredentialsError, SourceError
from dhan_pipeline.sessions import IST
from dhan_pipeline.sources import Source
from dhan_pipeline.times import to_minute


class Credentials(Protocol):
    """What a broker knows us by."""

    @property
    def access_token(self) -> SecretStr:
        """The secret."""

    @property
    def expires_at(self) -> datetime | None:
        """When the token's time is over, UTC; None if unknown."""

    @property
    def source(self) -> str:
        """The file or the variable that the token came from, for messages to people."""


def check_token_validity(credentials: Credentials, margin: timedelta, now: datetime | None = None) -> bool:
    """Whether the token is good for at least `margin` from `now` (aware; the machine's time unless given).

    True for a token of which it is not known when it expires: only the server knows. Raises nothing.
    """
    return credentials.expires_at is None or credentials.expires_at - (now or datetime.now(UTC)) >= margin


def expired(credentials: Credentials) -> str:
    """The sentence for a token whose time is over."""
    assert credentials.expires_at is not None
    return f"The access token in {credentials.source} expired at {to_minute(credentials.expires_at)}."


def check_feed_address(base_url: str, variable: str) -> None:
    """Raises SourceError, naming the variable, if this is no ws:// or wss:// address, or has parameters of its own.

    Before the secrets are at hand that go with it: they would be in the traceback.
    """
    if not _is_websocket_address(base_url):
        # Not quoted: people paste whole URLs, with their token.
        raise SourceError(f"{variable} has to be an address with ws:// or wss://, without parameters.")


def can_be_sent(headers: Mapping[str, str]) -> bool:
    """Whether a request can carry these headers. What refuses others says what they hold, a token perhaps."""
    return all(value.isascii() and value.isprintable() for value in headers.values())


def read_token_file(path: Path, variable: str, names: Sequence[str]) -> dict[str, Any] | None:
    """The fields of a token file, which is a JSON object; None where it does not exist.

    Those of `names` are there, as text without surrounding space. Raises CredentialsError naming the file, its variable
    and what is wrong.
    """
    try:
        content = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CredentialsError(f"The token file {path} ({variable}) cannot be read: {reason}.") from None
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None  # the error would quote the file
    if not isinstance(fields, dict):
        raise CredentialsError(f"The token file {path} ({variable}) is not a JSON object with {' and '.join(names)}.")
    for name in names:
        fields[name] = _text(fields.get(name))
        if not fields[name]:
            raise CredentialsError(f"The token file {path} ({variable}) has no {name!r}.")
    return fields


def read_variables(source: Source, path: Path, values: Mapping[str, str | SecretStr | None]) -> list[str]:
    """The values of settings, by the names of their variables, that stand in for a token file that does not exist.

    Raises CredentialsError naming the file, its variable and the settings that are missing.
    """
    read = {
        name: _text(value.get_secret_value() if isinstance(value, SecretStr) else value)
        for name, value in values.items()
    }
    if missing := [name for name, value in read.items() if not value]:
        raise CredentialsError(
            f"There is no token file {path} ({source.upper()}_TOKEN_FILE), and {' and '.join(missing)}"
            f" {'is' if len(missing) == 1 else 'are'} not set: make a token with `dhan-pipeline token generate --source"
            f" {source}`, or set {' and '.join(values)}."
        )
    return [*read.values()]


def read_time(fields: Mapping[str, Any], name: str, path: Path, variable: str) -> datetime | None:
    """A time in a token file, UTC; None where it has none. Raises CredentialsError naming the file."""
    if not fields.get(name):
        return None
    try:
        return parse_expiry(fields[name])
    except ValueError:
        raise CredentialsError(
            f"The {name!r} in the token file {path} ({variable}) is not a usable ISO 8601 time."
        ) from None


def write_token_file(path: Path, fields: Mapping[str, str]) -> None:
    """Replace a token file at once and durably, readable by its owner only.

    Readers see the old file or the new one, never a part. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(fields, file)
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


def parse_expiry(text: Any) -> datetime:
    """An ISO 8601 time, IST unless it names an offset, as UTC. Raises ValueError, also for one that IST cannot show."""
    try:
        expiry = datetime.fromisoformat(text)
        return (expiry if expiry.tzinfo else expiry.replace(tzinfo=IST)).astimezone(IST).astimezone(UTC)
    except (TypeError, OverflowError):
        raise ValueError("not a time") from None


def _is_websocket_address(url: str) -> bool:
    try:
        address = urlsplit(url)
        port = address.port
        (address.hostname or "").encode("idna")  # as connecting will: an empty label raises
    except ValueError:
        return False
    return address.scheme in ("ws", "wss") and bool(address.hostname) and port != 0 and not address.query


def _text(value: Any) -> str:
    """A JSON value as text without surrounding space; "" for none. Client ids are sometimes written as numbers."""
    return str(value).strip() if isinstance(value, str | int) else ""
