"""Everything on one machine: Dagster and what stands beside it, started, kept running and stopped with one command."""
