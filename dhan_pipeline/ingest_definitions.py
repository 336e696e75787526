"""Dagster's door to the code location `ingest`: the capture alone."""

from dhan_pipeline.orchestration.build import build_defs

defs = build_defs(location="ingest")
