"""Clients of the live feed: `Feed` for the capture, `DhanWebSocketClient` for one person and a few instruments.

Both keep their connections for as long as they run: what is lost is connected again, with credentials read afresh, and
subscribed again. What ends them is in `errors`. https://dhanhq.co/docs/v2/live-market-feed/
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import Credentials, check_dhan_token_validity, get_dhan_credentials
from dhan_pipeline.feeds.dhan.connection import DEFAULT_POLICY, FeedConnection, FeedPolicy, OnMessages, PacketsDue
from dhan_pipeline.feeds.dhan.cool_off import COOL_OFF_FILE, CoolOff
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
from dhan_pipeline.feeds.dhan.token import TokenLostError, can_refresh, refresh_token, token_report
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.errors import (
    CredentialsError,
    FeedError,
    FeedRefusedError,
    HandshakeError,
    RateLimitedError,
    RestingError,
    SilentFeedError,
    SourceError,
    TokenExpiredError,
    TokenRefusedError,
    TooManyInstrumentsError,
)
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Mode

log = logging.getLogger(__name__)

T = TypeVar("T")

TOO_MANY_CONNECTIONS = 805
CLIENT_ID_INVALID = 810


class Feed:
    """All connections of one capture. Messages go to `on_messages` as they arrive; nothing is decoded."""

    def __init__(
        self,
        settings: Settings,
        subscriptions: Mapping[int, Mode],
        on_messages: OnMessages,
        warn: Callable[[str], None] = log.warning,
        *,
        clock: Clock | None = None,
        policy: FeedPolicy | None = None,
        packets_due: PacketsDue = lambda segments: False,
        on_connect: Callable[[int], None] = lambda connection: None,
        on_first_message: Callable[[int], None] = lambda connection: None,
        on_down: Callable[[int, SourceError, int | None], None] = lambda connection, reason, since_ns: None,
        on_shed: Callable[[tuple[int, ...]], None] = lambda instrument_tokens: None,
    ) -> None:
        """`subscriptions`: the mode of each instrument token. `on_messages` has to be cheap.

        `warn` gets a sentence for a person whenever something is amiss. `clock` judges whether a token has expired.
        `policy` has the silence of the settings if none is given. `packets_due(segments)` says whether messages of any
        of these are due, so that silence means a broken connection although the server pings; without it, pings are
        enough.

        `on_connect(connection)` is called when a connection stands, `on_first_message(connection)` before the first
        message that it brings. `on_down(connection, reason, since_ns)` is called when one that stood was lost, with its
        last sign of life (ns of `clock`), and with None when it cannot be had back yet; also where that is no failure
        of its own, but a rest or the want of a token. `on_shed(instrument_tokens)` gets those that are no longer
        subscribed because the server allows fewer. All are called in the event loop.

        Raises SubscriptionLimitError if Dhan's connections cannot hold the subscriptions.
        """
        self._settings = settings
        self._on_messages = on_messages
        self._warn = warn
        self._clock = clock or Clock()
        self._policy = policy = policy or FeedPolicy(silence_s=settings.feed_silence_s)
        self._packets_due = packets_due
        self._on_connect = on_connect
        self._on_first_message = on_first_message
        self._on_down = on_down
        self._on_shed = on_shed
        self._cool_off = CoolOff(settings.data_dir / COOL_OFF_FILE, policy)
        self._room = MAX_INSTRUMENTS_PER_CONNECTION
        self._handshake = asyncio.Lock()
        self._waiting: set[int] = set()  # numbers of the connections that have yet to shake hands
        self._obstacle: SourceError | None = None  # why none of them can
        self._refusal: TokenRefusedError | None = None
        self._refused: Credentials | None = None
        self._refused_until = 0.0
        self._had_credentials = False
        self._minted: str | None = None  # the last token made here, until a connection proves it good
        self._mint_at = 0.0
        self._ask_at = 0.0
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
    def token_expires_at(self) -> datetime | None:
        """When the time of the token that a connection would use now is over, UTC; None for no token, or if unknown."""
        try:
            return get_dhan_credentials(self._settings).expires_at
        except CredentialsError:
            return None

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
        DataPlanError, the last FeedError after `max_reconnects` failed in a row, or whatever `on_messages` raised.
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
            self._on_messages,
            self._policy,
            self._packets_due,
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
            self._waiting.add(connection.number)
            if self._obstacle is not None:
                self._on_down(connection.number, self._obstacle, None)
            try:
                # One handshake at a time: the refusal of one holds for all.
                async with self._handshake:
                    credentials = await self._wait_until_allowed()
                    await connection.open(credentials, self._settings.dhan_feed_url)
                self._waiting.discard(connection.number)
                up = True
                self._on_connect(connection.number)
                await connection.receive()
            except FeedError as error:
                self._on_down(connection.number, error, self._last_sign_ns(connection, error) if up else None)
                if up and connection.useful_s >= self._policy.stable_s:
                    failures = 0
                    self._cool_off.reset()
                    self._minted, self._mint_at = None, 0.0
                failures += 1
                limit = self._policy.max_reconnects
                if not error.retryable or (limit is not None and failures > limit):
                    raise
                delay_s = self._policy.delay_s(failures)
                if isinstance(error, TooManyInstrumentsError):
                    await self._reduce(connection)
                then = self._react(error, connection, credentials) or f"Trying again in {delay_s:.1f} s."
                self._warn(f"Connection {connection.number} is down: {error}. {then}")
                if not up and isinstance(error, FeedRefusedError | HandshakeError):
                    self._ask_why()
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
                        other.drop(RestingError())
        if isinstance(error, RateLimitedError | RestingError):
            return f"No new connection for {self._cool_off.remaining_s():.0f} s."
        if isinstance(error, TokenRefusedError) and credentials is not None:
            self._refusal = error
            self._refused = credentials
            self._refused_until = asyncio.get_running_loop().time() + self._policy.refused_token_rest_s
            return f"Waiting for another token in {credentials.source}."
        return None

    async def _wait_until_allowed(self) -> Credentials:
        """Wait until connections may be made, and return the credentials for one."""
        credentials = await self._read_credentials()
        if self._cool_off.remaining_s() > 0:
            self._hold_up(RestingError())
            await self._cool_off.wait()
            credentials = await self._read_credentials()
        self._obstacle = None
        return credentials

    def _hold_up(self, error: SourceError) -> None:
        """No connection can be made for now: whatever each was lost for, this is why it stays lost."""
        self._obstacle = error
        for number in sorted(self._waiting):
            self._on_down(number, error, None)

    async def _read_credentials(self) -> Credentials:
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
                if await self._mint(None):
                    continue
                if not self._had_credentials:
                    raise
                if str(error) != told:
                    told = str(error)
                    self._warn(f"{told} Waiting for it.")
                    self._hold_up(error)
            else:
                self._had_credentials = True
                if credentials != self._refused or loop.time() >= self._refused_until:
                    return credentials
                if await self._mint(self._refusal):
                    continue
                if self._refusal is not None and self._obstacle is not self._refusal:
                    self._hold_up(self._refusal)
            await asyncio.sleep(self._policy.token_poll_s)

    async def _mint(self, refusal: TokenRefusedError | None) -> bool:
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
            minted = await _in_thread(partial(refresh_token, self._settings, self._clock, refused=refused))
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
            report = await _in_thread(partial(token_report, self._settings, self._clock))
            if report["problem"]:
                self._warn(f"Dhan was asked about the access token. {report['problem']}")


async def _in_thread(call: Callable[[], T]) -> T:
    """What `call` returns or raises in a thread that nobody waits for, once this is cancelled, nor at the loop's end.

    A request may take any time: its limits are for a step of it, not for the whole.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="token", daemon=True).start()
    return await asyncio.wrap_future(outcome)


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
