-- How a capture that runs learns that rows before its own have changed.

CREATE TABLE IF NOT EXISTS redrives (
    capture  smallint PRIMARY KEY,
    redrives integer NOT NULL
);

COMMENT ON TABLE redrives IS 'How often rejected packets of each capture were driven again. A writer that sees it grow takes over anew what the packets before say about those to come.';
COMMENT ON COLUMN redrives.capture IS 'Number of the capture, 0 to 31';
COMMENT ON COLUMN redrives.redrives IS 'How often packets were accepted that had been rejected, since a writer first began';
