-- The books: which journal blocks are stored, what could not be stored, and what each capture is doing.

CREATE TABLE IF NOT EXISTS ingest_ledger (
    block_id       bigint PRIMARY KEY,
    capture        smallint NOT NULL,
    hour           timestamptz NOT NULL,
    messages       integer NOT NULL,
    packets        integer NOT NULL,
    ticks          integer NOT NULL,
    state          integer NOT NULL,
    control        integer NOT NULL,
    rejected       integer NOT NULL,
    payload_bytes  integer NOT NULL,
    first_received timestamptz NOT NULL,
    last_received  timestamptz NOT NULL,
    stored_at      timestamptz NOT NULL,
    latency_ms     real,
    rebuilt_at     timestamptz
);

CREATE INDEX IF NOT EXISTS ingest_ledger_hour ON ingest_ledger (hour);
-- Rows arrive in the order of stored_at, so a few block ranges tell what was stored in the last seconds.
CREATE INDEX IF NOT EXISTS ingest_ledger_stored_at ON ingest_ledger USING brin (stored_at)
    WITH (pages_per_range = 16, autosummarize = on);

COMMENT ON TABLE ingest_ledger IS 'One row a journal block, committed together with its ticks. A block that is here is never stored again. packets = ticks + state + control + rejected.';
COMMENT ON COLUMN ingest_ledger.block_id IS 'Journal block: capture << 42 | number. Ids of a capture grow with time';
COMMENT ON COLUMN ingest_ledger.capture IS 'Number of the capture that received it, 0 to 31';
COMMENT ON COLUMN ingest_ledger.hour IS 'Start of the IST hour in which all of it was received';
COMMENT ON COLUMN ingest_ledger.messages IS 'Messages of the feed in the block';
COMMENT ON COLUMN ingest_ledger.packets IS 'Packets in those messages';
COMMENT ON COLUMN ingest_ledger.ticks IS 'Packets that became rows of ticks';
COMMENT ON COLUMN ingest_ledger.state IS 'Packets that say something about later ticks: open interest, previous close';
COMMENT ON COLUMN ingest_ledger.control IS 'Packets that are neither data nor state: heartbeat, status, disconnect';
COMMENT ON COLUMN ingest_ledger.rejected IS 'Packets that could not become a tick; see rejected_packets';
COMMENT ON COLUMN ingest_ledger.payload_bytes IS 'Bytes of all messages';
COMMENT ON COLUMN ingest_ledger.first_received IS 'Receive time of the first message';
COMMENT ON COLUMN ingest_ledger.last_received IS 'Receive time of the last message';
COMMENT ON COLUMN ingest_ledger.stored_at IS 'When the block was first stored, just before its commit';
COMMENT ON COLUMN ingest_ledger.latency_ms IS 'Milliseconds from receipt of its oldest message to stored_at; NULL if only a rebuild ever stored it';
COMMENT ON COLUMN ingest_ledger.rebuilt_at IS 'When its rows were last rebuilt from the journal';

CREATE TABLE IF NOT EXISTS rejected_packets (
    block_id   bigint NOT NULL,
    position   integer NOT NULL,
    received   timestamptz NOT NULL,
    connection smallint,
    reason     text NOT NULL,
    payload    bytea NOT NULL,
    PRIMARY KEY (block_id, position)
);

CREATE INDEX IF NOT EXISTS rejected_packets_received ON rejected_packets (received);

COMMENT ON TABLE rejected_packets IS 'Packets that could not become ticks, with the reason and every byte, so that they can be driven again';
COMMENT ON COLUMN rejected_packets.block_id IS 'Journal block that holds it';
COMMENT ON COLUMN rejected_packets.position IS 'Place among the packets of its block';
COMMENT ON COLUMN rejected_packets.received IS 'When its message was received';
COMMENT ON COLUMN rejected_packets.connection IS 'Connection of the capture that received it';
COMMENT ON COLUMN rejected_packets.reason IS 'Why it is not a tick';
COMMENT ON COLUMN rejected_packets.payload IS 'Its bytes';

CREATE TABLE IF NOT EXISTS captures (
    capture    smallint PRIMARY KEY,
    source     text NOT NULL,
    pid        integer NOT NULL,
    host       text NOT NULL,
    started_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    status     jsonb NOT NULL
);

COMMENT ON TABLE captures IS 'The latest status of each capture, renewed every second while it runs';
COMMENT ON COLUMN captures.capture IS 'Number of the capture, 0 to 31';
COMMENT ON COLUMN captures.source IS 'Broker whose feed it captures';
COMMENT ON COLUMN captures.pid IS 'Process that runs it';
COMMENT ON COLUMN captures.host IS 'Machine of that process';
COMMENT ON COLUMN captures.started_at IS 'When that process first reported';
COMMENT ON COLUMN captures.updated_at IS 'When it last reported';
COMMENT ON COLUMN captures.status IS 'The status line as the capture prints it';
