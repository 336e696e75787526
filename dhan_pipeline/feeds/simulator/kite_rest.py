"""The pages of Kite's REST API that a capture needs: instruments, the token's life, profile; bars and quotes on demand.

https://kite.trade/docs/connect/v3/. Anybody gets the instruments, but nobody with credentials that are wrong.
"""

import asyncio
import gzip
from collections import Counter, deque
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.kite.auth import token_expiry
from dhan_pipeline.feeds.simulator.http_server import HttpServer, Request, admit, write_csv, write_json
from dhan_pipeline.feeds.simulator.tokens import API_KEY, API_SECRET, check_kite_access_token, make_kite_access_token
from dhan_pipeline.instruments import KiteSegment
from dhan_pipeline.sessions import IST

DUMP_PATH = "/instruments"
HISTORICAL_PATH = "/instruments/historical"
QUOTE_PATH = "/quote"
PROFILE_PATH = "/user/profile"
TOKEN_PATH = "/session/token"  # noqa: S105 - it is a page

#: Limits of an app: https://kite.trade/docs/connect/v3/exceptions/#api-rate-limit
REQUESTS_A_SECOND = 3
QUOTES_A_SECOND = 1

Answer = tuple[HTTPStatus, dict[str, Any]]


class KiteRest(HttpServer):
    """Serves one dump of instruments, whole or by exchange, and whoever asks with a token.

    It makes tokens, too. The first that it makes ends all others: a user has one for an app.
    """

    def __init__(
        self,
        clock: Clock,
        dump_csv: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        api_key: str = API_KEY,
        api_secret: str = API_SECRET,
        requests_a_second: int = REQUESTS_A_SECOND,
        quotes_a_second: int = QUOTES_A_SECOND,
    ) -> None:
        """Nothing listens yet. A port of 0 takes a free one."""
        super().__init__(clock, host, port)
        self.active_token: str | None = None
        """The only token that is good; None: every well-formed one is, as long as none was made here."""
        self.made = 0
        """Tokens that were made here."""
        self.give: Callable[[Request], Answer] | None = None
        """What answers requests for bars and quotes that are allowed; without it there are none."""
        self.instead: deque[tuple[HTTPStatus, dict[str, Any] | bytes]] = deque()
        """What the next requests for bars and quotes get instead of an answer, each one of it: see `error`."""
        self.asked: Counter[str] = Counter()
        """Requests for bars (HISTORICAL_PATH) and quotes, whatever they got."""
        self.rate_window_s = 1.0
        """The second of the two limits that follow."""
        self.requests_a_second = requests_a_second
        self.quotes_a_second = quotes_a_second
        self._api_key = api_key
        self._api_secret = api_secret
        self._dump_csv = dump_csv
        self._used: set[str] = set()
        self._served_at: dict[str, deque[float]] = {HISTORICAL_PATH: deque(), QUOTE_PATH: deque()}

    def judge(self, api_key: str, token: str) -> bool:
        """Whether these credentials are good."""
        good = api_key == self._api_key and check_kite_access_token(token, self._clock)
        return good and self.active_token in (None, token)

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        if request.body is None:
            write_json(writer, *error("InputException", "The request is too long."))
        elif request.path == TOKEN_PATH and request.method == "POST":
            write_json(writer, *self._make(dict(parse_qsl(request.body.decode("latin-1")))))
        elif request.path == TOKEN_PATH and request.method == "DELETE":
            write_json(writer, *self._end(request.query))
        elif request.method != "GET":
            write_json(writer, *error("GeneralException", "Only GET is served.", HTTPStatus.METHOD_NOT_ALLOWED))
        elif (page := _data_page(request.path)) is not None:
            self.asked[page] += 1
            write_json(writer, *(self.instead.popleft() if self.instead else self._give(page, request)))
        elif request.path == PROFILE_PATH:
            write_json(writer, *(_PROFILE if self._knows(request) else _NO_TOKEN))
        elif request.path == DUMP_PATH or request.path.startswith(DUMP_PATH + "/"):
            await self._write_dump(writer, request)
        else:
            write_json(writer, *error("GeneralException", "Route not found", HTTPStatus.NOT_FOUND))

    def _knows(self, request: Request) -> bool:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        api_key, _, token = credentials.partition(":")
        return scheme == "token" and self.judge(api_key, token)

    def _give(self, page: str, request: Request) -> Answer:
        """Bars or quotes."""
        if not self._knows(request):
            return _NO_TOKEN
        requests = self.quotes_a_second if page == QUOTE_PATH else self.requests_a_second
        if not admit(self._served_at[page], requests, self.rate_window_s):
            return error("NetworkException", "Too many requests", HTTPStatus.TOO_MANY_REQUESTS)
        if self.give is None:
            return error("DataException", "A recording has neither bars nor quotes.", HTTPStatus.BAD_GATEWAY)
        return self.give(request)

    def _make(self, form: dict[str, str]) -> Answer:
        """A token for what a login left: https://kite.trade/docs/connect/v3/user/#authentication-and-token-exchange"""
        request_token = form.get("request_token", "")
        checksum = sha256(f"{self._api_key}{request_token}{self._api_secret}".encode()).hexdigest()
        if form.get("api_key") != self._api_key or not request_token or request_token in self._used:
            return error("TokenException", "Token is invalid or has expired.", HTTPStatus.FORBIDDEN)
        if form.get("checksum") != checksum:
            return error("TokenException", "Invalid `checksum`.", HTTPStatus.FORBIDDEN)
        self._used.add(request_token)
        now = self._clock.now()
        lasts = (token_expiry(now) - now).total_seconds()
        self.active_token = make_kite_access_token(expires_in=lasts, clock=self._clock)
        self.made += 1
        made = {
            "api_key": self._api_key,
            "access_token": self.active_token,
            "public_token": "",
            "refresh_token": "",
            "login_time": f"{now.astimezone(IST):%Y-%m-%d %H:%M:%S}",
        }
        return HTTPStatus.OK, {"status": "success", "data": _PROFILE[1]["data"] | made}

    def _end(self, query: dict[str, str]) -> Answer:
        """The end of a token."""
        if not self.judge(query.get("api_key", ""), query.get("access_token", "")):
            return _NO_TOKEN
        self.active_token = ""
        return HTTPStatus.OK, {"status": "success", "data": True}

    async def _write_dump(self, writer: asyncio.StreamWriter, request: Request) -> None:
        """The dump, or an exchange's part of it; made in a thread, so that the feed never waits for it."""
        exchange = request.path.removeprefix(DUMP_PATH).strip("/")
        if "authorization" in request.headers and not self._knows(request):
            return write_json(writer, *_NO_TOKEN)
        if exchange and exchange not in KiteSegment.__members__:
            return write_json(writer, *error("InputException", "Invalid exchange."))
        if self._dump_csv is None:
            return write_json(writer, *error("GeneralException", "There are no instruments.", HTTPStatus.NOT_FOUND))
        try:
            content = await asyncio.to_thread(self._dump_csv.read_bytes)
        except OSError:
            return write_json(writer, *error("GeneralException", "The dump cannot be read.", HTTPStatus.NOT_FOUND))
        compress = "gzip" in request.headers.get("accept-encoding", "")
        body = await asyncio.to_thread(_part, content, exchange, compress)
        write_csv(writer, body, compressed=compress)
        return None


def _data_page(path: str) -> str | None:
    if path.startswith(HISTORICAL_PATH + "/"):
        return HISTORICAL_PATH
    return QUOTE_PATH if path == QUOTE_PATH else None


def _part(content: bytes, exchange: str, compress: bool) -> bytes:
    """The rows of an exchange, which is the last column; without one, all."""
    if exchange:
        header, *lines = content.splitlines(keepends=True)
        end = f",{exchange}".encode()
        content = b"".join([header, *(line for line in lines if line.rstrip().endswith(end))])
    return gzip.compress(content, 1, mtime=0) if compress else content


def error(kind: str, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> Answer:
    """A refusal, such as `KiteRest.instead` takes."""
    return status, {"status": "error", "message": message, "data": None, "error_type": kind}


_NO_TOKEN = error("TokenException", "Incorrect `api_key` or `access_token`.", HTTPStatus.FORBIDDEN)

_PROFILE: Answer = (
    HTTPStatus.OK,
    {
        "status": "success",
        "data": {
            "user_id": "AB1234",
            "user_type": "individual",
            "email": "trader@example.com",
            "user_name": "A Trader",
            "user_shortname": "Trader",
            "broker": "ZERODHA",
            "exchanges": ["NSE", "NFO", "BSE", "BFO", "CDS", "BCD", "MCX"],
            "products": ["CNC", "NRML", "MIS"],
            "order_types": ["MARKET", "LIMIT", "SL", "SL-M"],
            "meta": {"demat_consent": "consent"},
        },
    },
)
