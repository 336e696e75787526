"""Connections that only read, for who asks again and again: kept, shared by threads, and made anew when one is lost."""

from collections import deque
from collections.abc import Callable
from typing import TypeVar

import psycopg2
from psycopg2.extensions import connection

from dhan_pipeline.store.engine import connect, limit_statements

T = TypeVar("T")

#: Connections that are kept while nobody uses them.
_KEPT = 2

#: What takes longer is given up: the asking comes again in a second.
_LONGEST_S = 5


class Reader:
    """Asks a database. It can change nothing there."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: deque[connection] = deque()

    def read(self, ask: Callable[[connection], T]) -> T:
        """What `ask` finds on a connection of which each statement is a transaction. Raises psycopg2.Error."""
        try:
            conn = self._idle.pop()
        except IndexError:
            return self._ask(self._connect(), ask)
        try:
            return self._ask(conn, ask)
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            if not conn.closed:
                raise
        # The server was started again since: so all that were kept are lost.
        self.close()
        return self._ask(self._connect(), ask)

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop().close()

    def _ask(self, conn: connection, ask: Callable[[connection], T]) -> T:
        try:
            return ask(conn)
        finally:
            if not conn.closed and len(self._idle) < _KEPT:
                self._idle.append(conn)
            else:
                conn.close()

    def _connect(self) -> connection:
        conn = connect(self._url)
        conn.set_session(readonly=True, autocommit=True)
        limit_statements(conn, _LONGEST_S)
        return conn
