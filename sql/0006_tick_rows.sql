-- What is stored of a tick, as little as can be: the five levels of depth are packed into one column, and what follows from
-- other columns of a row is left out. The rows are in `tick_rows`; `ticks` is a view of them with the columns that it
-- always had. It costs half as much to store a tick so. Rows that `ticks` holds are moved.

-- Unsigned integers as `depth` holds them, most significant byte first, from the given byte on.
CREATE OR REPLACE FUNCTION uint16_at(bytes bytea, at integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN get_byte(bytes, at) * 256 + get_byte(bytes, at + 1);

CREATE OR REPLACE FUNCTION uint32_at(bytes bytea, at integer) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN get_byte(bytes, at)::bigint * 16777216
        + (get_byte(bytes, at + 1) * 65536 + get_byte(bytes, at + 2) * 256 + get_byte(bytes, at + 3));

-- Prices, quantities and orders in `depth`. Prices stand there as multiples of 1 over the number at its beginning.
CREATE OR REPLACE FUNCTION depth_price(depth bytea, at integer) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN nullif(uint32_at(depth, at), 0)::double precision / uint16_at(depth, 0);

CREATE OR REPLACE FUNCTION depth_prices(depth bytea, at integer) RETURNS double precision[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN depth IS NOT NULL THEN ARRAY[
        depth_price(depth, at), depth_price(depth, at + 4), depth_price(depth, at + 8),
        depth_price(depth, at + 12), depth_price(depth, at + 16)] END;

CREATE OR REPLACE FUNCTION depth_quantities(depth bytea, at integer) RETURNS bigint[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN depth IS NOT NULL THEN ARRAY[
        uint32_at(depth, at), uint32_at(depth, at + 4), uint32_at(depth, at + 8),
        uint32_at(depth, at + 12), uint32_at(depth, at + 16)] END;

CREATE OR REPLACE FUNCTION depth_orders(depth bytea, at integer) RETURNS integer[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN depth IS NOT NULL THEN ARRAY[
        uint16_at(depth, at), uint16_at(depth, at + 2), uint16_at(depth, at + 4),
        uint16_at(depth, at + 6), uint16_at(depth, at + 8)] END;

CREATE TABLE IF NOT EXISTS tick_rows (
    tick_id              bigint NOT NULL,
    "time"               timestamptz NOT NULL,
    last_trade_time      timestamptz,
    instrument_token     bigint NOT NULL,
    last_price           double precision,
    last_traded_quantity bigint,
    average_traded_price double precision,
    volume_traded        bigint,
    oi                   bigint,
    oi_day_high          bigint,
    oi_day_low           bigint,
    day_open             double precision,
    day_high             double precision,
    day_low              double precision,
    day_close            double precision,
    total_buy_quantity   bigint,
    total_sell_quantity  bigint,
    tradable             boolean NOT NULL,
    mode                 text NOT NULL,
    depth                bytea
) PARTITION BY RANGE ("time");

-- Finds the rows of an instrument in an hour, in 2 ms where they are 600 of 3 million. A row costs 3.0 us to store with it,
-- 4.0 with an index (instrument_token, time), 4.9 with a key that has tick_id, too, and 2.0 without any (measured on one
-- connection). That no row is there twice is the ledger's care.
CREATE INDEX IF NOT EXISTS tick_rows_instrument_token ON tick_rows (instrument_token);

CREATE OR REPLACE FUNCTION pg_temp.packed(numbers bigint[], width integer) RETURNS bytea
    LANGUAGE sql IMMUTABLE
    RETURN substr(int8send(coalesce(numbers[1], 0)), 9 - width) || substr(int8send(coalesce(numbers[2], 0)), 9 - width)
        || substr(int8send(coalesce(numbers[3], 0)), 9 - width) || substr(int8send(coalesce(numbers[4], 0)), 9 - width)
        || substr(int8send(coalesce(numbers[5], 0)), 9 - width);

CREATE OR REPLACE FUNCTION pg_temp.packed(prices double precision[], scale integer) RETURNS bytea
    LANGUAGE sql IMMUTABLE
    RETURN pg_temp.packed(ARRAY[prices[1] * scale, prices[2] * scale, prices[3] * scale, prices[4] * scale,
        prices[5] * scale]::bigint[], 4);

DO $$
DECLARE
    partition record;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'ticks'::regclass) = 'v' THEN
        RETURN;
    END IF;
    -- What is dropped below has to be ours.
    IF NOT EXISTS (
        SELECT FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE attrelid = 'ticks'::regclass AND relkind = 'p' AND attname = 'tick_id'
    ) THEN
        RAISE EXCEPTION 'The table ticks is that of the existing system: run sql/0000_existing_ticks.sql first, then all the others again.';
    END IF;
    DROP VIEW IF EXISTS ticks_with_symbols;
    ALTER TABLE ticks RENAME TO ticks_unpacked;
    FOR partition IN
        SELECT relname AS name, pg_get_expr(relpartbound, pg_class.oid) AS bounds
        FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'ticks_unpacked'::regclass
    LOOP
        EXECUTE format('ALTER TABLE %I RENAME TO unpacked', partition.name);
        EXECUTE format('CREATE TABLE %I PARTITION OF tick_rows %s', partition.name, partition.bounds);
        INSERT INTO tick_rows (
            tick_id, "time", last_trade_time, instrument_token, last_price, last_traded_quantity,
            average_traded_price, volume_traded, oi, oi_day_high, oi_day_low, day_open, day_high, day_low, day_close,
            total_buy_quantity, total_sell_quantity, tradable, mode, depth
        )
        SELECT
            tick_id, "time", last_trade_time, instrument_token, last_price, last_traded_quantity,
            average_traded_price, volume_traded, oi, oi_day_high, oi_day_low, day_open, day_high, day_low, day_close,
            total_buy_quantity, total_sell_quantity, tradable, mode,
            CASE WHEN bid_prices IS NOT NULL THEN
                int2send(scale::smallint) || pg_temp.packed(bid_prices, scale) || pg_temp.packed(ask_prices, scale)
                || pg_temp.packed(bid_quantities, 4) || pg_temp.packed(ask_quantities, 4)
                || pg_temp.packed(bid_orders::bigint[], 2) || pg_temp.packed(ask_orders::bigint[], 2)
            END
        FROM unpacked,
            LATERAL (SELECT CASE WHEN instrument_token >> 32 & 15 IN (3, 7) THEN 10000 ELSE 100 END AS scale) AS scales;
        DROP TABLE unpacked;
    END LOOP;
    DROP TABLE ticks_unpacked;
END $$;

-- What follows from other columns is computed as dhan_pipeline/enrich.py does, to the last bit.
DO $$
BEGIN
    -- 0018 gives it the rows of the existing system, where there are any; a second run of this file must not take them away.
    IF to_regclass('legacy_ticks') IS NOT NULL AND to_regclass('ticks') IS NOT NULL THEN
        RETURN;
    END IF;
    CREATE OR REPLACE VIEW ticks AS
    SELECT
        tick_id,
        "time",
        last_trade_time,
        instrument_token,
        last_price,
        last_traded_quantity,
        average_traded_price,
        volume_traded,
        oi,
        oi_day_high,
        oi_day_low,
        day_open,
        day_high,
        day_low,
        day_close,
        round((last_price - day_close) * 10000) / 10000 + 0 AS change,
        round((last_price - day_close) / day_close * 1000000) / 10000 + 0 AS change_percent,
        total_buy_quantity,
        total_sell_quantity,
        depth_prices(depth, 2) AS bid_prices,
        depth_quantities(depth, 42) AS bid_quantities,
        depth_orders(depth, 82) AS bid_orders,
        depth_prices(depth, 22) AS ask_prices,
        depth_quantities(depth, 62) AS ask_quantities,
        depth_orders(depth, 92) AS ask_orders,
        tradable,
        mode,
        round((depth_price(depth, 22) - depth_price(depth, 2)) * 10000) / 10000 + 0 AS bid_ask_spread,
        round((depth_price(depth, 22) + depth_price(depth, 2)) * 50000) / 100000 AS mid_price,
        (total_buy_quantity - total_sell_quantity)::double precision
            / nullif(total_buy_quantity + total_sell_quantity, 0) AS order_imbalance
    FROM tick_rows;
END $$;

DO $$
BEGIN
    -- 0009 gives it more columns, which a second run of this file must not take away.
    IF to_regclass('ticks_with_symbols') IS NULL THEN
        CREATE VIEW ticks_with_symbols AS
        SELECT t.*, i.trading_symbol, i.exchange, i.instrument_type
        FROM ticks t
        LEFT JOIN instruments i USING (instrument_token);
    END IF;
END $$;

COMMENT ON VIEW ticks IS 'One row a packet that carries a price. An hour of it is a pure function of the journal''s hour.';
COMMENT ON COLUMN ticks.tick_id IS 'place in the journal: capture, block, position of the packet';
COMMENT ON COLUMN ticks."time" IS 'when the packet was received';
COMMENT ON COLUMN ticks.last_trade_time IS 'exchange''s time of the last trade, 1 s resolution';
COMMENT ON COLUMN ticks.instrument_token IS 'the instrument; see `instruments`';
COMMENT ON COLUMN ticks.last_price IS 'last traded price (rupees)';
COMMENT ON COLUMN ticks.last_traded_quantity IS 'size of the last trade (Dhan: 16 bits on the wire) (units)';
COMMENT ON COLUMN ticks.average_traded_price IS 'volume-weighted average price of the day (rupees)';
COMMENT ON COLUMN ticks.volume_traded IS 'cumulative volume of the day (units)';
COMMENT ON COLUMN ticks.oi IS 'open interest (units)';
COMMENT ON COLUMN ticks.oi_day_high IS 'highest open interest of the day (units)';
COMMENT ON COLUMN ticks.oi_day_low IS 'lowest open interest of the day (units)';
COMMENT ON COLUMN ticks.day_open IS 'first price of the day (rupees)';
COMMENT ON COLUMN ticks.day_high IS 'highest price of the day (rupees)';
COMMENT ON COLUMN ticks.day_low IS 'lowest price of the day (rupees)';
COMMENT ON COLUMN ticks.day_close IS 'close of the previous day (rupees)';
COMMENT ON COLUMN ticks.change IS 'last_price less the previous close (rupees)';
COMMENT ON COLUMN ticks.change_percent IS 'change in percent of the previous close (percent)';
COMMENT ON COLUMN ticks.total_buy_quantity IS 'all bids in the book (units)';
COMMENT ON COLUMN ticks.total_sell_quantity IS 'all asks in the book (units)';
COMMENT ON COLUMN ticks.bid_prices IS 'best five bids, best first (rupees)';
COMMENT ON COLUMN ticks.bid_quantities IS 'quantity at each bid (units)';
COMMENT ON COLUMN ticks.bid_orders IS 'orders at each bid (orders)';
COMMENT ON COLUMN ticks.ask_prices IS 'best five asks, best first (rupees)';
COMMENT ON COLUMN ticks.ask_quantities IS 'quantity at each ask (units)';
COMMENT ON COLUMN ticks.ask_orders IS 'orders at each ask (orders)';
COMMENT ON COLUMN ticks.tradable IS 'false for an index';
COMMENT ON COLUMN ticks.mode IS 'ticker, quote or full';
COMMENT ON COLUMN ticks.bid_ask_spread IS 'best ask less best bid (rupees)';
COMMENT ON COLUMN ticks.mid_price IS 'mean of best bid and best ask (rupees)';
COMMENT ON COLUMN ticks.order_imbalance IS '(buy - sell) / (buy + sell) of the total quantities, -1 to 1 (ratio)';

COMMENT ON VIEW ticks_with_symbols IS 'Ticks with the symbol, exchange and type that their instrument has now';

COMMENT ON TABLE tick_rows IS 'Where the rows of ticks are: the columns that do not follow from others, with the five levels of depth packed into one';
COMMENT ON COLUMN tick_rows.tick_id IS 'place in the journal: capture, block, position of the packet';
COMMENT ON COLUMN tick_rows."time" IS 'when the packet was received';
COMMENT ON COLUMN tick_rows.last_trade_time IS 'exchange''s time of the last trade, 1 s resolution';
COMMENT ON COLUMN tick_rows.instrument_token IS 'the instrument; see `instruments`';
COMMENT ON COLUMN tick_rows.last_price IS 'last traded price (rupees)';
COMMENT ON COLUMN tick_rows.last_traded_quantity IS 'size of the last trade (Dhan: 16 bits on the wire) (units)';
COMMENT ON COLUMN tick_rows.average_traded_price IS 'volume-weighted average price of the day (rupees)';
COMMENT ON COLUMN tick_rows.volume_traded IS 'cumulative volume of the day (units)';
COMMENT ON COLUMN tick_rows.oi IS 'open interest (units)';
COMMENT ON COLUMN tick_rows.oi_day_high IS 'highest open interest of the day (units)';
COMMENT ON COLUMN tick_rows.oi_day_low IS 'lowest open interest of the day (units)';
COMMENT ON COLUMN tick_rows.day_open IS 'first price of the day (rupees)';
COMMENT ON COLUMN tick_rows.day_high IS 'highest price of the day (rupees)';
COMMENT ON COLUMN tick_rows.day_low IS 'lowest price of the day (rupees)';
COMMENT ON COLUMN tick_rows.day_close IS 'close of the previous day (rupees)';
COMMENT ON COLUMN tick_rows.total_buy_quantity IS 'all bids in the book (units)';
COMMENT ON COLUMN tick_rows.total_sell_quantity IS 'all asks in the book (units)';
COMMENT ON COLUMN tick_rows.tradable IS 'false for an index';
COMMENT ON COLUMN tick_rows.mode IS 'ticker, quote or full';
COMMENT ON COLUMN tick_rows.depth IS 'Unsigned integers, most significant byte first: what 1 rupee is (2 bytes), five bid prices, ask prices, bid quantities, ask quantities (4 bytes each), bid orders, ask orders (2 bytes each)';
