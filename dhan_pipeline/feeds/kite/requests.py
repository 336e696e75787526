"""The JSON messages that a client sends. No I/O.

https://kite.trade/docs/connect/v3/websocket/#request-structure The server acknowledges none of them. In which mode an
instrument is after a subscription alone is not documented, so a mode always follows.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dhan_pipeline.instruments import split_kite_token
from dhan_pipeline.ticks import Mode

#: Limits of the live feed, of an app's user.
MAX_INSTRUMENTS_PER_CONNECTION = 3000
MAX_CONNECTIONS = 3

#: None is documented; other clients stay below this one.
MAX_INSTRUMENTS_PER_MESSAGE = 200

#: What Kite calls the modes.
MODES = {Mode.TICKER: "ltp", Mode.QUOTE: "quote", Mode.FULL: "full"}


def subscribe_messages(subscriptions: Mapping[int, Mode]) -> list[str]:
    """Messages that subscribe each instrument token and set its mode. Raises ValueError for a token not Kite's."""
    return [
        message
        for mode, name in MODES.items()
        for part in _parts(token for token, wanted in subscriptions.items() if wanted == mode)
        for message in (_message("subscribe", part), _message("mode", [name, part]))
    ]


def unsubscribe_messages(instrument_tokens: Iterable[int]) -> list[str]:
    """Messages that end these subscriptions, whatever their mode. Raises ValueError for a token that is not Kite's."""
    return [_message("unsubscribe", part) for part in _parts(instrument_tokens)]


def _parts(instrument_tokens: Iterable[int]) -> Iterator[list[int]]:
    tokens = list(instrument_tokens)
    for token in tokens:
        split_kite_token(token)
    for start in range(0, len(tokens), MAX_INSTRUMENTS_PER_MESSAGE):
        yield tokens[start : start + MAX_INSTRUMENTS_PER_MESSAGE]


def _message(action: str, value: Sequence[object]) -> str:
    return json.dumps({"a": action, "v": value}, separators=(",", ":"))
