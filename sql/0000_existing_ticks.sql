-- The table `ticks` of the existing system, of which each row is an instrument and a second, becomes `legacy_ticks`: with
-- its rows, key, indexes, compression, policies and continuous aggregates, none of which is touched. From
-- 0018 on `ticks` is a view of its rows and of ours. A new database, and one of ours, stays as it is.
-- After sql/return_to_existing.sql it upgrades again.

DO $$
DECLARE
    kind constant "char" := (SELECT relkind FROM pg_class WHERE oid = to_regclass('ticks'));
    columns constant text[] := (SELECT array_agg(attname::text) FROM pg_attribute
        WHERE attrelid = to_regclass('ticks') AND attnum > 0 AND NOT attisdropped);
    in_the_way text;
BEGIN
    -- Ours is a view of tick_rows, or was, before 0006, a partitioned table with a tick_id.
    IF kind IS NULL OR (kind = 'p' AND 'tick_id' = ANY(columns)) OR (kind = 'v' AND EXISTS (
        SELECT FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid AND classid = 'pg_rewrite'::regclass
        WHERE ev_class = to_regclass('ticks') AND refobjid = to_regclass('tick_rows')
    )) THEN
        RETURN;
    END IF;
    IF kind NOT IN ('r', 'p') OR NOT columns @> ARRAY['time', 'instrument_token', 'last_price'] THEN
        RAISE EXCEPTION 'What is named ticks in this database is not the table of the existing system, and would be in the way. Rename it, then migrate again.';
    END IF;
    IF to_regclass('legacy_ticks') IS NOT NULL THEN
        RAISE EXCEPTION 'The table ticks would be renamed legacy_ticks, but there is a legacy_ticks already. Rename that one, then migrate again.';
    END IF;

    -- Before anything of it is renamed: what a later file would stumble over. Whatever is ours has a comment.
    SELECT string_agg(name, ', ') INTO in_the_way
    FROM unnest(ARRAY[
        'archived_days', 'broker_candles', 'broker_fetches', 'candle_differences', 'candles_1m', 'candles_5m',
        'candles_15m', 'candles_1d', 'candles_60m', 'candles_live_1m', 'candles_live_5m', 'candles_live_15m', 'candles_live_60m',
        'captures', 'feed_gaps', 'gap_quotes', 'gap_recoveries', 'hour_digests', 'ingest_ledger', 'instrument_lives',
        'instrument_versions', 'live_bars_1m', 'redrives', 'rejected_packets', 'shadow_comparisons', 'subscribed_instruments', 'tick_rows',
        'ticks_with_symbols'
    ]) AS name
    WHERE to_regclass(name) IS NOT NULL AND obj_description(to_regclass(name), 'pg_class') IS NULL;
    IF in_the_way IS NOT NULL THEN
        RAISE EXCEPTION 'This database has tables or views of yours with names of ours: %. Rename them, then migrate again.', in_the_way;
    END IF;

    SELECT string_agg(DISTINCT ev_class::regclass::text, ', ') INTO in_the_way
    FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid AND classid = 'pg_rewrite'::regclass
    JOIN pg_class ON pg_class.oid = ev_class
    WHERE refclassid = 'pg_class'::regclass AND refobjid = 'ticks'::regclass
        AND relnamespace::regnamespace::text NOT LIKE '\_timescaledb%' AND relname NOT IN ('ticks_upgraded', 'ticks_with_symbols');
    ALTER TABLE ticks RENAME TO legacy_ticks;
    IF in_the_way IS NOT NULL THEN
        RAISE WARNING 'These go on reading the rows of before alone, which are in legacy_ticks now: %. Make views of yours again to have both.', in_the_way;
    END IF;
    -- What `ticks` was before the return to the existing system.
    IF to_regclass('ticks_upgraded') IS NOT NULL THEN
        ALTER TABLE ticks_upgraded RENAME TO ticks;  -- which renames a view as well
    END IF;
END $$;
