"""Dagster's door to the code location `dhan_pipeline` of a site whose captures have their own: everything else."""

from dhan_pipeline.orchestration.build import build_defs

defs = build_defs(location="dhan_pipeline")
