"""Clients of both exchanges without any logic, and what they say and hear."""

import json
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect

from dhan_pipeline.feeds.simulator.dhan import DhanExchange
from dhan_pipeline.feeds.simulator.kite import KiteSimulator
from dhan_pipeline.feeds.simulator.tokens import API_KEY, make_kite_access_token, make_token
from dhan_pipeline.instruments import generate_instrument_token

CLIENT = "1100000001"
NIFTY, RELIANCE, FUTURE = ("IDX_I", "13"), ("NSE_EQ", "2885"), ("NSE_FNO", "68407")
TICKER, QUOTE, FULL = 15, 17, 21


def tokens(*instruments: tuple[str, str]) -> list[int]:
    return [generate_instrument_token(segment, security_id) for segment, security_id in instruments]


def equities(count: int, start: int = 1) -> list[tuple[str, str]]:
    return [("NSE_EQ", str(number)) for number in range(start, start + count)]


@asynccontextmanager
async def client(
    simulator: DhanExchange,
    access_token: str | None = None,
    client_id: str = CLIENT,
    replace: dict[str, str | None] | None = None,
) -> AsyncIterator[ClientConnection]:
    query = {
        "version": "2",
        "token": access_token or make_token(client_id),
        "clientId": client_id,
        "authType": "2",
    }
    parameters = urlencode({name: value for name, value in (query | (replace or {})).items() if value is not None})
    async with connect(f"{simulator.feed_url}?{parameters}", compression=None, proxy=None, max_queue=None) as websocket:
        yield websocket


async def request(websocket: ClientConnection, code: int, instruments: Sequence[tuple[str, str]]) -> None:
    listed = [{"ExchangeSegment": segment, "SecurityId": security_id} for segment, security_id in instruments]
    await websocket.send(json.dumps({"RequestCode": code, "InstrumentCount": len(listed), "InstrumentList": listed}))


async def packets(websocket: ClientConnection, count: int) -> list[bytes]:
    received = [await websocket.recv() for _ in range(count)]
    assert all(isinstance(message, bytes) for message in received)
    return received  # type: ignore[return-value]


async def last_words(websocket: ClientConnection) -> int:
    """The reason code of the disconnect packet that the connection ends with."""
    *_, words = [message async for message in websocket]
    assert isinstance(words, bytes)
    assert words[:8] == bytes.fromhex("32 0a00 00 00000000")
    (reason,) = struct.unpack("<H", words[8:])
    return int(reason)


@asynccontextmanager
async def kite_client(
    simulator: KiteSimulator, access_token: str | None = None, api_key: str = API_KEY
) -> AsyncIterator[ClientConnection]:
    parameters = urlencode({"api_key": api_key, "access_token": access_token or make_kite_access_token()})
    async with connect(f"{simulator.feed_url}?{parameters}", compression=None, proxy=None, max_queue=None) as websocket:
        yield websocket


async def kite_packets(websocket: ClientConnection, count: int) -> list[bytes]:
    """So many packets, of whole messages; heartbeats are left out."""
    received: list[bytes] = []
    while len(received) < count:
        message = await websocket.recv()
        assert isinstance(message, bytes)
        if len(message) > 1:
            received += split_message(message)
    assert len(received) == count
    return received


def split_message(message: bytes) -> list[bytes]:
    """The packets of one of Kite's messages, each with its length before it, after their number."""
    (count,) = struct.unpack_from(">H", message)
    found, at = [], 2
    while at < len(message):
        (size,) = struct.unpack_from(">H", message, at)
        found.append(message[at + 2 : at + 2 + size])
        at += 2 + size
    assert (len(found), at) == (count, len(message))
    return found
