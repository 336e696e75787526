-- A block may come to the database in parts: through RabbitMQ, each of several lanes brings the packets of its instruments, in
-- a transaction of its own. So the ledger has a row a part.

ALTER TABLE ingest_ledger
    ADD COLUMN IF NOT EXISTS part smallint NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS parts smallint NOT NULL DEFAULT 1;

DO $$
BEGIN
    IF (SELECT cardinality(conkey) FROM pg_constraint WHERE conname = 'ingest_ledger_pkey') = 1 THEN
        ALTER TABLE ingest_ledger DROP CONSTRAINT ingest_ledger_pkey, ADD PRIMARY KEY (block_id, part);
    END IF;
END $$;

COMMENT ON TABLE ingest_ledger IS 'One row a journal block, or a part of one, committed together with its ticks. What is here is never stored again. packets = ticks + state + control + rejected.';
COMMENT ON COLUMN ingest_ledger.part IS 'Which part of the block it is, from 1: the lane that brought it through RabbitMQ';
COMMENT ON COLUMN ingest_ledger.parts IS 'How many parts the block has: 1 where it was written whole. All of them are there once it is stored';
COMMENT ON COLUMN ingest_ledger.messages IS 'Messages of the feed in the block; 0 but for its first part';
COMMENT ON COLUMN ingest_ledger.payload_bytes IS 'Bytes of all messages; 0 but for its first part';
COMMENT ON COLUMN ingest_ledger.first_received IS 'Receive time of the block''s first message';
COMMENT ON COLUMN ingest_ledger.last_received IS 'Receive time of the block''s last message';
