"""Ends what a killed program leaves behind: the guardian, a process that the program tells what it starts.

A program that ends in order has stopped everything by then. One that is killed only lets go of the pipe to its
guardian, which has a session of its own and then does the rest. The next one in the same folder waits for that.
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
from dhan_pipeline.journal.holder import Holder, boot_id
from dhan_pipeline.settings import UP_LOCK
from dhan_pipeline.store import embedded

#: How long processes may take to end when asked: a capture stores what it has received. Then they are killed.
END_S = 10.0

#: Longest wait for the guardian of a program that was killed just before.
WAIT_S = 60.0

_POLL_S = 0.05


class LocalError(PipelineError):
    """Not everything can be started on this machine."""


class Guardian:
    """Our end of the pipe."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe

    def begin(self, what: int | Path) -> None:
        """Something runs that must not outlive us: a process group, or the PostgreSQL of a data directory."""
        self._say(f"+{what}")

    def end(self, what: int | Path) -> None:
        """It has been stopped."""
        self._say(f"-{what}")

    def _say(self, line: str) -> None:
        with suppress(OSError):  # a guardian that somebody killed is not worth ending the demo for
            self._pipe.write(f"{line}\n")
            self._pipe.flush()


@contextmanager
def guarded(data_dir: Path, postgres_bin_dir: Path | None = None) -> Iterator[Guardian]:
    """Make the data directory ours alone, with a guardian. Whatever is not stopped at the end, it ends.

    There is a folder `logs` in it. Raises LocalError where a demo or `up` runs in it, or where what a killed one has
    left does not end.
    """
    with _lock(data_dir / UP_LOCK) as ours, _lock(data_dir / "guardian.lock") as last:
        if not _taken(ours, within_s=0):
            raise LocalError(
                f"A demo, or `dhan-pipeline up`, runs already in {data_dir}; stop it, or choose another data directory."
            )
        if not _taken(last, within_s=WAIT_S):
            raise LocalError(
                f"What was started in {data_dir} before, and then killed, does not end; choose another data directory."
            )
        Holder(os.getpid(), boot_id()).write(ours)
        with (data_dir / "logs" / "guardian.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "dhan_pipeline.local.guardian",
                    *([postgres_bin_dir] if postgres_bin_dir else []),
                ],
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


def guard(lines: Iterable[str], postgres_bin_dir: Path | None = None) -> None:
    """Keep the books until the program is gone, then end what it has not ended itself."""
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
            embedded.stop(data_dir, postgres_bin_dir)


def signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; whether it was there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
        return False
    return True


if __name__ == "__main__":
    guard(sys.stdin, Path(sys.argv[1]) if sys.argv[1:] else None)
