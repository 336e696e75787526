"""The connections of a live feed, whosever it is: kept for as long as it runs.

What is lost is connected again, with credentials read afresh, and subscribed again. What ends them is in `errors`.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import ClassVar

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.auth import Credentials, check_token_validity, expired
from dhan_pipeline.feeds.connection import FeedConnection, FeedPolicy, OnMessages, PacketsDue, Wire
from dhan_pipeline.feeds.cool_off import CoolOff, cool_off_file
from dhan_pipeline.feeds.errors import (
    CredentialsError,
    FeedError,
    FeedRefusedError,
    HandshakeError,
    RateLimitedError,
    RestingError,
    SilentFeedError,
    SourceError,
    SubscriptionLimitError,
    TokenExpiredError,
    TokenRefusedError,
    TooManyInstrumentsError,
)
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Mode

log = logging.getLogger(__name__)


class Feed(ABC):
    """All connections of one capture. Messages go to `on_messages` as they arrive; nothing is decoded."""

    broker: ClassVar[str]
    """Its name, for messages to people."""
    wire: ClassVar[Wire]
    max_connections: ClassVar[int]
    max_instruments: ClassVar[int]
    """On a connection."""

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
        on_moved: Callable[[], None] = lambda: None,
    ) -> None:
        """`subscriptions`: the mode of each instrument token. `on_messages` has to be cheap.

        `warn` gets a sentence for a person whenever something is amiss. `clock` judges whether a token has expired.
        `policy` has the silence of the settings if none is given. `packets_due(segments)` says whether messages of any
        of these are due, so that silence means a broken connection although the server pings; without it, pings are
        enough.

        `on_connect(connection)` is called when a connection stands, `on_first_message(connection)` before the first
        message that it brings. `on_down(connection, reason, since_ns)` is called when one that stood was lost, with its
        last sign of life (ns of `clock`), and with None when it cannot be had back yet; also where that is no failure
        of its own, but a rest or the want of a token; and for one that is made to take over what another lost.
        `on_shed(instrument_tokens)` gets those that are no longer subscribed because the server allows fewer, and
        `on_moved()` is called when some have gone to other connections. All are called in the event loop.

        Raises SubscriptionLimitError if the broker's connections cannot hold the subscriptions.
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
        self._on_moved = on_moved
        self._cool_off = CoolOff(settings.data_dir / cool_off_file(settings.source), policy)
        self._room = self.max_instruments
        self._handshake = asyncio.Lock()
        self._waiting: set[int] = set()  # numbers of the connections that have yet to shake hands
        self._obstacle: SourceError | None = None  # why none of them can
        self._refusal: TokenRefusedError | None = None
        self._refused: Credentials | None = None
        self._refused_until = 0.0
        self._had_credentials = False
        self._group: asyncio.TaskGroup | None = None
        self._connections: list[FeedConnection] = []
        for part in shard(subscriptions, self.max_instruments, self.max_connections, self.broker) or [{}]:
            self._add(part)

    @property
    @abstractmethod
    def _base_url(self) -> str:
        """The feed's address, as it was set."""

    @abstractmethod
    def _get_credentials(self) -> Credentials:
        """Read them afresh. Raises CredentialsError."""

    async def _make_token(self, refusal: TokenRefusedError | None) -> bool:
        """Have a token made for the one that was refused, or is missing or over. True if there may be another one now.

        No broker's feed can, unless it says so.
        """
        return False

    def _proved_good(self) -> None:  # noqa: B027 - most have nothing to do
        """A connection was useful for a while."""

    def _ask_why(self) -> None:  # noqa: B027 - most have nobody to ask
        """A handshake was refused, which says little. Find out, without waiting for it."""

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
            return self._get_credentials().expires_at
        except CredentialsError:
            return None

    @property
    def token_problem(self) -> str | None:
        """Why no connection can be made until there is another token; None while there is no such reason."""
        of_token = isinstance(self._obstacle, CredentialsError | TokenRefusedError)
        return str(self._obstacle) if of_token else None

    @property
    def subscriptions(self) -> dict[int, Mode]:
        """The mode of each instrument token that is subscribed."""
        return {token: mode for connection in self._connections for token, mode in connection.subscriptions.items()}

    @property
    def subscribed(self) -> int:
        """How many instruments are subscribed."""
        return sum(len(connection.subscriptions) for connection in self._connections)

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

        Raises SubscriptionLimitError if the broker's connections cannot hold them, and ValueError for a token that is
        not its own; then nothing changed.
        """
        self.change(subscriptions)
        await self.tell()

    async def unsubscribe(self, instrument_tokens: Iterable[int]) -> None:
        """End subscriptions; unknown ones are ignored."""
        self.change(dict.fromkeys(instrument_tokens))
        await self.tell()

    def change(self, changes: Mapping[int, Mode | None]) -> None:
        """Have each of these subscribed in its mode, or, where that is None, no more. `tell` the server then.

        Each stays on its connection; new ones go where there is room. Raises as `subscribe`; then nothing changed.
        """
        wanted = {token: mode for token, mode in changes.items() if mode is not None}
        changed = set().union(*(changes.keys() & connection.subscriptions.keys() for connection in self._connections))
        # Both raise what is wrong before anything is changed.
        asked = self.subscribed - len(changed) + len(wanted)
        require_room(asked, self.max_instruments, self.max_connections, self.broker)
        self.wire.subscribe({token: mode for token, mode in wanted.items() if token not in changed})
        for connection in self._connections:
            for token in changes.keys() & connection.subscriptions.keys():
                if token in wanted:
                    connection.subscriptions[token] = wanted.pop(token)
                else:
                    del connection.subscriptions[token]
        self._place(wanted)

    async def tell(self) -> None:
        """Have the server know of changes, on each connection that stands; the others say all when they do."""
        await asyncio.gather(*(connection.tell() for connection in self._connections))

    def _place(self, subscriptions: Mapping[int, Mode]) -> None:
        """Give them to connections that have room. What finds none is given up, and told."""
        items = list(subscriptions.items())
        for number in range(self.max_connections):
            if not items:
                return
            if number == len(self._connections):
                self._add({})
            connection = self._connections[number]
            room = max(self._room - len(connection.subscriptions), 0)
            connection.subscriptions.update(items[:room])
            del items[:room]
        if items:
            self._warn(
                f"{self.broker} takes {self._room} instruments a connection, so {len(items)} of them are not captured"
                " until the capture starts again; subscribe fewer."
            )
            self._on_shed(tuple(token for token, _ in items))

    async def _reduce(self, connection: FeedConnection, error: FeedError, since_ns: int | None) -> None:
        """The server does not take what a connection asked for: half of it is asked of others, as far as they go."""
        items = list(connection.subscriptions.items())
        self._room = max(len(items) // 2, 1)
        connection.subscriptions = dict(items[: self._room])
        before = len(self._connections)
        self._place(dict(items[self._room :]))
        # What a new one takes over is missed until it stands, which may be after the other does again.
        for number in range(before, len(self._connections)):
            self._on_down(number, error, since_ns)
        self._on_moved()
        await self.tell()

    def _add(self, subscriptions: Mapping[int, Mode]) -> None:
        connection = FeedConnection(
            self.wire,
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
                    await connection.open(credentials, self._base_url)
                self._waiting.discard(connection.number)
                up = True
                self._on_connect(connection.number)
                await connection.receive()
            except FeedError as error:
                since_ns = self._last_sign_ns(connection, error) if up else None
                self._on_down(connection.number, error, since_ns)
                if up and connection.useful_s >= self._policy.stable_s:
                    failures = 0
                    self._cool_off.reset()
                    self._proved_good()
                failures += 1
                limit = self._policy.max_reconnects
                if not error.retryable or (limit is not None and failures > limit):
                    raise
                delay_s = self._policy.delay_s(failures)
                if isinstance(error, TooManyInstrumentsError):
                    await self._reduce(connection, error, since_ns)
                then = self._react(error, connection, credentials) or f"Trying again in {delay_s:.1f} s."
                self._warn(f"{self.broker}'s connection {connection.number} is down: {error}. {then}")
                if not up and isinstance(error, FeedRefusedError | HandshakeError):
                    self._ask_why()
            await asyncio.sleep(delay_s)

    def _last_sign_ns(self, connection: FeedConnection, error: FeedError) -> int:
        of_data = isinstance(error, SilentFeedError) and error.of_data
        at = connection.message_at if of_data else connection.heard_at
        age_s = asyncio.get_running_loop().time() - at
        return self._clock.now_ns() - int(age_s * 1e9 * self._clock.speed)

    def _react(self, error: FeedError, connection: FeedConnection, credentials: Credentials | None) -> str | None:
        """Do what the error asks for beyond trying again, and say so in a sentence."""
        if isinstance(error, RateLimitedError):
            self._cool_off.start(error.retry_after_s)
            if error.ends_all:
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
                credentials = self._get_credentials()
                if not check_token_validity(credentials, timedelta(0), self._clock.now()):
                    raise TokenExpiredError(f"{expired(credentials)} Put a new one there.")
            except CredentialsError as error:
                if await self._make_token(None):
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
                if await self._make_token(self._refusal):
                    continue
                if self._refusal is not None and self._obstacle is not self._refusal:
                    self._hold_up(self._refusal)
            await asyncio.sleep(self._policy.token_poll_s)


def shard(
    subscriptions: Mapping[int, Mode], per_connection: int, connections: int, broker: str
) -> list[dict[int, Mode]]:
    """The subscriptions of each connection, in order, spread evenly over as few connections as can hold them.

    Raises SubscriptionLimitError if they do not fit.
    """
    require_room(len(subscriptions), per_connection, connections, broker)
    items = list(subscriptions.items())
    # Evenly, because a connection with a few quiet instruments would pass for one that is broken.
    count = -(-len(items) // per_connection)
    return [dict(items[len(items) * number // count : len(items) * (number + 1) // count]) for number in range(count)]


def require_room(instruments: int, per_connection: int, connections: int, broker: str) -> None:
    """Raise SubscriptionLimitError if so many do not fit on the connections."""
    if instruments > per_connection * connections:
        raise SubscriptionLimitError(
            f"{instruments} instruments are too many: {broker} allows {connections} connections "
            f"of {per_connection} instruments."
        )
