"""The broker's own client, unchanged but for its address: prints what it makes of the feed, a line of JSON a message.

A process of its own, because what it stands on can run once in one. Arguments: the feed's address, and JSON with
`api_key`, `access_token` and, by mode, the tokens to subscribe.
"""

import json
import sys
from datetime import datetime
from typing import Any

from kiteconnect import KiteTicker


def _say(kind: str, content: object) -> None:
    print(json.dumps({kind: content}, default=_seconds), flush=True)


def _seconds(value: Any) -> float:
    """Its times are local ones without a zone."""
    assert isinstance(value, datetime)
    return value.timestamp()


def _subscribe(ticker: Any, modes: dict[str, list[int]]) -> None:
    for mode, tokens in modes.items():
        ticker.subscribe(tokens)
        ticker.set_mode(mode, tokens)


def main() -> None:
    """Run until SIGTERM."""
    url, arguments = sys.argv[1], json.loads(sys.argv[2])
    ticker = KiteTicker(arguments["api_key"], arguments["access_token"], root=url, reconnect=False)
    ticker.on_ticks = lambda _, ticks: _say("ticks", ticks)
    ticker.on_connect = lambda ws, _: _subscribe(ws, arguments["modes"])
    ticker.on_error = lambda _, code, reason: _say("error", [code, reason])
    ticker.on_order_update = lambda _, order: _say("order", order)
    ticker.connect()


if __name__ == "__main__":
    main()
