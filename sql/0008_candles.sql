-- Bars of one minute: ours, built from ticks, and the broker's own, as its history API gives them.

CREATE TABLE IF NOT EXISTS candles_1m (
    instrument_token bigint NOT NULL,
    "time"           timestamptz NOT NULL,
    open             double precision NOT NULL,
    high             double precision NOT NULL,
    low              double precision NOT NULL,
    close            double precision NOT NULL,
    volume           bigint,
    turnover         double precision,
    oi               bigint,
    ticks            integer NOT NULL,
    touches_gap      boolean NOT NULL,
    starts_late      boolean NOT NULL,
    source           text NOT NULL,
    PRIMARY KEY (instrument_token, "time")
);

CREATE INDEX IF NOT EXISTS candles_1m_time ON candles_1m USING brin ("time");

CREATE TABLE IF NOT EXISTS broker_candles (
    instrument_token bigint NOT NULL,
    minutes          smallint NOT NULL,
    "time"           timestamptz NOT NULL,
    open             double precision NOT NULL,
    high             double precision NOT NULL,
    low              double precision NOT NULL,
    close            double precision NOT NULL,
    volume           bigint NOT NULL,
    oi               bigint,
    fetched_at       timestamptz NOT NULL,
    PRIMARY KEY (instrument_token, minutes, "time")
);

CREATE INDEX IF NOT EXISTS broker_candles_time ON broker_candles USING brin ("time");

COMMENT ON TABLE candles_1m IS 'One row an instrument and minute in which it traded, built from ticks; an hour of it is a pure function of ticks, feed_gaps and broker_candles';
COMMENT ON COLUMN candles_1m.instrument_token IS 'the instrument; see instruments';
COMMENT ON COLUMN candles_1m."time" IS 'start of the minute, by the exchange''s time of the trades';
COMMENT ON COLUMN candles_1m.open IS 'first price (rupees)';
COMMENT ON COLUMN candles_1m.high IS 'highest price (rupees)';
COMMENT ON COLUMN candles_1m.low IS 'lowest price (rupees)';
COMMENT ON COLUMN candles_1m.close IS 'last price (rupees)';
COMMENT ON COLUMN candles_1m.volume IS 'traded in the minute: the difference of the day''s cumulative volume; NULL where no packet carried one (units)';
COMMENT ON COLUMN candles_1m.turnover IS 'each difference of volume times the price that came with it (rupees)';
COMMENT ON COLUMN candles_1m.oi IS 'open interest at the close; NULL where no packet carried one (units)';
COMMENT ON COLUMN candles_1m.ticks IS 'packets that it was built from; 0 for a bar of the broker''s';
COMMENT ON COLUMN candles_1m.touches_gap IS 'a gap of the instrument lies in the minute, or between it and the bar before: trades may be missing, or volume of earlier minutes be in it';
COMMENT ON COLUMN candles_1m.starts_late IS 'the first of the instrument''s day, and what was traded before its first packet is not in it';
COMMENT ON COLUMN candles_1m.source IS 'ticks; or rest, where the broker''s own bar stands in for a minute with a gap';

COMMENT ON TABLE broker_candles IS 'The broker''s own bars, as its history API gave them';
COMMENT ON COLUMN broker_candles.instrument_token IS 'the instrument; see instruments';
COMMENT ON COLUMN broker_candles.minutes IS 'length of the bar: 1, or 1440 for a day';
COMMENT ON COLUMN broker_candles."time" IS 'start of the bar; of a day, IST midnight';
COMMENT ON COLUMN broker_candles.open IS 'first price (rupees)';
COMMENT ON COLUMN broker_candles.high IS 'highest price (rupees)';
COMMENT ON COLUMN broker_candles.low IS 'lowest price (rupees)';
COMMENT ON COLUMN broker_candles.close IS 'last price (rupees)';
COMMENT ON COLUMN broker_candles.volume IS 'traded in the bar (units)';
COMMENT ON COLUMN broker_candles.oi IS 'open interest at the close, where the API gives it (units)';
COMMENT ON COLUMN broker_candles.fetched_at IS 'when it was fetched';
