"""The pages of Dhan's REST API that a capture needs: scrip master, profile, the token's life, history and quotes."""

import asyncio
import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pyotp

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator import history
from dhan_pipeline.feeds.simulator.history import BarEdit, RefusedError
from dhan_pipeline.feeds.simulator.http_server import HttpServer, Request, admit, write_file, write_json
from dhan_pipeline.feeds.simulator.market import Market
from dhan_pipeline.feeds.simulator.tokens import PIN, TOTP_SECRET, check_token, make_token, read_claims
from dhan_pipeline.sessions import IST

COMPACT_PATH = "/api-data/api-scrip-master.csv"
DETAILED_PATH = "/api-data/api-scrip-master-detailed.csv"
PROFILE_PATH = "/v2/profile"
RENEW_PATH = "/v2/RenewToken"
GENERATE_PATH = "/app/generateAccessToken"

#: A token is made with PIN and TOTP this often at most, in seconds.
GENERATE_INTERVAL_S = 120.0

#: How much longer than its token an account's data plan lasts.
PLAN_LASTS = timedelta(days=30)

#: First column of the compact scrip master. The detailed one begins otherwise.
_COMPACT_COLUMN = b"SEM_EXM_EXCH_ID"

#: Limits of an account: https://dhanhq.co/docs/v2/#rate-limit
REQUESTS_A_SECOND = 5
QUOTES_A_SECOND = 1

#: A bar is given when it has been over for so long, in seconds of the clock. This was seen, and is not documented.
SETTLE_S = 120.0

_DATA_PATHS = (history.INTRADAY_PATH, history.DAILY_PATH, history.ROLLING_OPTION_PATH, history.QUOTE_PATH)


class RestServer(HttpServer):
    """Serves one scrip master, under the path that its columns say, and the profile of whoever asks with a token.

    It makes tokens, too. The first that it makes ends all others: an account has one. With a market, it serves bars and
    quotes of it.
    """

    def __init__(
        self,
        clock: Clock,
        master_csv: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        pin: str = PIN,
        totp_secret: str = TOTP_SECRET,
        generate_interval_s: float = GENERATE_INTERVAL_S,
        requests_a_second: int = REQUESTS_A_SECOND,
        quotes_a_second: int = QUOTES_A_SECOND,
        settle_s: float = SETTLE_S,
    ) -> None:
        """Nothing listens yet. A port of 0 takes a free one."""
        super().__init__(clock, host, port)
        self.active_token: str | None = None
        """The only token that is good; None: every well-formed one is, as long as none was made here."""
        self.made = 0
        """Tokens that were made here."""
        self.data_plan = "Active"
        """What the profile says of it; with anything else there are neither bars nor quotes."""
        self.market: Market | None = None
        """What bars and quotes are of."""
        self.history_edits: Sequence[BarEdit] = ()
        """Minute bars that are given otherwise than they were traded."""
        self.instead: deque[tuple[HTTPStatus, dict[str, Any] | bytes]] = deque()
        """What the next requests for bars and quotes get instead of an answer, each one of it: see `error`."""
        self.asked: Counter[str] = Counter()
        """Requests for bars and quotes, by path, whatever they got."""
        self.rate_window_s = 1.0
        """The second of the two limits that follow."""
        self.requests_a_second = requests_a_second
        self.quotes_a_second = quotes_a_second
        self.settle_s = settle_s
        self._pin = pin
        self._totp = pyotp.TOTP(totp_secret)
        self._generate_interval_s = generate_interval_s
        self._generated_at = -generate_interval_s
        self._master_csv = master_csv
        self._served_at: defaultdict[tuple[str, bool], deque[float]] = defaultdict(deque)

    def judge(self, client_id: str, token: str) -> int | None:
        """The disconnect code that these credentials earn, else None."""
        refusal = check_token(client_id, token, self._clock)
        return 809 if refusal is None and self.active_token not in (None, token) else refusal

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        path, headers, body = request.path, request.headers, request.body
        if body is None:
            write_json(writer, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error("DH-905", "the request is too long"))
        elif request.method == "POST" and path in _DATA_PATHS:
            self.asked[path] += 1
            write_json(writer, *(self.instead.popleft() if self.instead else self._give(path, headers, body)))
        elif request.method == "POST" and path == GENERATE_PATH:
            write_json(writer, *self._generate(request.query))
        elif path == RENEW_PATH and request.method == "GET":
            write_json(writer, *self._renew(headers.get("access-token", ""), headers.get("dhanclientid", "")))
        elif request.method != "GET":
            write_json(writer, HTTPStatus.METHOD_NOT_ALLOWED, error("DH-905", "only GET is served"))
        elif path == PROFILE_PATH:
            write_json(writer, *self._profile(headers.get("access-token", "")))
        elif self._master_csv is not None and path in (COMPACT_PATH, DETAILED_PATH):
            await _write_master(writer, self._master_csv, compact=path == COMPACT_PATH)
        else:
            write_json(writer, HTTPStatus.NOT_FOUND, error("DH-905", "no such page"))

    def _give(self, path: str, headers: dict[str, str], body: bytes) -> tuple[HTTPStatus, dict[str, Any]]:
        """Bars or quotes."""
        try:
            self._admit(path == history.QUOTE_PATH, headers)
            try:
                request = json.loads(body)
            except (ValueError, RecursionError):
                request = None
            if self.market is None:
                raise RefusedError(HTTPStatus.BAD_REQUEST, "DH-905", 814, "a recording has neither bars nor quotes")
            if not isinstance(request, dict):
                raise RefusedError(HTTPStatus.BAD_REQUEST, "DH-905", 814, "not a JSON object")
            now_s = self._clock.now_ns() / 1e9
            if path == history.INTRADAY_PATH:
                bars = history.intraday(self.market, request, now_s, self.settle_s, self.history_edits)
                return HTTPStatus.OK, bars
            if path == history.DAILY_PATH:
                return HTTPStatus.OK, history.daily(self.market, request)
            if path == history.ROLLING_OPTION_PATH:
                return HTTPStatus.OK, history.rolling_option(self.market, request, now_s)
            return HTTPStatus.OK, history.quotes(self.market, request)
        except RefusedError as refused:
            return refused.status, refused.answer(path)

    def _admit(self, for_quotes: bool, headers: dict[str, str]) -> None:
        """Raises RefusedError for wrong credentials, without a data plan, and above the rate."""
        token = headers.get("access-token", "")
        try:
            owner = read_claims(token)["dhanClientId"]
        except ValueError:
            owner = ""
        client_id = headers.get("client-id", "") if for_quotes else owner
        if (code := self.judge(client_id, token)) is not None:
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "DH-901", code, "access token or client id invalid or expired")
        if self.data_plan != "Active":
            raise RefusedError(HTTPStatus.FORBIDDEN, "DH-902", 806, "not subscribed to Data APIs")
        requests = self.quotes_a_second if for_quotes else self.requests_a_second
        if not admit(self._served_at[client_id, for_quotes], requests, self.rate_window_s):
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "DH-904", 805, "too many requests")

    def _generate(self, query: dict[str, str]) -> tuple[HTTPStatus, dict[str, Any]]:
        """A token for PIN and TOTP: https://dhanhq.co/docs/v2/authentication/"""
        if time.monotonic() - self._generated_at < self._generate_interval_s:
            return HTTPStatus.BAD_REQUEST, error("DH-904", "Token can be generated once every 2 minutes")
        if query.get("pin") != self._pin:
            return HTTPStatus.BAD_REQUEST, error("DH-901", "Invalid Pin")
        if not self._totp.verify(query.get("totp", ""), for_time=self._clock.now(), valid_window=1):
            return HTTPStatus.BAD_REQUEST, error("DH-901", "Invalid TOTP")
        self._generated_at = time.monotonic()
        return HTTPStatus.OK, self._make(query.get("dhanClientId", ""), "APP")

    def _renew(self, token: str, client_id: str) -> tuple[HTTPStatus, dict[str, Any]]:
        if self.judge(client_id, token) is not None:
            return HTTPStatus.UNAUTHORIZED, error("DH-901", "access token invalid or expired")
        if read_claims(token).get("tokenConsumerType") != "SELF":
            return HTTPStatus.BAD_REQUEST, error("DH-905", "only tokens of the web site are renewed")
        return HTTPStatus.OK, self._make(client_id, "SELF")

    def _make(self, client_id: str, consumer: str) -> dict[str, Any]:
        self.active_token = make_token(client_id, clock=self._clock, consumer=consumer)
        self.made += 1
        expires = datetime.fromtimestamp(read_claims(self.active_token)["exp"], IST)
        return {
            "dhanClientId": client_id,
            "dhanClientName": "A TRADER",
            "dhanClientUcc": "ABCD12345E",
            "givenPowerOfAttorney": False,
            "accessToken": self.active_token,
            "expiryTime": expires.strftime("%Y-%m-%dT%H:%M:%S.000"),
        }

    def _profile(self, token: str) -> tuple[HTTPStatus, dict[str, Any]]:
        """The profile of the token's owner, whoever that is: https://dhanhq.co/docs/v2/authentication/"""
        try:
            claims = read_claims(token)
        except ValueError:
            return HTTPStatus.UNAUTHORIZED, error("DH-901", "access token invalid")
        if check_token(claims["dhanClientId"], token, self._clock) is not None:
            return HTTPStatus.UNAUTHORIZED, error("DH-901", "access token expired")
        if self.judge(claims["dhanClientId"], token) is not None:
            return HTTPStatus.UNAUTHORIZED, error("DH-906", "Invalid Token")
        expires = datetime.fromtimestamp(claims["exp"], IST)
        return HTTPStatus.OK, {
            "dhanClientId": claims["dhanClientId"],
            "tokenValidity": expires.strftime("%d/%m/%Y %H:%M"),
            "activeSegment": "Equity, Derivative, Currency, Commodity",
            "ddpi": "Active",
            "mtf": "Active",
            "dataPlan": self.data_plan,
            "dataValidity": (expires + PLAN_LASTS).strftime("%Y-%m-%d %H:%M:%S.0"),
        }


def error(code: str, message: str) -> dict[str, Any]:
    """The body of a refusal, such as `RestServer.instead` takes."""
    return {"errorType": "Invalid_Request", "errorCode": code, "errorMessage": message}


async def _write_master(writer: asyncio.StreamWriter, master_csv: Path, *, compact: bool) -> None:
    """The file, if it is of the layout that was asked for."""

    def refuse(first: bytes) -> str | None:
        return None if (_COMPACT_COLUMN in first) == compact else "only the other layout is served"

    problem = await write_file(writer, master_csv, refuse)
    if problem:
        write_json(writer, HTTPStatus.NOT_FOUND, error("DH-905", problem))
