"""Clients of Dhan's live feed: `Feed` for the capture, `DhanWebSocketClient` for one person and a few instruments.

Both keep their connections for as long as they run. https://dhanhq.co/docs/v2/live-market-feed/
"""

import asyncio
import contextlib
import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from dhan_pipeline.feeds import client
from dhan_pipeline.feeds.connection import DEFAULT_POLICY, FeedPolicy, Wire
from dhan_pipeline.feeds.dhan.auth import Credentials, get_dhan_credentials, get_websocket_url
from dhan_pipeline.feeds.dhan.errors import refused
from dhan_pipeline.feeds.dhan.framing import split
from dhan_pipeline.feeds.dhan.packets import (
    DhanTick,
    PacketError,
    parse_full_packet,
    parse_oi_packet,
    parse_prev_close_packet,
    parse_quote_packet,
    parse_ticker_packet,
)
from dhan_pipeline.feeds.dhan.requests import (
    MAX_CONNECTIONS,
    MAX_INSTRUMENTS_PER_CONNECTION,
    disconnect_message,
    subscribe_messages,
    unsubscribe_messages,
)
from dhan_pipeline.feeds.dhan.token import can_refresh, refresh_token, token_report
from dhan_pipeline.feeds.dhan.wire import LAYOUTS, ResponseCode
from dhan_pipeline.feeds.errors import CredentialsError, FeedError, TokenLostError, TokenRefusedError
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.threads import in_thread
from dhan_pipeline.ticks import Mode

log = logging.getLogger(__name__)

CLIENT_ID_INVALID = 810

#: What `DhanWebSocketClient` subscribes: pairs of exchange segment and security id, or mappings that name both.
Instruments = Iterable[Mapping[str, Any] | tuple[str | int, int | str]]

#: How long callbacks that wait for their turn may take once the client ends.
_LAST_CALLBACKS_S = 1.0

#: What is wrong with one packet may be wrong with each of thousands a second: a sentence is logged so often (s), and of
#: so many it is known when they were.
_REPEAT_S = 60.0
_REMEMBERED = 1000

_DISCONNECT = LAYOUTS[ResponseCode.DISCONNECT]
_DISCONNECT_CODE = bytes([ResponseCode.DISCONNECT])


def _ending(message: bytes) -> FeedError | None:
    """The reason of a disconnect packet, where there is one in the message."""
    for start, _, code, problem in split(message):
        if code == ResponseCode.DISCONNECT and problem is None:
            return refused(_DISCONNECT.struct.unpack_from(message, start)[-1])
    return None


WIRE = Wire(
    url=lambda base_url, credentials: get_websocket_url(credentials, base_url),
    subscribe=subscribe_messages,
    unsubscribe=unsubscribe_messages,
    refused=refused,
    ending=_ending,
    begins=lambda message: message[:1] != _DISCONNECT_CODE,
    max_message_bytes=512 << 10,  # the feed's messages are of one packet, some hundred bytes
    ending_size=_DISCONNECT.size,
    farewell=disconnect_message(),
)


class Feed(client.Feed):
    """Dhan's feed."""

    broker = "Dhan"
    wire = WIRE
    max_connections = MAX_CONNECTIONS
    max_instruments = MAX_INSTRUMENTS_PER_CONNECTION

    _minted: str | None = None  # the last token made here, until a connection proves it good
    _mint_at = 0.0
    _ask_at = 0.0

    @property
    def _base_url(self) -> str:
        return self._settings.dhan_feed_url

    def _get_credentials(self) -> Credentials:
        return get_dhan_credentials(self._settings)

    def _proved_good(self) -> None:
        self._minted, self._mint_at = None, 0.0

    async def _make_token(self, refusal: TokenRefusedError | None) -> bool:
        """Have a token made for the one that was refused, or is missing or over. True if there may be another one now.

        Each token that is made ends the one before. So where one that was made here is refused, no other is made until
        somebody brings one, or a connection was useful.
        """
        loop = asyncio.get_running_loop()
        refused = None
        if refusal is not None and self._refused is not None:
            refused = self._refused.access_token.get_secret_value()
            if refused == self._minted or refusal.code == CLIENT_ID_INVALID:
                return False
        if loop.time() < self._mint_at or not can_refresh(self._settings):
            return False
        self._mint_at = loop.time() + self._policy.mint_interval_s
        try:
            minted = await asyncio.wrap_future(
                in_thread(partial(refresh_token, self._settings, self._clock, refused=refused), "token")
            )
        except CredentialsError as error:
            if isinstance(error, TokenLostError):
                self._mint_at = math.inf
            self._warn(str(error))
            return False
        if minted is not None:
            self._minted = minted.access_token.get_secret_value()
        return True

    def _ask_why(self) -> None:
        """A refused handshake does not say why; the account's profile may. Nobody waits for it."""
        loop = asyncio.get_running_loop()
        # The token of an exchange for practice, which has no TLS, is none of the broker's business.
        practice = self._settings.dhan_feed_url.startswith("ws:") and self._settings.dhan_api_url.startswith("https:")
        if self._group is not None and loop.time() >= self._ask_at and not practice:
            self._ask_at = loop.time() + self._policy.refused_token_rest_s
            self._group.create_task(self._read_profile(), name="profile")

    async def _read_profile(self) -> None:
        with contextlib.suppress(CredentialsError):  # said where they are read
            report = await asyncio.wrap_future(in_thread(partial(token_report, self._settings, self._clock), "token"))
            if report["problem"]:
                self._warn(f"Dhan was asked about the access token. {report['problem']}")


class DhanWebSocketClient:
    """The live feed for one person: packets come as `DhanTick`, one at a time.

    Convenient, and some fifty times slower than the capture. Credentials are those of `settings`, by default of the
    environment; see `auth.get_dhan_credentials`.

        client = DhanWebSocketClient(on_tick=print)
        await client.connect()
        await client.subscribe([("NSE_EQ", 2885)], "full")
        await client.start()
    """

    def __init__(
        self,
        on_tick: Callable[[DhanTick], Any],
        on_connect: Callable[[], Any] | None = None,
        on_error: Callable[[Exception], Any] | None = None,
        on_close: Callable[[], Any] | None = None,
        ping_interval: float | None = None,
        ping_timeout: float | None = None,
        max_reconnect_attempts: int | None = None,
        reconnect_delay: float = DEFAULT_POLICY.first_delay_s,
        *,
        settings: Settings | None = None,
    ) -> None:
        """Callbacks are called in the event loop. Where they are coroutine functions, one after the other is awaited.

        `on_tick` gets each ticker, quote, full, open-interest and previous-close packet. `on_connect` is called at
        every connect, `on_error` with the reason when the connection was lost, with a packet that cannot be read
        (PacketError) and with what `on_tick` raised; none of these ends the client. Without it they are logged, each
        sentence once a minute at most. `on_close` is called when it ended.
        `ping_interval` and `ping_timeout` (seconds) add a keepalive of our own to the server's, which suffices.
        `max_reconnect_attempts` in a row may fail; None: any number. `reconnect_delay` (seconds) is the longest wait
        before the first of them; it doubles from one to the next, up to a minute.

        A plain function holds the feed up while it runs, a coroutine function does not: calls that wait for their turn
        are kept in memory, all of them, and `get_stats` counts them. Those that still wait when the client ends get a
        second.
        """
        self._on_tick = on_tick
        self._on_connect = on_connect
        self._on_error = on_error
        self._logged_at_s: dict[str, float] = {}
        self._on_close = on_close
        policy = FeedPolicy(
            first_delay_s=reconnect_delay,
            ping_interval_s=ping_interval,
            ping_timeout_s=ping_timeout,
            max_reconnects=max_reconnect_attempts,
        )
        self._feed = Feed(
            settings or Settings(),
            {},
            self._receive,
            policy=policy,
            on_connect=self._connected,
            on_down=lambda _, reason, since_ns: None if since_ns is None else self._report(reason),
        )
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._calls: asyncio.Queue[tuple[Awaitable[Any], bool]] = asyncio.Queue()
        self._attendant: asyncio.Task[None] | None = None
        self._connects = self._messages = self._ticks = self._errors = 0
        self._last_message_at: datetime | None = None

    async def connect(self) -> None:
        """Connect, and return once connected; messages begin to come. Does nothing while connected.

        Raises what makes it impossible, as `start` does; failures that may pass are waited out.
        """
        if self._task is None or self._task.done():
            self._up.clear()
            self._task = asyncio.create_task(self._run(), name="dhan client")
        up = asyncio.create_task(self._up.wait())
        try:
            await asyncio.wait([self._task, up], return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def subscribe(self, instruments: Instruments, mode: Mode | str = Mode.QUOTE) -> None:
        """Subscribe instruments, before or after `connect`; a new mode replaces the old.

        Instruments are pairs of exchange segment and security id, or Dhan's `{"ExchangeSegment": …, "SecurityId": …}`;
        a segment is its name or its number. Modes are ticker, quote and full, in small or capital letters.
        Raises ValueError or KeyError for a mode, segment or id that does not exist, SubscriptionLimitError.
        """
        await self._feed.subscribe(dict.fromkeys(_tokens(instruments), Mode(str(mode).lower())))

    async def unsubscribe(self, instruments: Instruments) -> None:
        """End subscriptions, in whatever mode they are; those that do not exist are ignored."""
        await self._feed.unsubscribe(_tokens(instruments))

    async def start(self) -> None:
        """Connect if need be, and run until `close` is called or the task is cancelled.

        Raises CredentialsError, DataPlanError, or the last FeedError after `max_reconnect_attempts`.
        """
        try:
            await self.connect()
            task = self._task
            assert task is not None
            await asyncio.wait([task])
        finally:
            await self.close()
        if not task.cancelled():
            task.result()

    async def close(self) -> None:
        """Take leave and end, within 3 s; asked for by a callback, once that is done."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            if asyncio.current_task() is not self._attendant:
                await asyncio.wait([self._task])

    def get_stats(self) -> dict[str, Any]:
        """Counts since the client was made, and its state now. `last_message_at` is UTC."""
        return {
            "connected": self._feed.connections_up > 0,
            "subscriptions": len(self._feed.subscriptions),
            "messages": self._messages,
            "ticks": self._ticks,
            "errors": self._errors,
            "reconnects": max(self._connects - 1, 0),
            "waiting_callbacks": self._calls.qsize(),
            "last_message_at": self._last_message_at,
        }

    async def _run(self) -> None:
        self._attendant = asyncio.create_task(self._await_calls(), name="dhan client's callbacks")
        try:
            await self._feed.run()
        finally:
            self._call(self._on_close)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_CALLBACKS_S):
                    await self._calls.join()
            self._attendant.cancel()
            while not self._calls.empty():
                call, _ = self._calls.get_nowait()
                if inspect.iscoroutine(call):
                    call.close()

    def _call(self, callback: Callable[..., Any] | None, *arguments: Any) -> None:
        if callback is not None:
            call = callback(*arguments)
            if inspect.isawaitable(call):
                self._calls.put_nowait((call, callback is self._on_error))

    async def _await_calls(self) -> None:
        while True:
            call, is_report = await self._calls.get()
            try:
                await call
            except Exception as error:
                if is_report:
                    log.warning("on_error failed: %s", error)
                else:
                    self._report(error)
            finally:
                self._calls.task_done()

    def _connected(self, connection: int) -> None:
        self._connects += 1
        self._up.set()
        self._call(self._on_connect)

    def _report(self, error: Exception) -> None:
        self._errors += 1
        if self._on_error is not None:
            self._call(self._on_error, error)
            return
        sentence, now_s = str(error), time.monotonic()
        if now_s - self._logged_at_s.get(sentence, -math.inf) >= _REPEAT_S:
            if len(self._logged_at_s) == _REMEMBERED:
                self._logged_at_s.clear()
            self._logged_at_s[sentence] = now_s
            log.warning("%s", sentence)

    def _receive(self, payload: bytes | str, connection: int, count: int) -> None:
        self._messages += count
        self._last_message_at = datetime.now(UTC)
        if isinstance(payload, str):
            return
        length = len(payload) // count
        for begin in range(0, len(payload), length or 1):
            for start, size, code, reason in split(payload, begin, begin + length):
                try:
                    if reason is not None:
                        raise PacketError(reason)
                    parse = _PARSERS.get(code)
                    if parse is not None:
                        self._call(self._on_tick, parse(payload[start : start + size]))
                        self._ticks += 1
                except Exception as error:  # a script's mistake in on_tick must not cost it the connection
                    self._report(error)


_PARSERS: dict[int, Callable[[bytes], DhanTick]] = {
    ResponseCode.TICKER: parse_ticker_packet,
    ResponseCode.QUOTE: parse_quote_packet,
    ResponseCode.FULL: parse_full_packet,
    ResponseCode.OPEN_INTEREST: parse_oi_packet,
    ResponseCode.PREVIOUS_CLOSE: parse_prev_close_packet,
}


def _tokens(instruments: Instruments) -> list[int]:
    pairs = (
        (item["ExchangeSegment"], item["SecurityId"]) if isinstance(item, Mapping) else item for item in instruments
    )
    return [generate_instrument_token(segment, security_id) for segment, security_id in pairs]
