"""Asset keys, groups and run tags that more than one of these modules writes or reads."""

from collections.abc import Sequence

import dagster as dg

from dhan_pipeline.sources import Source

SCRIP_MASTER = dg.AssetKey("scrip_master")
INSTRUMENTS = dg.AssetKey("instruments")
RAW_PACKETS = dg.AssetKey("raw_packets")
TICKS = dg.AssetKey("ticks")
LIVE_FEED = dg.AssetKey("live_feed")
TICKS_ARCHIVE = dg.AssetKey("ticks_archive")


def live_feed_key(source: Source, sources: Sequence[Source]) -> dg.AssetKey:
    """What is captured of a source now: `live_feed`; where several are captured, `live_feed_kite` and so on."""
    return LIVE_FEED if len(sources) == 1 else dg.AssetKey(f"live_feed_{source}")


def of_source(name: str, source: Source, sources: Sequence[Source]) -> str:
    """The name of a job or sensor of which there is one a source."""
    return name if len(sources) == 1 else f"{name}_{source}"


#: Groups, in the order of lineage, and who owns all assets.
REFERENCE, CAPTURE, RESEARCH, COMPARISON, OPERATIONS = "reference", "capture", "research", "comparison", "operations"
OWNERS = ("team:market-data",)

#: What kind of run it is: `ingest` on runs of the ingest job. See `run_tags.py` for those that no job of ours started.
ROLE_TAG = "dhan/role"

#: Whose feed or token a run is about, where it is one broker's.
SOURCE_TAG = "dhan/source"

#: Number of the capture that an ingest run keeps; `dagster.yaml` allows one run a number.
CAPTURE_TAG = "dhan/capture"

#: The day (IST) of the session that a run is about, or failed for good in; and of an ingest run its number among those.
SESSION_TAG = "dhan/session"
ATTEMPT_TAG = "dhan/attempt"

#: Why the run is asked to stop: it flushes and succeeds. `_AT`: when it was asked, in Unix seconds.
STOP_TAG = "dhan/stop"
STOP_AT_TAG = "dhan/stop_at"

#: Why a failed run is not to be replaced in its session before a person has acted, such as at the broker.
NEEDS_PERSON_TAG = "dhan/needs_person"
