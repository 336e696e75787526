"""Chunks of a hypertable, compressed at will."""

from psycopg2 import errors
from psycopg2.extensions import connection


def compress(conn: connection) -> None:
    """Compress every chunk, as the policy does, which may be faster. Leaves the connection without a transaction."""
    with conn, conn.cursor() as cursor:
        cursor.execute("SELECT chunk::text FROM show_chunks('tick_rows') AS chunk")
        chunks = cursor.fetchall()
    assert chunks
    for chunk in chunks:
        try:
            with conn, conn.cursor() as cursor:
                cursor.execute("SELECT compress_chunk(%s::regclass)", chunk)
        except errors.DuplicateObject:
            pass
