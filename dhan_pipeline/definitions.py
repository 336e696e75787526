"""Dagster's door where one code location has everything."""

from dhan_pipeline.orchestration.build import build_defs

defs = build_defs()
