"""What all requests for data to Dhan's REST API share: pace, patience, credentials, and errors that say what to do.

https://dhanhq.co/docs/v2/#rate-limit and https://dhanhq.co/docs/v2/annexure/#trading-api-error. Tokens are made in
`token`; here they are read only, from the token file, at every request.

No message, log line or exception holds the token.
"""

import asyncio
import json
import logging
import random
from dataclasses import dataclass
from functools import cache
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self

import httpx

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import Credentials, get_dhan_credentials
from dhan_pipeline.feeds.errors import (
    AnswerError,
    BadRequestError,
    BusyError,
    CredentialsError,
    NoDataError,
    NoDataPlanError,
    RequestsUsedUpError,
    RestError,
    SourceError,
    TokenRejectedError,
    UnavailableError,
)
from dhan_pipeline.sessions import day_start_ns
from dhan_pipeline.settings import Settings

# They log every request; so that what a header holds never depends on their version.
for _library in ("httpx", "httpcore"):
    logging.getLogger(_library).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class RestPolicy:
    """How often, and for how long. The intervals are Dhan's limits, and a little more for what the way there adds."""

    data_interval_s: float = 0.21
    """Between two requests for bars: five a second are allowed."""
    quote_interval_s: float = 1.05
    """Between two requests for quotes: one a second is allowed."""
    requests_a_day: int = 100_000
    """Requests for bars in a day (IST)."""
    timeout_s: float = 30.0
    tries: int = 4
    """How often a request is made that gets no answer, or an empty one."""
    busy_tries: int = 8
    """How often one is made that Dhan is too busy for: over two minutes at least, since it may want one of rest."""
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row: twice as long each time, and never quite the same."""
        pause = min(self.first_pause_s * 2.0 ** (failures - 1), self.longest_pause_s)
        return pause * random.uniform(0.75, 1.0)


class Pacer:
    """Lets requests go `interval_s` apart, in the order in which they ask, and so many in a day (IST) at most."""

    def __init__(self, interval_s: float, clock: Clock, requests_a_day: int | None = None) -> None:
        self.today = 0
        """Requests that were let go in the day of the last one."""
        self._interval_s = interval_s
        self._clock = clock
        self._requests_a_day = requests_a_day
        self._day_ns = 0
        self._free_at = 0.0
        self._queue = asyncio.Lock()  # first come, first served

    async def turn(self) -> None:
        """Return when it is the caller's turn. Raises RequestsUsedUpError."""
        async with self._queue:
            loop = asyncio.get_running_loop()
            self._count()
            while (wait := self._free_at - loop.time()) > 0:  # noqa: ASYNC110 - it is time that is waited for
                await asyncio.sleep(wait)
            self._free_at = loop.time() + self._interval_s

    def rest(self, seconds: float) -> None:
        """Let nobody go for so long."""
        self._free_at = max(self._free_at, asyncio.get_running_loop().time() + seconds)

    def _count(self) -> None:
        day_ns = day_start_ns(self._clock.now_ns())
        if day_ns != self._day_ns:
            self._day_ns, self.today = day_ns, 0
        if self._requests_a_day is not None and self.today >= self._requests_a_day:
            raise RequestsUsedUpError(
                f"{self.today:,} requests for data were made today, which is as many as Dhan takes in a day:"
                " go on after midnight in India."
            )
        self.today += 1


class DhanRest:
    """One pool of connections to the REST API; any number of tasks may ask at once. An async context manager."""

    def __init__(self, settings: Settings, clock: Clock, policy: RestPolicy) -> None:
        self.data = Pacer(policy.data_interval_s, clock, policy.requests_a_day)
        self.quotes = Pacer(policy.quote_interval_s, clock)
        self._settings = settings
        self._policy = policy
        self._base_url = settings.dhan_api_url.rstrip("/")
        self._client = httpx.AsyncClient(timeout=policy.timeout_s, verify=_certificates())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def post(self, path: str, request: dict[str, Any], what: str, pacer: Pacer) -> dict[str, Any]:
        """The JSON object that answers a request for `what`, which names it in errors ("the bars of NSE_EQ 2885").

        What passes is waited for: too many requests, no answer, an empty one. A token that is refused is read again.
        Raises RestError, CredentialsError.
        """
        policy = self._policy
        busy = unanswered = 0
        rejected: TokenRejectedError | None = None
        rejected_token = ""
        while True:
            await pacer.turn()
            credentials = get_dhan_credentials(self._settings)
            token = credentials.access_token.get_secret_value()
            if rejected is not None and token == rejected_token:
                raise rejected
            try:
                return await self._ask(path, request, what, credentials)
            except BusyError:
                busy += 1
                if busy >= policy.busy_tries:
                    raise
                pacer.rest(policy.pause_s(busy))
            except UnavailableError:
                unanswered += 1
                if unanswered >= policy.tries:
                    raise
                await asyncio.sleep(policy.pause_s(unanswered))
            except TokenRejectedError as error:
                if rejected is not None:
                    raise
                # Whoever made the next one may be about to write it.
                rejected, rejected_token = error, token
                await asyncio.sleep(policy.pause_s(1))

    async def _ask(self, path: str, request: dict[str, Any], what: str, credentials: Credentials) -> dict[str, Any]:
        token = credentials.access_token.get_secret_value()
        if not all(text.isascii() and text.isprintable() for text in (token, credentials.client_id)):
            raise CredentialsError(f"{_begin(credentials.source)} has a token or client id that no header can carry.")
        headers = {"access-token": token, "client-id": credentials.client_id, "Accept": "application/json"}
        problem = ""
        try:
            reply = await self._client.post(f"{self._base_url}{path}", json=request, headers=headers)
        except httpx.TimeoutException:
            problem = "it does not answer"
        except (httpx.HTTPError, httpx.InvalidURL):
            problem = "it cannot be reached; is DHAN_API_URL right?"
        if problem:  # raised here, not where it was caught: the exceptions of the library know the request
            raise UnavailableError(f"Dhan does not give {what}: {problem}.")
        try:
            return read_answer(reply.status_code, reply.content.replace(token.encode(), b"***"), what)
        except TokenRejectedError as error:
            problem = str(error)
        raise TokenRejectedError(
            f"{problem.rstrip('.')}, which comes from {credentials.source}: make a new one with"
            " `dhan-pipeline token generate`."
        )


@cache
def _certificates() -> SSLContext:
    """Reading them takes 20 ms, which is as much as a request."""
    return httpx.create_ssl_context()


def read_answer(status: int, content: bytes, what: str) -> dict[str, Any]:
    """The JSON object of an answer with this HTTP status to a request for `what`.

    Raises RestError and TokenRejectedError for what is none, or says why there is none, in either of two
    forms, whatever the status: `{"errorCode": "DH-905", …}` and `{"data": {"805": "…"}, "status": "failed"}`.
    """
    if status == 200 and not content.strip():
        raise UnavailableError(f"Dhan does not give {what}: its answer is empty.")
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        code, message, failed = _complaint(said)
    else:
        code, message, failed = "", "", False
    if 200 <= status < 300 and not failed:
        if isinstance(said, dict):
            return said
        raise AnswerError(f"Dhan does not give {what}: its answer is not a JSON object.")
    raise _error(status, code, message, what)


def _complaint(said: dict[str, Any]) -> tuple[str, str, bool]:
    """(code, message, whether it is one)."""
    if said.get("errorCode") or said.get("errorType"):
        return str(said.get("errorCode") or "")[:20], str(said.get("errorMessage") or "")[:200], True
    if str(said.get("status", "")).lower() in ("failed", "failure", "error"):
        data = said.get("data")
        code, message = next(iter(data.items()), ("", "")) if isinstance(data, dict) else ("", data or "")
        return str(code)[:20], str(message)[:200], True
    return "", "", False


def _error(status: int, code: str, message: str, what: str) -> SourceError:
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if kind is None:
        kind = UnavailableError if status >= 500 else RestError if code else BadRequestError
    reason = " ".join(part.strip().rstrip(".") for part in (code or f"HTTP status {status}", message) if part)
    if kind is TokenRejectedError:
        return TokenRejectedError(f"Dhan does not accept the access token ({reason}).")
    if kind is NoDataPlanError:
        reason += ": subscribe the account to Dhan's data APIs"
    return kind(f"Dhan does not give {what}: {reason}.", code or f"HTTP {status}")


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]


#: https://dhanhq.co/docs/v2/annexure/#trading-api-error and #data-api-error. DH-906 is what a token that another one
#: ended was seen to get; DH-910 is "other".
_BY_CODE: dict[str, type[Any]] = {
    "DH-901": TokenRejectedError,
    "DH-902": NoDataPlanError,
    "DH-904": BusyError,
    "DH-905": BadRequestError,
    "DH-906": TokenRejectedError,
    "DH-907": NoDataError,
    "DH-908": UnavailableError,
    "DH-909": UnavailableError,
    "DH-910": UnavailableError,
    "800": UnavailableError,
    "804": BadRequestError,
    "805": BusyError,
    "806": NoDataPlanError,
    **dict.fromkeys(("807", "808", "809", "810"), TokenRejectedError),
    **dict.fromkeys(("811", "812", "813", "814"), BadRequestError),
}
_BY_STATUS: dict[int, type[Any]] = {401: TokenRejectedError, 403: TokenRejectedError, 429: BusyError}
