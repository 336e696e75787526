-- Which days of ticks are archived as Parquet: what the retention asks before it drops them.

CREATE TABLE IF NOT EXISTS archived_days (
    day         date PRIMARY KEY,
    rows        bigint NOT NULL,
    digest      text NOT NULL,
    hours       jsonb NOT NULL,
    bytes       bigint NOT NULL,
    file        text NOT NULL,
    archived_at timestamptz NOT NULL
);

COMMENT ON TABLE archived_days IS 'Days whose ticks are in a Parquet file that was read back and compared before it got its name';
COMMENT ON COLUMN archived_days.day IS 'IST day in which the ticks were received';
COMMENT ON COLUMN archived_days.rows IS 'Ticks of the day';
COMMENT ON COLUMN archived_days.digest IS 'Digest of its rows of tick_rows: the sum of those of its hours, modulo 2^64, 16 hexadecimal digits';
COMMENT ON COLUMN archived_days.hours IS 'Digest of each hour that has ticks, by the hour of the IST clock: {"09": "..."}';
COMMENT ON COLUMN archived_days.bytes IS 'Size of the file';
COMMENT ON COLUMN archived_days.file IS 'The file, relative to the data directory';
COMMENT ON COLUMN archived_days.archived_at IS 'When it was written';
