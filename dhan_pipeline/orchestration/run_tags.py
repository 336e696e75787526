"""Tags that runs get when they start, whoever started them, so that the list of runs can be filtered by them.

Belongs here: what a run is called that no job of ours describes: a backfill, or what a person materialises or checks.
Does not: the tags that our jobs give to their own runs.
"""

from collections.abc import Mapping

import dagster as dg

from dhan_pipeline.orchestration.names import ROLE_TAG, SESSION_TAG

#: Roles of runs of assets and checks that a person started: many partitions at once, or else.
BACKFILL, BY_HAND = "backfill", "by_hand"


def missing_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """What a run with these tags lacks: its role, and the day (IST) of the hour or day that it is about."""
    found = {ROLE_TAG: BACKFILL if "dagster/backfill" in tags else BY_HAND}
    if partition := tags.get("dagster/partition"):
        found[SESSION_TAG] = partition[: len("2026-11-20")]
    return {name: value for name, value in found.items() if name not in tags}


def tag_run(context: dg.InitResourceContext) -> None:
    """Give the run that initialises its resources what it lacks. A sensor or a schedule does so without a run."""
    if context.run is not None and context.instance is not None and (missing := missing_tags(context.run.tags)):
        context.instance.add_run_tags(context.run.run_id, missing)
