-- What the tokens of both brokers say of an instrument: dhan_pipeline/instruments.py in SQL. And bars of an hour that begin
-- when the instrument's segment opens, for Kite's instruments, too.

-- The number of the exchange segment: 0 IDX_I, 1 NSE_EQ, 2 NSE_FNO, 3 NSE_CURRENCY, 4 BSE_EQ, 5 MCX_COMM, 7 BSE_CURRENCY,
-- 8 BSE_FNO. Kite's tokens are below 2^32, and their last byte is Kite's own number of it.
CREATE OR REPLACE FUNCTION exchange_segment_of(instrument_token bigint) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN instrument_token >= 4294967296 THEN (instrument_token >> 32 & 15)::integer
        ELSE (ARRAY[1, 2, 3, 4, 8, 7, 5, 3, 0, NULL, NULL, 5])[(instrument_token & 255)::integer]
    END;

CREATE OR REPLACE FUNCTION is_index(instrument_token bigint) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN coalesce(exchange_segment_of(instrument_token) = 0, false);

COMMENT ON COLUMN instruments.source IS 'Broker whose master names it: dhan or kite';
COMMENT ON COLUMN instrument_lives.source IS 'Broker whose master names it: dhan or kite';
COMMENT ON COLUMN instruments.instrument_token IS 'Identity in all tables. Kite''s own number, below 2^32; or derived from Dhan''s exchange segment and security id, from 2^40 on';
COMMENT ON COLUMN instruments.security_id IS 'Dhan''s id; unique only within its exchange segment, reused after expiry';
COMMENT ON COLUMN instruments.exchange IS 'NSE, BSE or MCX; of Kite''s derivatives NFO, BFO, CDS, BCD or NCO';
COMMENT ON COLUMN instruments.instrument_type IS 'Kind of instrument as the master writes it: INDEX, EQUITY, FUTIDX, OPTSTK ...; Kite''s EQ, FUT, CE, PE';

DROP INDEX IF EXISTS candles_1m_in_candles_60m;

CREATE INDEX candles_1m_in_candles_60m ON candles_1m USING brin ((
    date_bin('1 hour', "time", CASE WHEN exchange_segment_of(instrument_token) IN (3, 5, 7)
        THEN '2000-01-01 09:00+05:30'::timestamptz ELSE '2000-01-01 09:15+05:30'::timestamptz END)
)) WITH (autosummarize);

CREATE OR REPLACE VIEW candles_60m AS
SELECT
    instrument_token,
    date_bin('1 hour', "time", CASE WHEN exchange_segment_of(instrument_token) IN (3, 5, 7)
        THEN '2000-01-01 09:00+05:30'::timestamptz ELSE '2000-01-01 09:15+05:30'::timestamptz END) AS "time",
    (array_agg(open ORDER BY "time"))[1] AS open,
    max(high) AS high,
    min(low) AS low,
    (array_agg(close ORDER BY "time"))[count(*)] AS close,
    CASE WHEN count(volume) = count(*) THEN sum(volume)::bigint END AS volume,
    CASE WHEN count(turnover) = count(*) THEN sum(turnover) END AS turnover,
    (array_agg(oi ORDER BY "time") FILTER (WHERE oi IS NOT NULL))[count(oi)] AS oi,
    sum(ticks) AS ticks,
    bool_or(touches_gap) AS touches_gap,
    bool_or(starts_late) AS starts_late,
    CASE WHEN min(source) = max(source) THEN min(source) ELSE 'mixed' END AS source
FROM candles_1m
GROUP BY instrument_token,
    date_bin('1 hour', "time", CASE WHEN exchange_segment_of(instrument_token) IN (3, 5, 7)
        THEN '2000-01-01 09:00+05:30'::timestamptz ELSE '2000-01-01 09:15+05:30'::timestamptz END);
