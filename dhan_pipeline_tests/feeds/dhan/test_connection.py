import asyncio
import base64
import hashlib
import json
import logging
import struct
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from dhan_pipeline.feeds.connection import FeedConnection, FeedPolicy
from dhan_pipeline.feeds.dhan.auth import Credentials
from dhan_pipeline.feeds.dhan.client import WIRE
from dhan_pipeline.feeds.errors import (
    DataPlanError,
    FeedError,
    FeedRefusedError,
    RateLimitedError,
    RestingError,
    SilentFeedError,
)
from dhan_pipeline.instruments import generate_instrument_token
from dhan_pipeline.ticks import Mode
from dhan_pipeline_tests.feeds.dhan.received import one_by_one

CREDENTIALS = Credentials("1000000001", SecretStr("a-token"), None, "the token file")
TICKER = bytes.fromhex("02 1000 01 450b0000 9a99a144 f9c87468")
RELIANCE = generate_instrument_token("NSE_EQ", 2885)
NIFTY = generate_instrument_token("IDX_I", 13)

quiet = logging.getLogger("test server")
quiet.setLevel(logging.CRITICAL)


@asynccontextmanager
async def server(behave):
    """Serve each connection with `behave(websocket)`; gives the address."""
    async with serve(behave, "127.0.0.1", 0, compression=None, ping_interval=None, logger=quiet) as listening:
        yield f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def raw_server(behave):
    """Serve each TCP connection with `behave(reader, writer)`; gives the address."""

    async def handle(reader, writer):
        try:
            await behave(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def answer_handshake(reader) -> bytes:
    """The answer to a client's handshake, not yet sent."""
    request = await reader.readuntil(b"\r\n\r\n")
    key = next(line.split(b": ")[1] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
    return b"\r\n".join([*lines, b"Sec-WebSocket-Accept: " + accept, b"", b""])


async def until(condition) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def until_closed(websocket) -> None:
    await websocket.wait_closed()


def frame(payload: bytes, first: int = 0x82) -> bytes:
    if len(payload) < 126:
        return bytes([first, len(payload)]) + payload
    if len(payload) < 65_536:
        return bytes([first, 126]) + struct.pack(">H", len(payload)) + payload
    return bytes([first, 127]) + struct.pack(">Q", len(payload)) + payload


class Received(list):
    """Messages one by one, all from connection 3, and how many came together each time."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def __call__(self, payload, connection, count):
        assert connection == 3
        self.counts.append(count)
        self.extend(one_by_one(payload, count))


def feed_connection(
    on_messages=lambda payload, connection, count: None, subscriptions=(), packets_due=lambda segments: False, **policy
):
    return FeedConnection(WIRE, 3, dict(subscriptions), on_messages, FeedPolicy(**policy), packets_due)


async def receive(connection: FeedConnection, url: str) -> None:
    async with asyncio.timeout(10):
        await connection.open(CREDENTIALS, url)
        await connection.receive()


LITERAL_FRAMES = [
    (bytes.fromhex("82 10") + TICKER, [TICKER]),
    (bytes.fromhex("82 7e 00a2") + bytes(162), [bytes(162)]),
    (bytes.fromhex("82 7f 0000000000011170") + bytes(70_000), [bytes(70_000)]),
    (bytes.fromhex("82 00"), [b""]),
    (bytes.fromhex("81 05") + b"hello", ["hello"]),
    (bytes.fromhex("81 03 e282ac"), ["€"]),
    (bytes.fromhex("81 01 ff"), ["\udcff"]),
    (bytes.fromhex("02 01 61 80 01 62"), [b"ab"]),
    (bytes.fromhex("01 01 61 00 01 62 80 01 63"), ["abc"]),
    (bytes.fromhex("02 01 61 89 00 80 01 62 82 01 63"), [b"ab", b"c"]),
    (bytes.fromhex("8a 00 82 01 61"), [b"a"]),
]


@pytest.mark.parametrize(("data", "messages"), LITERAL_FRAMES)
async def test_frames_become_messages(data, messages):
    async def behave(websocket):
        websocket.transport.write(data)
        await websocket.close()

    received = Received()
    async with server(behave) as url:
        with pytest.raises(FeedError):
            await receive(feed_connection(received), url)
    assert received == messages


def alike(head: bytes, size: int, count: int) -> tuple[bytes, list[bytes]]:
    """Frames with the same header, and their messages: all the same but for the last byte."""
    messages = [(b"\x02" * (size - 1) + bytes([number]))[:size] for number in range(count)]
    return b"".join(head + message for message in messages), messages


@asynccontextmanager
async def open_socket(received):
    """An open connection, to be given what arrives at it."""
    async with server(until_closed) as url:
        connection = feed_connection(received)
        await connection.open(CREDENTIALS, url)
        yield connection._socket
        connection._socket.transport.abort()


HEADS = [
    (bytes.fromhex("82 00"), 0),
    (bytes.fromhex("82 10"), 16),
    (bytes.fromhex("82 7d"), 125),
    (bytes.fromhex("82 7e 00a2"), 162),
    (bytes.fromhex("82 7f 0000000000011170"), 70_000),
]


@pytest.mark.parametrize(("head", "size"), HEADS)
async def test_frames_of_equal_size_in_one_read_arrive_as_one_payload_with_their_number(head, size):
    stream, messages = alike(head, size, 9)
    received = Received()
    async with open_socket(received) as socket:
        socket.data_received(stream)
    assert received == messages
    assert received.counts == [9]


@pytest.mark.parametrize(("head", "size"), HEADS)
async def test_a_frame_that_is_not_whole_yet_does_not_hold_up_those_before_it(head, size):
    stream, messages = alike(head, size, 10)
    for cut in {1, len(head) - 1, len(head), len(head) + size // 2, len(head) + size - 1}:
        received = Received()
        async with open_socket(received) as socket:
            before = 9 * (len(head) + size) + cut
            socket.data_received(stream[:before])
            assert received == messages[: 10 if before >= len(stream) else 9]
            socket.data_received(stream[before:])
        assert received == messages


async def test_a_few_frames_of_equal_size_arrive_one_by_one():
    stream, messages = alike(bytes.fromhex("82 10"), 16, 7)
    received = Received()
    async with open_socket(received) as socket:
        socket.data_received(stream)
    assert received == messages
    assert received.counts == [1] * 7


@pytest.mark.parametrize(
    "between",
    [
        (bytes.fromhex("82 05") + b"other", [b"other"]),
        (bytes.fromhex("82 7e 0010") + TICKER, [TICKER]),  # the same size, but another header
        (bytes.fromhex("81 10") + b"as long as these", ["as long as these"]),
        (bytes.fromhex("89 10") + b"as long as these", []),
        (bytes.fromhex("02 10") + b"as long as these" + bytes.fromhex("80 00"), [b"as long as these"]),
        (bytes.fromhex("82 0a") + struct.pack("<BHBIH", 50, 10, 0, 0, 800), [struct.pack("<BHBIH", 50, 10, 0, 0, 800)]),
    ],
    ids=["another size", "a longer header", "a text", "a ping", "fragments", "a disconnect packet"],
)
async def test_what_comes_between_frames_of_equal_size_stays_between_them(between):
    frames, messages = alike(bytes.fromhex("82 10"), 16, 9)
    received = Received()
    async with open_socket(received) as socket:
        socket.data_received(frames + between[0] + frames)
    assert received == [*messages, *between[1], *messages]
    assert received.counts == [9, *[1] * len(between[1]), 9]


async def test_every_disconnect_packet_is_handed_over_and_the_last_one_says_why():
    stream = bytes.fromhex("82 0a 32 0a00 00 00000000 2003") * 9 + bytes.fromhex("82 0a 32 0a00 00 00000000 2103")
    messages = [bytes.fromhex("32 0a00 00 00000000 2003")] * 9 + [bytes.fromhex("32 0a00 00 00000000 2103")]
    received = Received()
    async with open_socket(received) as socket:
        socket.data_received(stream)
        error = socket.end()
    assert received == messages
    assert isinstance(error, FeedRefusedError)
    assert error.code == 801


RUNS = [
    alike(bytes.fromhex("82 10"), 16, 9),
    alike(bytes.fromhex("82 05"), 5, 8),
    (bytes.fromhex("82 03") + b"odd", [b"odd"]),
    alike(bytes.fromhex("82 05"), 5, 17),
    (bytes.fromhex("81 05") + b"hello", ["hello"]),
    alike(bytes.fromhex("82 05"), 5, 8),
    (bytes.fromhex("89 05") + b"still", []),
    alike(bytes.fromhex("82 05"), 5, 7),
    (bytes.fromhex("02 01 61 80 01 62"), [b"ab"]),
    alike(bytes.fromhex("82 7e 0005"), 5, 10),
    alike(bytes.fromhex("82 7e 0080"), 128, 8),
    alike(bytes.fromhex("82 7f 0000000000000005"), 5, 9),
    alike(bytes.fromhex("82 00"), 0, 20),
    alike(bytes.fromhex("82 0a"), 10, 9),
    (
        bytes.fromhex("82 0a 32 0a00 00 00000000 2003") * 9,
        [bytes.fromhex("32 0a00 00 00000000 2003")] * 9,
    ),
    alike(bytes.fromhex("82 10"), 16, 8),
]


@pytest.mark.parametrize("frames", [[frame for frame in LITERAL_FRAMES if len(frame[0]) < 1000], RUNS])
async def test_frames_become_the_same_messages_however_the_stream_is_cut(frames):
    stream = b"".join(data for data, _ in frames)
    messages = [message for _, expected in frames for message in expected]
    received = Received()
    async with open_socket(received) as socket:
        for cut in range(1, len(stream)):
            socket.data_received(stream[:cut])
            socket.data_received(stream[cut:])
            assert received == messages
            received.clear()
        for size in (1, 2, 3, 7, 18, 64, 200, len(stream)):
            for start in range(0, len(stream), size):
                socket.data_received(stream[start : start + size])
            assert received == messages
            received.clear()


async def test_a_close_among_frames_of_equal_size_changes_no_message_wherever_the_stream_is_cut():
    frames, messages = alike(bytes.fromhex("82 03"), 3, 8)
    stream = frames + bytes.fromhex("88 02 03e9") + frames
    for cut in range(1, len(stream)):
        received = Received()
        async with open_socket(received) as socket:
            socket.data_received(stream[:cut])
            socket.data_received(stream[cut:])
            assert str(socket.end()) == "the server closed the connection (1001)"
        assert received == messages * 2


async def test_large_frames_of_equal_size_become_the_same_messages_wherever_a_header_is_cut():
    stream, messages = alike(bytes.fromhex("82 7f 0000000000010000"), 65_536, 9)
    for start in (0, 65_546, 8 * 65_546):
        for cut in range(start, start + 12):
            received = Received()
            async with open_socket(received) as socket:
                socket.data_received(stream[:cut])
                socket.data_received(stream[cut:])
            assert received == messages


async def test_what_the_consumer_raises_over_several_messages_ends_the_connection_with_that():
    def refuse(payload, connection, count):
        if count > 1:
            raise ZeroDivisionError

    async def behave(websocket):
        websocket.transport.write(frame(TICKER) * 100)
        await websocket.wait_closed()

    async with server(behave) as url:
        with pytest.raises(ZeroDivisionError):
            await receive(feed_connection(refuse), url)


async def test_frames_that_arrive_together_with_the_handshake_are_received():
    async def behave(reader, writer):
        writer.write(await answer_handshake(reader) + frame(TICKER) + frame(bytes(200))[:50])
        writer.write(frame(bytes(200))[50:] + frame(struct.pack(">H", 1001), 0x88))
        await reader.read()  # hanging up, which is the server's part, is left to the client

    received = Received()
    async with raw_server(behave) as url:
        with pytest.raises(FeedError, match=r"the server closed the connection \(1001\)"):
            await receive(feed_connection(received, close_timeout_s=0.05), url)
    assert received == [TICKER, bytes(200)]


async def test_an_answer_to_the_handshake_may_come_in_pieces():
    async def behave(reader, writer):
        for octet in await answer_handshake(reader) + frame(TICKER):
            writer.write(bytes([octet]))
            await writer.drain()
            await asyncio.sleep(0)

    received = Received()
    async with raw_server(behave) as url:
        with pytest.raises(FeedError, match="without a word"):
            await receive(feed_connection(received), url)
    assert received == [TICKER]


async def test_pings_are_answered():
    async def behave(websocket):
        await (await websocket.ping(b"are you there"))
        websocket.transport.write(frame(b"answered"))
        await websocket.close()

    received = Received()
    async with server(behave) as url:
        with pytest.raises(FeedError):
            await receive(feed_connection(received), url)
    assert received == [b"answered"]


@pytest.mark.parametrize(
    ("data", "close_code"),
    [
        (bytes.fromhex("82 7f 0000000000080001"), 1009),  # one byte more than 512 KiB
        (bytes.fromhex("02 7f 0000000000080000") + bytes(524_288) + bytes.fromhex("80 01 00"), 1009),
        (bytes.fromhex("82 81 00000000 61"), 1002),  # masked
        (bytes.fromhex("83 00"), 1002),  # no such opcode
    ],
)
async def test_frames_that_must_not_be_end_the_connection(data, close_code):
    codes = []

    async def behave(websocket):
        websocket.transport.write(data)
        await websocket.wait_closed()
        codes.append(websocket.close_code)

    received = Received()
    async with server(behave) as url:
        with pytest.raises(FeedError):
            await receive(feed_connection(received), url)
    assert codes == [close_code]
    assert received == []


async def test_all_instruments_are_subscribed_when_the_connection_opens():
    requests = []

    async def behave(websocket):
        requests.extend([await websocket.recv(), await websocket.recv()])

    async with server(behave) as url:
        with pytest.raises(FeedError):
            await receive(feed_connection(subscriptions={RELIANCE: Mode.FULL, NIFTY: Mode.QUOTE}), url)
    assert [(r["RequestCode"], r["InstrumentCount"]) for r in map(json.loads, requests)] == [(17, 1), (21, 1)]


async def test_instruments_come_and_go_while_connected():
    requests = []

    async def behave(websocket):
        async for message in websocket:
            request = json.loads(message)
            requests.append((request["RequestCode"], [i["SecurityId"] for i in request.get("InstrumentList", [])]))

    connection = feed_connection(subscriptions={NIFTY: Mode.QUOTE})
    async with server(behave) as url:
        task = asyncio.create_task(receive(connection, url))
        await until(lambda: requests)
        connection.subscriptions[RELIANCE] = Mode.FULL
        await connection.tell()
        del connection.subscriptions[NIFTY]
        await connection.tell()
        await connection.tell()
        await until(lambda: len(requests) == 3)
        task.cancel()
        await asyncio.wait([task])
    assert requests == [(17, ["13"]), (21, ["2885"]), (18, ["13"]), (12, [])]
    assert connection.subscriptions == {RELIANCE: Mode.FULL}


@pytest.mark.parametrize("ours", [True, False])
async def test_a_disconnect_packet_is_handed_over_and_says_why_the_connection_ended(ours):
    packet = struct.pack("<BHBIH", 50, 10, 0, 0, 806 if ours else 800)

    async def behave(websocket):
        await websocket.send(packet)
        if ours:  # this server would leave it open
            await websocket.wait_closed()

    received = Received()
    async with server(behave) as url:
        with pytest.raises(FeedRefusedError) as caught:
            await receive(feed_connection(received), url)
    assert received == [packet]
    assert caught.value.code == (806 if ours else 800)
    assert type(caught.value) is (DataPlanError if ours else FeedRefusedError)


@pytest.mark.parametrize(
    "data",
    [
        frame(TICKER + struct.pack("<BHBIH", 50, 10, 0, 0, 805)),
        frame(TICKER) + frame(struct.pack("<BHBIHH", 50, 12, 0, 0, 805, 0)),
        frame(struct.pack("<BHBI", 50, 10, 0, 0), 0x02) + frame(struct.pack("<H", 805), 0x80),
    ],
    ids=["behind another packet", "longer than it was", "in fragments"],
)
async def test_a_disconnect_packet_of_another_shape_says_why_the_server_closed_the_connection(data):
    async def behave(websocket):
        websocket.transport.write(data)
        await websocket.close()

    async with server(behave) as url:
        with pytest.raises(RateLimitedError) as caught:
            await receive(feed_connection(), url)
    assert caught.value.code == 805


async def test_an_abrupt_reset_is_an_error_that_says_so():
    async def behave(websocket):
        socket = websocket.transport.get_extra_info("socket")
        socket.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER of 0: close with RST
        websocket.transport.abort()

    async with server(behave) as url:
        with pytest.raises(FeedError, match="the connection was lost"):
            await receive(feed_connection(), url)


async def test_what_the_consumer_raises_ends_the_connection_with_that():
    def refuse(payload, connection, count):
        raise ZeroDivisionError

    async def behave(websocket):
        await websocket.send(TICKER)
        await websocket.wait_closed()

    async with server(behave) as url:
        with pytest.raises(ZeroDivisionError):
            await receive(feed_connection(refuse), url)


async def test_a_connection_through_which_nothing_comes_is_given_up():
    async with server(until_closed) as url:
        with pytest.raises(SilentFeedError, match="nothing came for"):
            await receive(feed_connection(silence_s=0.05), url)


async def keep_pinging(websocket, pings: list[int]) -> None:
    try:
        while True:
            await (await websocket.ping())
            pings.append(1)
            await asyncio.sleep(0.01)
    except ConnectionClosed:
        pass


async def test_pings_are_a_sign_of_life_when_no_messages_are_due():
    pings: list[int] = []
    async with server(lambda websocket: keep_pinging(websocket, pings)) as url:
        task = asyncio.create_task(receive(feed_connection(silence_s=0.2), url))
        await until(lambda: len(pings) > 40)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])


async def test_pings_are_no_sign_of_life_in_session():
    pings: list[int] = []
    async with server(lambda websocket: keep_pinging(websocket, pings)) as url:
        with pytest.raises(SilentFeedError):
            await receive(feed_connection(packets_due=lambda segments: True, silence_s=0.2), url)
    assert pings


async def test_leaving_takes_no_longer_than_its_limit_from_a_server_that_never_reads():
    async def behave(reader, writer):
        writer.write(await answer_handshake(reader))
        while True:
            writer.write(frame(TICKER) * 1000)
            await writer.drain()

    received = Received()
    async with raw_server(behave) as url:
        connection = feed_connection(received, close_timeout_s=0.2)
        task = asyncio.create_task(receive(connection, url))
        await until(lambda: received and connection.up)
        task.cancel()
        started = asyncio.get_running_loop().time()
        await asyncio.wait([task])
        assert asyncio.get_running_loop().time() - started < 10
        assert not connection.up


async def test_a_connection_that_is_dropped_during_its_handshake_ends_with_it():
    asked, answer = asyncio.Event(), asyncio.Event()

    async def behave(reader, writer):
        head = await answer_handshake(reader)
        asked.set()
        await answer.wait()
        writer.write(head)
        await reader.read()

    async with raw_server(behave) as url:
        connection = feed_connection()
        task = asyncio.create_task(receive(connection, url))
        await asked.wait()
        connection.drop(RestingError())
        answer.set()
        with pytest.raises(RestingError):
            await task


async def test_the_handshake_carries_the_credentials_in_the_url():
    paths = []

    async def behave(websocket):
        paths.append(websocket.request.path)

    async with server(behave) as url:
        with pytest.raises(FeedError):
            await receive(feed_connection(), url)
    assert paths == ["/?version=2&token=a-token&clientId=1000000001&authType=2"]


async def test_a_server_that_does_not_answer_is_given_up():
    async def behave(reader, writer):
        await reader.read()

    async with raw_server(behave) as url:
        with pytest.raises(FeedError, match="did not answer the handshake in time"):
            await receive(feed_connection(open_timeout_s=0.05), url)


@pytest.mark.parametrize("failures", [1, 2, 3, 7, 1000])
def test_waits_double_from_failure_to_failure_and_are_partly_random(failures):
    policy = FeedPolicy(first_delay_s=1, longest_delay_s=60)
    longest = min(60, 2 ** (failures - 1))
    waits = {policy.delay_s(failures) for _ in range(100)}
    assert all(longest / 2 <= wait <= longest for wait in waits)
    assert len(waits) > 1


@pytest.mark.parametrize(("times", "shortest"), [(1, 60), (2, 120), (3, 240), (4, 300), (1000, 300)])
def test_rests_last_a_minute_at_least_and_five_in_the_end(times, shortest):
    assert all(shortest <= FeedPolicy().rest(times) <= shortest * 1.25 for _ in range(100))
