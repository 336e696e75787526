"""A code location like the real one, with a fake capture, and a supervisor and a run that do not take their time."""

import sys
from pathlib import Path

from dhan_pipeline.orchestration import ingest, supervisor
from dhan_pipeline.orchestration.build import build_defs

ingest.HEARTBEAT_S = 0.5
ingest.POLL_S = 0.2
supervisor.MAX_BACKOFF_S = 0.0
supervisor.START_S = 30.0
supervisor.UNLOCKED_S = 1.0

defs = build_defs(capture_command=[sys.executable, str(Path(__file__).with_name("fake_capture.py"))])
