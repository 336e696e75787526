"""Dagster's door: the definitions of this code location."""

from dhan_pipeline.orchestration.build import build_defs

defs = build_defs()
