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

CREATE INDEX IF NOT EXISTS candles_1m_time ON candles_1m USING brin ("time") WITH (autosummarize);

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

CREATE INDEX IF NOT EXISTS broker_candles_time ON broker_candles USING brin ("time") WITH (autosummarize);

COMMENT ON TABLE candles_1m IS 'One row an instrument and minute in which it traded, built from ticks; an hour of it is a pure function of ticks, feed_gaps, broker_candles and broker_fetches';
COMMENT ON COLUMN candles_1m.instrument_token IS 'the instrument; see instruments';
COMMENT ON COLUMN candles_1m."time" IS 'start of the minute, by the exchange''s time of the trades';
COMMENT ON COLUMN candles_1m.open IS 'first price (rupees)';
COMMENT ON COLUMN candles_1m.high IS 'highest price (rupees)';
COMMENT ON COLUMN candles_1m.low IS 'lowest price (rupees)';
COMMENT ON COLUMN candles_1m.close IS 'last price (rupees)';
COMMENT ON COLUMN candles_1m.volume IS 'traded in the minute: the difference of the day''s cumulative volume; NULL where no packet carried one, and for an index (units)';
COMMENT ON COLUMN candles_1m.turnover IS 'each difference of volume times the price that came with it; NULL where volume is, and in a bar of the broker''s (rupees)';
COMMENT ON COLUMN candles_1m.oi IS 'open interest at the close; NULL where no packet carried one (units)';
COMMENT ON COLUMN candles_1m.ticks IS 'packets of ours that are in the minute; 0 where only the broker has a bar';
COMMENT ON COLUMN candles_1m.touches_gap IS 'a gap of the instrument overlaps the minute, so that trades may be missing; or some of its volume was traded across one, so that volume of earlier minutes may be in it';
COMMENT ON COLUMN candles_1m.starts_late IS 'the first of the instrument''s day, and volume was traded before its first packet, which is in no bar';
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

-- Longer bars are views of these. A bar begins at a multiple of its length after 09:15 IST, when shares and their
-- derivatives begin to trade; that of an hour after 09:00 for currency and commodities (segments 3, 7 and 5 in the tokens
-- of Dhan; for those of another broker 09:15 holds). The day is that of IST. A filter on "time" of a view can use the index
-- below that holds its expression, which costs hardly anything; one on instrument_token uses the primary key.
DO $$
DECLARE
    view record;
    columns record;
BEGIN
    FOR view IN
        SELECT * FROM (VALUES
            ('candles_5m', 'date_bin(''5 minutes'', "time", ''2000-01-01 09:15+05:30'')', 'five minutes'),
            ('candles_15m', 'date_bin(''15 minutes'', "time", ''2000-01-01 09:15+05:30'')', 'fifteen minutes'),
            ('candles_60m', 'date_bin(''1 hour'', "time", CASE WHEN instrument_token >> 32 & 15 IN (3, 5, 7) '
                'THEN ''2000-01-01 09:00+05:30''::timestamptz ELSE ''2000-01-01 09:15+05:30''::timestamptz END)', 'an hour'),
            ('candles_1d', 'date_bin(''1 day'', "time", ''2000-01-01 00:00+05:30'')', 'a day')
        ) AS views (name, bar, length)
    LOOP
        EXECUTE format('CREATE INDEX IF NOT EXISTS %I ON candles_1m USING brin ((%s)) WITH (autosummarize)',
            'candles_1m_in_' || view.name, view.bar);
        EXECUTE format($view$
            CREATE OR REPLACE VIEW %I AS
            SELECT
                instrument_token,
                %2$s AS "time",
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
            GROUP BY instrument_token, %2$s
            $view$, view.name, view.bar);
        EXECUTE format('COMMENT ON VIEW %I IS %L', view.name, 'Bars of ' || view.length || ', made of candles_1m');
        FOR columns IN
            SELECT * FROM (VALUES
                ('instrument_token', 'the instrument; see instruments'),
                ('time', 'start of the bar, by the exchange''s time of the trades'),
                ('open', 'first price (rupees)'),
                ('high', 'highest price (rupees)'),
                ('low', 'lowest price (rupees)'),
                ('close', 'last price (rupees)'),
                ('volume', 'traded in the bar; NULL where that of a minute is (units)'),
                ('turnover', 'price times volume; NULL where that of a minute is (rupees)'),
                ('oi', 'open interest at the close (units)'),
                ('ticks', 'packets of ours that are in the bar'),
                ('touches_gap', 'whether a minute of it does'),
                ('starts_late', 'whether a minute of it does'),
                ('source', 'ticks, or rest, where all minutes are; else mixed')
            ) AS described (name, meaning)
        LOOP
            EXECUTE format('COMMENT ON COLUMN %I.%I IS %L', view.name, columns.name, columns.meaning);
        END LOOP;
    END LOOP;
END $$;
