"""Feeds: what a broker sends, as bytes in and batches out. No database, no orchestration."""
