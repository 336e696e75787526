"""Dagster: what runs when, what it is called, what the UI shows of it. The work is done in the rooms below."""
