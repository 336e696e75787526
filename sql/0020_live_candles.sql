-- Bars of the ticks as they come: the hour that is open has candles at once. `candles_1m` has them by the exchange's time,
-- and knows of gaps, once the hour is over. docs/timescaledb.md says how the two differ.
-- With TimescaleDB `live_bars_1m` is a continuous aggregate: minutes that are over are summed up once. Elsewhere it is a
-- plain view.

DO $$
DECLARE
    licensed constant boolean := current_setting('timescaledb.license', true) IS NOT DISTINCT FROM 'timescale'
        AND (SELECT relkind FROM pg_class WHERE oid = 'tick_rows'::regclass) = 'r';
    -- What was traded on the day of receipt: a snapshot after subscribing repeats the day before. Of that day's volume
    -- such a packet says that it was 0 so far. Kite's quotes have no trade time: from 09:00 on they are of today.
    today constant text := $sql$coalesce(last_trade_time, CASE WHEN instrument_token < 4294967296 THEN "time" - interval '9 hours' END)
        >= date_bin('1 day', "time", '2000-01-01 00:00+05:30')$sql$;
    traded constant text := format('FILTER (WHERE last_price IS NOT NULL AND %s)', today);
    volume constant text := format('CASE WHEN %s THEN volume_traded ELSE 0 END', today);
    with_volume constant text := 'FILTER (WHERE tradable AND volume_traded IS NOT NULL)';
    -- TimescaleDB's first and last, and what PostgreSQL has of its own.
    first constant text := CASE WHEN licensed THEN 'first(%1$s, tick_id) %2$s' ELSE '(array_agg(%1$s ORDER BY tick_id) %2$s)[1]' END;
    last constant text := CASE WHEN licensed THEN 'last(%1$s, tick_id) %2$s' ELSE '(array_agg(%1$s ORDER BY tick_id) %2$s)[count(*) %2$s]' END;
    minute constant text := CASE WHEN licensed THEN 'time_bucket(''1 minute'', "time")' ELSE 'date_bin(''1 minute'', "time", ''2000-01-01 00:00+00'')' END;
    bars constant text := concat_ws(E',\n    ',
        E'SELECT\n    instrument_token',
        minute || ' AS "time"',
        format(first, 'last_price', traded) || ' AS open',
        format('max(last_price) %s AS high', traded),
        format('min(last_price) %s AS low', traded),
        format(last, 'last_price', traded) || ' AS close',
        format(first, volume, with_volume) || ' AS first_volume',
        format('max(%s) %s AS volume_traded', volume, with_volume),
        format(last, 'oi', 'FILTER (WHERE oi IS NOT NULL)') || ' AS oi',
        format('count(*) %s AS ticks', traded)) || E'\nFROM tick_rows';
    -- From the ticks themselves where nothing is summed up, so that only the hours that are asked for are read.
    source constant text := CASE WHEN licensed THEN 'SELECT * FROM live_bars_1m' ELSE bars END
        || ' WHERE "time" >= date_trunc(''day'', %1$s, ''Asia/Kolkata'') AND "time" < %2$s + interval ''1 minute'''
        || CASE WHEN licensed THEN '' ELSE ' GROUP BY instrument_token, ' || minute END;
    candles constant text := $sql$
        SELECT instrument_token, "time", open, high, low, close, volume, oi, ticks
        FROM (
            SELECT *,
                CASE WHEN volume_traded IS NOT NULL
                    THEN greatest(volume_traded - coalesce(max(volume_traded) OVER before, first_volume), 0)
                END AS volume
            FROM ($sql$ || source || $sql$) AS bars
            WINDOW before AS (
                PARTITION BY instrument_token, ("time" AT TIME ZONE 'Asia/Kolkata')::date
                ORDER BY "time" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            )
        ) AS with_volume
        WHERE "time" >= %1$s AND "time" < %2$s AND ticks > 0$sql$;
    ranged constant text := format(candles, 'since', 'until');
BEGIN
    IF licensed THEN
        IF to_regclass('live_bars_1m') IS NOT NULL AND NOT EXISTS (
            SELECT FROM timescaledb_information.continuous_aggregates
            WHERE format('%I.%I', view_schema, view_name)::regclass = to_regclass('live_bars_1m')
        ) THEN
            DROP VIEW live_bars_1m;
        END IF;
        -- Before Kite, it knew no packets without a trade time. Its minutes are summed up again from the ticks.
        IF EXISTS (
            SELECT FROM timescaledb_information.continuous_aggregates
            WHERE format('%I.%I', view_schema, view_name)::regclass = to_regclass('live_bars_1m')
                AND view_definition NOT LIKE '%4294967296%'
        ) THEN
            DROP VIEW IF EXISTS candles_live_5m, candles_live_15m, candles_live_1m;
            DROP MATERIALIZED VIEW live_bars_1m;
        END IF;
        EXECUTE 'CREATE MATERIALIZED VIEW IF NOT EXISTS live_bars_1m WITH (timescaledb.continuous, '
            'timescaledb.materialized_only = false) AS ' || bars || ' GROUP BY instrument_token, ' || minute || ' WITH NO DATA';
        -- Of any age: what a rebuild, a redrive or the retention changed is summed up anew, and nothing else is. At once,
        -- since in batches the newest minutes come first, and until the others do, nobody sees these.
        PERFORM add_continuous_aggregate_policy('live_bars_1m', start_offset => NULL, end_offset => interval '1 minute',
            schedule_interval => interval '1 minute', buckets_per_batch => 0, if_not_exists => true);
    ELSE
        EXECUTE 'CREATE OR REPLACE VIEW live_bars_1m AS ' || bars || ' GROUP BY instrument_token, ' || minute;
    END IF;

    EXECUTE 'CREATE OR REPLACE VIEW candles_live_1m AS '
        || format(candles, 'date_trunc(''day'', now(), ''Asia/Kolkata'')', '''infinity''::timestamptz');
    -- In SQL it is inlined into the query, so that a condition on the instrument reaches the ticks. TimescaleDB must not
    -- inline it: up to where minutes are summed up would then be looked up for each tick of these days.
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION live_candles_1m(since timestamptz, until timestamptz DEFAULT ''infinity'') '
        'RETURNS TABLE (instrument_token bigint, "time" timestamptz, open double precision, high double precision, '
        'low double precision, close double precision, volume bigint, oi bigint, ticks bigint) STABLE LANGUAGE %s AS %L',
        CASE WHEN licensed THEN 'plpgsql' ELSE 'sql' END,
        CASE WHEN licensed
            THEN E'#variable_conflict use_column\nBEGIN\n    RETURN QUERY ' || ranged || E';\nEND'
            ELSE ranged
        END);
END $$;

DO $$
DECLARE
    view record;
    columns record;
BEGIN
    FOR view IN
        SELECT * FROM (VALUES
            ('candles_live_5m', interval '5 minutes', 'five minutes'),
            ('candles_live_15m', interval '15 minutes', 'fifteen minutes')
        ) AS views (name, bar, length)
    LOOP
        EXECUTE format($view$
            CREATE OR REPLACE VIEW %I AS
            SELECT
                instrument_token,
                date_bin(%2$L, "time", '2000-01-01 09:15+05:30') AS "time",
                (array_agg(open ORDER BY "time"))[1] AS open,
                max(high) AS high,
                min(low) AS low,
                (array_agg(close ORDER BY "time" DESC))[1] AS close,
                sum(volume)::bigint AS volume,
                (array_agg(oi ORDER BY "time" DESC) FILTER (WHERE oi IS NOT NULL))[1] AS oi,
                sum(ticks)::bigint AS ticks
            FROM candles_live_1m
            GROUP BY instrument_token, date_bin(%2$L, "time", '2000-01-01 09:15+05:30')
            $view$, view.name, view.bar);
        EXECUTE format('COMMENT ON VIEW %I IS %L', view.name, 'Bars of ' || view.length || ' of today, made of candles_live_1m');
    END LOOP;
    FOR columns IN
        SELECT * FROM (VALUES
            ('instrument_token', 'the instrument; see instruments'),
            ('time', 'start of the bar, by the time of receipt'),
            ('open', 'first price (rupees)'),
            ('high', 'highest price (rupees)'),
            ('low', 'lowest price (rupees)'),
            ('close', 'last price (rupees)'),
            ('volume', 'traded between the last packet before the bar and its last: the difference of the day''s cumulative volume; NULL where no packet carried one, and for an index (units)'),
            ('oi', 'open interest at the close (units)'),
            ('ticks', 'packets in the bar')
        ) AS described (name, meaning)
    LOOP
        FOR view IN SELECT unnest(ARRAY['candles_live_1m', 'candles_live_5m', 'candles_live_15m']) AS name LOOP
            EXECUTE format('COMMENT ON COLUMN %I.%I IS %L', view.name, columns.name, columns.meaning);
        END LOOP;
    END LOOP;
END $$;

COMMENT ON FUNCTION live_candles_1m IS 'Bars of the minutes that begin at the first time or later and before the other, of ticks as they came';
COMMENT ON VIEW candles_live_1m IS 'One row an instrument and minute of today (IST) in which packets came of what traded today';
COMMENT ON VIEW live_bars_1m IS 'What candles_live_1m is made of, of all days; with TimescaleDB a continuous aggregate';
COMMENT ON COLUMN live_bars_1m.instrument_token IS 'the instrument; see instruments';
COMMENT ON COLUMN live_bars_1m."time" IS 'start of the minute, by the time of receipt';
COMMENT ON COLUMN live_bars_1m.open IS 'first price; NULL, like all prices, where no packet is of a trade of that day (rupees)';
COMMENT ON COLUMN live_bars_1m.high IS 'highest price (rupees)';
COMMENT ON COLUMN live_bars_1m.low IS 'lowest price (rupees)';
COMMENT ON COLUMN live_bars_1m.close IS 'last price (rupees)';
COMMENT ON COLUMN live_bars_1m.first_volume IS 'cumulative volume of the day that its first packet carried; 0 where that was of a day before (units)';
COMMENT ON COLUMN live_bars_1m.volume_traded IS 'highest cumulative volume of the day; NULL where no packet carried one, and for an index (units)';
COMMENT ON COLUMN live_bars_1m.oi IS 'open interest at the close (units)';
COMMENT ON COLUMN live_bars_1m.ticks IS 'packets of a trade of that day';
