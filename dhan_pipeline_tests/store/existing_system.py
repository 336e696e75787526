"""A database of the existing system: its tables as they are there, with rows of Kite's. TimescaleDB runs it, too."""

from typing import Any

from psycopg2.extensions import connection

from dhan_pipeline.sources import Source

TABLES = """
CREATE TABLE instruments (
    instrument_token integer PRIMARY KEY,
    exchange_token   integer,
    trading_symbol   text NOT NULL,
    name             text,
    exchange         text NOT NULL,
    segment          text,
    instrument_type  text,
    expiry           date,
    strike           numeric(12, 2),
    tick_size        numeric(10, 4),
    lot_size         integer,
    last_updated     timestamptz DEFAULT now()
);
CREATE TABLE ticks (
    "time"               timestamptz NOT NULL,
    last_trade_time      timestamptz,
    instrument_token     integer NOT NULL,
    last_price           numeric(12, 2),
    last_traded_quantity integer,
    average_traded_price numeric(12, 2),
    volume_traded        bigint,
    oi                   bigint,
    oi_day_high          bigint,
    oi_day_low           bigint,
    day_open             numeric(12, 2),
    day_high             numeric(12, 2),
    day_low              numeric(12, 2),
    day_close            numeric(12, 2),
    change               numeric(12, 2),
    change_percent       numeric(10, 4),
    total_buy_quantity   bigint,
    total_sell_quantity  bigint,
    bid_prices           numeric(12, 2)[],
    bid_quantities       integer[],
    bid_orders           integer[],
    ask_prices           numeric(12, 2)[],
    ask_quantities       integer[],
    ask_orders           integer[],
    tradable             boolean DEFAULT true,
    mode                 text,
    bid_ask_spread       numeric(12, 2),
    mid_price            numeric(12, 2),
    order_imbalance      numeric(10, 4),
    volume_delta         bigint,
    oi_delta             bigint,
    PRIMARY KEY ("time", instrument_token)
);
"""

#: The row of 260105 is wrong there: it is the index NIFTY BANK.
INSTRUMENTS = """
INSERT INTO instruments VALUES
    (256265, 1001, 'NIFTY 50', 'NIFTY 50', 'NSE', 'INDICES', 'EQ', NULL, 0, 0, 0, '2026-11-18 08:30+05:30'),
    (260105, 1016, 'NIFTY26NOVFUT', 'NIFTY', 'NFO', 'NFO-FUT', 'FUT', '2026-11-24', 0, 0.05, 75, '2026-11-18 08:30Z'),
    (738561, 2885, 'RELIANCE', 'RELIANCE INDUSTRIES', 'NSE', 'NSE', 'EQ', NULL, 0, 0.1, 1, '2026-11-18 08:30+05:30'),
    (341249, 1333, 'HDFCBANK', 'HDFC BANK', 'NSE', 'NSE', 'EQ', NULL, 0, 0.05, 1, '2026-11-18 08:30+05:30'),
    (14626306, 57134, 'NIFTY26NOV26000CE', 'NIFTY', 'NFO', 'NFO-OPT', 'CE', '2026-11-24', 26000.00, 0.05, 75, NULL),
    (128083204, 500325, 'RELIANCE', '', 'BSE', 'BSE', 'EQ', NULL, NULL, 0.05, 1, '2026-11-18 08:30+05:30');
"""

#: 6,000 rows, one an instrument and second, of two days. Some have no depth, no trade, zeros, or nothing but a price.
TICKS = """
INSERT INTO ticks
SELECT
    "time",
    CASE WHEN n % 11 > 0 THEN "time" - interval '1 second' END,
    instrument_token,
    CASE WHEN n % 97 > 0 THEN price END,
    n % 3 * 25,
    CASE WHEN n % 5 > 0 THEN price + 0.37 END,
    CASE WHEN n % 5 > 0 THEN n * 25 END,
    CASE WHEN n % 5 > 0 THEN n % 4 * 75 END,
    CASE WHEN n % 7 = 0 THEN 3000000000 END,
    CASE WHEN n % 7 = 0 THEN 0 END,
    price - 3.35, price + 1, price - 4.05, price - 2.2,
    NULL, NULL,
    n * 10, CASE WHEN n % 5 > 0 THEN 0 END,
    CASE WHEN n % 5 > 0 THEN ARRAY[price - 0.05, price - 0.1, price - 0.15, NULL, 0]::numeric(12, 2)[] END,
    CASE WHEN n % 5 > 0 THEN ARRAY[n, 1, 2, 0, 0] END,
    CASE WHEN n % 5 > 0 THEN ARRAY[1, 2, 3, 0, NULL] END,
    CASE WHEN n % 5 > 0 THEN ARRAY[price + 0.05, price + 0.1, price + 0.15, price + 0.2, 0.29]::numeric(12, 2)[] END,
    CASE WHEN n % 5 > 0 THEN ARRAY[2147483647, 1, 2, 3, 4] END,
    CASE WHEN n % 5 > 0 THEN ARRAY[1, 2, 3, 4, 5] END,
    instrument_token & 255 <> 9,
    CASE WHEN n % 5 > 0 THEN 'full' ELSE 'quote' END,
    CASE WHEN n % 5 > 0 THEN 0.10 END, CASE WHEN n % 5 > 0 THEN price END,
    CASE WHEN n % 5 > 0 THEN 1 - n % 3 * 0.3333 END,
    CASE WHEN n % 13 > 0 THEN 25 END, CASE WHEN n % 13 > 0 THEN -75 END
FROM (
    SELECT n, instrument_token,
        '2026-11-18 09:15+05:30'::timestamptz + n % 500 * interval '1 second' + n / 500 * interval '1 day' AS "time",
        (1000 + instrument_token % 1000 + n % 37 * 0.05)::numeric(12, 2) AS price
    FROM instruments, generate_series(0, 999) AS n
) AS made;
"""

#: What people ask of it, by what for.
QUERIES = {
    "last price of each symbol": """
        SELECT DISTINCT ON (i.trading_symbol, i.exchange) i.trading_symbol, i.exchange, t.last_price, t.time
        FROM ticks t JOIN instruments i ON i.instrument_token = t.instrument_token
        ORDER BY i.trading_symbol, i.exchange, t.time DESC""",
    "bars of a minute": """
        SELECT date_trunc('minute', time) AS minute, instrument_token, min(last_price), max(last_price),
            (array_agg(last_price ORDER BY time))[1] AS open, (array_agg(last_price ORDER BY time DESC))[1] AS close,
            max(volume_traded) - min(volume_traded) AS volume
        FROM ticks GROUP BY 1, 2 ORDER BY 1, 2""",
    "rounded means": """
        SELECT instrument_token, round(avg(last_price), 2), round(max(day_high), 1), round(avg(order_imbalance), 4)
        FROM ticks GROUP BY 1 ORDER BY 1""",
    "an instrument in a time": """
        SELECT time, last_trade_time, last_price, volume_traded, oi, day_close, change, mode FROM ticks
        WHERE instrument_token = 738561 AND time >= '2026-11-19 09:15+05:30' AND time < '2026-11-19 09:20+05:30'
        ORDER BY time""",
    "rows by day": "SELECT time::date AS day, count(*), count(last_price) FROM ticks GROUP BY 1 ORDER BY 1",
    "best bids and asks": """
        SELECT time, bid_prices[1] AS bid, ask_prices[1], bid_quantities[1], ask_orders[5], bid_ask_spread, mid_price
        FROM ticks WHERE instrument_token = 14626306 AND bid_prices IS NOT NULL ORDER BY time LIMIT 50""",
    "order flow": """
        SELECT instrument_token, sum(volume_delta), sum(oi_delta), count(*) FILTER (WHERE volume_delta > 0)
        FROM ticks GROUP BY 1 ORDER BY 1""",
    "options of an underlying": """
        SELECT i.strike, i.instrument_type, avg(t.oi)::bigint FROM instruments i JOIN ticks t USING (instrument_token)
        WHERE i.name = 'NIFTY' AND i.segment = 'NFO-OPT' GROUP BY 1, 2""",
    "instruments": """
        SELECT instrument_token, exchange_token, trading_symbol, name, exchange, segment, instrument_type, expiry,
            strike, tick_size, lot_size, last_updated FROM instruments ORDER BY instrument_token""",
}

#: What its loader does each morning.
LOAD_INSTRUMENTS = """
INSERT INTO instruments (instrument_token, exchange_token, trading_symbol, name, exchange, segment, instrument_type,
    expiry, strike, tick_size, lot_size, last_updated)
VALUES
    (738561, 2885, 'RELIANCE', 'RELIANCE INDUSTRIES LTD', 'NSE', 'NSE', 'EQ', NULL, 0, 0.1, 1, '2026-11-20 08:30Z'),
    (2953217, 11536, 'TCS', 'TATA CONSULTANCY', 'NSE', 'NSE', 'EQ', NULL, 0, 0.05, 1, '2026-11-20 08:30Z')
ON CONFLICT (instrument_token) DO UPDATE SET name = excluded.name, last_updated = excluded.last_updated
"""

#: What its worker does with each tick.
INSERT_TICK = """
INSERT INTO ticks (time, instrument_token, last_price, mode) VALUES ('2026-11-20 09:15+05:30', 738561, 1500.05, 'full')
ON CONFLICT (time, instrument_token) DO NOTHING
"""


def build(conn: connection) -> None:
    """Make the tables in an empty database, with their rows, and commit."""
    with conn, conn.cursor() as cursor:
        cursor.execute(TABLES + INSTRUMENTS + TICKS)


def answers(conn: connection) -> dict[str, list[tuple[Any, ...]]]:
    """What each query says."""
    found = {}
    with conn, conn.cursor() as cursor:
        for name, query in QUERIES.items():
            cursor.execute(query)
            found[name] = cursor.fetchall()
    return found


#: Which rows of each table are a source's, once the database is upgraded.
OF_SOURCE: dict[Source, dict[str, str]] = {
    "dhan": {
        **dict.fromkeys(["tick_rows", "candles_1m", "broker_candles"], "instrument_token >= 1099511627776"),
        **dict.fromkeys(["ingest_ledger", "feed_gaps", "captures", "redrives"], "capture < 16"),
        **dict.fromkeys(["instruments", "instrument_versions"], "source = 'dhan'"),
        "rejected_packets": "block_id < 16::bigint << 42",
    },
    "kite": {
        **dict.fromkeys(["tick_rows", "candles_1m", "broker_candles"], "instrument_token < 1099511627776"),
        **dict.fromkeys(["ingest_ledger", "feed_gaps", "captures", "redrives"], "capture >= 16"),
        **dict.fromkeys(["instruments", "instrument_versions"], "source = 'kite'"),
        "rejected_packets": "block_id >= 16::bigint << 42",
        "legacy_ticks": "true",
    },
}


def everything_of(conn: connection, source: Source) -> dict[str, tuple[int, str]]:
    """How many rows a source has in each table, and a digest of their bytes."""
    found = {}
    with conn, conn.cursor() as cursor:
        for table, condition in OF_SOURCE[source].items():
            cursor.execute(
                f"SELECT count(*), md5(string_agg(t::text, E'\n' ORDER BY t::text)) FROM {table} t WHERE {condition}"
            )
            found[table] = cursor.fetchall()[0]
    return found
