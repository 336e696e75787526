"""The pages of Dhan's REST API that a capture needs: the scrip master as a file, the profile, and the token's life.

One request a connection: as much HTTP as that takes, on `asyncio` streams.
"""

import asyncio
import contextlib
import json
import os
import time
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyotp

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.simulator.tokens import PIN, TOTP_SECRET, check_token, make_token, read_claims
from dhan_pipeline.sessions import IST

COMPACT_PATH = "/api-data/api-scrip-master.csv"
DETAILED_PATH = "/api-data/api-scrip-master-detailed.csv"
PROFILE_PATH = "/v2/profile"
RENEW_PATH = "/v2/RenewToken"
GENERATE_PATH = "/app/generateAccessToken"

#: A token is made with PIN and TOTP this often at most, in seconds.
GENERATE_INTERVAL_S = 120.0

#: First column of the compact scrip master. The detailed one begins otherwise.
_COMPACT_COLUMN = b"SEM_EXM_EXCH_ID"

_CHUNK_BYTES = 1 << 20
_REQUEST_TIMEOUT_S = 10.0


class RestServer:
    """Serves one scrip master, under the path that its columns say, and the profile of whoever asks with a token.

    It makes tokens, too. The first that it makes ends all others: an account has one.
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
    ) -> None:
        """Nothing listens yet. A port of 0 takes a free one."""
        self.host = host
        self.active_token: str | None = None
        """The only token that is good; None: every well-formed one is, as long as none was made here."""
        self.made = 0
        """Tokens that were made here."""
        self.data_plan = "Active"
        """What the profile says of it."""
        self._pin = pin
        self._totp = pyotp.TOTP(totp_secret)
        self._generate_interval_s = generate_interval_s
        self._generated_at = -generate_interval_s
        self._port = port
        self._clock = clock
        self._master_csv = master_csv
        self._server: asyncio.Server | None = None
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None, "the server is not running"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def judge(self, client_id: str, token: str) -> int | None:
        """The disconnect code that these credentials earn, else None."""
        refusal = check_token(client_id, token, self._clock)
        return 809 if refusal is None and self.active_token not in (None, token) else refusal

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        self._server = await asyncio.start_server(self._accept, self.host, self._port)

    async def aclose(self) -> None:
        """Stop listening, and abandon requests that are being answered."""
        if self._server is not None:
            self._server.close()
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(writer, head.decode("latin-1"))
                await writer.drain()
            finally:
                writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, head: str) -> None:
        request, *lines = head.split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, _, target = request.partition(" ")
        address = urlsplit(target.partition(" ")[0])
        path = address.path
        if method == "POST" and path == GENERATE_PATH:
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            _write_json(writer, *self._generate(query))
        elif path == RENEW_PATH and method == "GET":
            _write_json(writer, *self._renew(headers.get("access-token", ""), headers.get("dhanclientid", "")))
        elif method != "GET":
            _write_json(writer, HTTPStatus.METHOD_NOT_ALLOWED, _error("DH-905", "only GET is served"))
        elif path == PROFILE_PATH:
            _write_json(writer, *self._profile(headers.get("access-token", "")))
        elif self._master_csv is not None and path in (COMPACT_PATH, DETAILED_PATH):
            await _write_master(writer, self._master_csv, compact=path == COMPACT_PATH)
        else:
            _write_json(writer, HTTPStatus.NOT_FOUND, _error("DH-905", "no such page"))

    def _generate(self, query: dict[str, str]) -> tuple[HTTPStatus, dict[str, Any]]:
        """A token for PIN and TOTP: https://dhanhq.co/docs/v2/authentication/"""
        if time.monotonic() - self._generated_at < self._generate_interval_s:
            return HTTPStatus.BAD_REQUEST, _error("DH-904", "Token can be generated once every 2 minutes")
        if query.get("pin") != self._pin:
            return HTTPStatus.BAD_REQUEST, _error("DH-901", "Invalid Pin")
        if not self._totp.verify(query.get("totp", ""), for_time=self._clock.now(), valid_window=1):
            return HTTPStatus.BAD_REQUEST, _error("DH-901", "Invalid TOTP")
        self._generated_at = time.monotonic()
        return HTTPStatus.OK, self._make(query.get("dhanClientId", ""), "APP")

    def _renew(self, token: str, client_id: str) -> tuple[HTTPStatus, dict[str, Any]]:
        if self.judge(client_id, token) is not None:
            return HTTPStatus.UNAUTHORIZED, _error("DH-901", "access token invalid or expired")
        if read_claims(token).get("tokenConsumerType") != "SELF":
            return HTTPStatus.BAD_REQUEST, _error("DH-905", "only tokens of the web site are renewed")
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
            return HTTPStatus.UNAUTHORIZED, _error("DH-901", "access token invalid")
        if check_token(claims["dhanClientId"], token, self._clock) is not None:
            return HTTPStatus.UNAUTHORIZED, _error("DH-901", "access token expired")
        if self.judge(claims["dhanClientId"], token) is not None:
            return HTTPStatus.UNAUTHORIZED, _error("DH-906", "Invalid Token")
        expires = datetime.fromtimestamp(claims["exp"], IST)
        return HTTPStatus.OK, {
            "dhanClientId": claims["dhanClientId"],
            "tokenValidity": expires.strftime("%d/%m/%Y %H:%M"),
            "activeSegment": "Equity, Derivative, Currency, Commodity",
            "ddpi": "Active",
            "mtf": "Active",
            "dataPlan": self.data_plan,
            "dataValidity": expires.strftime("%Y-%m-%d %H:%M:%S.0"),
        }


def _error(code: str, message: str) -> dict[str, str]:
    return {"errorType": "Invalid_Request", "errorCode": code, "errorMessage": message}


def _write_head(writer: asyncio.StreamWriter, status: HTTPStatus, content_type: str, size: int) -> None:
    writer.write(
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode()
    )


def _write_json(writer: asyncio.StreamWriter, status: HTTPStatus, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    _write_head(writer, status, "application/json", len(body))
    writer.write(body)


async def _write_master(writer: asyncio.StreamWriter, master_csv: Path, *, compact: bool) -> None:
    """The file, if it is of the layout that was asked for; read in a thread, so that the feed never waits for it."""
    try:
        file = await asyncio.to_thread(master_csv.open, "rb")
    except OSError:
        return _write_json(writer, HTTPStatus.NOT_FOUND, _error("DH-905", "the scrip master cannot be read"))
    with file:
        chunk = await asyncio.to_thread(file.read, _CHUNK_BYTES)
        if (_COMPACT_COLUMN in chunk.partition(b"\n")[0]) != compact:
            return _write_json(writer, HTTPStatus.NOT_FOUND, _error("DH-905", "only the other layout is served"))
        _write_head(writer, HTTPStatus.OK, "text/csv", os.fstat(file.fileno()).st_size)
        while chunk:
            writer.write(chunk)
            await writer.drain()
            chunk = await asyncio.to_thread(file.read, _CHUNK_BYTES)
    return None
