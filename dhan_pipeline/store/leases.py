"""Which worker has which lane: advisory locks of the session through which the worker also stores what came of it.

So a lease is its own fence. Who has lost the session has lost the lanes with it, and can commit nothing more.
"""

from psycopg2.extensions import connection

#: First numbers of the advisory locks, beside those of `partitions`. The second is the lane.
_WORKER_LOCK, _LANE_LOCK = 0x6468_0006, 0x6468_0007

#: A process that is stopped, or whose machine has vanished, may keep the others from its lanes for half a minute.
#: A worker asks the database for something every second. One that is killed while the server works for it, or waits for
#: a lock, is missed after two.
_LONGEST_SILENCE = """
SET idle_session_timeout = '30s';
SET idle_in_transaction_session_timeout = '30s';
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 4;
SET tcp_user_timeout = '30s';
SET client_connection_check_interval = '2s'
"""


def join(conn: connection) -> None:
    """Count as a worker of this database for as long as the connection lives, and commit."""
    with conn, conn.cursor() as cursor:
        cursor.execute(_LONGEST_SILENCE)
        cursor.execute("SELECT pg_advisory_lock_shared(%s, 0)", (_WORKER_LOCK,))


def workers(conn: connection) -> int:
    """How many workers of this database live, this one included if it has joined. Commits."""
    with conn, conn.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s AND objid = 0 "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (_WORKER_LOCK,),
        )
        found: int = cursor.fetchall()[0][0]
    return found


def take_lane(conn: connection, lane: int) -> bool:
    """Take a lane that is free, until `leave_lane` or the connection's end, and commit. False if another has it."""
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (_LANE_LOCK, lane))
        return bool(cursor.fetchall()[0][0])


def leave_lane(conn: connection, lane: int) -> None:
    """Let others have a lane that was taken, and commit."""
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock(%s, %s)", (_LANE_LOCK, lane))
