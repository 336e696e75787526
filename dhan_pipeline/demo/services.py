"""Processes of the demo: started with a log file each, waited for, and stopped with all that they started."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dhan_pipeline.errors import PipelineError

#: Longest that a service may take to start, and to end before it is killed.
START_S = 60.0
STOP_S = 5.0


class DemoError(PipelineError):
    """The demo cannot run."""


class Service:
    """A process with a session of its own, so that a terminal's Ctrl-C reaches it only through us."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """`command`: a program of this Python environment, and its arguments. `log` gets all that it prints."""
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name(command[0])), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=_reset_signals,
            )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return once `ready()`. Raises DemoError where the process ends before, or takes too long."""
        deadline = time.monotonic() + START_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"The {self._log.stem} did not start; see {self._log}.")
            time.sleep(0.05)

    def wait_until_done(self) -> None:
        """Return once the process has ended well. Raises DemoError where it failed."""
        if self._process.wait():
            raise DemoError(f"The {self._log.stem} failed; see {self._log}.")

    def ask_to_stop(self) -> None:
        """SIGTERM to the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """Ask to stop and wait; kill what does not."""
        self.ask_to_stop()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def service(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[Service]:
    """A `Service` that is stopped at the end."""
    running = Service(command, log, environment)
    try:
        yield running
    finally:
        running.stop()


def free_port(port: int = 0) -> int:
    """The port on 127.0.0.1 if it is free, any free one for 0. Raises DemoError for one that is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise DemoError(f"Port {port} is taken; choose another with --port, or --port 0 for a free one.") from None
        free: int = probe.getsockname()[1]
        return free


def listens(port: int) -> bool:
    """Whether something takes connections on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Whether a web server answers a GET with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _reset_signals() -> None:
    # Started in a shell's background, SIGINT is ignored; Dagster would then ignore SIGTERM too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
