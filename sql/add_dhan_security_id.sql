-- What instruments of Dhan need in the table `instruments` of the existing system: columns, an index, and the view
-- `active_instruments`. No row is changed: the rows that are there read `kite` in the new column `source`, and active.
-- Integer columns become bigint, for Dhan's tokens are above 2^40; their values stay.
-- In a new database, and when it is run again, it changes nothing. It runs with psql, too, before the other files or
-- without them: psql -v ON_ERROR_STOP=1 "$DATABASE_URL" -1 -f sql/add_dhan_security_id.sql

DO $$
DECLARE
    wider text;
    in_the_way text;
    readers text[];
    reader text;
BEGIN
    IF to_regclass('instruments') IS NULL THEN
        RETURN;  -- 0001 makes it, with all of this
    END IF;

    SELECT string_agg(needed, ', ') INTO in_the_way
    FROM unnest(ARRAY['instrument_token', 'trading_symbol', 'exchange']) AS needed
    WHERE NOT EXISTS (SELECT FROM pg_attribute
        WHERE attrelid = 'instruments'::regclass AND attname = needed AND NOT attisdropped);
    IF in_the_way IS NOT NULL THEN
        RAISE EXCEPTION 'The table instruments is not that of the existing system, for it has no %. Rename it, then migrate again.', in_the_way;
    END IF;

    -- The view is made anew where its columns change; who may read it goes on reading it.
    SELECT array_agg(CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE format('%I', pg_get_userbyid(grantee)) END) INTO readers
    FROM pg_class, aclexplode(relacl)
    WHERE pg_class.oid = to_regclass('active_instruments') AND privilege_type = 'SELECT' AND grantee <> relowner;

    IF pg_get_viewdef(to_regclass('active_instruments')) NOT LIKE '%is_active%' THEN
        RAISE WARNING 'The view active_instruments of yours is replaced. It was: %',
            regexp_replace(pg_get_viewdef(to_regclass('active_instruments')), '\s+', ' ', 'g');
    END IF;

    SELECT string_agg(format('ALTER %I TYPE bigint', attname), ', ') INTO wider
    FROM pg_attribute
    WHERE attrelid = 'instruments'::regclass AND attname IN ('instrument_token', 'exchange_token', 'security_id')
        AND atttypid = 'integer'::regtype;
    IF wider IS NOT NULL THEN
        -- PostgreSQL widens no column that a view reads, and drops no view that another reads.
        SELECT string_agg(DISTINCT ev_class::regclass::text, ', ') INTO in_the_way
        FROM pg_depend
        JOIN pg_rewrite ON pg_rewrite.oid = objid AND classid = 'pg_rewrite'::regclass
        LEFT JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
        WHERE refclassid = 'pg_class'::regclass AND ev_class IS DISTINCT FROM to_regclass('active_instruments')
            AND (refobjid = to_regclass('active_instruments')
                OR refobjid = 'instruments'::regclass
                AND attname IN ('instrument_token', 'exchange_token', 'security_id') AND atttypid = 'integer'::regtype);
        IF in_the_way IS NOT NULL THEN
            RAISE EXCEPTION 'Views of yours read active_instruments, or columns of instruments that become bigint: %. Keep what pg_get_viewdef says of them, drop them, migrate, and make them again; docs/migration.md says how.', in_the_way;
        END IF;
        DROP VIEW IF EXISTS active_instruments;
        EXECUTE 'ALTER TABLE instruments ' || wider;
    END IF;

    ALTER TABLE instruments
        ADD COLUMN IF NOT EXISTS source text DEFAULT 'kite',
        ADD COLUMN IF NOT EXISTS security_id bigint,
        ADD COLUMN IF NOT EXISTS exchange_segment text,
        ADD COLUMN IF NOT EXISTS name text,
        ADD COLUMN IF NOT EXISTS segment text,
        ADD COLUMN IF NOT EXISTS instrument_type text,
        ADD COLUMN IF NOT EXISTS series text,
        ADD COLUMN IF NOT EXISTS isin text,
        ADD COLUMN IF NOT EXISTS underlying_symbol text,
        ADD COLUMN IF NOT EXISTS expiry date,
        ADD COLUMN IF NOT EXISTS strike numeric(12, 2),
        ADD COLUMN IF NOT EXISTS option_type text,
        ADD COLUMN IF NOT EXISTS tick_size numeric(10, 4),
        ADD COLUMN IF NOT EXISTS lot_size integer,
        ADD COLUMN IF NOT EXISTS exchange_token bigint,
        ADD COLUMN IF NOT EXISTS is_active boolean NOT NULL DEFAULT true,
        ADD COLUMN IF NOT EXISTS last_updated timestamptz;
    -- A loader that knows no sources goes on loading Kite's instruments.
    ALTER TABLE instruments ALTER source SET DEFAULT 'kite';

    CREATE INDEX IF NOT EXISTS instruments_security_id ON instruments (security_id, exchange_segment)
        WHERE security_id IS NOT NULL;

    BEGIN
        CREATE OR REPLACE VIEW active_instruments AS SELECT * FROM instruments WHERE is_active;
    EXCEPTION WHEN invalid_table_definition THEN  -- it had other columns
        DROP VIEW active_instruments;
        CREATE VIEW active_instruments AS SELECT * FROM instruments WHERE is_active;
    END;
    COMMENT ON VIEW active_instruments IS 'Instruments that the latest master names';
    FOREACH reader IN ARRAY coalesce(readers, '{}') LOOP
        EXECUTE 'GRANT SELECT ON active_instruments TO ' || reader;
    END LOOP;
END $$;
