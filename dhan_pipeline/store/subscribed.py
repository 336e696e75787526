"""What each capture is subscribed to, and was: rows of `subscribed_instruments`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection

from dhan_pipeline.ticks import Mode


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A stretch in which a capture was subscribed to an instrument in a mode, if it ran. Times are UTC."""

    capture: int
    instrument_token: int
    mode: Mode
    since: datetime
    until: datetime | None
    """None where it is the latest: it lasts, or did when the capture last ran."""


def record(
    conn: connection, capture: int, modes: Mapping[int, Mode], at: datetime, ended_at: datetime | None = None
) -> None:
    """From `at` on the capture is subscribed to exactly these, each in its mode. Commits.

    What was subscribed before and is no more ended at `at`; or, where that was in a process before, at `ended_at`.
    """
    before = current(conn, capture)
    changes: dict[int, Mode | None] = {token: None for token in before if token not in modes}
    changes |= {token: mode for token, mode in modes.items() if before.get(token) != mode}
    change(conn, capture, changes, at, ended_at)


def change(
    conn: connection, capture: int, changes: Mapping[int, Mode | None], at: datetime, ended_at: datetime | None = None
) -> None:
    """From `at` on each of these is subscribed in its mode, or, where that is None, no more. Commits.

    Told again, it changes nothing. `ended_at` as in `record`.
    """
    new = {token: mode.value for token, mode in changes.items() if mode is not None}
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "UPDATE subscribed_instruments SET until = greatest(since, %(ended_at)s) "
            "WHERE capture = %(capture)s AND until IS NULL AND since <> %(at)s AND instrument_token = ANY(%(tokens)s)",
            {"capture": capture, "at": at, "ended_at": ended_at or at, "tokens": list(changes)},
        )
        cursor.execute(
            "INSERT INTO subscribed_instruments (capture, instrument_token, mode, since) "
            "SELECT %s, token, mode, %s FROM unnest(%s::bigint[], %s::text[]) AS new (token, mode) "
            "ON CONFLICT DO NOTHING",
            (capture, at, list(new), list(new.values())),
        )


def current(conn: connection, capture: int) -> dict[int, Mode]:
    """The mode of each instrument token that a capture is subscribed to, or was when it last ran. Commits."""
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "SELECT instrument_token, mode FROM subscribed_instruments WHERE capture = %s AND until IS NULL", (capture,)
        )
        return {token: Mode(mode) for token, mode in cursor.fetchall()}


def subscribed_during(conn: connection, start: datetime, end: datetime) -> list[Subscribed]:
    """What any capture was subscribed to at some time from `start` until before `end`, by capture, token and time.

    An instrument that was subscribed again, or in another mode, is there more than once. Leaves the transaction open.
    """
    with conn.cursor() as cursor:
        cursor.execute(
            "SELECT capture, instrument_token, mode, since, until FROM subscribed_instruments "
            "WHERE since < %s AND (until IS NULL OR until > %s) ORDER BY capture, instrument_token, since",
            (end, start),
        )
        return [
            Subscribed(capture, token, Mode(mode), since, until)
            for capture, token, mode, since, until in cursor.fetchall()
        ]


def forget(conn: connection, before: datetime) -> int:
    """Remove what ended before an instant, and say how many rows that were. Commits."""
    with conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM subscribed_instruments WHERE until < %s", (before,))
        return cursor.rowcount
