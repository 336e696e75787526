"""The JSON messages that a client sends. No I/O.

https://dhanhq.co/docs/v2/live-market-feed/ The server acknowledges none of them, and says nothing about an instrument
that does not exist. Instruments are given by their tokens (see `instruments.generate_instrument_token`).
"""

import json
from collections.abc import Iterable, Mapping

from dhan_pipeline.feeds.dhan.wire import RequestCode
from dhan_pipeline.instruments import split_instrument_token
from dhan_pipeline.ticks import Mode

#: Limits of the live feed, of an account.
MAX_INSTRUMENTS_PER_MESSAGE = 100
MAX_INSTRUMENTS_PER_CONNECTION = 5000
MAX_CONNECTIONS = 5

SUBSCRIBE = {
    Mode.TICKER: RequestCode.SUBSCRIBE_TICKER,
    Mode.QUOTE: RequestCode.SUBSCRIBE_QUOTE,
    Mode.FULL: RequestCode.SUBSCRIBE_FULL,
}
UNSUBSCRIBE = {
    Mode.TICKER: RequestCode.UNSUBSCRIBE_TICKER,
    Mode.QUOTE: RequestCode.UNSUBSCRIBE_QUOTE,
    Mode.FULL: RequestCode.UNSUBSCRIBE_FULL,
}


def subscribe_messages(subscriptions: Mapping[int, Mode]) -> list[str]:
    """Messages that subscribe each instrument token in its mode. Raises ValueError for a token that is not Dhan's."""
    return _by_mode(SUBSCRIBE, subscriptions)


def unsubscribe_messages(subscriptions: Mapping[int, Mode]) -> list[str]:
    """Messages that end these subscriptions; the mode has to be the one that was subscribed.

    Raises ValueError for a token that is not Dhan's.
    """
    return _by_mode(UNSUBSCRIBE, subscriptions)


def request_messages(code: RequestCode, instrument_tokens: Iterable[int]) -> list[str]:
    """Messages with this request code for all the instruments, at most 100 in each.

    Raises ValueError for a token that is not Dhan's.
    """
    instruments = [
        {"ExchangeSegment": segment.name, "SecurityId": str(security_id)}
        for segment, security_id in map(split_instrument_token, instrument_tokens)
    ]
    parts = (
        instruments[start : start + MAX_INSTRUMENTS_PER_MESSAGE]
        for start in range(0, len(instruments), MAX_INSTRUMENTS_PER_MESSAGE)
    )
    return [
        json.dumps({"RequestCode": int(code), "InstrumentCount": len(part), "InstrumentList": part}) for part in parts
    ]


def disconnect_message() -> str:
    """The message that ends the session."""
    return json.dumps({"RequestCode": int(RequestCode.DISCONNECT)})


def _by_mode(codes: Mapping[Mode, RequestCode], subscriptions: Mapping[int, Mode]) -> list[str]:
    return [
        message
        for mode, code in codes.items()
        for message in request_messages(code, (token for token, wanted in subscriptions.items() if wanted == mode))
    ]
