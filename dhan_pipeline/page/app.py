"""What the live page asks for: itself, `/now` once a second, and `/instrument` while one is looked at."""

from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import date, datetime, timedelta
from json import dumps
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 - which finding symbols needs: now, and not while somebody waits for it
import psycopg2
from psycopg2.extensions import connection
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError, in_words
from dhan_pipeline.quality.now import read_now
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import SOURCES, Source
from dhan_pipeline.store.instruments import read_names
from dhan_pipeline.store.ledger import statuses
from dhan_pipeline.store.reading import Reader
from dhan_pipeline.store.recent import recent
from dhan_pipeline.store.symbols import SymbolError, find_instruments, not_found

#: What the chart shows.
WINDOW = timedelta(minutes=15)

#: Other instruments that may have been meant.
_OTHERS = 5

_STATIC = Path(__file__).parent / "static"
_FILES = {"/": "index.html", "/live.css": "live.css", "/live.js": "live.js", "/icon.svg": "icon.svg"}

#: Nothing from elsewhere, and nobody else's page may show or read this one.
_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def make_app(settings: Settings, database_url: str, hosts: Sequence[str], clock: Clock | None = None) -> Starlette:
    """The page over a database. `hosts`: the names by which it may be asked for, without the port.

    A name of somebody else's that leads to this machine is refused: so no web site can read it through a browser.
    """
    clock = clock or Clock()
    reader = Reader(database_url)

    # Not async: each runs in a thread, for it waits for the database.
    def now(_request: Request) -> Response:
        return _answer(lambda: reader.read(lambda conn: asdict(read_now(conn, settings, clock))))

    def instrument(request: Request) -> Response:
        symbol = request.query_params.get("symbol", "").strip()[:100]
        return _answer(lambda: reader.read(lambda conn: _instrument(conn, settings, clock, symbol)))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> Any:
        yield
        reader.close()

    return Starlette(
        routes=[
            *(Route(path, _file(name)) for path, name in _FILES.items()),
            Route("/now", now),
            Route("/instrument", instrument),
        ],
        middleware=[Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        lifespan=lifespan,
    )


def _file(name: str) -> Callable[[Request], Response]:
    def send(_request: Request) -> Response:
        return FileResponse(_STATIC / name)

    return send


class _Headers:
    """Adds `_HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


def _answer(find: Callable[[], dict[str, Any]]) -> Response:
    """What is found, as JSON; or a sentence why not: 404 where a name means nothing, 503 where the database is away."""
    try:
        status, found = 200, find()
    except SymbolError as error:
        status, found = 404, {"problem": str(error)}
    except (PipelineError, psycopg2.Error) as error:
        status, found = 503, {"problem": in_words(error)}
    return Response(dumps(found, default=_iso, allow_nan=False), status, media_type="application/json")


def _iso(at: datetime | date) -> str:
    return at.astimezone(IST).isoformat(timespec="milliseconds") if isinstance(at, datetime) else at.isoformat()


def _instrument(conn: connection, settings: Settings, clock: Clock, symbol: str) -> dict[str, Any]:
    """Who is meant, its last tick with depth, and its last minutes. Raises SymbolError."""
    captured = [status.source for status in statuses(conn)]
    sources = [source for source in SOURCES if source in captured] or list(settings.sources)
    meant, *others = _meant(conn, sources, symbol, clock)
    token = int(meant["instrument_token"])
    found = recent(conn, token, clock.now_ns(), WINDOW)
    return {
        "instrument": meant,
        "others": others,
        "tick": found and found.tick,
        "points": found.points if found else [],
    }


def _meant(conn: connection, sources: Sequence[Source], symbol: str, clock: Clock) -> list[dict[str, str]]:
    """The instruments that a text may mean, the best match first. Raises SymbolError without any."""
    if symbol.isdecimal() and len(symbol) < 19 and (named := read_names(conn, [int(symbol)])):
        [(token, (written, segment, name))] = named.items()
        return [{"instrument_token": str(token), "symbol": written, "segment": segment, "name": name}]
    for source in sources:
        found = find_instruments(conn, symbol, source=source)
        if len(found):
            rows = found.head(1 + _OTHERS)[["instrument_token", "trading_symbol", "exchange_segment", "name"]]
            rows = rows.fillna("").astype(str).set_axis(["instrument_token", "symbol", "segment", "name"], axis=1)
            return [{str(name): text for name, text in row.items()} for row in rows.to_dict("records")]
    raise not_found(conn, symbol, source=sources[0])
