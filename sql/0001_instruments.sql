-- Instruments: what is traded, and what each token meant in the past. sql/add_dhan_security_id.sql comes before: it gives a
-- table `instruments` of the existing system the columns that this one has.
-- Runs with psql too: psql -v ON_ERROR_STOP=1 "$DATABASE_URL" -1 -f sql/0001_instruments.sql

CREATE TABLE IF NOT EXISTS instruments (
    instrument_token  bigint PRIMARY KEY,
    source            text DEFAULT 'kite',
    security_id       bigint,
    exchange          text NOT NULL,
    exchange_segment  text,
    trading_symbol    text NOT NULL,
    name              text,
    segment           text,
    instrument_type   text,
    series            text,
    isin              text,
    underlying_symbol text,
    expiry            date,
    strike            numeric(12, 2),
    option_type       text,
    tick_size         numeric(10, 4),
    lot_size          integer,
    exchange_token    bigint,
    is_active         boolean NOT NULL DEFAULT true,
    last_updated      timestamptz
);

CREATE INDEX IF NOT EXISTS instruments_trading_symbol ON instruments (trading_symbol);
CREATE INDEX IF NOT EXISTS instruments_security_id ON instruments (security_id, exchange_segment)
    WHERE security_id IS NOT NULL;

COMMENT ON TABLE instruments IS 'Every instrument a scrip master ever named. Rows are deactivated, never deleted.';
COMMENT ON COLUMN instruments.instrument_token IS 'Identity in all tables: derived from source, exchange segment and security id, reversible';
COMMENT ON COLUMN instruments.source IS 'Broker whose master names it: dhan';
COMMENT ON COLUMN instruments.security_id IS 'The broker''s id; unique only within its exchange segment, reused after expiry';
COMMENT ON COLUMN instruments.exchange IS 'NSE, BSE or MCX';
COMMENT ON COLUMN instruments.exchange_segment IS 'Segment as the feed names it: IDX_I, NSE_EQ, NSE_FNO, NSE_CURRENCY, BSE_EQ, MCX_COMM, BSE_CURRENCY, BSE_FNO';
COMMENT ON COLUMN instruments.trading_symbol IS 'Symbol as the exchange writes it';
COMMENT ON COLUMN instruments.name IS 'Name for people';
COMMENT ON COLUMN instruments.segment IS 'Segment as the master writes it';
COMMENT ON COLUMN instruments.instrument_type IS 'Kind of instrument as the master writes it: INDEX, EQUITY, FUTIDX, OPTSTK ...';
COMMENT ON COLUMN instruments.series IS 'Series of the exchange, such as EQ';
COMMENT ON COLUMN instruments.isin IS 'International securities identification number';
COMMENT ON COLUMN instruments.underlying_symbol IS 'What a derivative derives from';
COMMENT ON COLUMN instruments.expiry IS 'Day on which a derivative expires';
COMMENT ON COLUMN instruments.strike IS 'Strike of an option, rupees';
COMMENT ON COLUMN instruments.option_type IS 'CE or PE';
COMMENT ON COLUMN instruments.tick_size IS 'Smallest price step, rupees';
COMMENT ON COLUMN instruments.lot_size IS 'Units in a lot';
COMMENT ON COLUMN instruments.exchange_token IS 'The exchange''s own number, where a master tells it';
COMMENT ON COLUMN instruments.is_active IS 'Whether the latest master names it';
COMMENT ON COLUMN instruments.last_updated IS 'When a sync last changed the row';

CREATE OR REPLACE VIEW active_instruments AS
SELECT * FROM instruments WHERE is_active;

COMMENT ON VIEW active_instruments IS 'Instruments that the latest master names';

CREATE TABLE IF NOT EXISTS instrument_versions (
    instrument_token  bigint NOT NULL,
    valid_from        timestamptz NOT NULL,
    valid_to          timestamptz,
    source            text,
    security_id       bigint,
    exchange          text NOT NULL,
    exchange_segment  text,
    trading_symbol    text NOT NULL,
    name              text,
    segment           text,
    instrument_type   text,
    series            text,
    isin              text,
    underlying_symbol text,
    expiry            date,
    strike            numeric(12, 2),
    option_type       text,
    tick_size         numeric(10, 4),
    lot_size          integer,
    PRIMARY KEY (instrument_token, valid_from)
);

COMMENT ON TABLE instrument_versions IS 'What each token meant and when, so that a recycled security id never inherits a past';
COMMENT ON COLUMN instrument_versions.valid_from IS 'First instant of the version, inclusive';
COMMENT ON COLUMN instrument_versions.valid_to IS 'End of the version, exclusive; NULL while it holds';
