import asyncio
import json
import logging
import time
import traceback
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from dhan_pipeline.feeds.connection import FeedPolicy
from dhan_pipeline.feeds.errors import (
    CredentialsError,
    FeedError,
    FeedRefusedError,
    RateLimitedError,
    SilentFeedError,
    SourceError,
    SubscriptionLimitError,
    TokenExpiredError,
    TokenRefusedError,
)
from dhan_pipeline.feeds.kite import client as client_module
from dhan_pipeline.feeds.kite.auth import save_kite_token
from dhan_pipeline.feeds.kite.client import Feed, error_text
from dhan_pipeline.feeds.kite.framing import split
from dhan_pipeline.feeds.kite.wire import FULL, INDEX_QUOTE
from dhan_pipeline.feeds.kite.wire import LTP as LTP_SIZE
from dhan_pipeline.feeds.simulator import kite as simulator_module
from dhan_pipeline.feeds.simulator.exchange import HEARTBEAT as HEARTBEATS
from dhan_pipeline.feeds.simulator.kite import MODE_BITS, KiteSimulator
from dhan_pipeline.feeds.simulator.tokens import API_KEY, make_kite_access_token
from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import KiteSegment, make_kite_token
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.feeds.dhan.received import one_by_one

RELIANCE, NIFTY = 738561, 256265
HEARTBEAT = b"\0"
LTP = bytes.fromhex("0001 0008 000b4501 00040e57")
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
    return [make_kite_token(KiteSegment.NFO, 40_000 + number) for number in range(count)]


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
        self.queries: list[dict[str, list[str]]] = []
        """The parameters of each handshake."""
        self.versions: list[str | None] = []
        self.times: list[float] = []
        self.asked: list[dict[str, list[int]]] = []
        """By connection: the tokens in each mode that it asked for, in order, and what it `unsubscribe`d."""
        self.sizes: list[int] = []
        """Tokens in each message."""
        self.open: list = []
        self.statuses: list[HTTPStatus] = []
        """Refusals of the next handshakes."""
        self.beats = 0
        self.beat_s: float | None = None
        """Heartbeats come this far apart; None: none."""

    @property
    def tokens(self) -> list[str]:
        return [query["access_token"][0] for query in self.queries]

    async def judge(self, connection, request):
        self.queries.append(parse_qs(urlsplit(request.path).query))
        self.versions.append(request.headers.get("X-Kite-Version"))
        self.times.append(now_s())
        return connection.respond(self.statuses.pop(0), "no\n") if self.statuses else None

    async def beat(self, websocket):
        with suppress(ConnectionClosed):
            while self.beat_s is not None:
                await websocket.send(HEARTBEAT)
                self.beats += 1
                await asyncio.sleep(self.beat_s)

    async def behave(self, websocket):
        asked: dict[str, list[int]] = {}
        subscribed: list[int] = []
        self.asked.append(asked)
        self.open.append(websocket)
        beating = asyncio.create_task(self.beat(websocket))
        try:
            async for message in websocket:
                request = json.loads(message)
                if request["a"] == "mode":
                    mode, named = request["v"]
                    assert named == subscribed, "a mode for what was not just subscribed"
                    asked.setdefault(mode, []).extend(named)
                elif request["a"] == "subscribe":
                    subscribed = request["v"]
                    self.sizes.append(len(subscribed))
                else:
                    asked.setdefault(request["a"], []).extend(request["v"])
        except ConnectionClosed:
            pass
        finally:
            self.open.remove(websocket)
            beating.cancel()


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
def settings(tmp_path):
    save_kite_token(tmp_path / "kite_token.json", "first", API_KEY)

    def make(url: str) -> Settings:
        return Settings(
            _env_file=None,
            data_source="kite",
            kite_feed_url=url,
            kite_token_file=tmp_path / "kite_token.json",
            data_dir=tmp_path / "data",
        )

    return make


def renew(settings: Settings, token: str = "second") -> None:
    save_kite_token(settings.kite_token_file, token, API_KEY)


class Watcher:
    """What a feed told its caller."""

    def __init__(self) -> None:
        self.messages: list[bytes | str] = []
        self.connected: list[int] = []
        self.first: list[int] = []
        self.lost: list[FeedError] = []
        self.warnings: list[str] = []

    def feed(self, settings: Settings, subscriptions=(), policy: FeedPolicy = QUICK, **options) -> Feed:
        return Feed(
            settings,
            dict(subscriptions),
            self.receive,
            self.warnings.append,
            policy=policy,
            on_connect=self.connected.append,
            on_first_message=self.first.append,
            on_down=lambda connection, reason, since_ns: since_ns and self.lost.append(reason),
            **options,
        )

    def receive(self, payload, connection, count) -> None:
        self.messages += one_by_one(payload, count)


@asynccontextmanager
async def running(feed: Feed):
    """The feed runs inside, and has ended cleanly and quickly after."""
    task = asyncio.create_task(feed.run())
    try:
        yield task
    finally:
        task.cancel()
        async with asyncio.timeout(10):
            with suppress(asyncio.CancelledError, SourceError):
                await task


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


async def test_the_handshake_says_who_asks_and_for_which_version(settings, exchange, watcher):
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: exchange.open)
    assert exchange.queries == [{"api_key": [API_KEY], "access_token": ["first"]}]
    assert exchange.versions == ["3"]


async def test_each_instrument_is_subscribed_with_its_mode_again_after_each_loss(settings, exchange, watcher):
    subscriptions = {NIFTY: Mode.TICKER, RELIANCE: Mode.FULL} | dict.fromkeys(tokens(250), Mode.QUOTE)
    expected = {"ltp": [NIFTY], "quote": tokens(250), "full": [RELIANCE]}
    async with running(watcher.feed(settings(exchange.url), subscriptions)):
        await until(lambda: exchange.asked == [expected])
        exchange.open[0].transport.abort()
        await until(lambda: exchange.asked == [expected] * 2)
        await exchange.open[0].close(1011)
        await until(lambda: exchange.asked == [expected] * 3)
    assert watcher.connected == [0, 0, 0]
    assert max(exchange.sizes) == 200
    assert watcher.lost[1].cause is Cause.SERVER


async def test_what_comes_is_handed_over_as_it_came(settings, exchange, watcher):
    messages = [LTP, HEARTBEAT, '{"type":"order","data":{}}', LTP + LTP, b""]
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: exchange.open)
        for message in messages:
            await exchange.open[0].send(message)
        await until(lambda: len(watcher.messages) == len(messages))
    assert watcher.messages == messages
    assert watcher.warnings == []


async def test_instruments_are_spread_over_three_connections(settings, exchange, watcher):
    feed = watcher.feed(settings(exchange.url), dict.fromkeys(tokens(7000), Mode.FULL))
    async with running(feed):
        await until(lambda: sum(len(asked.get("full", [])) for asked in exchange.asked) == 7000)
        assert (feed.connections, feed.connections_up) == (3, 3)
    assert sorted(len(asked["full"]) for asked in exchange.asked) == [2333, 2333, 2334]


def test_more_instruments_than_an_account_may_have_are_refused(settings, watcher):
    with pytest.raises(SubscriptionLimitError, match=r"9001 .* Kite allows 3 connections of 3000 instruments"):
        watcher.feed(settings("ws://127.0.0.1:1"), dict.fromkeys(tokens(9001), Mode.FULL))


async def test_instruments_come_and_go_while_running(settings, exchange, watcher):
    feed = watcher.feed(settings(exchange.url), {NIFTY: Mode.QUOTE})
    async with running(feed):
        await until(lambda: exchange.asked == [{"quote": [NIFTY]}])
        await feed.subscribe({NIFTY: Mode.FULL, RELIANCE: Mode.TICKER})
        await feed.unsubscribe([RELIANCE])
        await until(
            lambda: (
                exchange.asked
                == [{"quote": [NIFTY], "unsubscribe": [NIFTY, RELIANCE], "ltp": [RELIANCE], "full": [NIFTY]}]
            )
        )
    assert feed.subscriptions == {NIFTY: Mode.FULL}


@pytest.mark.parametrize("status", [HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED])
async def test_a_refused_token_is_not_offered_again_and_a_fresh_one_is(settings, exchange, watcher, status):
    it = settings(exchange.url)
    exchange.statuses = [status]
    async with running(watcher.feed(it)):
        await until(lambda: watcher.warnings)
        started = now_s()
        await until(lambda: now_s() - started > 0.1)  # ten looks into the file
        assert exchange.tokens == ["first"]
        renew(it)
        await until(lambda: watcher.connected)
    assert exchange.tokens == ["first", "second"]
    assert watcher.warnings == [
        f"Kite's connection 0 is down: Kite refused the connection (HTTP status {status.value}). Waiting for another"
        f" token in the token file {it.kite_token_file}."
    ]


async def test_a_token_whose_time_is_over_is_told_at_the_start_and_waited_for_later(settings, exchange, watcher):
    it = settings(exchange.url)
    it.kite_token_file.write_text('{"access_token": "old", "api_key": "key", "login_time": "2026-08-06 08:00:00"}')
    with pytest.raises(TokenExpiredError, match=r"expired at 2026-08-07 06:00 IST\. Put a new one there\.$"):
        await watcher.feed(it).run()
    it.kite_token_file.unlink()
    with pytest.raises(CredentialsError, match="There is no token file"):
        await watcher.feed(it).run()
    renew(it, "first")
    async with running(watcher.feed(it)):
        await until(lambda: exchange.open)
        it.kite_token_file.write_text('{"access_token": "old", "api_key": "key", "login_time": "2026-08-06 08:00:00"}')
        exchange.open[0].transport.abort()
        await until(lambda: len(watcher.warnings) == 2)
        renew(it)
        await until(lambda: len(watcher.connected) == 2)
    assert exchange.tokens == ["first", "second"]


async def test_a_rate_limited_handshake_rests_and_goes_on(settings, exchange, watcher):
    exchange.statuses = [HTTPStatus.TOO_MANY_REQUESTS] * 2
    it = settings(exchange.url)
    async with running(watcher.feed(it)):
        await until(lambda: watcher.connected)
    waits = [later - earlier for earlier, later in zip(exchange.times, exchange.times[1:], strict=False)]
    assert min(waits) >= 0.2
    assert (it.data_dir / "kite_cool_off").exists()


async def test_another_status_is_tried_again(settings, exchange, watcher):
    exchange.statuses = [HTTPStatus.BAD_GATEWAY] * 3
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: watcher.connected)
    assert len(exchange.times) == 4


async def test_a_connection_without_heartbeats_is_replaced(settings, exchange, watcher):
    policy = replace(QUICK, heartbeat_silence_s=0.05)
    async with running(watcher.feed(settings(exchange.url), policy=policy)):
        await until(lambda: len(watcher.connected) > 1)
    assert isinstance(watcher.lost[0], SilentFeedError)


async def test_a_loss_begins_after_the_last_heartbeat_where_those_ended(settings, exchange, watcher):
    signs: list[int] = []
    policy = replace(QUICK, heartbeat_silence_s=0.2)
    feed = watcher.feed(settings(exchange.url), policy=policy)
    feed._on_down = lambda connection, reason, since_ns: signs.append(since_ns)
    async with running(feed):
        await until(lambda: exchange.open)
        await exchange.open[0].send(LTP)
        await until(lambda: watcher.first)
        started = now_s()
        await until(lambda: now_s() - started > 0.1)
        before_ns = time.time_ns()
        await exchange.open[0].send(HEARTBEAT)
        await until(lambda: signs)
    assert signs[0] > before_ns - 50_000_000  # two clocks tell it


async def test_heartbeats_are_a_sign_of_life_when_no_packets_are_due(settings, exchange, watcher):
    exchange.beat_s = 0.01
    policy = replace(QUICK, heartbeat_silence_s=0.3, silence_s=0.1)
    async with running(watcher.feed(settings(exchange.url), policy=policy)):
        started = now_s()
        await until(lambda: exchange.beats > 40 and now_s() - started > 0.5)
    assert watcher.connected == [0]
    assert watcher.lost == watcher.first == []
    assert set(watcher.messages) == {HEARTBEAT}


async def test_heartbeats_are_no_sign_of_data_in_session(settings, exchange, watcher):
    exchange.beat_s = 0.01
    policy = replace(QUICK, heartbeat_silence_s=60, silence_s=0.2)
    async with running(watcher.feed(settings(exchange.url), policy=policy, packets_due=lambda segments: True)):
        await until(lambda: len(watcher.connected) > 1)
    assert isinstance(watcher.lost[0], SilentFeedError)
    assert exchange.beats


async def test_neither_are_many_heartbeats_at_once_nor_orders(settings, exchange, watcher):
    order = b'{"type":"order"}'
    no_data = bytes.fromhex("82 01 00") * 20 + bytes([0x81, len(order)]) + order
    policy = replace(QUICK, silence_s=0.2)
    async with running(watcher.feed(settings(exchange.url), policy=policy, packets_due=lambda segments: True)):
        while len(watcher.connected) < 2:
            for websocket in exchange.open:
                websocket.transport.write(no_data)
            await asyncio.sleep(0.01)
    assert isinstance(watcher.lost[0], SilentFeedError)
    assert watcher.first == []
    assert set(watcher.messages) == {HEARTBEAT, order.decode()}


async def test_the_first_message_with_data_is_announced(settings, exchange, watcher):
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: exchange.open)
        await exchange.open[0].send(HEARTBEAT)
        await until(lambda: watcher.messages)
        assert watcher.first == []
        await exchange.open[0].send(LTP)
        await until(lambda: len(watcher.messages) == 2)
    assert watcher.first == [0]


async def test_all_instruments_at_once_come_in_one_message(settings, exchange, watcher):
    packets = b"".join((184).to_bytes(2, "big") + bytes([number % 251]) * 184 for number in range(3000))
    message = (3000).to_bytes(2, "big") + packets
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: exchange.open)
        await exchange.open[0].send(message)
        await exchange.open[0].send(message * 20)  # 11 MB
        await exchange.open[0].send(HEARTBEAT)
        await until(lambda: len(watcher.messages) == 3)
    assert watcher.messages == [message, message * 20, HEARTBEAT]


async def test_a_message_of_13_megabytes_is_refused_and_the_feed_goes_on(settings, exchange, watcher):
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: exchange.open)
        with suppress(ConnectionClosed):
            await exchange.open[0].send(bytes(13 << 20))
        await until(lambda: len(watcher.connected) == 2)
    assert watcher.messages == []


@pytest.mark.parametrize(("pause_s", "told"), [(60.0, 1), (0.0, 3)])
async def test_an_error_in_words_is_passed_on_once_in_a_while_without_the_token(
    settings, exchange, watcher, monkeypatch, pause_s, told
):
    monkeypatch.setattr(client_module, "ERROR_PAUSE_S", pause_s)
    said = json.dumps({"type": "error", "data": "Too many instruments\nfor first."})
    async with running(watcher.feed(settings(exchange.url))):
        await until(lambda: exchange.open)
        for _ in range(3):
            await exchange.open[0].send(said)
        await until(lambda: len(watcher.messages) == 3)
    assert watcher.warnings == ["Kite says on connection 0: Too many instruments for ***."] * told
    assert watcher.messages == [said] * 3
    assert watcher.lost == []


def packets(messages: list[bytes | str]) -> list[int]:
    """The sizes of all packets in the messages; 0 for a heartbeat."""
    found = [packet for message in messages if isinstance(message, bytes) for packet in split(message)]
    assert all(problem is None for _, _, problem in found)
    return [size for _, size, _ in found]


async def test_everything_that_the_exchange_sends_is_received(settings, watcher):
    subscriptions = {NIFTY: Mode.QUOTE, RELIANCE: Mode.TICKER} | dict.fromkeys(tokens(150), Mode.FULL)
    async with KiteSimulator(list(subscriptions), rate=20_000) as simulator:
        it = settings(simulator.feed_url)
        renew(it, make_kite_access_token())
        async with running(watcher.feed(it, subscriptions)):
            await until(lambda: len(packets(watcher.messages)) > 5000)
            simulator.rate = 0
            await until(lambda: len(packets(watcher.messages)) == sum(simulator.sent.values()))
            assert simulator.sent == Counter(packets(watcher.messages))
    assert {LTP_SIZE, INDEX_QUOTE, FULL} <= {*packets(watcher.messages)}
    assert watcher.warnings == []


async def test_after_a_reset_the_exchange_sends_each_instrument_in_its_mode_again(settings, watcher):
    subscriptions = {NIFTY: Mode.QUOTE, RELIANCE: Mode.TICKER} | dict.fromkeys(tokens(450), Mode.FULL)
    expected = [MODE_BITS["quote"], MODE_BITS["ltp"]] + [MODE_BITS["full"]] * 450
    async with KiteSimulator(list(subscriptions), rate=1000) as simulator:
        it = settings(simulator.feed_url)
        renew(it, make_kite_access_token())
        async with running(watcher.feed(it, subscriptions)):
            for times in (1, 2):
                await until(lambda: len(watcher.connected) == times and simulator.connections)  # noqa: B023
                await until(lambda: simulator.connections[0].modes.tolist() == expected)
                simulator.reset()
    assert watcher.warnings[0].startswith("Kite's connection 0 is down: the connection was lost")


async def test_a_token_that_was_ended_is_not_offered_again_and_a_fresh_one_is(settings, watcher):
    async with KiteSimulator(tokens(5), rate=100) as simulator:
        it = settings(simulator.feed_url)
        renew(it, make_kite_access_token())
        async with running(watcher.feed(it, dict.fromkeys(tokens(5), Mode.FULL))):
            await until(lambda: watcher.first)
            simulator.rest.active_token = make_kite_access_token()
            simulator.reset()
            await until(lambda: len(watcher.warnings) == 2)
            renew(it, simulator.rest.active_token)
            await until(lambda: len(watcher.first) == 2)
    assert "HTTP status 403" in watcher.warnings[1]
    assert len(watcher.warnings) == 2


async def test_instruments_over_the_limit_are_told_and_the_connection_stands(settings, watcher, monkeypatch):
    monkeypatch.setattr(simulator_module, "MAX_INSTRUMENTS", 60)
    async with KiteSimulator(tokens(100), rate=1000) as simulator:
        it = settings(simulator.feed_url)
        renew(it, make_kite_access_token())
        async with running(watcher.feed(it, dict.fromkeys(tokens(100), Mode.FULL))):
            await until(lambda: simulator.connections and simulator.connections[0].subscribed == 60)
            await until(lambda: watcher.warnings)
    assert watcher.warnings == ["Kite says on connection 0: Maximum of 60 instruments exceeded."]
    assert watcher.lost == []


async def test_a_connection_that_brings_nothing_but_heartbeats_in_session_is_replaced(settings, watcher, monkeypatch):
    monkeypatch.setattr(simulator_module, "HEARTBEAT_S", 0.02)
    async with KiteSimulator(tokens(5), rate=1000) as simulator:
        it = settings(simulator.feed_url)
        renew(it, make_kite_access_token())
        policy = replace(QUICK, silence_s=0.3)
        subscriptions = dict.fromkeys(tokens(5), Mode.FULL)
        async with running(watcher.feed(it, subscriptions, policy, packets_due=lambda segments: True)):
            await until(lambda: watcher.first)
            assert watcher.lost == []
            simulator.rate = 0
            await until(lambda: len(watcher.first) > 1)
        assert simulator.sent[HEARTBEATS]
    assert isinstance(watcher.lost[0], SilentFeedError)


async def test_no_garbage_ends_a_connection(settings, watcher):
    async with KiteSimulator(tokens(5), rate=100) as simulator:
        it = settings(simulator.feed_url)
        renew(it, make_kite_access_token())
        async with running(watcher.feed(it, dict.fromkeys(tokens(5), Mode.FULL))):
            await until(lambda: watcher.first)
            for kind in simulator.garbage:
                simulator.send_garbage(kind)
            await until(lambda: sum(len(message) == 400_000 for message in watcher.messages) == 1)
            simulator.send_text({"type": "message", "data": "the end"})
            await until(lambda: '{"type": "message", "data": "the end"}' in watcher.messages)
    assert watcher.lost == watcher.warnings == []


@pytest.mark.parametrize(
    "text",
    ['{"type":"order","data":{}}', '{"type":"message","data":"news"}', '{"type":"error"}', "[]", "no", "[" * 100_000],
)
def test_other_words_are_no_error(text):
    assert error_text(text) is None


@pytest.mark.parametrize("refusal", [HTTPStatus.FORBIDDEN, HTTPStatus.BAD_GATEWAY, "no server", "no address", "reset"])
async def test_the_token_is_never_seen(settings, exchange, watcher, caplog, refusal):
    caplog.set_level(logging.DEBUG)
    url = {"no server": "ws://127.0.0.1:1", "no address": "ws://127.0.0.1:70000"}.get(refusal, exchange.url)
    if isinstance(refusal, HTTPStatus):
        exchange.statuses = [refusal]
    it = settings(url)
    renew(it, "very-secret")
    feed = watcher.feed(it, policy=FeedPolicy(first_delay_s=0.001, max_reconnects=0))
    task = asyncio.create_task(feed.run())
    if refusal == "reset":
        await until(lambda: exchange.open)
        exchange.open[0].transport.abort()
    await asyncio.wait([task])
    error = task.exception()
    assert isinstance(error, SourceError)
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert "very-secret" not in "".join([caplog.text, repr(feed), *watcher.warnings, str(error), *trace.format()])


def test_the_statuses_of_a_refusal_are_told_apart():
    kinds = {status: type(client_module.refused(status)) for status in (401, 403, 429, 500)}
    assert kinds == {401: TokenRefusedError, 403: TokenRefusedError, 429: RateLimitedError, 500: FeedRefusedError}
