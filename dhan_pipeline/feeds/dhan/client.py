"""Clients of the live feed: `Feed` for the capture, `DhanWebSocketClient` for one person and a few instruments.

Both keep their connections for as long as they run: what is lost is connected again, with credentials read afresh, and
subscribed again. What ends them is in `errors`. https://dhanhq.co/docs/v2/live-market-feed/
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import Credentials, check_dhan_token_validity, get_dhan_credentials
from dhan_pipeline.feeds.dhan.connection import DEFAULT_POLICY, FeedConnection, FeedPolicy, InSession, OnMessage
from dhan_pipeline.feeds.dhan.cool_off import COOL_OFF_FILE, CoolOff
from dhan_pipeline.feeds.dhan.errors import (
    CredentialsError,
    DhanError,
    FeedError,
    RateLimitedError,
    SilentFeedError,
    TokenExpiredError,
    TokenRefusedError,
    TooManyInstrumentsError,
)
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
    shard,
    subscribe_messages,
)
from dhan_pipeline.feeds.dhan.token import can_refresh, refresh_token
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Mode

log = logging.getLogger(__name__)

TOO_MANY_CONNECTIONS = 805


class Feed:
    """All connections of one capture. Messages go to `on_message` as they arrive; nothing is decoded."""

    def __init__(
        self,
        settings: Settings,
        subscriptions: Mapping[int, Mode],
        on_message: OnMessage,
        warn: Callable[[str], None] = log.warning,
        *,
        clock: Clock | None = None,
        policy: FeedPolicy | None = None,
        in_session: InSession = lambda segments: False,
        on_connect: Callable[[int], None] = lambda connection: None,
        on_first_message: Callable[[int], None] = lambda connection: None,
        on_down: Callable[[int, DhanError, int | None], None] = lambda connection, reason, since_ns: None,
        on_shed: Callable[[tuple[int, ...]], None] = lambda instrument_tokens: None,
    ) -> None:
        """`subscriptions`: the mode of each instrument token. `on_message(payload, connection)` has to be cheap.

        `warn` gets a sentence for a person whenever something is amiss. `clock` judges whether a token has expired.
        `policy` has the silence of the settings if none is given. `in_session(segments)` says whether messages of any
        of these are due, so that silence means a broken connection although the server pings; without it, pings are
        enough.

        `on_connect(connection)` is called when a connection stands, `on_first_message(connection)` before the first
        message that it brings. `on_down(connection, reason, since_ns)` is called when one that stood was lost, with its
        last sign of life (ns of `clock`), and with None when it cannot be had back yet. `on_shed(instrument_tokens)`
        gets those that are no longer subscribed because the server allows fewer. All are called in the event loop.

        Raises SubscriptionLimitError if Dhan's connections cannot hold the subscriptions.
        """
        self._settings = settings
        self._on_message = on_message
        self._warn = warn
        self._clock = clock or Clock()
        self._policy = policy = policy or FeedPolicy(silence_s=settings.feed_silence_s)
        self._in_session = in_session
        self._on_connect = on_connect
        self._on_first_message = on_first_message
        self._on_down = on_down
        self._on_shed = on_shed
        self._cool_off = CoolOff(settings.data_dir / COOL_OFF_FILE, policy)
        self._room = MAX_INSTRUMENTS_PER_CONNECTION
        self._handshake = asyncio.Lock()
        self._refused_token: str | None = None
        self._refused_until = 0.0
        self._had_credentials = False
        self._refresh_at = 0.0
        self.token_expires_at: datetime | None = None
        """When the time of the token in use is over, UTC; None while there is none, or if it does not say."""
        self._group: asyncio.TaskGroup | None = None
        self._connections: list[FeedConnection] = []
        for part in shard(subscriptions) or [{}]:
            self._add(part)

    @property
    def connections(self) -> int:
        """How many connections there should be."""
        return len(self._connections)

    @property
    def connections_up(self) -> int:
        """How many there are."""
        return sum(connection.up for connection in self._connections)

    @property
    def subscriptions(self) -> dict[int, Mode]:
        """The mode of each instrument token that is subscribed."""
        return {token: mode for connection in self._connections for token, mode in connection.subscriptions.items()}

    def instruments(self, connection: int) -> tuple[int, ...]:
        """The instrument tokens that a connection is subscribed to."""
        return tuple(self._connections[connection].subscriptions)

    async def run(self) -> None:
        """Connect, subscribe, receive, and do so again whenever a connection is lost. Cancel it to end it, within 2 s.

        Raises what ends it: CredentialsError if there are no usable credentials at the start (later it waits for them),
        DataPlanError, the last FeedError after `max_reconnects` failed in a row, or whatever `on_message` raised.
        """
        try:
            async with asyncio.TaskGroup() as self._group:
                for connection in self._connections:
                    self._group.create_task(self._keep(connection), name=f"connection {connection.number}")
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._group = None

    async def subscribe(self, subscriptions: Mapping[int, Mode]) -> None:
        """Add subscriptions, or change the mode of some, also while running.

        Raises SubscriptionLimitError if Dhan's connections cannot hold them, and ValueError for a token that is not
        Dhan's; then nothing changed.
        """
        before = self.subscriptions
        changed = {token: mode for token, mode in subscriptions.items() if before.get(token) != mode}
        # Both raise what is wrong before anything is changed.
        shard(before | changed)
        subscribe_messages(changed)
        await self.unsubscribe(changed)
        await self._place(changed)

    async def unsubscribe(self, instrument_tokens: Iterable[int]) -> None:
        """End subscriptions; unknown ones are ignored."""
        tokens = list(instrument_tokens)
        for connection in self._connections:
            await connection.unsubscribe(tokens)

    async def _place(self, subscriptions: Mapping[int, Mode]) -> dict[int, Mode]:
        """Subscribe where there is room. Returns what finds none."""
        items = list(subscriptions.items())
        for number in range(MAX_CONNECTIONS):
            if not items:
                break
            if number == len(self._connections):
                self._add({})
            connection = self._connections[number]
            room = max(self._room - len(connection.subscriptions), 0)
            await connection.subscribe(dict(items[:room]))
            del items[:room]
        return dict(items)

    async def _reduce(self, connection: FeedConnection) -> None:
        """The server does not take what a connection asked for: half of it is asked of others, as far as they go."""
        items = list(connection.subscriptions.items())
        self._room = max(len(items) // 2, 1)
        connection.subscriptions = dict(items[: self._room])
        if left := await self._place(dict(items[self._room :])):
            self._warn(
                f"Dhan takes {self._room} instruments a connection, so {len(left)} of them are not captured until the"
                " capture starts again; subscribe fewer."
            )
            self._on_shed(tuple(left))

    def _add(self, subscriptions: Mapping[int, Mode]) -> None:
        connection = FeedConnection(
            len(self._connections),
            subscriptions,
            self._on_message,
            self._policy,
            self._in_session,
            self._on_first_message,
        )
        self._connections.append(connection)
        if self._group is not None:
            self._group.create_task(self._keep(connection), name=f"connection {connection.number}")

    async def _keep(self, connection: FeedConnection) -> None:
        """Have the connection stand, for ever. Raises what makes that impossible."""
        failures = 0
        while True:
            up = False
            credentials: Credentials | None = None
            try:
                # One handshake at a time: the refusal of one holds for all.
                async with self._handshake:
                    await self._cool_off.wait()
                    credentials = await self._read_credentials(connection)
                    await connection.open(credentials, self._settings.dhan_feed_url)
                up = True
                self._on_connect(connection.number)
                await connection.receive()
            except FeedError as error:
                self._on_down(connection.number, error, self._last_sign_ns(connection, error) if up else None)
                if up and connection.useful_s >= self._policy.stable_s:
                    failures = 0
                    self._cool_off.reset()
                failures += 1
                limit = self._policy.max_reconnects
                if not error.retryable or (limit is not None and failures > limit):
                    raise
                delay_s = self._policy.delay_s(failures)
                if isinstance(error, TooManyInstrumentsError):
                    await self._reduce(connection)
                then = self._react(error, connection, credentials) or f"Trying again in {delay_s:.1f} s."
                self._warn(f"Connection {connection.number} is down: {error}. {then}")
            await asyncio.sleep(delay_s)

    def _last_sign_ns(self, connection: FeedConnection, error: FeedError) -> int:
        at = connection.message_at if isinstance(error, SilentFeedError) else connection.heard_at
        age_s = asyncio.get_running_loop().time() - at
        return self._clock.now_ns() - int(age_s * 1e9 * self._clock.speed)

    def _react(self, error: FeedError, connection: FeedConnection, credentials: Credentials | None) -> str | None:
        """Do what the error asks for beyond trying again, and say so in a sentence."""
        if isinstance(error, RateLimitedError):
            self._cool_off.start(error.retry_after_s)
            if error.code == TOO_MANY_CONNECTIONS:
                for other in self._connections:
                    if other is not connection:
                        other.drop(FeedError("all connections rest, as the server asked for"))
            return f"No new connection for {self._cool_off.remaining_s():.0f} s."
        if isinstance(error, TokenRefusedError) and credentials is not None:
            self._refused_token = credentials.access_token.get_secret_value()
            self._refused_until = asyncio.get_running_loop().time() + self._policy.refused_token_rest_s
            return f"Waiting for another token in {credentials.source}."
        return None

    async def _read_credentials(self, connection: FeedConnection) -> Credentials:
        """Credentials read afresh; made afresh, where that is possible and those there are no good.

        Once there have been usable ones, waits for those that are not to be mended.
        """
        loop = asyncio.get_running_loop()
        told = ""
        while True:
            try:
                credentials = get_dhan_credentials(self._settings)
                if not check_dhan_token_validity(credentials, timedelta(0), self._clock.now()):
                    raise TokenExpiredError(f"{_expired(credentials)} Put a new one there.")
            except CredentialsError as error:
                if await self._refresh_token(None):
                    continue
                if not self._had_credentials:
                    raise
                if str(error) != told:
                    told = str(error)
                    self._warn(f"{told} Waiting for it.")
                    self._on_down(connection.number, error, None)
            else:
                self._had_credentials = True
                token = credentials.access_token.get_secret_value()
                if token != self._refused_token or loop.time() >= self._refused_until:
                    self.token_expires_at = credentials.expires_at
                    return credentials
                if await self._refresh_token(token):
                    continue
            await asyncio.sleep(self._policy.token_poll_s)

    async def _refresh_token(self, refused: str | None) -> bool:
        """Have a new token made, where the settings allow it. True if there may be another one now.

        One attempt in a while: each token that is made ends the one before.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._refresh_at or not can_refresh(self._settings):
            return False
        self._refresh_at = loop.time() + self._policy.refused_token_rest_s
        try:
            await asyncio.to_thread(refresh_token, self._settings, self._clock, refused=refused)
        except CredentialsError as error:
            self._warn(str(error))
            return False
        return True


def _expired(credentials: Credentials) -> str:
    assert credentials.expires_at is not None
    expired_at = credentials.expires_at.astimezone(IST)
    return f"The access token in {credentials.source} expired at {expired_at:%Y-%m-%d %H:%M} IST."


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
        on_tick: Callable[[DhanTick], None],
        on_connect: Callable[[], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
        on_close: Callable[[], None] | None = None,
        ping_interval: float | None = None,
        ping_timeout: float | None = None,
        max_reconnect_attempts: int | None = None,
        reconnect_delay: float = DEFAULT_POLICY.first_delay_s,
        *,
        settings: Settings | None = None,
    ) -> None:
        """All callbacks are plain functions, called in the event loop.

        `on_tick` gets each ticker, quote, full, open-interest and previous-close packet. `on_connect` is called at
        every connect, `on_error` with the reason when the connection was lost, with a packet that cannot be read
        (PacketError) and with what `on_tick` raised; none of these ends the client. `on_close` is called when it ended.
        `ping_interval` and `ping_timeout` (seconds) add a keepalive of our own to the server's, which suffices.
        `max_reconnect_attempts` in a row may fail; None: any number. `reconnect_delay` (seconds) is the longest wait
        before the first of them; it doubles from one to the next, up to a minute.
        """
        self._on_tick = on_tick
        self._on_connect = on_connect
        self._on_error = on_error
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

    async def subscribe(
        self, instruments: Iterable[Mapping[str, Any] | tuple[str, int | str]], mode: Mode | str = Mode.QUOTE
    ) -> None:
        """Subscribe instruments, before or after `connect`; a new mode replaces the old.

        Instruments are pairs of exchange segment and security id, or Dhan's `{"ExchangeSegment": …, "SecurityId": …}`.
        Raises ValueError or KeyError for a mode, segment or id that does not exist, SubscriptionLimitError.
        """
        await self._feed.subscribe(dict.fromkeys(_tokens(instruments), Mode(mode)))

    async def unsubscribe(self, instruments: Iterable[Mapping[str, Any] | tuple[str, int | str]]) -> None:
        """End subscriptions, in whatever mode they are; those that do not exist are ignored."""
        await self._feed.unsubscribe(_tokens(instruments))

    async def start(self) -> None:
        """Connect if need be, and run until `close` is called or the task is cancelled.

        Raises CredentialsError, DataPlanError, or the last FeedError after `max_reconnect_attempts`.
        """
        await self.connect()
        task = self._task
        assert task is not None
        try:
            await asyncio.wait([task])
        finally:
            await self.close()
        if not task.cancelled():
            task.result()

    async def close(self) -> None:
        """Take leave and end, within 2 s."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
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
            "last_message_at": self._last_message_at,
        }

    async def _run(self) -> None:
        try:
            await self._feed.run()
        finally:
            if self._on_close is not None:
                self._on_close()

    def _connected(self, connection: int) -> None:
        self._connects += 1
        self._up.set()
        if self._on_connect is not None:
            self._on_connect()

    def _report(self, error: Exception) -> None:
        self._errors += 1
        if self._on_error is not None:
            self._on_error(error)
        else:
            log.warning("%s", error)

    def _receive(self, payload: bytes | str, connection: int) -> None:
        self._messages += 1
        self._last_message_at = datetime.now(UTC)
        if isinstance(payload, str):
            return
        for start, size, code, reason in split(payload):
            try:
                if reason is not None:
                    raise PacketError(reason)
                parse = _PARSERS.get(code)
                if parse is not None:
                    self._on_tick(parse(payload[start : start + size]))
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


def _tokens(instruments: Iterable[Mapping[str, Any] | tuple[str, int | str]]) -> list[int]:
    pairs = (
        (item["ExchangeSegment"], item["SecurityId"]) if isinstance(item, Mapping) else item for item in instruments
    )
    return [generate_instrument_token(ExchangeSegment[segment], security_id) for segment, security_id in pairs]
