"""Statements that the server reads and plans once a connection, and not each time.

At 2,000 ticks/s, which come in a hundred small blocks, reading and planning was a third of all that the server did.
"""

from weakref import WeakKeyDictionary

from psycopg2.extensions import connection, cursor

#: The names that each connection's server knows. What was prepared outlives a transaction that is rolled back.
_known: WeakKeyDictionary[connection, set[str]] = WeakKeyDictionary()


def prepare(cur: cursor, name: str, types: str, statement: str) -> None:
    """From now on `EXECUTE name (…)` is the statement, which has its parameters, of these types, as `$1`, `$2`, …"""
    known = _known.setdefault(cur.connection, set())
    if name not in known:
        cur.execute(f"PREPARE {name} ({types}) AS {statement}")
        known.add(name)
