"""What all assets get alike: when they are out of date, and links to their code.

Belongs here: what is mapped over every asset in one place. Does not: what each asset says about itself (`assets/`).
"""

import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import dagster as dg

import dhan_pipeline
from dhan_pipeline.orchestration.names import INSTRUMENTS, SCRIP_MASTER
from dhan_pipeline.orchestration.schedules import TIME_ZONE
from dhan_pipeline.settings import Settings

Asset = dg.AssetsDefinition | dg.AssetSpec

#: The sync runs every day at 08:30 IST. A quarter of an hour later its results are of today, or the UI says that they
#: are overdue. The hours of ticks have no such policy: Dagster would take the rebuild of an old hour for a new one.
_SYNCED_TODAY = dg.FreshnessPolicy.cron(
    deadline_cron="45 8 * * *", lower_bound_delta=timedelta(hours=8, minutes=45), timezone=TIME_ZONE
)
FRESHNESS: Mapping[dg.AssetKey, dg.FreshnessPolicy] = {SCRIP_MASTER: _SYNCED_TODAY, INSTRUMENTS: _SYNCED_TODAY}


def with_policies(assets: Sequence[Asset], settings: Settings) -> Sequence[Asset]:
    """The assets with their freshness policies, and with links to the code, on the web where the settings say where."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # links to code: covered by our tests
        linked = dg.with_source_code_references(assets)
        if settings.code_url:
            repository, _, branch = settings.code_url.partition("/tree/")
            linked = dg.link_code_references_to_git(
                linked,
                git_url=repository.removesuffix("/-"),  # GitLab has it there
                git_branch=branch,
                file_path_mapping=dg.AnchorBasedFilePathMapping(
                    local_file_anchor=Path(dhan_pipeline.__file__),
                    file_anchor_path_in_repository="dhan_pipeline/__init__.py",
                ),
            )
    return dg.map_asset_specs(_with_freshness, linked)  # type: ignore[arg-type]  # of these two kinds only


def _with_freshness(spec: dg.AssetSpec) -> dg.AssetSpec:
    policy = FRESHNESS.get(spec.key)
    return spec.replace_attributes(freshness_policy=policy) if policy else spec
