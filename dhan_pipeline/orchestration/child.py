"""The capture as a child process: its lines come in through a queue, closing its standard input asks it to end.

Belongs here: processes, pipes, threads. Does not: Dagster (`ingest.py` reports what the lines say) and the capture
itself. A child of its own keeps Dagster's imports and event writes out of the capture's memory and interpreter lock;
and when this process dies, however it dies, the pipe closes and the child flushes and ends.
"""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

#: How long a capture may take to flush once it is asked to stop. The journal keeps what it cannot store in this time.
FLUSH_S = 15.0


class CaptureChild:
    """A running capture. Lines that are not JSON objects come in as warnings; its stderr goes to ours."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._last_error = self._last_line = ""
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            encoding="utf-8",
            errors="replace",
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None
        self._stdin = stdin
        self._readers = [
            threading.Thread(target=self._read_events, args=(stdout,), name="capture-events", daemon=True),
            threading.Thread(target=self._relay_stderr, args=(stderr,), name="capture-log", daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The last error event, else the last line on stderr."""
        return self._last_error or self._last_line

    @property
    def ended(self) -> bool:
        """Whether the process is over. What it said may still be in the queue."""
        return self._process.poll() is not None

    def next_event(self, timeout_s: float) -> dict[str, Any] | None:
        """The next event; None if there is none within `timeout_s`."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def put(self, event: dict[str, Any]) -> None:
        """Queue an event of our own among the capture's. For other threads, so that one thread handles all."""
        self._events.put(event)

    def stop(self, timeout_s: float = FLUSH_S) -> int:
        """Ask the capture to flush and end, wait, and return its exit code. It is killed after `timeout_s`."""
        with contextlib.suppress(OSError):  # it is gone already
            self._stdin.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:  # a second interrupt must not leave a capture behind either
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join(2)
        return self._process.returncode

    def remaining_events(self) -> Iterator[dict[str, Any]]:
        """What is still in the queue."""
        while event := self.next_event(0.01):
            yield event

    def _read_events(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                event = _parse(line)
                if event["event"] == "error":
                    self._last_error = str(event.get("message", ""))
                self._events.put(event)

    def _relay_stderr(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                sys.stderr.write(line)
                self._last_line = line.strip() or self._last_line


def _parse(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    return {"event": "warning", "message": f"The capture printed a line that is not an event: {line.rstrip()[:200]}"}
