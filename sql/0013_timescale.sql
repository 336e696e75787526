-- Where the server has TimescaleDB, `tick_rows` is a hypertable; elsewhere it stays natively partitioned. The same
-- columns, the same queries; docs/timescaledb.md says what differs. A table that has ticks is left as it is:
-- `dhan-pipeline db to-timescaledb` moves it, and runs this file again to do so.

DO $$
DECLARE
    -- Of the columnstore: a day of ticks is left as it comes, so that late blocks, redrives and rebuilds of the same day
    -- decompress nothing.
    compress_after constant interval := '1 day';
    messages constant text := current_setting('client_min_messages');
    version text;
    ticks_view text;
    explained text;
    filled boolean;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'tick_rows'::regclass) = 'p' THEN
        IF NOT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb') THEN
            RAISE NOTICE 'The server has no TimescaleDB: ticks are in native partitions.';
            RETURN;
        END IF;
        -- A setting of the loader, which anybody may read; shared_preload_libraries is not for everybody. Without it,
        -- creating the extension would end the connection.
        IF current_setting('timescaledb.disable_load', true) IS DISTINCT FROM 'off' THEN
            RAISE WARNING 'TimescaleDB is installed but not loaded, so ticks are in native partitions; name it in shared_preload_libraries, restart the server, then run: dhan-pipeline db to-timescaledb.';
            RETURN;
        END IF;
        SELECT EXISTS (SELECT FROM tick_rows) INTO filled;
        IF filled THEN
            RAISE WARNING 'Ticks stay in native partitions, though the server has TimescaleDB; to move them, run: dhan-pipeline db to-timescaledb.';
            RETURN;
        END IF;
        BEGIN
            PERFORM set_config('client_min_messages', 'error', true);  -- it says welcome
            CREATE EXTENSION IF NOT EXISTS timescaledb;
            PERFORM set_config('client_min_messages', messages, true);
        EXCEPTION WHEN OTHERS THEN
            PERFORM set_config('client_min_messages', messages, true);
            RAISE WARNING 'Ticks are in native partitions, for TimescaleDB cannot be set up in this database: %. Have its owner or a superuser run CREATE EXTENSION timescaledb, then run: dhan-pipeline db to-timescaledb.', SQLERRM;
            RETURN;
        END;
        SELECT extversion INTO version FROM pg_extension WHERE extname = 'timescaledb';
        IF regexp_split_to_array(substring(version FROM '^\d+\.\d+'), '\.')::integer[] < ARRAY[2, 23] THEN
            RAISE WARNING 'Ticks are in native partitions, for TimescaleDB is of version %; update it to 2.23 or later, then run: dhan-pipeline db to-timescaledb.', version;
            RETURN;
        END IF;

        ticks_view := pg_get_viewdef('ticks'::regclass);
        explained := obj_description('tick_rows'::regclass);
        -- 0020 makes them again.
        DROP VIEW IF EXISTS live_bars_1m, candles_live_1m, candles_live_5m, candles_live_15m;
        ALTER TABLE tick_rows RENAME TO tick_rows_native;
        ALTER INDEX tick_rows_instrument_token RENAME TO tick_rows_native_instrument_token;
        CREATE TABLE tick_rows (LIKE tick_rows_native INCLUDING DEFAULTS INCLUDING COMMENTS);
        CREATE INDEX tick_rows_instrument_token ON tick_rows (instrument_token);
        EXECUTE format('COMMENT ON TABLE tick_rows IS %L', explained);
        EXECUTE 'CREATE OR REPLACE VIEW ticks AS ' || ticks_view;
        DROP TABLE tick_rows_native;

        -- Chunks begin at multiples of their length since 1970 in UTC, and an IST hour at :30. So a chunk that TimescaleDB
        -- makes by itself is half an hour, lest it reach into two IST hours: they are rebuilt, archived and dropped one
        -- by one. The program makes chunks of an hour ahead of need, where the licence lets it.
        PERFORM create_hypertable('tick_rows', by_range('time', interval '30 minutes'), create_default_indexes => false);
    END IF;

    IF current_setting('timescaledb.license', true) IS DISTINCT FROM 'timescale' THEN
        RAISE WARNING 'This TimescaleDB has the Apache licence: ticks are in a hypertable without compression, background jobs and continuous aggregates.';
        RETURN;
    END IF;
    IF NOT (SELECT compression_enabled FROM timescaledb_information.hypertables
            WHERE format('%I.%I', hypertable_schema, hypertable_name)::regclass = 'tick_rows'::regclass) THEN
        ALTER TABLE tick_rows SET (
            timescaledb.enable_columnstore,
            timescaledb.segmentby = 'instrument_token',
            timescaledb.orderby = '"time", tick_id'
        );
        CALL add_columnstore_policy('tick_rows', after => compress_after, schedule_interval => interval '1 hour');
    END IF;
END $$;
