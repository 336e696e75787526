"""What all requests for data to a broker's REST API share: pace, patience, credentials, and errors that say what to do.

Tokens are made elsewhere; here they are read only, at every request. No message, log line or exception holds one.
"""

import asyncio
import json
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from ssl import SSLContext
from types import TracebackType
from typing import Any, ClassVar, Self

import httpx

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.auth import can_be_sent
from dhan_pipeline.feeds.errors import (
    AnswerError,
    BadRequestError,
    BusyError,
    CredentialsError,
    NoDataPlanError,
    RequestsUsedUpError,
    RestError,
    SourceError,
    TokenRejectedError,
    UnavailableError,
)
from dhan_pipeline.sessions import day_start_ns

# They log every request; so that what a header holds never depends on their version.
for _library in ("httpx", "httpcore"):
    logging.getLogger(_library).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class RestPolicy:
    """How often, and for how long."""

    data_interval_s: float
    """Between two requests for bars."""
    quote_interval_s: float
    """Between two requests for quotes."""
    requests_a_day: int | None = None
    """Requests for bars in a day (IST); None: any number."""
    timeout_s: float = 30.0
    tries: int = 4
    """How often a request is made that gets no answer, or an empty one."""
    busy_tries: int = 8
    """How often one is made that the broker is too busy for: over two minutes at least, since it may want one of rest.
    """
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
                f"{self.today:,} requests for data were made today, which is as many as the broker takes in a day:"
                " go on after midnight in India."
            )
        self.today += 1


@dataclass(frozen=True, slots=True)
class Signed:
    """What shows the broker who asks."""

    headers: Mapping[str, str]
    token: str
    """What of it must not be seen."""
    source: str
    """The file or the variable that the token came from, for messages to people."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a broker's answer says is wrong; without a code, it does not say which error it is."""

    code: str = ""
    message: str = ""


class Rest(ABC):
    """One pool of connections to the REST API; any number of tasks may ask at once. An async context manager."""

    broker: ClassVar[str]
    """Its name in messages."""
    url_variable: ClassVar[str]
    """The setting that says where the API is."""
    no_data_plan: ClassVar[str]
    """What to do about an account that may not ask for data."""
    by_code: ClassVar[Mapping[str, type[SourceError]]]
    """What the broker's error codes mean."""
    by_status: ClassVar[Mapping[int, type[SourceError]]]
    """What an HTTP status means, where there is no code, or none that is known."""

    def __init__(self, base_url: str, clock: Clock, policy: RestPolicy) -> None:
        self.data = Pacer(policy.data_interval_s, clock, policy.requests_a_day)
        self.quotes = Pacer(policy.quote_interval_s, clock)
        self._policy = policy
        self._base_url = base_url.rstrip("/")
        self._client = httpx.AsyncClient(timeout=policy.timeout_s, verify=_certificates())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    @abstractmethod
    def sign(self) -> Signed:
        """Read the credentials. Raises CredentialsError."""

    @abstractmethod
    def complaint(self, said: dict[str, Any]) -> Complaint | None:
        """What the JSON object of an answer says is wrong, whatever its HTTP status; None where it is an answer."""

    async def get(self, path: str, query: Mapping[str, Any], what: str, pacer: Pacer) -> dict[str, Any]:
        """As `post`, with what is asked for in the address."""
        return await self._answer("GET", path, {"params": query}, what, pacer)

    async def post(self, path: str, request: Mapping[str, Any], what: str, pacer: Pacer) -> dict[str, Any]:
        """The JSON object that answers a request for `what`, which names it in errors ("the bars of NSE_EQ 2885").

        What passes is waited for: too many requests, no answer, an empty one. A token that is refused is read again.
        Raises RestError, CredentialsError.
        """
        return await self._answer("POST", path, {"json": request}, what, pacer)

    async def _answer(self, method: str, path: str, request: dict[str, Any], what: str, pacer: Pacer) -> dict[str, Any]:
        policy = self._policy
        busy = unanswered = 0
        rejected: TokenRejectedError | None = None
        rejected_token = ""
        while True:
            await pacer.turn()
            signed = self.sign()
            if rejected is not None and signed.token == rejected_token:
                raise rejected
            try:
                return await self._ask(method, path, request, what, signed)
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
                rejected, rejected_token = error, signed.token
                await asyncio.sleep(policy.pause_s(1))

    async def _ask(self, method: str, path: str, request: dict[str, Any], what: str, signed: Signed) -> dict[str, Any]:
        if not can_be_sent(signed.headers):
            raise CredentialsError(f"{_begin(signed.source)} has a token or an id that no header can carry.")
        headers = {**signed.headers, "Accept": "application/json"}
        problem = ""
        try:
            reply = await self._client.request(method, self._base_url + path, headers=headers, **request)
        except httpx.TimeoutException:
            problem = "it does not answer"
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
            problem = f"it cannot be reached; is {self.url_variable} right?"
        if problem:  # raised here, not where it was caught: the exceptions of the library know the request
            raise UnavailableError(f"{self.broker} does not give {what}: {problem}{'' if problem[-1] == '?' else '.'}")
        try:
            return self._read(reply.status_code, reply.content.replace(signed.token.encode(), b"***"), what)
        except TokenRejectedError as error:
            problem = str(error)
        raise TokenRejectedError(
            f"{problem.rstrip('.')}, which comes from {signed.source}: make a new one with"
            f" `dhan-pipeline token generate --source {self.broker.lower()}`."
        )

    def _read(self, status: int, content: bytes, what: str) -> dict[str, Any]:
        """The JSON object of an answer. Raises RestError and TokenRejectedError for what is none, or says why not."""
        if status == 200 and not content.strip():
            raise UnavailableError(f"{self.broker} does not give {what}: its answer is empty.")
        try:
            said = json.loads(content)
        except (ValueError, RecursionError):
            said = None
        complaint = self.complaint(said) if isinstance(said, dict) else None
        if 200 <= status < 300 and complaint is None:
            if isinstance(said, dict):
                return said
            raise AnswerError(f"{self.broker} does not give {what}: its answer is not a JSON object.")
        raise self._error(status, complaint or Complaint(), what)

    def _error(self, status: int, complaint: Complaint, what: str) -> SourceError:
        code, message = complaint.code[:40], complaint.message[:200]
        kind = self.by_code.get(code) or self.by_status.get(status)
        if kind is None:
            kind = UnavailableError if status >= 500 else RestError if code else BadRequestError
        reason = " ".join(part.strip().rstrip(".") for part in (code or f"HTTP status {status}", message) if part)
        if issubclass(kind, RestError):
            if kind is NoDataPlanError:
                reason += f": {self.no_data_plan}"
            return kind(f"{self.broker} does not give {what}: {reason}.", code or f"HTTP {status}")
        return kind(f"{self.broker} does not accept the access token ({reason}).")


@cache
def _certificates() -> SSLContext:
    """Reading them takes 20 ms, which is as much as a request."""
    return httpx.create_ssl_context()


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]
