-- What the broker's history was asked for, what came of gaps, and where our bars differ from the broker's.

CREATE TABLE IF NOT EXISTS broker_fetches (
    instrument_token bigint NOT NULL,
    started_at       timestamptz NOT NULL,
    ended_at         timestamptz NOT NULL,
    fetched_at       timestamptz NOT NULL,
    bars             integer NOT NULL,
    partial          boolean NOT NULL DEFAULT false,
    PRIMARY KEY (instrument_token, started_at, ended_at)
);

CREATE INDEX IF NOT EXISTS broker_fetches_fetched_at ON broker_fetches USING brin (fetched_at);

CREATE TABLE IF NOT EXISTS gap_recoveries (
    capture     smallint NOT NULL,
    gap_id      bigint NOT NULL,
    snapshot_at timestamptz,
    bars_at     timestamptz,
    instruments integer NOT NULL DEFAULT 0,
    bars        integer NOT NULL DEFAULT 0,
    failed      integer NOT NULL DEFAULT 0,
    detail      text NOT NULL DEFAULT '',
    PRIMARY KEY (capture, gap_id)
);

CREATE TABLE IF NOT EXISTS gap_quotes (
    capture          smallint NOT NULL,
    gap_id           bigint NOT NULL,
    instrument_token bigint NOT NULL,
    last_price       double precision,
    volume           bigint,
    oi               bigint,
    previous_close   double precision,
    last_trade_time  timestamptz,
    fetched_at       timestamptz NOT NULL,
    PRIMARY KEY (capture, gap_id, instrument_token)
);

CREATE TABLE IF NOT EXISTS candle_differences (
    day              date NOT NULL,
    instrument_token bigint NOT NULL,
    "time"           timestamptz NOT NULL,
    field            text NOT NULL,
    ours             double precision,
    brokers          double precision,
    explained_by     text NOT NULL,
    PRIMARY KEY (day, instrument_token, "time", field)
);

COMMENT ON TABLE broker_fetches IS 'What the broker''s history has been asked for with success, also where it had no bar; so that an interrupted run goes on where it was';
COMMENT ON COLUMN broker_fetches.instrument_token IS 'the instrument; see instruments';
COMMENT ON COLUMN broker_fetches.started_at IS 'first minute that was asked for';
COMMENT ON COLUMN broker_fetches.ended_at IS 'end of the last minute that was asked for';
COMMENT ON COLUMN broker_fetches.fetched_at IS 'when it was last asked for';
COMMENT ON COLUMN broker_fetches.bars IS 'bars of a minute that came';
COMMENT ON COLUMN broker_fetches.partial IS 'whether the broker may have more bars than it gives: of options that have expired, it gives those near the money';

COMMENT ON TABLE gap_recoveries IS 'What the broker''s REST API was asked for after gaps';
COMMENT ON COLUMN gap_recoveries.capture IS 'number of the capture, 0 to 31';
COMMENT ON COLUMN gap_recoveries.gap_id IS 'the gap; see feed_gaps';
COMMENT ON COLUMN gap_recoveries.snapshot_at IS 'when the quotes after it were complete; NULL where there were none, or it was too late for them';
COMMENT ON COLUMN gap_recoveries.bars_at IS 'when the bars of its minutes were complete; NULL until then';
COMMENT ON COLUMN gap_recoveries.instruments IS 'instruments that it concerns';
COMMENT ON COLUMN gap_recoveries.bars IS 'bars that came';
COMMENT ON COLUMN gap_recoveries.failed IS 'instruments whose bars could not be had';
COMMENT ON COLUMN gap_recoveries.detail IS 'what went wrong, in words; empty where nothing did';

COMMENT ON TABLE gap_quotes IS 'Quotes of the broker''s right after gaps. They stay out of ticks, which follows from the journal alone';
COMMENT ON COLUMN gap_quotes.capture IS 'number of the capture, 0 to 31';
COMMENT ON COLUMN gap_quotes.gap_id IS 'the gap; see feed_gaps';
COMMENT ON COLUMN gap_quotes.instrument_token IS 'the instrument; see instruments';
COMMENT ON COLUMN gap_quotes.last_price IS 'price of the last trade; NULL where there was none (rupees)';
COMMENT ON COLUMN gap_quotes.volume IS 'traded that day so far (units)';
COMMENT ON COLUMN gap_quotes.oi IS 'open interest (units)';
COMMENT ON COLUMN gap_quotes.previous_close IS 'close of the day before (rupees)';
COMMENT ON COLUMN gap_quotes.last_trade_time IS 'when the last trade was';
COMMENT ON COLUMN gap_quotes.fetched_at IS 'when the quote was fetched';

COMMENT ON TABLE candle_differences IS 'Where candles_1m differs from broker_candles, a day at a time';
COMMENT ON COLUMN candle_differences.day IS 'the day (IST)';
COMMENT ON COLUMN candle_differences.instrument_token IS 'the instrument; see instruments';
COMMENT ON COLUMN candle_differences."time" IS 'start of the minute; of day_volume, IST midnight';
COMMENT ON COLUMN candle_differences.field IS 'what differs: open, high, low, close or volume of the minute; missing: only the broker has the bar; extra: only we have it; day_volume';
COMMENT ON COLUMN candle_differences.ours IS 'our number, NULL in a missing bar; the close of an extra one (rupees or units)';
COMMENT ON COLUMN candle_differences.brokers IS 'the broker''s number, NULL in an extra bar; the close of a missing one (rupees or units)';
COMMENT ON COLUMN candle_differences.explained_by IS 'gap, where a noted gap explains it; late start, where our first packet of the day came later; else empty';
