"""What can go wrong between us and a broker, and whether trying again can help.

::

    PipelineError
    └── SourceError
        ├── CredentialsError             permanent: a person has to mend the token file or the settings
        │   ├── TokenExpiredError        permanent: the same, the token's time is over
        │   ├── TokenRejectedError       permanent: REST does not take it (DH-901, DH-906, 807-810; TokenException)
        │   └── TokenError               permanent: no new token could be made, or the one there is not be judged
        │       ├── TokenLostError       permanent: one was made and could not be kept
        │       └── TokenUnjudgedError   permanent: the broker could not be asked
        ├── SubscriptionLimitError       permanent: more instruments than the account's connections take
        ├── RestError                    a request to REST failed (`code`); permanent unless it says otherwise
        │   ├── BusyError                retryable: too many requests (DH-904, 805; HTTP 429)
        │   ├── UnavailableError         retryable: no answer, an empty one, or a fault of the server's
        │   ├── BadRequestError          permanent: no such instrument, page or range (DH-905; InputException)
        │   ├── NoDataError              permanent: there is nothing to give (DH-907); `history` makes no bars of it
        │   ├── NoDataPlanError          permanent: the account has no data APIs (DH-902, 806; PermissionException)
        │   ├── AnswerError              permanent: the answer is not what the documentation says
        │   └── RequestsUsedUpError      permanent until tomorrow: as many requests as a day has were made
        └── FeedError                    retryable: the connection was lost, or could not be made
            ├── RestingError             retryable after the rest that the server asked of another connection
            ├── HandshakeError           retryable: the server's answer to the handshake was none
            ├── SilentFeedError          retryable: it stood, but nothing came
            ├── ServerClosedError        retryable: the server closed it, with or without a word why
            └── FeedRefusedError         retryable: the server said why (`code`), and the reason may pass
                ├── TooManyInstrumentsError  retryable with fewer instruments (804)
                ├── RateLimitedError     retryable after a minute without any connection (805, HTTP 429)
                ├── TokenRefusedError    retryable with another token (807-810, HTTP 401 and 403)
                └── DataPlanError        permanent: the account has no data APIs (806)

`retryable` says the same to code, and `cause` what a gap that begins with it is put down to. A running feed outlives
permanent errors of the credentials: they are read again at every connection, and mended while it waits. No message ever
contains a token or a URL that has one.
"""

from typing import ClassVar

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.gaps import Cause


class SourceError(PipelineError):
    """Base of every error that concerns the broker whose feed it is."""

    retryable: ClassVar[bool] = False
    cause: ClassVar[Cause] = Cause.RESET


class CredentialsError(SourceError):
    """The access token or the client id is missing or unreadable. The message names the file or the variable."""

    cause = Cause.TOKEN


class TokenExpiredError(CredentialsError):
    """The access token's time is over."""


class TokenRejectedError(CredentialsError):
    """REST does not take the access token, though it was read again."""


class TokenError(CredentialsError):
    """No new token could be made, or the profile not be read. The message says why and what to do."""


class TokenLostError(TokenError):
    """A token was made and could not be kept, so asking again would only end the next one, too."""


class TokenUnjudgedError(TokenError):
    """The broker could not be asked, or what answered was not it: of the token itself nothing is known."""


class SubscriptionLimitError(SourceError):
    """More instruments than the broker allows an account."""

    cause = Cause.LIMIT


class RestError(SourceError):
    """A request to the REST API was not answered with what it asked for."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
        """Dhan's error code (`DH-905`, `805`), Kite's (`InputException`), or `HTTP 502`; "" if there was none."""


class BusyError(RestError):
    """More requests than the broker takes, and waiting did not help."""

    retryable = True
    cause = Cause.LIMIT


class UnavailableError(RestError):
    """The server cannot be reached, answers with nothing, or says that the fault is its own."""

    retryable = True


class BadRequestError(RestError):
    """The broker takes no such request: the instrument, its type or the range is none that it knows."""


class NoDataError(RestError):
    """The broker has nothing of the kind."""


class NoDataPlanError(RestError):
    """The account has no data APIs."""

    cause = Cause.PLAN


class AnswerError(RestError):
    """The answer has another shape than the documentation says, or numbers that are none."""


class RequestsUsedUpError(RestError):
    """As many requests as the broker takes in a day were made."""

    cause = Cause.LIMIT


class FeedError(SourceError):
    """The connection to the feed was lost, or could not be made."""

    retryable = True


class RestingError(FeedError):
    """The connection was ended, or is not made, because the server asked for a rest."""

    cause = Cause.LIMIT

    def __init__(self) -> None:
        super().__init__("all connections rest, as the server asked for")


class HandshakeError(FeedError):
    """The server was reached, and what it answered to the handshake is no answer."""


class SilentFeedError(FeedError):
    """The connection stood, but nothing came through it."""

    cause = Cause.STALL

    def __init__(self, message: str, *, of_data: bool = True) -> None:
        super().__init__(message)
        self.of_data = of_data
        """Whether it is data that did not come. Else not even a heartbeat did, and until the last there was no data."""


class ServerClosedError(FeedError):
    """The server closed the connection."""

    cause = Cause.SERVER


#: Dhan's disconnect code for more connections than the account has: the server blocks it until all are gone.
TOO_MANY_CONNECTIONS = 805


class FeedRefusedError(FeedError):
    """The server ended the connection with a disconnect code, or refused the handshake with an HTTP status."""

    cause = Cause.SERVER

    def __init__(self, broker: str, code: int, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{broker} refused the connection ({reason})")
        self.code = code
        """HTTP status (below 600), or one of Dhan's disconnect codes (800 to 814)."""
        self.retry_after_s = retry_after_s
        """How long the server asked to be left alone, in seconds; 0 if it did not say."""

    @property
    def ends_all(self) -> bool:
        """Whether the connections that stand are to end, too."""
        return self.code == TOO_MANY_CONNECTIONS


class RateLimitedError(FeedRefusedError):
    """Too many connections or requests; the server wants a minute of rest."""

    cause = Cause.LIMIT


class TokenRefusedError(FeedRefusedError):
    """The server does not accept this access token."""

    cause = Cause.TOKEN


class DataPlanError(FeedRefusedError):
    """The account has no data APIs, so no connection will ever be accepted."""

    retryable = False
    cause = Cause.PLAN


class TooManyInstrumentsError(FeedRefusedError):
    """More instruments than the server allows on a connection."""

    cause = Cause.LIMIT
