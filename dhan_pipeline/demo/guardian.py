"""Ends what a demo leaves behind that was killed: the guardian, a process that the demo tells what it starts.

A demo that ends in order has stopped everything by then. One that is killed only lets go of the pipe to its guardian,
which has a session of its own and then does the rest. The next demo in the same folder waits for that.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dhan_pipeline.errors import PipelineError
from dhan_pipeline.store import embedded

#: How long processes may take to end when asked: a capture stores what it has received. Then they are killed.
END_S = 10.0

#: Longest wait for the guardian of a demo that was killed just before.
WAIT_S = 60.0

_POLL_S = 0.05


class DemoError(PipelineError):
    """The demo cannot run."""


class Guardian:
    """The demo's end of the pipe."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe

    def begin(self, what: int | Path) -> None:
        """Something runs that must not outlive the demo: a process group, or the PostgreSQL of a data directory."""
        self._say(f"+{what}")

    def end(self, what: int | Path) -> None:
        """It has been stopped."""
        self._say(f"-{what}")

    def _say(self, line: str) -> None:
        with suppress(OSError):  # a guardian that somebody killed is not worth ending the demo for
            self._pipe.write(f"{line}\n")
            self._pipe.flush()


@contextmanager
def guarded(data_dir: Path) -> Iterator[Guardian]:
    """Make the data directory this demo's own, with a guardian. Whatever is not stopped at the end, it ends.

    There is a folder `logs` in it. Raises DemoError where another demo runs in it, or where what a killed one has left
    does not end.
    """
    with _lock(data_dir / "demo.lock") as demo, _lock(data_dir / "guardian.lock") as last:
        if not _taken(demo, within_s=0):
            raise DemoError(f"A demo runs already in {data_dir}; stop it, or choose another --data-dir.")
        if not _taken(last, within_s=WAIT_S):
            raise DemoError(f"What the last demo in {data_dir} has started does not end; choose another --data-dir.")
        with (data_dir / "logs" / "guardian.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dhan_pipeline.demo.guardian"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                pass_fds=(last,),  # the guardian holds the lock for as long as it lives
                start_new_session=True,
            )
        assert process.stdin is not None
        try:
            yield Guardian(process.stdin)
        finally:
            with suppress(OSError):
                process.stdin.close()
            process.wait()


@contextmanager
def _lock(path: Path) -> Iterator[int]:
    """A file that can be locked, open."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _taken(fd: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)


def guard(lines: Iterable[str]) -> None:
    """Keep the books until the demo is gone, then end what it has not ended itself."""
    left: dict[str, None] = {}
    for line in lines:
        what = line[1:].rstrip("\n")
        if line.startswith("+"):
            left[what] = None
        else:
            left.pop(what, None)
    groups = [int(what) for what in left if what.isdigit()]
    for group in groups:
        signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + END_S
    while any(signal_group(group, 0) for group in groups) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for group in groups:
        signal_group(group, signal.SIGKILL)
    # After those who write into it.
    for data_dir in (Path(what) for what in left if not what.isdigit()):
        with suppress(PipelineError):
            embedded.stop(data_dir)


def signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; whether it was there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
        return False
    return True


if __name__ == "__main__":
    guard(sys.stdin)
