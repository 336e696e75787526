-- What each hour of ticks held when it was complete, and after whatever renewed it since: a digest of its rows.

CREATE TABLE IF NOT EXISTS hour_digests (
    hour    timestamptz NOT NULL,
    made_at timestamptz NOT NULL,
    origin  text NOT NULL,
    rows    bigint NOT NULL,
    digest  text NOT NULL,
    added   bigint,
    removed bigint,
    changed bigint,
    PRIMARY KEY (hour, made_at)
);

COMMENT ON TABLE hour_digests IS 'What each complete hour of ticks held, and what rebuilds and redrives left of it: equal digests mean equal rows';
COMMENT ON COLUMN hour_digests.hour IS 'start of the IST hour';
COMMENT ON COLUMN hour_digests.made_at IS 'when it was recorded; blocks of the hour that were stored later are not in it';
COMMENT ON COLUMN hour_digests.origin IS 'who left the rows: capture, rebuild or redrive';
COMMENT ON COLUMN hour_digests.rows IS 'rows of ticks in the hour';
COMMENT ON COLUMN hour_digests.digest IS 'sum of a 64-bit hash of each row of tick_rows, modulo 2^64, in hexadecimal';
COMMENT ON COLUMN hour_digests.added IS 'rows that a rebuild added to those that it found; NULL where nothing was compared';
COMMENT ON COLUMN hour_digests.removed IS 'rows that a rebuild removed';
COMMENT ON COLUMN hour_digests.changed IS 'rows that a rebuild replaced by others of the same tick_id';
