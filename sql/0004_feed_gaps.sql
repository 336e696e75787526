-- Times in which packets may have been missed. The capture notes them in its journal; they are committed with its blocks.

CREATE TABLE IF NOT EXISTS feed_gaps (
    capture     smallint NOT NULL,
    gap_id      bigint NOT NULL,
    connection  smallint NOT NULL,
    instruments bigint[] NOT NULL,
    started_at  timestamptz NOT NULL,
    ended_at    timestamptz,
    cause       text NOT NULL,
    detail      text NOT NULL,
    recovery    text NOT NULL,
    PRIMARY KEY (capture, gap_id)
);

CREATE INDEX IF NOT EXISTS feed_gaps_started_at ON feed_gaps (started_at);

COMMENT ON TABLE feed_gaps IS 'Times in which packets may have been missed, in session or not. It follows from the journal.';
COMMENT ON COLUMN feed_gaps.capture IS 'Number of the capture, 0 to 31';
COMMENT ON COLUMN feed_gaps.gap_id IS 'Identity within the capture: when it was noticed, in nanoseconds since the Unix epoch, or a little above';
COMMENT ON COLUMN feed_gaps.connection IS 'Connection of the capture that missed them';
COMMENT ON COLUMN feed_gaps.instruments IS 'Instruments whose packets may be missing';
COMMENT ON COLUMN feed_gaps.started_at IS 'Last sign of life before it: the gap begins just after';
COMMENT ON COLUMN feed_gaps.ended_at IS 'Receive time of the first packet after it; NULL while it lasts';
COMMENT ON COLUMN feed_gaps.cause IS 'stall, reset, server, token, limit, plan, restart, host down, disk, suspended, stop, or silent (of single instruments)';
COMMENT ON COLUMN feed_gaps.detail IS 'What exactly happened, in words';
COMMENT ON COLUMN feed_gaps.recovery IS 'How it ended, in words; empty while it lasts';
