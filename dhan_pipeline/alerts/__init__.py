"""Alerts: when a change is told, to whom, in which words, and through which channel. Knows no Dagster."""
