from psycopg2.extensions import connection

from dhan_pipeline.store.columns import TableColumn, table_columns

CATALOGUE = """
SELECT attname, replace(format_type(atttypid, atttypmod), 'timestamp with time zone', 'timestamptz'), NOT attnotnull,
       col_description(attrelid, attnum)
FROM pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
ORDER BY attnum
"""


def test_the_columns_of_tables_are_those_of_the_database(conn: connection) -> None:
    for table in ("instruments", "candles_1m", "broker_candles", "candle_differences", "shadow_comparisons"):
        described = [
            TableColumn(column.name, column.kind.replace(", ", ","), column.nullable, column.meaning)
            for column in table_columns(table)
        ]
        with conn.cursor() as cursor:
            cursor.execute(CATALOGUE, (table,))
            assert described == [TableColumn(*row) for row in cursor.fetchall()]
