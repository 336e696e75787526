-- Which instruments each capture was subscribed to, and when: what packets should have come of, and of what not.

CREATE TABLE IF NOT EXISTS subscribed_instruments (
    capture          smallint NOT NULL,
    instrument_token bigint NOT NULL,
    mode             text NOT NULL,
    since            timestamptz NOT NULL,
    until            timestamptz,
    PRIMARY KEY (capture, instrument_token, since)
);

CREATE INDEX IF NOT EXISTS subscribed_instruments_open ON subscribed_instruments (capture) WHERE until IS NULL;

COMMENT ON TABLE subscribed_instruments IS 'What each capture was subscribed to, and when. While the capture does not run it stays as it was: feed_gaps says when that was';
COMMENT ON COLUMN subscribed_instruments.capture IS 'Number of the capture, 0 to 31';
COMMENT ON COLUMN subscribed_instruments.instrument_token IS 'The instrument; see instruments';
COMMENT ON COLUMN subscribed_instruments.mode IS 'ticker, quote or full';
COMMENT ON COLUMN subscribed_instruments.since IS 'When it was subscribed in this mode';
COMMENT ON COLUMN subscribed_instruments.until IS 'When that ended; NULL where it is the latest';
