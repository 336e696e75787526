import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from copy import deepcopy
from http import HTTPStatus
from itertools import pairwise
from urllib.parse import urlencode
from zlib import crc32

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from dhan_pipeline.feeds.dhan.framing import split
from dhan_pipeline.feeds.dhan.wire import ResponseCode
from dhan_pipeline.feeds.kite.wire import QUOTE
from dhan_pipeline.feeds.simulator.dhan import DhanSimulator
from dhan_pipeline.feeds.simulator.faults import FAULTS, Fault, fits, happening, parse_fault, run
from dhan_pipeline.feeds.simulator.kite import KiteSimulator
from dhan_pipeline.feeds.simulator.misbehaviour import (
    GARBAGE,
    KITE_GARBAGE,
    Switches,
    frame_of,
    payload_of,
    split_frames,
)
from dhan_pipeline.feeds.simulator.tokens import make_token
from dhan_pipeline.instruments import ExchangeSegment, KiteSegment, generate_instrument_token, make_kite_token
from dhan_pipeline.sessions import IST_OFFSET_S
from dhan_pipeline_tests.child import until
from dhan_pipeline_tests.feeds.simulator.talking import kite_client

CLIENT = "1100000001"
TOKENS = [generate_instrument_token(ExchangeSegment.NSE_EQ, number) for number in range(1, 51)]


@asynccontextmanager
async def client(simulator: DhanSimulator) -> AsyncIterator[ClientConnection]:
    """A client that is subscribed to everything, in full mode."""
    query = urlencode({"version": "2", "token": make_token(CLIENT), "clientId": CLIENT, "authType": "2"})
    url = f"{simulator.feed_url}?{query}"
    async with connect(url, compression=None, proxy=None, max_queue=None, close_timeout=0.5) as websocket:
        listed = [{"ExchangeSegment": "NSE_EQ", "SecurityId": str(number)} for number in range(1, 51)]
        request = {"RequestCode": 21, "InstrumentCount": len(listed), "InstrumentList": listed}
        await websocket.send(json.dumps(request))
        yield websocket


async def everything(websocket: ClientConnection) -> list[bytes]:
    """All messages until the connection ends."""
    received: list[bytes] = []
    with suppress(ConnectionClosed):
        while True:
            received.append(await websocket.recv(decode=False))
    return received


def exchange(rate: float = 5000.0) -> DhanSimulator:
    return DhanSimulator(TOKENS, rate=rate, record=True)


def logged(simulator: DhanSimulator | KiteSimulator, number: int = 0) -> list[int]:
    return list(simulator.logs[number].crc)


def test_frames_are_taken_apart_and_put_together() -> None:
    payloads = [b"", b"a" * 125, b"b" * 126, b"c" * 70_000]
    frames = [frame_of(payload) for payload in payloads]
    assert [frame[:2] for frame in frames[:2]] == [b"\x82\x00", b"\x82\x7d"]
    assert frames[2][:4] == b"\x82\x7e\x00\x7e"
    assert list(split_frames(b"".join(frames))) == frames
    assert [payload_of(frame) for frame in frames] == payloads


@pytest.mark.parametrize("switches", [(), ("slow",), ("stacked",), ("reordered",), ("slow", "stacked", "reordered")])
async def test_what_lasts_loses_nothing_and_the_log_has_every_message_in_order(switches: tuple[str, ...]) -> None:
    async with exchange() as simulator, client(simulator) as websocket:
        for name in switches:
            setattr(simulator.faults, name, True)
        reading = asyncio.create_task(everything(websocket))
        async with asyncio.timeout(10):
            while sum(simulator.sent.values()) < 3000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for kind in GARBAGE:
            simulator.send_garbage(kind)
        simulator.rate = 0
        simulator.flush()
        simulator.faults.slow = False
        async with asyncio.timeout(10):
            while any(connection._waiting for connection in simulator.connections):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await simulator.disconnect(800)
        received = await reading
    assert [crc32(message) for message in received] == logged(simulator)
    assert all(a <= b for a, b in pairwise(simulator.logs[0].sent_ns))
    heights = {sum(1 for _ in split(message)) for message in received if message[:1] == b"\x08"}
    assert (max(heights) > 1) == ("stacked" in switches)


async def test_pings_wait_for_the_end_of_a_message_that_trickles() -> None:
    simulator = DhanSimulator(TOKENS, rate=0, record=True, ping_interval=0.002)
    async with simulator, client(simulator) as websocket, happening(simulator, parse_fault("slow")):
        await websocket.recv()
        reading = asyncio.create_task(everything(websocket))
        simulator.send_garbage("oversized", 30)  # each takes several pauses
        async with asyncio.timeout(10):
            while len(simulator.logs[0].crc) < 30 + 2 * len(TOKENS):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await (await websocket.ping())
        await simulator.disconnect(800)
        received = [crc32(message) for message in await reading]
    assert received == logged(simulator)[1:]


@pytest.mark.parametrize("blow", ["close=1011", "disconnect=805", "half", "huge", "drop", "reset", "vanish"])
@pytest.mark.parametrize("kind", ["oversized", "fragmented"])
async def test_what_ends_a_connection_in_the_middle_of_a_message_leaves_an_exact_beginning_of_the_log(
    blow: str, kind: str
) -> None:
    async with exchange(rate=0) as simulator, client(simulator) as websocket:
        for _ in range(2 * len(TOKENS)):
            await websocket.recv()
        async with happening(simulator, parse_fault("slow")):
            simulator.send_garbage(kind)
            simulator.send_garbage("oversized")
            await asyncio.sleep(0)  # the first pieces
            async with happening(simulator, parse_fault(blow)):
                pass
        received = [crc32(message) for message in await everything(websocket)]
        assert websocket.close_code == {"close=1011": 1011, "disconnect=805": 1000}.get(blow, 1006)
    log = logged(simulator)[2 * len(TOKENS) :]
    assert received == log[: len(received)]
    if blow.startswith(("close", "disconnect")):
        assert received == log
    assert simulator.sent[ResponseCode.DISCONNECT] == (blow == "disconnect=805")


async def test_a_slow_reader_takes_requests_and_answers_late() -> None:
    async with exchange(rate=0) as simulator, client(simulator) as old:
        await old.recv()
        async with happening(simulator, parse_fault("slow-reader")), client(simulator) as new:
            pong = await old.ping()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await new.recv()
            assert not pong.done()
            async with happening(simulator, parse_fault("slow-reader")):
                pass
            assert not any(connection._websocket.transport.is_reading() for connection in simulator.connections)
        await pong


async def test_a_slow_reader_answers_again_when_it_is_over() -> None:
    async with exchange(rate=0) as simulator, AsyncExitStack() as slow:
        await slow.enter_async_context(happening(simulator, parse_fault("slow-reader")))
        async with client(simulator) as websocket:
            await slow.aclose()
            await websocket.recv()


async def test_while_it_stalls_nothing_comes_and_nothing_is_counted() -> None:
    async with exchange() as simulator, client(simulator) as websocket:
        await websocket.recv()
        async with happening(simulator, parse_fault("stall")):
            sent = simulator.sent
            while True:
                try:
                    async with asyncio.timeout(0.3):
                        await websocket.recv()
                except TimeoutError:
                    break
            assert simulator.sent == sent
            await (await websocket.ping())
        await websocket.recv()


@pytest.mark.parametrize("blow", ["reset", "drop", "half", "close=1011", "disconnect=807", "huge"])
async def test_what_ends_a_connection_leaves_an_exact_beginning_of_the_log(blow: str) -> None:
    async with exchange() as simulator, client(simulator) as websocket:
        reading = asyncio.create_task(everything(websocket))
        async with asyncio.timeout(10):
            while sum(simulator.sent.values()) < 500:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with happening(simulator, parse_fault(blow)):
            async with asyncio.timeout(10):
                received = [crc32(message) for message in await reading]
        assert websocket.close_code == {"close=1011": 1011, "disconnect=807": 1000}.get(blow, 1006)
    log = logged(simulator)
    assert received == log[: len(received)]
    if blow.startswith(("close", "disconnect", "drop")):
        assert received == log
    if blow.startswith("disconnect"):
        assert simulator.sent[ResponseCode.DISCONNECT] == 1


@pytest.mark.parametrize("status", [429, 401, 503])
async def test_a_handshake_is_refused_for_as_long_as_it_lasts(status: int) -> None:
    async with exchange() as simulator:
        simulator.faults.retry_after_s = 7
        async with happening(simulator, Fault("refuse", status, for_s=1)):
            with pytest.raises(InvalidStatus) as caught:
                async with client(simulator):
                    pass
        assert caught.value.response.status_code == status
        assert caught.value.response.headers["Retry-After"] == "7"
        async with client(simulator) as websocket:
            await websocket.recv()


async def test_an_unreachable_exchange_drops_the_handshake_and_a_mute_one_never_answers_it() -> None:
    async with exchange() as simulator:
        async with happening(simulator, parse_fault("unreachable")):
            with pytest.raises((OSError, ConnectionClosedError, EOFError, Exception)) as caught:
                async with client(simulator):
                    pass
            assert not isinstance(caught.value, TimeoutError)
        async with happening(simulator, parse_fault("mute")):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3), client(simulator):
                    pass


async def test_an_exchange_that_vanishes_says_nothing_and_answers_nothing_and_is_reset_when_it_is_back() -> None:
    async with exchange() as simulator, client(simulator) as websocket:
        reading = asyncio.create_task(everything(websocket))
        async with asyncio.timeout(10):
            while sum(simulator.sent.values()) < 500:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with happening(simulator, parse_fault("vanish")):
            sent = sum(simulator.sent.values())
            pong = await websocket.ping()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.wait([pong])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3), client(simulator):
                    pass
            assert sum(simulator.sent.values()) == sent
            assert not reading.done()
        async with asyncio.timeout(10):
            received = [crc32(message) for message in await reading]
        assert received == logged(simulator)
        async with client(simulator) as another:
            await another.recv()
        pong.cancel()


async def test_the_snapshot_comes_twice() -> None:
    twice = parse_fault("duplicate-snapshot")
    async with exchange(rate=0) as simulator, happening(simulator, twice), client(simulator) as websocket:
        received = [await websocket.recv() for _ in range(4 * len(TOKENS))]
    assert received[: 2 * len(TOKENS)] == received[2 * len(TOKENS) :]


async def test_trade_times_become_true_utc() -> None:
    wrong = parse_fault("wrong-epoch")
    async with exchange() as simulator, client(simulator) as websocket, happening(simulator, wrong):
        now_s = time.time()
        lags = []
        async with asyncio.timeout(10):
            while len(lags) < 200:
                message = await websocket.recv()
                if message[0] == ResponseCode.FULL:
                    lags.append(now_s - int.from_bytes(message[14:18], "little"))  # type: ignore[arg-type]
        assert min(map(abs, lags[100:])) < 60
    assert simulator.market.trade_time_offset_s == IST_OFFSET_S


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("reset@30", Fault("reset", at_s=30)),
        ("stall@60+20", Fault("stall", at_s=60, for_s=20)),
        ("reset/45", Fault("reset", every_s=45)),
        ("disconnect=807@2.5", Fault("disconnect", 807, 2.5)),
        ("refuse=503@10+30/60", Fault("refuse", 503, 10, 30, 60)),
        ("refuse", Fault("refuse", 429, for_s=10)),
        ("slow", Fault("slow", for_s=10)),
    ],
)
def test_a_fault_is_read_from_a_text(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("flood", "flood is not a fault: .* the names are stall, vanish"),
        ("reset@soon", "reset@soon is not a fault"),
        ("reset+5", "reset passes at once, so it cannot go on for 5 s"),
        ("stall=3", "stall takes no value"),
        ("refuse=42", "42 is not an HTTP status"),
        ("stall+20/10", "it is to be repeated before it ends"),
        ("", " is not a fault"),
    ],
)
def test_what_is_no_fault_is_refused_in_words(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_fault(text)


def test_what_the_feed_cannot_do_is_refused_in_words() -> None:
    assert parse_fault("stacked", ["kite", "dhan"]) == Fault("stacked", for_s=10)
    with pytest.raises(ValueError, match="disconnect=805: disconnect is nothing that kite can do, only dhan"):
        parse_fault("disconnect=805", ["kite"])


@asynccontextmanager
async def timetable(simulator: DhanSimulator, *texts: str) -> AsyncIterator[None]:
    running = asyncio.create_task(run(simulator, [parse_fault(text) for text in texts]))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_timetable_begins_with_the_first_client_and_ends_what_lasts() -> None:
    async with exchange() as simulator, timetable(simulator, "stall@0.05+60", "stacked+0.05"):
        await asyncio.sleep(0.2)
        assert not simulator.faults.stalled
        assert simulator.faults.stacked
        async with client(simulator), asyncio.timeout(5):
            while simulator.faults.stacked or not simulator.faults.stalled:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert simulator.faults == Switches()


async def test_what_lasts_from_the_beginning_meets_the_first_handshake() -> None:
    async with exchange() as simulator, timetable(simulator, "refuse=429+0.1"):
        await asyncio.sleep(0.2)
        with pytest.raises(InvalidStatus):
            async with client(simulator):
                pass
        async with asyncio.timeout(5):
            while simulator.faults.refuse:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with client(simulator) as websocket:
            await websocket.recv()


async def test_what_passes_at_the_beginning_meets_the_first_connection() -> None:
    async with exchange() as simulator, timetable(simulator, "disconnect=805"):
        async with client(simulator) as websocket, asyncio.timeout(5):
            *_, words = await everything(websocket)
        assert words[0] == ResponseCode.DISCONNECT


LASTING = [name for name, what in FAULTS.items() if what.startswith("+")]


@pytest.mark.parametrize("name", LASTING)
async def test_of_two_faults_of_a_kind_each_goes_on_until_its_own_end(name: str) -> None:
    async with exchange() as simulator, AsyncExitStack() as long, AsyncExitStack() as short:
        before = deepcopy(simulator.faults), simulator.market.trade_time_offset_s
        await long.enter_async_context(happening(simulator, parse_fault(name)))
        during = deepcopy(simulator.faults), simulator.market.trade_time_offset_s
        assert during != before
        for first, second in [(long, short), (short, long)]:
            await second.enter_async_context(happening(simulator, parse_fault(name)))
            await first.aclose()
            assert (simulator.faults, simulator.market.trade_time_offset_s) == during
        await long.aclose()
        assert (simulator.faults, simulator.market.trade_time_offset_s) == before


async def test_of_two_refusals_the_one_that_goes_on_counts() -> None:
    async with exchange() as simulator:
        busy, down = parse_fault("refuse=429"), parse_fault("refuse=503")
        async with happening(simulator, busy):
            async with happening(simulator, down):
                assert simulator.faults.refuse == HTTPStatus.SERVICE_UNAVAILABLE
            assert simulator.faults.refuse == HTTPStatus.TOO_MANY_REQUESTS


async def test_an_exchange_that_vanished_twice_is_back_after_the_longer_time() -> None:
    async with exchange() as simulator, client(simulator) as websocket, AsyncExitStack() as first:
        await websocket.recv()
        await first.enter_async_context(happening(simulator, parse_fault("vanish")))
        async with happening(simulator, parse_fault("vanish")), happening(simulator, parse_fault("mute")):
            await first.aclose()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await everything(websocket)
        await everything(websocket)
        assert websocket.close_code == 1006


@pytest.mark.parametrize("name", [name for name in FAULTS if fits(name, "dhan")])
async def test_every_fault_of_the_list_can_happen(name: str) -> None:
    async with exchange() as simulator, client(simulator) as websocket:
        await websocket.recv()
        async with happening(simulator, parse_fault(name)):
            pass
    assert simulator.faults == Switches()


KITE_TOKENS = [make_kite_token(KiteSegment.NSE, number) for number in range(1, 51)]


@asynccontextmanager
async def kite(rate: float = 5000.0) -> AsyncIterator[tuple[KiteSimulator, ClientConnection]]:
    """Kite's exchange, and a client that is subscribed to everything."""
    simulator = KiteSimulator(KITE_TOKENS, rate=rate, record=True, packets_a_message=20)
    async with simulator, kite_client(simulator) as websocket:
        await websocket.send(json.dumps({"a": "subscribe", "v": KITE_TOKENS}))
        yield simulator, websocket


@pytest.mark.parametrize("name", [name for name in FAULTS if fits(name, "kite")])
async def test_every_fault_that_fits_can_happen_to_kite(name: str) -> None:
    async with kite() as (simulator, websocket):
        await websocket.recv()
        async with happening(simulator, parse_fault(name, ["kite"])):
            pass
    assert simulator.faults == Switches()


@pytest.mark.parametrize("switches", [(), ("slow",), ("reordered",)])
async def test_kites_log_has_every_message_in_order(switches: tuple[str, ...]) -> None:
    async with kite() as (simulator, websocket):
        for name in switches:
            setattr(simulator.faults, name, True)
        reading = asyncio.create_task(everything(websocket))
        await until(lambda: simulator.sent.total() > 3000)
        for kind in KITE_GARBAGE:
            simulator.send_garbage(kind)
        simulator.rate = 0
        simulator.flush()
        simulator.faults.slow = False
        await until(lambda: not simulator.connections[0]._waiting)
        await simulator.connections[0].close(1000)
        received = await reading
    assert [crc32(message) for message in received] == logged(simulator)
    assert len(received) > 100


@pytest.mark.parametrize("blow", ["reset", "drop", "half", "close=1011", "huge"])
async def test_what_ends_kites_connection_leaves_an_exact_beginning_of_the_log(blow: str) -> None:
    async with kite() as (simulator, websocket):
        reading = asyncio.create_task(everything(websocket))
        await until(lambda: simulator.sent.total() > 500)
        async with happening(simulator, parse_fault(blow)), asyncio.timeout(10):
            received = [crc32(message) for message in await reading]
        assert websocket.close_code == {"close=1011": 1011}.get(blow, 1006)
    log = logged(simulator)
    assert received == log[: len(received)]
    if blow in ("close=1011", "drop"):
        assert received == log


async def test_while_kite_stalls_nothing_comes_not_even_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhan_pipeline.feeds.simulator.kite.HEARTBEAT_S", 0.01)
    async with kite(rate=0) as (simulator, websocket):
        await websocket.recv()
        async with happening(simulator, parse_fault("stall")):
            await asyncio.wait_for(await websocket.ping(), 10)
            sent = simulator.sent.copy()
            await asyncio.sleep(0.1)  # some heartbeats long
            assert simulator.sent == sent
        await until(lambda: simulator.sent.total() > sent.total())


async def test_kite_says_in_text_what_is_no_data() -> None:
    async with kite(rate=0) as (simulator, websocket):
        while simulator.sent[QUOTE] < len(KITE_TOKENS):
            await websocket.recv()
        async with happening(simulator, parse_fault("text")):
            said: list[str] = []
            async for message in websocket:
                said += [message] if isinstance(message, str) else []
                if len(said) == 3:
                    break
    assert [json.loads(message)["type"] for message in said] == ["order", "error", "message"]


async def test_of_a_timetable_what_fits_the_feed_happens() -> None:
    async with kite(rate=0) as (simulator, websocket):
        running = asyncio.create_task(run(simulator, [parse_fault(text) for text in ("stacked", "text")]))
        async with asyncio.timeout(10):
            while not isinstance(await websocket.recv(), str):
                pass
        assert simulator.faults == Switches()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
