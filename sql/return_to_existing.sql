-- Gives an upgraded database back to the existing system: `ticks` is its own table again, with everything that was ever in
-- it, so that its worker can go on inserting. Stop every capture first. No row is changed. What was captured since the
-- upgrade stays in tick_rows, and the view of both is called `ticks_upgraded` until the next `dhan-pipeline migrate`, which
-- upgrades again. Run again, or in a database that was never upgraded, it changes nothing.
-- psql -v ON_ERROR_STOP=1 "$DATABASE_URL" -1 -f sql/return_to_existing.sql

DO $$
BEGIN
    IF to_regclass('legacy_ticks') IS NULL THEN
        RAISE NOTICE 'There is no table legacy_ticks: nothing to return to.';
        RETURN;
    END IF;
    -- A view; or, where an upgrade ended half-way, a table that never had a row, or nothing yet.
    ALTER TABLE IF EXISTS ticks RENAME TO ticks_upgraded;
    ALTER TABLE legacy_ticks RENAME TO ticks;
    IF to_regclass('schema_migrations') IS NOT NULL THEN
        DELETE FROM schema_migrations WHERE name IN ('0000_existing_ticks', '0018_ticks_with_legacy');
    END IF;
END $$;
