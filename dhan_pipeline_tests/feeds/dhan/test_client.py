import asyncio
import json
import logging
import re
import struct
import threading
import time
import traceback
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds import connection as connection_module
from dhan_pipeline.feeds.connection import FeedPolicy
from dhan_pipeline.feeds.cool_off import CoolOff, cool_off_file
from dhan_pipeline.feeds.dhan.auth import save_token
from dhan_pipeline.feeds.dhan.client import DhanWebSocketClient, Feed
from dhan_pipeline.feeds.dhan.packets import DhanTick, PacketError
from dhan_pipeline.feeds.dhan.wire import LAYOUTS, ResponseCode
from dhan_pipeline.feeds.errors import (
    CredentialsError,
    DataPlanError,
    FeedError,
    FeedRefusedError,
    RateLimitedError,
    RestingError,
    ServerClosedError,
    SourceError,
    SubscriptionLimitError,
    TokenExpiredError,
    TokenRefusedError,
)
from dhan_pipeline.feeds.simulator import dhan as simulator_module
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import ExchangeSegment, generate_instrument_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.feeds.dhan.received import one_by_one

CLIENT_ID = "1000000001"
RELIANCE = generate_instrument_token("NSE_EQ", 2885)
NIFTY = generate_instrument_token("IDX_I", 13)
QUICK = FeedPolicy(
    first_delay_s=0.01,
    longest_delay_s=0.02,
    rest_s=0.2,
    longest_rest_s=0.3,
    token_poll_s=0.01,
    refused_token_rest_s=60,
    close_timeout_s=0.2,
)

quiet = logging.getLogger("test server")
quiet.setLevel(logging.CRITICAL)


def tokens(count: int) -> list[int]:
    return [generate_instrument_token("NSE_FNO", 40_000 + number) for number in range(count)]


def disconnect_packet(code: int) -> bytes:
    return struct.pack("<BHBIH", 50, 10, 0, 0, code)


async def until(condition) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Exchange:
    """A server that behaves as a test says, and remembers who came when and what they asked for."""

    def __init__(self) -> None:
        self.url = ""
        self.tokens: list[str] = []
        """The token of each handshake."""
        self.times: list[float] = []
        self.requests: list[tuple[int, int, int]] = []
        """Number of the connection, request code, instruments."""
        self.open: set = set()
        self.statuses: list[HTTPStatus] = []
        """Refusals of the next handshakes."""
        self.packets: list[bytes | None] = []
        """What the next connections are sent first; None: nothing."""
        self.answering = asyncio.Event()
        """Cleared, handshakes are answered once it is set again."""
        self.answering.set()

    async def judge(self, connection, request):
        self.tokens.append(parse_qs(urlsplit(request.path).query)["token"][0])
        self.times.append(now_s())
        await self.answering.wait()
        if not self.statuses:
            return None
        response = connection.respond(self.statuses.pop(0), "no\n")
        if response.status_code == HTTPStatus.FOUND:
            response.headers["Location"] = f"https://127.0.0.1{request.path}"  # which a client quotes as not valid
        return response

    async def behave(self, websocket):
        number = len(self.tokens) - 1
        self.open.add(websocket)
        try:
            packet = self.packets.pop(0) if self.packets else None
            if packet is not None:
                await websocket.send(packet)
            async for message in websocket:
                request = json.loads(message)
                self.requests.append((number, request["RequestCode"], request.get("InstrumentCount", 0)))
        except ConnectionClosed:
            pass
        finally:
            self.open.discard(websocket)


@pytest.fixture
async def exchange():
    exchange = Exchange()
    async with serve(
        exchange.behave,
        "127.0.0.1",
        0,
        compression=None,
        ping_interval=None,
        process_request=exchange.judge,
        logger=quiet,
    ) as listening:
        exchange.url = f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield exchange


@pytest.fixture
def token_file(tmp_path, monkeypatch) -> Path:
    for name in ("DHAN_TOKEN_FILE", "DHAN_CLIENT_ID", "DHAN_ACCESS_TOKEN", "DHAN_FEED_URL"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "dhan_token.json"
    save_token(path, "first", CLIENT_ID)
    return path


@pytest.fixture
def settings(token_file):
    def make(url: str) -> Settings:
        return Settings(
            _env_file=None, dhan_feed_url=url, dhan_token_file=token_file, data_dir=token_file.parent / "data"
        )

    return make


class Watcher:
    """What a feed told its caller."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes | str, int]] = []
        self.connected: list[int] = []
        self.lost: list[tuple[int, FeedError]] = []
        self.warnings: list[str] = []

    def feed(self, settings: Settings, subscriptions=(), policy: FeedPolicy = QUICK, **options) -> Feed:
        return Feed(
            settings,
            dict(subscriptions),
            self.receive,
            self.warnings.append,
            policy=policy,
            on_connect=self.connected.append,
            on_down=lambda connection, reason, since_ns: since_ns and self.lost.append((connection, reason)),
            **options,
        )

    def receive(self, payload, connection, count) -> None:
        self.messages += [(message, connection) for message in one_by_one(payload, count)]


@asynccontextmanager
async def running(feed: Feed):
    """The feed runs inside, and has ended cleanly and quickly after."""
    task = asyncio.create_task(feed.run())
    try:
        yield task
    finally:
        started = now_s()
        task.cancel()
        with suppress(asyncio.CancelledError, SourceError):
            await task
        assert now_s() - started < 10


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


async def test_everything_that_the_exchange_sends_is_received(settings, token_file, watcher):
    save_token(token_file, make_token(CLIENT_ID), CLIENT_ID)
    async with DhanSimulator(tokens(150), rate=20_000) as simulator:
        feed = watcher.feed(settings(simulator.feed_url), dict.fromkeys(tokens(150), Mode.FULL))
        async with running(feed):
            await until(lambda: len(watcher.messages) > 2000)
            assert (feed.connections_up, feed.connections) == (1, 1)
            simulator.rate = 0
            await until(lambda: len(watcher.messages) == sum(simulator.sent.values()))
    sizes = {len(payload) for payload, _ in watcher.messages}
    assert sizes == {LAYOUTS[ResponseCode.FULL].size, LAYOUTS[ResponseCode.PREVIOUS_CLOSE].size}
    assert watcher.warnings == []


async def test_after_a_reset_everything_is_subscribed_again(settings, token_file, watcher):
    save_token(token_file, make_token(CLIENT_ID), CLIENT_ID)
    async with DhanSimulator(tokens(250), rate=1000) as simulator:
        feed = watcher.feed(settings(simulator.feed_url), dict.fromkeys(tokens(250), Mode.QUOTE))
        async with running(feed):
            await until(lambda: simulator.connections and simulator.connections[0].subscribed == 250)
            simulator.reset()
            await until(lambda: watcher.lost)
            await until(lambda: simulator.connections and simulator.connections[0].subscribed == 250)
    assert watcher.connected == [0, 0]
    assert watcher.warnings[0].startswith("Dhan's connection 0 is down: the connection was lost")


async def test_after_a_close_with_1011_everything_is_subscribed_again(settings, token_file, watcher):
    save_token(token_file, make_token(CLIENT_ID), CLIENT_ID)
    async with DhanSimulator(tokens(250), rate=1000) as simulator:
        feed = watcher.feed(settings(simulator.feed_url), dict.fromkeys(tokens(250), Mode.QUOTE))
        async with running(feed):
            await until(lambda: simulator.connections and simulator.connections[0].subscribed == 250)
            await simulator.connections[0].close(1011)
            await until(lambda: len(watcher.connected) == 2)
            await until(lambda: simulator.connections and simulator.connections[0].subscribed == 250)
    [(_, reason)] = watcher.lost
    assert (str(reason), reason.cause) == ("the server closed the connection (1011)", Cause.SERVER)


async def test_a_refused_handshake_has_the_account_looked_up_once_in_a_while(settings, token_file, watcher):
    save_token(token_file, make_token(CLIENT_ID), CLIENT_ID)
    async with DhanSimulator(tokens(5)) as simulator:
        simulator.rest.data_plan = "Deactive"
        simulator.faults.refuse = HTTPStatus.TOO_MANY_REQUESTS
        with_rest = settings(simulator.feed_url).model_copy(update={"dhan_api_url": simulator.rest_url})
        async with running(watcher.feed(with_rest, policy=replace(QUICK, rest_s=0.01, longest_rest_s=0.01))):
            await until(lambda: sum("HTTP status 429" in warning for warning in watcher.warnings) > 5)
            await until(lambda: len(asked_about(watcher)) == 1)
            simulator.faults.refuse = None
            await until(lambda: watcher.connected)
    assert asked_about(watcher) == [
        "Dhan was asked about the access token. The account has no active data plan: subscribe to Dhan's data APIs."
    ]


def asked_about(watcher: Watcher) -> list[str]:
    return [warning for warning in watcher.warnings if warning.startswith("Dhan was asked")]


async def test_the_time_of_the_token_is_that_of_the_file_also_while_connected(settings, token_file, exchange, watcher):
    feed = watcher.feed(settings(exchange.url))
    async with running(feed):
        await until(lambda: exchange.open)
        assert feed.token_expires_at is None  # the token does not say
        save_token(token_file, "second", CLIENT_ID, datetime(2026, 8, 7, tzinfo=UTC))
        assert feed.token_expires_at == datetime(2026, 8, 7, tzinfo=UTC)
        token_file.write_text("{")
        assert feed.token_expires_at is None
    assert exchange.tokens == ["first"]


async def test_instruments_are_spread_over_connections_that_number_their_messages(settings, token_file, watcher):
    save_token(token_file, make_token(CLIENT_ID), CLIENT_ID)
    subscriptions = dict.fromkeys(tokens(5001), Mode.TICKER)
    async with DhanSimulator(tokens(5001), rate=100) as simulator:
        feed = watcher.feed(settings(simulator.feed_url), subscriptions)
        assert feed.connections == 2
        async with running(feed):
            await until(lambda: [c.subscribed for c in simulator.connections] == [2500, 2501])
            await until(lambda: {number for _, number in watcher.messages} == {0, 1})


def test_more_instruments_than_an_account_may_have_are_refused(settings, watcher):
    with pytest.raises(SubscriptionLimitError):
        watcher.feed(settings("ws://127.0.0.1:1"), dict.fromkeys(tokens(25_001), Mode.TICKER))


async def test_instruments_come_and_go_while_running(settings, exchange, watcher):
    feed = watcher.feed(settings(exchange.url), {NIFTY: Mode.QUOTE})
    async with running(feed):
        await until(lambda: len(exchange.requests) == 1)
        await feed.subscribe({RELIANCE: Mode.FULL, NIFTY: Mode.QUOTE})
        with pytest.raises(ValueError, match="not a Dhan instrument token"):
            await feed.subscribe({NIFTY: Mode.FULL, 738561: Mode.FULL})
        await feed.subscribe({RELIANCE: Mode.TICKER})
        await feed.unsubscribe([NIFTY])
        await until(lambda: len(exchange.requests) == 5)
    assert exchange.requests[:5] == [(0, 17, 1), (0, 21, 1), (0, 22, 1), (0, 15, 1), (0, 18, 1)]
    assert feed.subscriptions == {RELIANCE: Mode.TICKER}


async def test_another_connection_is_opened_for_what_the_first_cannot_hold(settings, exchange, watcher):
    feed = watcher.feed(settings(exchange.url), dict.fromkeys(tokens(4999), Mode.TICKER))
    async with running(feed):
        await until(lambda: len(exchange.requests) == 50)
        await feed.subscribe({NIFTY: Mode.QUOTE, RELIANCE: Mode.QUOTE})
        await until(lambda: len(exchange.requests) == 52)
        with pytest.raises(SubscriptionLimitError):
            await feed.subscribe(dict.fromkeys(tokens(25_000), Mode.TICKER))
    assert exchange.requests[50:52] == [(0, 17, 1), (1, 17, 1)]
    assert len(feed.subscriptions) == 5001


async def test_the_session_is_ended_with_a_word_to_the_server(settings, exchange, watcher):
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: watcher.connected)
    await until(lambda: not exchange.open)
    assert exchange.requests == [(0, 12, 0)]


@pytest.mark.parametrize("code", [807, 808, 809, 810])
async def test_a_refused_token_is_not_offered_again_and_a_fresh_one_is(settings, token_file, exchange, watcher, code):
    exchange.packets = [disconnect_packet(code)]
    async with running(watcher.feed(settings(exchange.url), {NIFTY: Mode.QUOTE})):
        await until(lambda: watcher.lost)
        save_token(token_file, "second", CLIENT_ID)
        await until(lambda: watcher.connected == [0, 0])
    assert exchange.tokens == ["first", "second"]
    assert [(type(reason), reason.code) for _, reason in watcher.lost] == [(TokenRefusedError, code)]
    assert watcher.warnings[0].endswith(f"Waiting for another token in the token file {token_file}.")


async def test_a_refused_token_that_nobody_replaces_is_tried_again_after_a_long_rest(settings, exchange, watcher):
    exchange.packets = [disconnect_packet(808)]
    policy = FeedPolicy(first_delay_s=0.001, token_poll_s=0.01, refused_token_rest_s=0.2)
    async with running(watcher.feed(settings(exchange.url), policy=policy)):
        await until(lambda: len(exchange.times) == 2)
    assert exchange.tokens == ["first", "first"]
    assert exchange.times[1] - exchange.times[0] >= 0.2


async def test_a_handshake_refused_as_unauthorised_waits_for_another_token(settings, token_file, exchange, watcher):
    exchange.statuses = [HTTPStatus.UNAUTHORIZED]
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: watcher.warnings)
        save_token(token_file, "second", CLIENT_ID)
        await until(lambda: watcher.connected)
    assert exchange.tokens == ["first", "second"]
    assert watcher.warnings[0].startswith("Dhan's connection 0 is down: Dhan refused the connection (HTTP status 401).")


async def test_too_many_connections_stop_all_connections_for_the_rest(settings, exchange, watcher):
    feed = watcher.feed(settings(exchange.url), dict.fromkeys(tokens(5001), Mode.TICKER))
    async with running(feed):
        await until(lambda: len(exchange.requests) == 51)
        (websocket, *_) = exchange.open
        refused_at = now_s()
        await websocket.send(disconnect_packet(805))
        await until(lambda: len(watcher.lost) == 2)
        assert feed.connections_up == 0
        await until(lambda: feed.connections_up == 2)
    assert exchange.times[2] - refused_at >= 0.2
    assert {type(reason) for _, reason in watcher.lost} == {RateLimitedError, RestingError}
    assert {reason.cause for _, reason in watcher.lost} == {Cause.LIMIT}
    assert any("No new connection for" in warning for warning in watcher.warnings)


async def test_a_rest_includes_a_connection_that_was_in_its_handshake(settings, exchange, watcher):
    feed = watcher.feed(settings(exchange.url), dict.fromkeys(tokens(5001), Mode.TICKER))
    async with running(feed):
        await until(lambda: len(exchange.requests) == 51)
        first, second = exchange.open
        exchange.answering.clear()
        await second.close()
        await until(lambda: len(exchange.times) == 3)
        refused_at = now_s()
        await first.send(disconnect_packet(805))
        await until(lambda: len(watcher.lost) == 2)
        exchange.answering.set()
        await until(lambda: feed.connections_up == 2)
    assert [type(reason) for _, reason in watcher.lost] == [ServerClosedError, RateLimitedError, RestingError]
    assert exchange.times[3] - refused_at >= 0.2


async def causes_of_two_that_are_lost(settings, exchange, then) -> list[set[Cause]]:
    """What explains that each of two connections stays lost, after `then()` and a reset of both."""
    explained = [set(), set()]
    feed = Feed(
        settings(exchange.url),
        dict.fromkeys(tokens(5001), Mode.TICKER),
        lambda payload, connection, count: None,
        lambda sentence: None,
        policy=QUICK,
        on_down=lambda connection, reason, since_ns: since_ns or explained[connection].add(reason.cause),
    )
    async with running(feed):
        await until(lambda: len(exchange.requests) == 51)
        then()
        for websocket in [*exchange.open]:
            websocket.transport.abort()
        await until(lambda: all(explained))
    return explained


async def test_connections_that_wait_behind_a_rest_are_told_so(settings, exchange):
    causes = await causes_of_two_that_are_lost(
        settings, exchange, lambda: exchange.statuses.append(HTTPStatus.TOO_MANY_REQUESTS)
    )
    assert causes == [{Cause.LIMIT}, {Cause.LIMIT}]


async def test_connections_that_wait_behind_the_want_of_a_token_are_told_so(settings, token_file, exchange):
    assert await causes_of_two_that_are_lost(settings, exchange, token_file.unlink) == [{Cause.TOKEN}, {Cause.TOKEN}]


async def test_connections_that_wait_behind_a_refused_token_are_told_so(settings, exchange):
    causes = await causes_of_two_that_are_lost(
        settings, exchange, lambda: exchange.statuses.append(HTTPStatus.UNAUTHORIZED)
    )
    assert causes == [{Cause.TOKEN}, {Cause.TOKEN}]


async def test_a_rate_limited_handshake_rests_and_goes_on(settings, exchange, watcher):
    exchange.statuses = [HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.TOO_MANY_REQUESTS]
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: watcher.connected)
    first, second, third = exchange.times
    assert second - first >= 0.2
    assert third - second >= 0.3
    assert watcher.lost == []


async def test_a_rest_outlives_a_restart(settings, exchange, watcher):
    exchange.statuses = [HTTPStatus.TOO_MANY_REQUESTS]
    policy = FeedPolicy(first_delay_s=0.01, rest_s=2, longest_rest_s=2)
    async with running(watcher.feed(settings(exchange.url), policy=policy)):
        await until(lambda: watcher.warnings)
    async with running(watcher.feed(settings(exchange.url), policy=policy)):
        await until(lambda: watcher.connected)
    assert exchange.times[1] - exchange.times[0] >= 0.9  # the file has whole seconds


async def test_a_rest_that_cannot_be_kept_in_its_file_is_kept_all_the_same(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cool_off = CoolOff(tmp_path / "file" / cool_off_file("dhan"))
    cool_off.start()
    assert 59 < cool_off.remaining_s() <= 75


@pytest.mark.parametrize("content", ["", "nan", "soon", "99999999999999"])
def test_no_rest_is_longer_than_the_longest_whatever_the_file_says(tmp_path, content):
    (tmp_path / cool_off_file("dhan")).write_text(content)
    assert CoolOff(tmp_path / cool_off_file("dhan")).remaining_s() <= 375


async def test_an_account_without_data_apis_ends_the_feed_with_one_clear_sentence(settings, exchange, watcher):
    exchange.packets = [disconnect_packet(806)]
    with pytest.raises(DataPlanError) as caught:
        await watcher.feed(settings(exchange.url)).run()
    assert str(caught.value) == "Dhan refused the connection (806, data APIs are not subscribed)"


@pytest.mark.parametrize("code", [800, 813, 999])
async def test_other_codes_are_retried(settings, exchange, watcher, code):
    exchange.packets = [disconnect_packet(code)]
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: exchange.open and watcher.connected)
        (websocket,) = exchange.open
        await websocket.close()
        await until(lambda: len(watcher.connected) == 2)
    assert [(type(reason), reason.code) for _, reason in watcher.lost] == [(FeedRefusedError, code)]


async def test_attempts_never_follow_one_another_in_a_tight_loop(settings, exchange, watcher):
    exchange.statuses = [HTTPStatus.SERVICE_UNAVAILABLE] * 5
    policy = FeedPolicy(first_delay_s=0.02, longest_delay_s=0.08)
    async with running(watcher.feed(settings(exchange.url), policy=policy)):
        await until(lambda: watcher.connected)
    waits = [after - before for before, after in zip(exchange.times, exchange.times[1:], strict=False)]
    assert [wait >= least for wait, least in zip(waits, [0.01, 0.02, 0.04, 0.04, 0.04], strict=True)] == [True] * 5


async def test_a_server_that_accepts_and_drops_at_once_is_a_series_of_failures(settings, exchange, watcher):
    policy = FeedPolicy(first_delay_s=0.001, max_reconnects=3)

    async def drop_all():
        while True:
            await until(lambda: exchange.open)
            for websocket in [*exchange.open]:
                await websocket.send(b"\x02" + bytes(15))
                await websocket.close()

    dropping = asyncio.create_task(drop_all())
    with pytest.raises(FeedError, match="the server closed the connection"):
        await watcher.feed(settings(exchange.url), policy=policy).run()
    dropping.cancel()
    await asyncio.wait([dropping])
    assert len(exchange.times) == 4


async def test_a_stable_connection_ends_a_series_of_failures(settings, exchange, watcher):
    policy = FeedPolicy(first_delay_s=0.001, max_reconnects=1, stable_s=0)
    async with running(watcher.feed(settings(exchange.url), policy=policy)):
        for number in range(1, 5):
            await until(lambda: exchange.open and len(exchange.times) == number)  # noqa: B023
            (websocket,) = exchange.open
            await websocket.send(b"\x02" + bytes(15))
            await websocket.close()
            await until(lambda: len(watcher.connected) == number + 1)  # noqa: B023


async def test_missing_credentials_at_the_start_are_one_clear_sentence(settings, token_file, exchange, watcher):
    token_file.unlink()
    with pytest.raises(CredentialsError, match="There is no token file"):
        await watcher.feed(settings(exchange.url)).run()
    assert exchange.times == []


async def test_an_expired_token_at_the_start_is_one_clear_sentence(settings, token_file, exchange, watcher):
    clock = Clock(1_786_022_457_000_000_000)
    save_token(token_file, make_token(CLIENT_ID, expires_in=-60, clock=clock), CLIENT_ID)
    with pytest.raises(TokenExpiredError) as caught:
        await watcher.feed(settings(exchange.url), clock=clock).run()
    assert str(caught.value) == (
        f"The access token in the token file {token_file} expired at 2026-08-06 18:49 IST. Put a new one there."
    )
    assert exchange.times == []


async def test_credentials_that_go_missing_while_running_are_waited_for(settings, token_file, exchange, watcher):
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: exchange.open)
        token_file.unlink()
        (websocket,) = exchange.open
        await websocket.close()
        await until(lambda: len(watcher.warnings) == 2)
        save_token(token_file, "second", CLIENT_ID)
        await until(lambda: len(watcher.connected) == 2)
    assert watcher.warnings[1].startswith("There is no token file")
    assert len(watcher.warnings) == 2
    assert exchange.tokens == ["first", "second"]


async def test_silence_in_session_replaces_the_connection(settings, exchange, watcher):
    policy = FeedPolicy(first_delay_s=0.001, silence_s=0.05)
    async with running(watcher.feed(settings(exchange.url), {NIFTY: Mode.QUOTE}, policy)):
        await until(lambda: len(watcher.connected) == 3)
    assert [request for _, request, _ in exchange.requests][:2] == [17, 12]
    assert "nothing came for" in str(watcher.lost[0][1])


async def test_what_the_consumer_raises_ends_the_feed_with_that(settings, exchange):
    def refuse(payload, connection, count):
        raise OSError(28, "No space left on device")

    exchange.packets = [b"\x02" + bytes(15)]
    with pytest.raises(OSError, match="No space left on device"):
        await Feed(settings(exchange.url), {}, refuse, policy=QUICK).run()


async def test_a_feed_stops_promptly_while_it_waits(settings, watcher):
    async with running(watcher.feed(settings("ws://127.0.0.1:1"), policy=FeedPolicy())):
        await until(lambda: watcher.warnings)


SECRET = "eyJ0eXAi.c2VjcmV0LXRva2Vu.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "refusal",
    [
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.FOUND,
        "no server",
        "no websocket server",
        "no such address",
        "disconnect packet",
        "reset",
        None,
    ],
)
async def test_the_token_is_never_seen(settings, token_file, exchange, watcher, caplog, refusal):
    caplog.set_level(logging.DEBUG)
    save_token(token_file, SECRET, CLIENT_ID)
    url = exchange.url
    policy = FeedPolicy(first_delay_s=0.001, max_reconnects=0)
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as no_websocket_server:
        if isinstance(refusal, HTTPStatus):
            exchange.statuses = [refusal]
        elif refusal == "no server":
            url = "ws://127.0.0.1:1"
        elif refusal == "no websocket server":
            url = f"ws://127.0.0.1:{no_websocket_server.sockets[0].getsockname()[1]}"
        elif refusal == "no such address":
            url = "ws://127.0.0.1:70000"
        elif refusal == "disconnect packet":
            exchange.packets = [disconnect_packet(809)]
        feed = watcher.feed(settings(url), policy=policy)
        task = asyncio.create_task(feed.run())
        if refusal in ("reset", None):
            await until(lambda: exchange.open)
            (websocket,) = exchange.open
            if refusal == "reset":
                websocket.transport.abort()
            else:
                task.cancel()
        await asyncio.wait([task])
    seen = [caplog.text, repr(feed), repr(task), *watcher.warnings]
    if not task.cancelled():
        error = task.exception()
        assert isinstance(error, SourceError)
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        seen += [str(error), repr(error), "".join(trace.format()), *traceback.format_exception(error)]
        context = error
        while (context := context.__cause__ or context.__context__) is not None:
            seen += [str(context), repr(context)]
    assert not any(SECRET in text for text in seen)


async def test_a_person_gets_ticks_from_the_exchange(settings, token_file):
    save_token(token_file, make_token(CLIENT_ID), CLIENT_ID)
    ticks: list[DhanTick] = []
    events: list[str] = []
    async with DhanSimulator([NIFTY, RELIANCE], rate=500) as simulator:
        client = DhanWebSocketClient(
            ticks.append,
            lambda: events.append("connect"),
            lambda error: events.append(repr(error)),
            lambda: events.append("close"),
            settings=settings(simulator.feed_url),
        )
        await client.subscribe([("NSE_EQ", 2885)], "full")
        await client.connect()
        await client.subscribe([{"ExchangeSegment": "IDX_I", "SecurityId": "13"}], Mode.TICKER)
        running = asyncio.create_task(client.start())
        await until(lambda: {tick.response_code for tick in ticks} >= {2, 6, 8})
        stats = client.get_stats()
        assert (stats["connected"], stats["subscriptions"], stats["reconnects"]) == (True, 2, 0)
        assert stats["ticks"] == len(ticks) == stats["messages"]
        await client.unsubscribe([("NSE_EQ", "2885"), ("IDX_I", 13)])
        await until(lambda: simulator.connections[0].subscribed == 0)
        await client.close()
        await running
    assert {(tick.exchange_segment, tick.security_id) for tick in ticks} == {("NSE_EQ", "2885"), ("IDX_I", "13")}
    full = next(tick for tick in ticks if tick.response_code == ResponseCode.FULL)
    assert len(full.depth) == 5
    assert events == ["connect", "close"]
    assert client.get_stats()["connected"] is False


async def test_a_person_is_told_of_losses_and_stays_subscribed(settings, token_file):
    save_token(token_file, make_token(CLIENT_ID), CLIENT_ID)
    errors: list[Exception] = []
    async with DhanSimulator([RELIANCE], rate=500) as simulator:
        client = DhanWebSocketClient(
            lambda tick: None, on_error=errors.append, reconnect_delay=0.01, settings=settings(simulator.feed_url)
        )
        await client.connect()
        await client.subscribe([("NSE_EQ", 2885)])
        await until(lambda: simulator.connections[0].subscribed)
        simulator.reset()
        await until(lambda: client.get_stats()["reconnects"] == 1)
        await until(lambda: simulator.connections and simulator.connections[0].subscribed)
        await client.close()
    assert [type(error) for error in errors] == [FeedError]


async def test_neither_a_bad_packet_nor_a_mistake_in_on_tick_ends_the_client(settings, exchange):
    seen, errors = [], []

    def on_tick(tick):
        seen.append(tick.security_id)
        raise ZeroDivisionError

    good = struct.pack("<BHBIfI", 2, 16, 1, 2885, 1292.8, 1_786_022_457)
    exchange.packets = [bytes([99]) + good[1:] + good + good]
    client = DhanWebSocketClient(on_tick, on_error=errors.append, settings=settings(exchange.url))
    await client.connect()
    await until(lambda: len(errors) == 3)
    assert [type(error) for error in errors] == [PacketError, ZeroDivisionError, ZeroDivisionError]
    assert seen == ["2885", "2885"]
    assert client.get_stats()["connected"]
    assert client.get_stats()["errors"] == 3
    await client.close()


async def test_without_on_error_what_is_wrong_with_each_packet_is_logged_once(settings, exchange, caplog):
    def on_tick(tick):
        raise ZeroDivisionError("a mistake")

    good = struct.pack("<BHBIfI", 2, 16, 1, 2885, 1292.8, 1_786_022_457)
    exchange.packets = [good * 100]
    client = DhanWebSocketClient(on_tick, settings=settings(exchange.url))
    await client.connect()
    await until(lambda: client.get_stats()["errors"] == 100)
    await client.close()
    assert caplog.text.count("a mistake") == 1


async def test_a_person_gets_each_tick_of_messages_that_came_together(settings, exchange):
    ticks: list[DhanTick] = []
    client = DhanWebSocketClient(ticks.append, settings=settings(exchange.url))
    await client.connect()
    await until(lambda: exchange.open)
    packets = [struct.pack("<BHBIfI", 2, 16, 1, 2885, 1292.0 + n, 1_786_022_457) for n in range(100)]
    (websocket,) = exchange.open
    websocket.transport.write(b"".join(bytes.fromhex("82 10") + packet for packet in packets))
    await until(lambda: len(ticks) == len(packets))
    assert [tick.last_price for tick in ticks] == [1292.0 + n for n in range(100)]
    assert client.get_stats()["messages"] == client.get_stats()["ticks"] == 100
    await client.close()


async def test_a_person_may_limit_the_attempts(settings, exchange):
    exchange.statuses = [HTTPStatus.SERVICE_UNAVAILABLE] * 3
    closed = []
    client = DhanWebSocketClient(
        lambda tick: None,
        on_close=lambda: closed.append(True),
        max_reconnect_attempts=2,
        reconnect_delay=0.001,
        settings=settings(exchange.url),
    )
    with pytest.raises(FeedRefusedError, match="HTTP status 503"):
        await client.start()
    assert len(exchange.times) == 3
    assert closed == [True]


async def test_a_keepalive_of_our_own_is_possible(settings, exchange):
    errors = []
    client = DhanWebSocketClient(
        lambda tick: None,
        on_error=errors.append,
        ping_interval=0.01,
        ping_timeout=0.05,
        reconnect_delay=0.001,
        settings=settings(exchange.url),
    )
    await client.connect()
    (websocket,) = exchange.open
    websocket.transport.pause_reading()  # so that it answers no ping
    await until(lambda: errors)
    websocket.transport.abort()
    await client.close()


@pytest.mark.parametrize(
    ("instrument", "mode", "error"),
    [(("NSE_EQ", 1), "depth", ValueError), (("NYSE", 1), "full", KeyError), (("NSE_EQ", "INFY"), "full", ValueError)],
)
async def test_what_cannot_be_subscribed_is_refused_at_once(settings, exchange, instrument, mode, error):
    client = DhanWebSocketClient(lambda tick: None, settings=settings(exchange.url))
    with pytest.raises(error):
        await client.subscribe([instrument], mode)


class Downs:
    """What a feed told of its connections, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.messages = 0

    def feed(self, settings: Settings, subscriptions, policy: FeedPolicy = QUICK, **options) -> Feed:
        return Feed(
            settings,
            dict(subscriptions),
            self.receive,
            lambda sentence: None,
            policy=policy,
            on_first_message=lambda connection: self.told.append(("first", connection)),
            on_down=lambda connection, error, since_ns: self.told.append((type(error).__name__, since_ns)),
            on_shed=lambda instruments: self.told.append(("shed", len(instruments))),
            on_moved=lambda: self.told.append(("moved", None)),
            **options,
        )

    def receive(self, payload, connection, count) -> None:
        for message in one_by_one(payload, count):
            if message[:1] != bytes([ResponseCode.DISCONNECT]):
                assert self.told[-1][0] == "first", "the first message was not announced"
                self.messages += 1


@pytest.fixture
def good_token(token_file):
    save_token(token_file, make_token(CLIENT_ID), CLIENT_ID)


async def test_the_first_message_of_each_socket_is_announced_and_the_last_sign_of_life_told(settings, good_token):
    downs = Downs()
    async with DhanSimulator(tokens(50), rate=2000) as simulator:
        feed = downs.feed(settings(simulator.feed_url), dict.fromkeys(tokens(50), Mode.FULL))
        async with running(feed):
            await until(lambda: downs.messages > 500)
            before_ns = time.time_ns()
            simulator.reset()
            await until(lambda: len(downs.told) == 3)
            count = downs.messages
            await until(lambda: downs.messages > count)
    (first, down, again) = downs.told
    assert (first, again) == (("first", 0), ("first", 0))
    assert down[0] == "FeedError"
    assert abs(down[1] - before_ns) < 10e9


async def test_failures_to_connect_are_told_without_a_sign_of_life(settings, good_token):
    downs = Downs()
    async with DhanSimulator(tokens(50)) as simulator:
        simulator.faults.refuse = HTTPStatus.SERVICE_UNAVAILABLE
        async with running(downs.feed(settings(simulator.feed_url), dict.fromkeys(tokens(50), Mode.FULL))):
            await until(lambda: len(downs.told) >= 2)
            assert set(downs.told) == {("FeedRefusedError", None)}
            simulator.faults.refuse = None
            await until(lambda: downs.messages)


async def test_each_connection_asks_for_the_sessions_of_its_own_segments(settings, good_token, monkeypatch):
    monkeypatch.setattr(connection_module, "_WATCH_S", 0.02)
    asked: list[set[ExchangeSegment]] = []

    def commodities_are_open(segments) -> bool:
        asked.append(set(segments))
        return ExchangeSegment.MCX_COMM in segments

    downs = Downs()
    async with DhanSimulator(tokens(50), rate=0, ping_interval=0.05) as simulator:
        policy = replace(QUICK, silence_s=2.0)
        feed = downs.feed(
            settings(simulator.feed_url),
            dict.fromkeys(tokens(50), Mode.FULL),
            policy,
            packets_due=commodities_are_open,
        )
        async with running(feed):
            await until(lambda: len(asked) > 150)  # for longer than silence may be
            assert downs.told == [("first", 0)]
    assert asked[0] == {ExchangeSegment.NSE_FNO}


async def test_silence_counts_from_the_opening_of_the_session(settings, good_token, monkeypatch):
    monkeypatch.setattr(connection_module, "_WATCH_S", 0.02)
    opened_at: list[float] = []
    downs = Downs()
    async with DhanSimulator(tokens(50), rate=0, ping_interval=0.05) as simulator:
        feed = downs.feed(
            settings(simulator.feed_url),
            dict.fromkeys(tokens(50), Mode.FULL),
            replace(QUICK, silence_s=0.5),
            packets_due=lambda segments: bool(opened_at),
        )
        async with running(feed):
            await until(lambda: downs.messages)
            started = now_s()
            await until(lambda: now_s() - started > 0.7)  # silent for longer than is allowed in session
            opened_at.append(now_s())
            await until(lambda: len(downs.told) > 1)
            assert now_s() - opened_at[0] >= 0.5
    assert downs.told[1][0] == "SilentFeedError"


async def test_a_refusal_that_says_for_how_long_is_obeyed(settings, good_token, watcher):
    async with DhanSimulator(tokens(5)) as simulator:
        simulator.faults.refuse = HTTPStatus.TOO_MANY_REQUESTS
        simulator.faults.retry_after_s = 100
        policy = replace(QUICK, rest_s=0.1, longest_rest_s=300)
        async with running(watcher.feed(settings(simulator.feed_url), policy=policy)):
            await until(lambda: watcher.warnings)
    (warning,) = watcher.warnings
    assert re.search(r"No new connection for 1[012]\d s\.", warning)


async def test_instruments_over_the_servers_limit_move_to_other_connections(settings, good_token, monkeypatch):
    monkeypatch.setattr(simulator_module, "MAX_INSTRUMENTS", 60)
    downs = Downs()
    async with DhanSimulator(tokens(100), rate=1000) as simulator:
        feed = downs.feed(settings(simulator.feed_url), dict.fromkeys(tokens(100), Mode.FULL))
        async with running(feed):
            await until(lambda: [each.subscribed for each in simulator.connections] == [50, 50])
    assert len(feed.subscriptions) == 100
    # The new connection is told as lost since the one was whose instruments it takes over.
    told = [(what, about is not None) for what, about in downs.told if what != "first"]
    assert told == [("TooManyInstrumentsError", True), ("TooManyInstrumentsError", True), ("moved", False)]
    assert len({about for what, about in downs.told if what == "TooManyInstrumentsError"}) == 1


async def test_instruments_that_find_no_room_are_given_up_and_told(settings, good_token, monkeypatch):
    monkeypatch.setattr(simulator_module, "MAX_INSTRUMENTS", 60)
    monkeypatch.setattr(Feed, "max_connections", 1)
    downs = Downs()
    async with DhanSimulator(tokens(100), rate=1000) as simulator:
        feed = downs.feed(settings(simulator.feed_url), dict.fromkeys(tokens(100), Mode.FULL))
        async with running(feed):
            await until(lambda: [each.subscribed for each in simulator.connections] == [50])
    assert ("shed", 50) in downs.told


async def test_a_message_of_100_megabytes_is_refused_and_the_feed_goes_on(settings, good_token):
    downs = Downs()
    async with DhanSimulator(tokens(50), rate=2000) as simulator:
        feed = downs.feed(settings(simulator.feed_url), dict.fromkeys(tokens(50), Mode.FULL))
        async with running(feed):
            await until(lambda: downs.messages > 100)
            for connection in simulator.connections:
                connection.send_huge()
            await until(lambda: downs.told.count(("first", 0)) == 2)


async def test_another_mode_is_asked_for_on_the_connection_that_the_instrument_is_on(settings, exchange, watcher):
    feed = watcher.feed(settings(exchange.url), dict.fromkeys(tokens(5001), Mode.TICKER))
    last = tokens(5001)[-1]
    assert last in feed.instruments(1)
    async with running(feed):
        await until(lambda: len(exchange.requests) == 51)
        feed.change({last: Mode.FULL, tokens(1)[0]: None})
        await feed.tell()
        await until(lambda: len(exchange.requests) == 54)
    by_connection = {number: [r for r in exchange.requests[51:54] if r[0] == number] for number in (0, 1)}
    assert by_connection == {0: [(0, 16, 1)], 1: [(1, 16, 1), (1, 21, 1)]}


async def test_what_is_changed_while_the_connection_still_subscribes_is_told_after(settings, good_token):
    downs = Downs()
    before, after = tokens(2000), tokens(2100)[1000:]
    async with DhanSimulator(tokens(2100), rate=10) as simulator:
        feed = downs.feed(settings(simulator.feed_url), dict.fromkeys(before, Mode.FULL))
        async with running(feed):
            await until(lambda: simulator.connections)
            simulator.connections[0].listen(False)  # what is asked is heard late, and in order
            feed.change(dict.fromkeys(before[:1000]) | dict.fromkeys(after, Mode.FULL))
            telling = asyncio.create_task(feed.tell())
            feed.change({before[0]: Mode.QUOTE, after[0]: None})
            simulator.connections[0].listen(True)
            await telling
            await feed.tell()
            await until(lambda: simulator.connections[0].subscribed == 1100)
            assert simulator.connections[0].modes[0] == 2


async def test_what_is_asked_for_is_written_down_in_another_thread(settings, good_token, monkeypatch):
    threads: list[threading.Thread] = []
    subscribe = Feed.wire.subscribe

    def recorded(subscriptions):
        if subscriptions:
            threads.append(threading.current_thread())
        return subscribe(subscriptions)

    downs = Downs()
    async with DhanSimulator(tokens(100), rate=10) as simulator:
        feed = downs.feed(settings(simulator.feed_url), dict.fromkeys(tokens(100), Mode.FULL))
        monkeypatch.setattr(Feed, "wire", replace(Feed.wire, subscribe=recorded))
        for connection in feed._connections:
            connection._wire = Feed.wire
        async with running(feed):
            await until(lambda: simulator.connections and simulator.connections[0].subscribed == 100)
            await feed.subscribe(dict.fromkeys(tokens(100), Mode.QUOTE))
            await until(lambda: len(threads) == 2)
    assert threading.main_thread() not in threads
