"""A network between the capture and the database that swallows what is sent, or cuts connections in the middle."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on in both ways, unless told otherwise."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._passing = asyncio.Event()
        self._passing.set()
        self._limit: Callable[[], tuple[int, int]] | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.cuts = 0
        """Connections cut by `cutting`."""

    @property
    def url(self) -> str:
        """The database through this network."""
        assert self._server is not None
        user = self._target.netloc.rpartition("@")[0]
        port = self._server.sockets[0].getsockname()[1]
        return self._target._replace(netloc=f"{user}@127.0.0.1:{port}").geturl()

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """All connections stand, new ones too, and nothing gets through. They are reset in the end."""
        self._passing.clear()
        try:
            yield
        finally:
            self._reset()
            self._passing.set()

    @contextmanager
    def cutting(self, limit: Callable[[], tuple[int, int]]) -> Iterator[None]:
        """Reset each connection once so many bytes went to the server, or so many commits came from it.

        The client never learns of the last of these commits.
        """
        self._limit = limit
        self._reset()
        try:
            yield
        finally:
            self._limit = None
            self._reset()

    def _reset(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent, commits = self._limit() if self._limit else (None, None)
        self._writers.add(writer)
        back = None
        try:
            there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
            self._writers.add(back)
            ways = [self._pass(reader, back, sent, len), self._pass(there, writer, commits, _commits)]
            await asyncio.wait([asyncio.create_task(way) for way in ways], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, back):
                if end is not None:
                    end.transport.abort()
                    self._writers.discard(end)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limit: int | None,
        cost: Callable[[bytes], int],
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._passing.wait()
                if limit is not None:
                    limit -= cost(data)
                    if limit <= 0:
                        self.cuts += 1
                        if cost is len:
                            writer.write(data[:limit])
                            await writer.drain()
                        return
                writer.write(data)
                await writer.drain()


def _commits(answer: bytes) -> int:
    return answer.count(b"COMMIT\0")


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A network in front of the database of the URL."""
    between = Proxy(url)
    between._server = await asyncio.start_server(between._serve, "127.0.0.1", 0)
    try:
        yield between
    finally:
        between._server.close()
        between._reset()
        await between._server.wait_closed()
