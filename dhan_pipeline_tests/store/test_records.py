"""Rows of a query as columns, from a real server."""

import numpy as np
import pytest
from psycopg2.extensions import connection

from dhan_pipeline.store.records import RecordKind, each_records, read_records
from dhan_pipeline.ticks import NULL_INT

COLUMNS: dict[str, RecordKind] = {
    "flag": "bool",
    "small": "int2",
    "number": "int4",
    "big": "int8",
    "price": "float8",
    "at": "timestamptz",
    "packed": 3,
}
QUERY = """
SELECT i %% 2 = 0, i::int2, i, (1::int8 << 40) + i, i / 8.0::float8,
       CASE WHEN i = 2 THEN '-infinity' ELSE '1970-01-01 00:00:01.000001+00'::timestamptz END,
       '\\x0a0b0c'::bytea
FROM generate_series(1, %s) AS numbers (i) ORDER BY numbers.i
"""


def test_each_column_comes_with_its_type(conn: connection) -> None:
    rows = read_records(conn, QUERY, [3], COLUMNS)
    assert rows["flag"].tolist() == [False, True, False]
    assert rows["small"].tolist() == rows["number"].tolist() == [1, 2, 3]
    assert rows["big"].tolist() == [2**40 + 1, 2**40 + 2, 2**40 + 3]
    assert rows["price"].tolist() == [0.125, 0.25, 0.375]
    assert rows["at"].tolist() == [1_000_001, NULL_INT, 1_000_001]
    assert rows["packed"].tolist() == [[10, 11, 12]] * 3
    assert [rows[name].dtype for name in ("flag", "small", "number", "big", "price", "at", "packed")] == [
        np.dtype(kind) for kind in ("?", "i2", "i4", "i8", "f8", "i8", "u1")
    ]


def test_without_rows_the_columns_are_empty(conn: connection) -> None:
    rows = read_records(conn, QUERY, [0], COLUMNS)
    assert {name: values.shape for name, values in rows.items()} == dict.fromkeys(COLUMNS, (0,)) | {"packed": (0, 3)}


@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 25])
def test_many_rows_come_in_parts_and_in_order(conn: connection, count: int) -> None:
    parts: list[list[int]] = []
    each_records(conn, QUERY, [count], COLUMNS, lambda rows: parts.append(rows["number"].tolist()), rows_at_once=10)
    assert [number for part in parts for number in part] == list(range(1, count + 1))
    assert all(len(part) <= 10 for part in parts)


def test_parameters_may_have_names(conn: connection) -> None:
    assert read_records(conn, "SELECT %(n)s::int8", {"n": 7}, {"n": "int8"})["n"].tolist() == [7]


@pytest.mark.parametrize(
    "query", ["SELECT NULL::int8", "SELECT 1::int8 UNION ALL SELECT NULL", "SELECT 1::int4", "SELECT 1::int8, 2::int8"]
)
def test_what_does_not_fit_is_refused(conn: connection, query: str) -> None:
    with pytest.raises(ValueError, match=r"NULL|other columns"):
        read_records(conn, query, [], {"n": "int8"})
