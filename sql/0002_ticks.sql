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

COMMENT ON TABLE ticks IS 'One row a packet that carries a price. An hour of it is a pure function of the journal''s hour.';
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

CREATE OR REPLACE VIEW ticks_with_symbols AS
SELECT t.*, i.trading_symbol, i.exchange, i.instrument_type
FROM ticks t
LEFT JOIN instruments i USING (instrument_token);

COMMENT ON VIEW ticks_with_symbols IS 'Ticks with the symbol, exchange and type that their instrument has now';
