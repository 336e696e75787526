"""Asset keys, groups and run tags that more than one of these modules writes or reads."""

import dagster as dg

RAW_PACKETS = dg.AssetKey("raw_packets")
TICKS = dg.AssetKey("ticks")
LIVE_FEED = dg.AssetKey("live_feed")
TICKS_ARCHIVE = dg.AssetKey("ticks_archive")

#: Groups, and who owns all assets.
REFERENCE, MARKET_DATA = "reference", "market_data"
OWNERS = ("team:market-data",)

#: `ingest` on runs of the ingest job.
ROLE_TAG = "dhan/role"

#: Number of the capture that an ingest run keeps; `dagster.yaml` allows one run a number.
CAPTURE_TAG = "dhan/capture"

#: The session that a run was started for (or failed for good in), and its number among those.
SESSION_TAG = "dhan/session"
ATTEMPT_TAG = "dhan/attempt"

#: Why the run is asked to stop: it flushes and succeeds. `_AT`: when it was asked, in Unix seconds.
STOP_TAG = "dhan/stop"
STOP_AT_TAG = "dhan/stop_at"

#: Why a failed run is not to be replaced in its session before a person has acted, such as at the broker.
NEEDS_PERSON_TAG = "dhan/needs_person"
