"""The code location `ingest`, with a fake capture, and a run that does not take its time."""

import sys
from pathlib import Path

from dhan_pipeline.orchestration import ingest
from dhan_pipeline.orchestration.build import build_defs

ingest.HEARTBEAT_S = 0.5
ingest.POLL_S = 0.2

fake_capture = [sys.executable, str(Path(__file__).with_name("fake_capture.py"))]
defs = build_defs(location="ingest", capture_command=fake_capture)
