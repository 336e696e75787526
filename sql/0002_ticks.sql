-- Ticks, natively range-partitioned by the hour of receipt in India Standard Time.
-- Partitions (ticks_20261120_09) are made ahead of need by the program. There is no default partition: one would have
-- to be scanned, under an exclusive lock, each time a partition is attached.

CREATE TABLE IF NOT EXISTS ticks (
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
    change               double precision,
    change_percent       double precision,
    total_buy_quantity   bigint,
    total_sell_quantity  bigint,
    bid_prices           double precision[],
    bid_quantities       bigint[],
    bid_orders           integer[],
    ask_prices           double precision[],
    ask_quantities       bigint[],
    ask_orders           integer[],
    tradable             boolean NOT NULL,
    mode                 text NOT NULL,
    bid_ask_spread       double precision,
    mid_price            double precision,
    order_imbalance      double precision,
    PRIMARY KEY (instrument_token, "time", tick_id)
) PARTITION BY RANGE ("time");

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

COMMENT ON VIEW ticks_with_symbols IS 'Ticks with the symbol, exchange and type that their instrument has now';
