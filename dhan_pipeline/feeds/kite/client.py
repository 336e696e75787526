"""The client of Kite's live feed.

It keeps its connections for as long as it runs. https://kite.trade/docs/connect/v3/websocket/
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from dhan_pipeline.feeds import client
from dhan_pipeline.feeds.connection import OnMessages, Wire
from dhan_pipeline.feeds.errors import CredentialsError
from dhan_pipeline.feeds.kite.auth import Credentials, get_kite_credentials, get_kite_websocket_url
from dhan_pipeline.feeds.kite.errors import refused
from dhan_pipeline.feeds.kite.requests import (
    MAX_CONNECTIONS,
    MAX_INSTRUMENTS_PER_CONNECTION,
    subscribe_messages,
    unsubscribe_messages,
)
from dhan_pipeline.feeds.kite.wire import HEARTBEAT_SIZE
from dhan_pipeline.settings import Settings
from dhan_pipeline.ticks import Mode

log = logging.getLogger(__name__)

#: For so long after an error that the feed said in words, no other is passed on; all of them are in the journal.
ERROR_PAUSE_S = 60.0

#: Letters of an error that are passed on.
_LONGEST_ERROR = 200

WIRE = Wire(
    url=lambda base_url, credentials: get_kite_websocket_url(credentials, base_url),
    subscribe=subscribe_messages,
    unsubscribe=unsubscribe_messages,
    refused=refused,
    ending=lambda message: None,
    begins=lambda message: isinstance(message, bytes) and len(message) > HEARTBEAT_SIZE,
    # The first message after a subscription holds everything: 558 kB for a connection's 3000 instruments in full.
    max_message_bytes=12 << 20,
    heartbeat_size=HEARTBEAT_SIZE,
    headers={"X-Kite-Version": "3"},
)


class Feed(client.Feed):
    """Kite's feed."""

    broker = "Kite"
    wire = WIRE
    max_connections = MAX_CONNECTIONS
    max_instruments = MAX_INSTRUMENTS_PER_CONNECTION

    _quiet_until = 0.0

    def __init__(
        self,
        settings: Settings,
        subscriptions: Mapping[int, Mode],
        on_messages: OnMessages,
        warn: Callable[[str], None] = log.warning,
        **callbacks: Any,
    ) -> None:
        """As `feeds.client.Feed`. Errors that the feed says in words go to `on_messages`, as everything, and to `warn`.

        Raises SubscriptionLimitError if Kite's connections cannot hold the subscriptions.
        """

        def take(payload: bytes | str, connection: int, count: int) -> None:
            on_messages(payload, connection, count)
            if isinstance(payload, str):
                self._hear(payload, connection)

        super().__init__(settings, subscriptions, take, warn, **callbacks)

    @property
    def _base_url(self) -> str:
        return self._settings.kite_feed_url

    def _get_credentials(self) -> Credentials:
        return get_kite_credentials(self._settings)

    def _hear(self, text: str, connection: int) -> None:
        """Pass on an error, but not each of many: that instruments are too many may be said of every one of them."""
        now = asyncio.get_running_loop().time()
        if now < self._quiet_until or (said := error_text(text)) is None:
            return
        self._quiet_until = now + ERROR_PAUSE_S
        with contextlib.suppress(CredentialsError):
            said = said.replace(self._get_credentials().access_token.get_secret_value(), "***")
        self._warn(f"Kite says on connection {connection}: {said[:_LONGEST_ERROR].rstrip('.')}.")


def error_text(text: str) -> str | None:
    """What a text message says went wrong; None where it says something else (an order, news)."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("type") != "error" or not isinstance(said.get("data"), str):
        return None
    return " ".join("".join(letter if letter.isprintable() else " " for letter in said["data"]).split()) or None
