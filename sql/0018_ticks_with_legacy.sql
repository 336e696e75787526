-- Where there are rows of the existing system (0000), `ticks` has them, too, so that queries on it answer as they did: with
-- the types of ours, without a tick_id, and after our columns those that only the existing system has. Elsewhere
-- nothing changes. Whoever makes the view `ticks` anew has to mind this file.

DO $$
DECLARE
    ours text;
    legacy text;
    more text;
    reader text;
BEGIN
    IF to_regclass('legacy_ticks') IS NULL OR EXISTS (
        SELECT FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid AND classid = 'pg_rewrite'::regclass
        WHERE ev_class = to_regclass('ticks') AND refobjid = to_regclass('legacy_ticks')
    ) THEN
        RETURN;
    END IF;

    SELECT string_agg(CASE
            WHEN attname = 'tick_id' THEN 'NULL::bigint'
            WHEN was.type IS NOT NULL AND was.type = format_type(atttypid, NULL) THEN format('%I', attname)
            WHEN was.type IS NOT NULL THEN format('%I::%s', attname, format_type(atttypid, NULL))
            WHEN attname = 'tradable' THEN 'NOT is_index(instrument_token)'
            WHEN attname = 'mode' THEN '''full''::text'
            ELSE format('NULL::%s', format_type(atttypid, NULL))
        END, ', ' ORDER BY attnum) INTO legacy
    FROM pg_attribute
    LEFT JOIN LATERAL (
        SELECT format_type(old.atttypid, NULL) AS type FROM pg_attribute old
        WHERE old.attrelid = 'legacy_ticks'::regclass AND old.attname = pg_attribute.attname AND NOT old.attisdropped
    ) was ON true
    WHERE attrelid = 'ticks'::regclass AND attnum > 0 AND NOT attisdropped;

    SELECT string_agg(format(', %I', attname), '' ORDER BY attnum),
        string_agg(format(', NULL::%s AS %I', format_type(atttypid, atttypmod), attname), '' ORDER BY attnum)
    INTO more, ours
    FROM pg_attribute old
    WHERE attrelid = 'legacy_ticks'::regclass AND attnum > 0 AND NOT attisdropped AND NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'ticks'::regclass AND attname = old.attname AND NOT attisdropped
    );
    -- Always true. An equality of the two is what lets PostgreSQL look for an instrument by the column itself, and so by its
    -- index and in few segments of a compressed chunk, where a query asks for a token of the view.
    EXECUTE 'CREATE OR REPLACE VIEW ticks AS '
        || regexp_replace(pg_get_viewdef('ticks'::regclass), '\s+FROM (\S*tick_rows);$', coalesce(ours, '') || E'\nFROM \\1')
        || ' UNION ALL SELECT ' || legacy || coalesce(more, '') || ' FROM legacy_ticks'
        || ' WHERE instrument_token = instrument_token::bigint';
    COMMENT ON VIEW ticks IS 'One row a packet that carries a price; and, without a tick_id, the rows of the existing system, which are in legacy_ticks';
    COMMENT ON TABLE legacy_ticks IS 'The ticks of the existing system, as they were there under the name ticks: one row an instrument and second';

    -- Who may read the table under its old name goes on reading under it.
    FOR reader IN
        SELECT CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE format('%I', pg_get_userbyid(grantee)) END
        FROM pg_class, aclexplode(relacl)
        WHERE pg_class.oid = 'legacy_ticks'::regclass AND privilege_type = 'SELECT' AND grantee <> relowner
    LOOP
        EXECUTE 'GRANT SELECT ON ticks TO ' || reader;
    END LOOP;

    -- Prices are double precision here, and were numeric there: without it, round(last_price, 2) would be an error.
    IF to_regprocedure('round(double precision, integer)') IS NULL THEN
        CREATE FUNCTION round(value double precision, decimals integer) RETURNS numeric
            LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
            RETURN round(value::numeric, decimals);
        COMMENT ON FUNCTION round(double precision, integer) IS 'What queries on ticks of the existing system call, where prices were numeric';
    END IF;
END $$;
