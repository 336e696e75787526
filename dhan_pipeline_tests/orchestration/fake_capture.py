"""Speaks the capture's side of the protocol: JSON lines out, ends when its standard input closes.

Arguments: hours to announce as complete.
Behaviour by environment: FAKE_CAPTURE=refuse|die|no_plan|noisy|deaf|quit|lock|once (one status line by itself).
FAKE_CAPTURE_SAYS=file: each line that a test writes into the file is said.
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

from dhan_pipeline.journal.writer import JournalWriter

OPEN_HOUR = "2026-11-20T11:00"


def say(event: str, **facts: object) -> None:
    write_line(json.dumps({"event": event, **facts}) + "\n")


def write_line(line: str) -> None:
    """At once and in one piece: three threads say something, and `print` would write the line's end by itself."""
    sys.stdout.write(line)
    sys.stdout.flush()


def status() -> None:
    say(
        "status",
        at=datetime.now(UTC).isoformat(),
        hour=OPEN_HOUR,
        connections_up=1,
        connections=1,
        messages=10,
        packets=100,
        ticks=90,
        state=8,
        control=2,
        rejected=0,
        blocks=1,
        bytes=1600,
        backlog_seconds=0.0,
        latency_p50_ms=1.0,
        latency_p99_ms=2.0,
        latency_total_p50_ms=1.0,
        latency_total_p99_ms=2.0,
        messages_per_second=1.0,
        rss_mb=50.0,
        cpu_percent=1.0,
        last_packet_at=datetime.now(UTC).isoformat(),
        gaps=0,
        gap_open_s=0.0,
        gap_recent_s=0.0,
        silent=[],
        silent_count=0,
        trade_clock="ok",
        token_expires_at=None,
        disk_free_gb=100.0,
    )


def main() -> None:
    mode = os.environ.get("FAKE_CAPTURE", "")
    if mode == "refuse":
        print("Process 42 captures already.", file=sys.stderr)
        sys.exit(1)
    say("started", capture=int(os.environ["CAPTURE"]), source=os.environ["DATA_SOURCE"], pid=os.getpid())
    status()
    for hour in sys.argv[1:]:
        say("hour_complete", hour=hour)
    if mode == "quit":
        return
    if mode == "no_plan":
        say("error", message="Dhan refused the connection (806, data APIs are not subscribed)", permanent=True)
        sys.exit(1)
    if mode == "die":
        say("error", message="The token has expired.")
        sys.exit(1)
    if mode == "lock":
        JournalWriter(Path(os.environ["DATA_DIR"]) / "journal", int(os.environ["CAPTURE"]))
    if mode == "noisy":
        print("this is no JSON", flush=True)
    if mode != "once":
        Thread(target=repeat_status, daemon=True).start()
    if says := os.environ.get("FAKE_CAPTURE_SAYS"):
        Thread(target=say_what_is_written, args=(Path(says),), daemon=True).start()
    sys.stdin.read()
    if mode == "deaf":
        time.sleep(3600)
    status()
    say("stopped", reason="asked to stop")


def repeat_status() -> None:
    while True:
        time.sleep(0.2)
        status()


def say_what_is_written(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)
    with path.open() as lines:
        while True:
            if line := lines.readline():
                write_line(line)
            else:
                time.sleep(0.05)


if __name__ == "__main__":
    main()
