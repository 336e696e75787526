"""The raw capture on disk: append-only, durable, readable by every Arrow tool. The format is docs/journal-format.md."""
