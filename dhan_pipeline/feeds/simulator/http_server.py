"""As much HTTP as the brokers' simulated REST pages take: one request a connection, on `asyncio` streams."""

import asyncio
import contextlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import format_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dhan_pipeline.clock import Clock

#: A request is no longer; 1000 instruments take a tenth.
MAX_REQUEST_BYTES = 1 << 17

_CHUNK_BYTES = 1 << 20
_REQUEST_TIMEOUT_S = 10.0

#: The clock of the server whose answer is being written: each request is a task, and has a context of its own.
_clock: ContextVar[Clock] = ContextVar("clock")


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for."""

    method: str
    path: str
    query: dict[str, str]
    """Of a parameter that is given several times, the first value."""
    queries: dict[str, list[str]]
    headers: dict[str, str]
    """By name, in small letters."""
    body: bytes | None
    """None if it was longer than a request is."""


class HttpServer(ABC):
    """Answers requests, each on a connection of its own."""

    def __init__(self, clock: Clock, host: str = "127.0.0.1", port: int = 0) -> None:
        """Nothing listens yet. A port of 0 takes a free one. Each answer says what time it is by the clock."""
        self.host = host
        self._clock = clock
        self._port = port
        self._server: asyncio.Server | None = None
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None, "the server is not running"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @abstractmethod
    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""

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
        _clock.set(self._clock)
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    request = await _read(reader)
                await self.answer(request, writer)
                await writer.drain()
            finally:
                writer.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, _, target = lines[0].partition(" ")
    address = urlsplit(target.partition(" ")[0])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    queries = parse_qs(address.query)
    query = {name: values[0] for name, values in queries.items()}
    size = headers.get("content-length", "0")
    body = None
    if size.isascii() and size.isdigit() and len(size) < 10 and int(size) <= MAX_REQUEST_BYTES:
        body = await reader.readexactly(int(size))
    return Request(method, address.path, query, queries, headers, body)


def admit(served_at: deque[float], requests: int, window_s: float) -> bool:
    """Whether one request more is within so many in a window; then it is counted."""
    now = time.monotonic()
    while served_at and now - served_at[0] >= window_s:
        served_at.popleft()
    if len(served_at) >= requests:
        return False
    served_at.append(now)
    return True


def write_json(writer: asyncio.StreamWriter, status: HTTPStatus, content: dict[str, Any] | bytes) -> None:
    """Answer with an object, or with a body as it is."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    _write_head(writer, status, "application/json", len(body))
    writer.write(body)


def write_csv(writer: asyncio.StreamWriter, body: bytes, *, compressed: bool) -> None:
    """Answer with a table, which may be compressed with gzip."""
    _write_head(writer, HTTPStatus.OK, "text/csv", len(body), "Content-Encoding: gzip\r\n" if compressed else "")
    writer.write(body)


async def write_file(writer: asyncio.StreamWriter, path: Path, refuse: Callable[[bytes], str | None]) -> str | None:
    """Answer with a CSV file, read in a thread, so that the feed never waits for it.

    Nothing is written where `refuse` has something against its first line, or it cannot be read: that is returned.
    """
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except OSError:
        return "the file cannot be read"
    with file:
        chunk = await asyncio.to_thread(file.read, _CHUNK_BYTES)
        if problem := refuse(chunk.partition(b"\n")[0]):
            return problem
        _write_head(writer, HTTPStatus.OK, "text/csv", os.fstat(file.fileno()).st_size)
        while chunk:
            writer.write(chunk)
            await writer.drain()
            chunk = await asyncio.to_thread(file.read, _CHUNK_BYTES)
    return None


def _write_head(writer: asyncio.StreamWriter, status: HTTPStatus, content_type: str, size: int, more: str = "") -> None:
    date = format_datetime(_clock.get().now(), usegmt=True)
    writer.write(
        f"HTTP/1.1 {status.value} {status.phrase}\r\nDate: {date}\r\n{more}"
        f"Content-Type: {content_type}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode()
    )
