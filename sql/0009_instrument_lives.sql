-- What each instrument token meant from when to when, and ticks with what their instrument was then: an id that a broker
-- gives to another contract after an expiry never lends its name to the ticks of the old one.

-- For look-ups by what people write; a derivative is found by its underlying and expiry. They make the first sync of
-- 208,000 instruments some 0.5 s longer, and later ones by nothing that can be measured. The strike in the second index
-- would make it six times as large and no look-up faster.
CREATE INDEX IF NOT EXISTS instrument_versions_trading_symbol ON instrument_versions (trading_symbol);
CREATE INDEX IF NOT EXISTS instrument_versions_underlying
    ON instrument_versions (upper(underlying_symbol), expiry) WHERE expiry IS NOT NULL;
CREATE INDEX IF NOT EXISTS instrument_versions_symbol ON instrument_versions (upper(trading_symbol)) WHERE expiry IS NULL;
CREATE INDEX IF NOT EXISTS instrument_versions_name ON instrument_versions (upper(name)) WHERE expiry IS NULL;

CREATE OR REPLACE VIEW instrument_lives AS
SELECT
    v.instrument_token,
    CASE WHEN EXISTS (
        SELECT FROM instrument_versions e
        WHERE e.instrument_token = v.instrument_token AND e.valid_from < v.valid_from
    ) THEN v.valid_from ELSE '-infinity' END AS valid_from,
    CASE WHEN v.valid_to IS NULL THEN 'infinity' ELSE coalesce((
        SELECT min(n.valid_from) FROM instrument_versions n
        WHERE n.instrument_token = v.instrument_token AND n.valid_from > v.valid_from
    ), 'infinity') END AS valid_to,
    v.source,
    v.security_id,
    v.exchange,
    v.exchange_segment,
    v.trading_symbol,
    v.name,
    v.segment,
    v.instrument_type,
    v.series,
    v.isin,
    v.underlying_symbol,
    v.expiry,
    v.strike,
    v.option_type,
    v.tick_size,
    v.lot_size
FROM instrument_versions v
UNION ALL
SELECT
    i.instrument_token,
    '-infinity',
    'infinity',
    i.source,
    i.security_id,
    i.exchange,
    i.exchange_segment,
    i.trading_symbol,
    i.name,
    i.segment,
    i.instrument_type,
    i.series,
    i.isin,
    i.underlying_symbol,
    i.expiry,
    i.strike,
    i.option_type,
    i.tick_size,
    i.lot_size
FROM instruments i
WHERE NOT EXISTS (SELECT FROM instrument_versions v WHERE v.instrument_token = i.instrument_token);

CREATE OR REPLACE VIEW ticks_with_symbols AS
SELECT
    t.tick_id, t."time", t.last_trade_time, t.instrument_token, t.last_price, t.last_traded_quantity,
    t.average_traded_price, t.volume_traded, t.oi, t.oi_day_high, t.oi_day_low, t.day_open, t.day_high, t.day_low,
    t.day_close, t.change, t.change_percent, t.total_buy_quantity, t.total_sell_quantity, t.bid_prices,
    t.bid_quantities, t.bid_orders, t.ask_prices, t.ask_quantities, t.ask_orders, t.tradable, t.mode,
    t.bid_ask_spread, t.mid_price, t.order_imbalance,
    l.trading_symbol,
    l.exchange,
    l.instrument_type,
    l.underlying_symbol,
    l.expiry,
    l.strike,
    l.option_type
FROM ticks t
LEFT JOIN instrument_lives l
    ON l.instrument_token = t.instrument_token AND l.valid_from <= t."time" AND t."time" < l.valid_to;

COMMENT ON VIEW instrument_lives IS 'What each token meant from when to when, without holes: the versions, the first reaching back for ever, each up to the next. An instrument without versions has one life.';
COMMENT ON COLUMN instrument_lives.instrument_token IS 'the instrument; see instruments';
COMMENT ON COLUMN instrument_lives.valid_from IS 'first instant, inclusive; -infinity for the first life';
COMMENT ON COLUMN instrument_lives.valid_to IS 'end, exclusive: where the next life begins; infinity for the last';
COMMENT ON COLUMN instrument_lives.source IS 'Broker whose master names it: dhan';
COMMENT ON COLUMN instrument_lives.security_id IS 'The broker''s id; unique only within its exchange segment, reused after expiry';
COMMENT ON COLUMN instrument_lives.exchange IS 'NSE, BSE or MCX';
COMMENT ON COLUMN instrument_lives.exchange_segment IS 'Segment as the feed names it: IDX_I, NSE_EQ, NSE_FNO, NSE_CURRENCY, BSE_EQ, MCX_COMM, BSE_CURRENCY, BSE_FNO';
COMMENT ON COLUMN instrument_lives.trading_symbol IS 'Symbol as the exchange writes it';
COMMENT ON COLUMN instrument_lives.name IS 'Name for people';
COMMENT ON COLUMN instrument_lives.segment IS 'Segment as the master writes it';
COMMENT ON COLUMN instrument_lives.instrument_type IS 'Kind of instrument as the master writes it: INDEX, EQUITY, FUTIDX, OPTSTK ...';
COMMENT ON COLUMN instrument_lives.series IS 'Series of the exchange, such as EQ';
COMMENT ON COLUMN instrument_lives.isin IS 'International securities identification number';
COMMENT ON COLUMN instrument_lives.underlying_symbol IS 'What a derivative derives from';
COMMENT ON COLUMN instrument_lives.expiry IS 'Day on which a derivative expires';
COMMENT ON COLUMN instrument_lives.strike IS 'Strike of an option, rupees';
COMMENT ON COLUMN instrument_lives.option_type IS 'CE or PE';
COMMENT ON COLUMN instrument_lives.tick_size IS 'Smallest price step, rupees';
COMMENT ON COLUMN instrument_lives.lot_size IS 'Units in a lot';

COMMENT ON VIEW ticks_with_symbols IS 'Ticks with what their instrument was at their time; columns are NULL where no instrument is known';
COMMENT ON COLUMN ticks_with_symbols.trading_symbol IS 'Symbol as the exchange writes it';
COMMENT ON COLUMN ticks_with_symbols.exchange IS 'NSE, BSE or MCX';
COMMENT ON COLUMN ticks_with_symbols.instrument_type IS 'Kind of instrument as the master writes it: INDEX, EQUITY, FUTIDX, OPTSTK ...';
COMMENT ON COLUMN ticks_with_symbols.underlying_symbol IS 'What a derivative derives from';
COMMENT ON COLUMN ticks_with_symbols.expiry IS 'Day on which a derivative expires';
COMMENT ON COLUMN ticks_with_symbols.strike IS 'Strike of an option, rupees';
COMMENT ON COLUMN ticks_with_symbols.option_type IS 'CE or PE';
