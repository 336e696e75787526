-- Removes what was captured from Dhan, and Dhan's instruments, from every table. Nothing of Kite's is touched, and nothing of
-- the existing system. It cannot be undone but from the journal, which is on disk and stays: see docs/migration.md.
-- All or nothing; stop captures of Dhan first. psql -v ON_ERROR_STOP=1 "$DATABASE_URL" -1 -f sql/remove_dhan_data.sql

DO $$
DECLARE
    -- Dhan's tokens begin here, and Kite's end below. Dhan has the captures 0 to 15, Kite those from 16 on; a block's id begins
    -- with its capture's number, and a tick's with its block's.
    tokens constant bigint := 1099511627776;
    captures constant integer := 16;
    part record;
    removed bigint;
BEGIN
    -- TimescaleDB's, and harmless without it: any number of rows of compressed hours may go.
    PERFORM set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true);
    -- What the digests on record say of hours that had rows of Dhan's is over: the next check of an hour records it anew.
    DELETE FROM hour_digests
    WHERE hour IN (SELECT DISTINCT hour FROM ingest_ledger WHERE capture < captures);
    FOR part IN
        SELECT * FROM (VALUES
            ('tick_rows', format('instrument_token >= %s', tokens)),
            ('rejected_packets', format('block_id < %s', captures::bigint << 42)),
            ('ingest_ledger', format('capture < %s', captures)),
            ('captures', format('capture < %s', captures)),
            ('subscribed_instruments', format('capture < %s', captures)),
            ('redrives', format('capture < %s', captures)),
            ('feed_gaps', format('capture < %s', captures)),
            ('gap_recoveries', format('capture < %s', captures)),
            ('gap_quotes', format('capture < %s', captures)),
            ('candles_1m', format('instrument_token >= %s', tokens)),
            ('broker_candles', format('instrument_token >= %s', tokens)),
            ('broker_fetches', format('instrument_token >= %s', tokens)),
            ('candle_differences', format('instrument_token >= %s', tokens)),
            ('shadow_comparisons', 'true'),
            ('instrument_versions', 'source = ''dhan'''),
            ('instruments', 'source = ''dhan''')
        ) AS parts (name, condition)
        WHERE to_regclass(name) IS NOT NULL
    LOOP
        EXECUTE format('DELETE FROM %I WHERE %s', part.name, part.condition);
        GET DIAGNOSTICS removed = ROW_COUNT;
        RAISE NOTICE '%: % rows', part.name, removed;
    END LOOP;
END $$;
