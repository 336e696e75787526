"""PostgreSQL: the embedded server, schema, partitions, COPY, and the ledger that makes every write happen once."""
