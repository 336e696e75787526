"""What can go wrong between us and Dhan, and whether trying again can help.

::

    PipelineError
    └── DhanError
        ├── CredentialsError             permanent: a person has to mend the token file or the settings
        │   └── TokenExpiredError        permanent: the same, the token's time is over
        ├── SubscriptionLimitError       permanent: more instruments than the account's connections take
        └── FeedError                    retryable: the connection was lost, or could not be made
            ├── SilentFeedError          retryable: it stood, but nothing came
            └── FeedRefusedError         retryable: the server said why (`code`), and the reason may pass
                ├── RateLimitedError     retryable after a minute without any connection (805, HTTP 429)
                ├── TokenRefusedError    retryable with another token (807-810, HTTP 401 and 403)
                └── DataPlanError        permanent: the account has no data APIs (806)

`retryable` says the same to code. A running feed outlives permanent errors of the credentials: they are read again at
every connection, and mended while it waits. No message ever contains a token or a URL that has one.

Codes: https://dhanhq.co/docs/v2/annexure/#data-api-error
"""

from typing import ClassVar

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.dhan.wire import disconnect_reason


class DhanError(PipelineError):
    """Base of every error that concerns the broker."""

    retryable: ClassVar[bool] = False


class CredentialsError(DhanError):
    """The access token or the client id is missing or unreadable. The message names the file or the variable."""


class TokenExpiredError(CredentialsError):
    """The access token's time is over."""


class SubscriptionLimitError(DhanError):
    """More instruments than the broker allows an account."""


class FeedError(DhanError):
    """The connection to the feed was lost, or could not be made."""

    retryable = True


class SilentFeedError(FeedError):
    """The connection stood, but nothing came through it."""


class FeedRefusedError(FeedError):
    """The server ended the connection with a disconnect code, or refused the handshake with an HTTP status."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"Dhan refused the connection ({reason})")
        self.code = code
        """Disconnect code (800 to 814), or HTTP status (below 600)."""


class RateLimitedError(FeedRefusedError):
    """Too many connections or requests; the server wants a minute of rest."""


class TokenRefusedError(FeedRefusedError):
    """The server does not accept this access token."""


class DataPlanError(FeedRefusedError):
    """The account has no data APIs, so no connection will ever be accepted."""

    retryable = False


_BY_CODE: dict[int, type[FeedRefusedError]] = {
    401: TokenRefusedError,
    403: TokenRefusedError,
    429: RateLimitedError,
    805: RateLimitedError,
    806: DataPlanError,
    807: TokenRefusedError,
    808: TokenRefusedError,
    809: TokenRefusedError,
    810: TokenRefusedError,
}


def refused(code: int) -> FeedRefusedError:
    """The error for a disconnect code, or for the HTTP status of a refused handshake."""
    reason = f"HTTP status {code}" if code < 600 else f"{code}, {disconnect_reason(code)}"
    return _BY_CODE.get(code, FeedRefusedError)(code, reason)
