"""Processes with a log file each: started, kept running, and stopped with all that they started."""

import os
import shutil
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

from dhan_pipeline.local.guardian import Guardian, LocalError, signal_group

#: Longest that a service may take to start, and to end before it is killed.
START_S = 60.0
STOP_S = 5.0

#: A service that ended is started again after 2, 4, 8… seconds, at most this many. One that lived for so long was well.
MAX_BACKOFF_S = 30.0

#: A log that has grown to this many bytes becomes the one before, `name.log.1`, and begins anew: a few days of the
#: daemon's, which says each few seconds that it has looked.
LOG_BYTES = 20_000_000


class Service:
    """A process with a session of its own, so that a terminal's Ctrl-C reaches it only through us."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], guardian: Guardian) -> None:
        """`command`: a program of this Python environment, and its arguments. `log` gets all that it prints."""
        self._command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        self._log = log
        self._environment = dict(environment)
        self._guardian = guardian
        self._groups: list[int] = []
        """Process groups: of a process that was replaced, what it had started may still run."""
        self._failures = 0
        self._again_at: float | None = None
        self._process = self._start()

    @property
    def name(self) -> str:
        """What it is, for a person."""
        return self._log.stem

    @property
    def pid(self) -> int:
        """Of its present process."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return once `ready()`. Raises LocalError where the process ends before, or takes too long."""
        deadline = time.monotonic() + START_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LocalError(f"The {self.name} did not start; see {self._log}.")
            time.sleep(0.05)

    def wait_until_done(self) -> None:
        """Return once the process has ended well. Raises LocalError where it failed."""
        if self._process.wait():
            raise LocalError(f"The {self.name} failed; see {self._log}.")

    def revive(self) -> bool:
        """Start the process again if it has ended, after a while that grows; whether that was done now."""
        if self._process.poll() is None:
            return False
        now = time.monotonic()
        if self._again_at is None:
            self._failures = 0 if now - self._started_at > MAX_BACKOFF_S else self._failures + 1
            self._again_at = now + min(2.0**self._failures, MAX_BACKOFF_S)
        if now < self._again_at:
            return False
        self._again_at = None
        self._process = self._start()
        return True

    def shorten_log(self) -> None:
        """Begin the log anew where it is long. What is said in this very moment may be lost."""
        # The process keeps the file open, and appends: it goes on at the new end.
        with suppress(OSError):  # such as a full disk; the next time, then
            if self._log.stat().st_size > LOG_BYTES:
                shutil.copyfile(self._log, self._log.with_name(f"{self._log.name}.1"))
                os.truncate(self._log, 0)

    def ask_to_stop(self) -> None:
        """SIGTERM to the process and all that it started."""
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ask to stop and wait; kill what does not."""
        self.ask_to_stop()
        deadline = time.monotonic() + STOP_S
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        while self._signal(0) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for group in self._groups:
            self._guardian.end(group)

    def _start(self) -> subprocess.Popen[bytes]:
        self._started_at = time.monotonic()
        with self._log.open("ab") as file:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_reset_signals,
            )
        self._groups.append(process.pid)
        self._guardian.begin(process.pid)
        return process

    def _signal(self, number: int) -> bool:
        """Whether any of it was there."""
        there = [signal_group(group, number) for group in self._groups]
        return any(there)


class Services:
    """What runs, and is kept running."""

    def __init__(self, logs: Path, guardian: Guardian) -> None:
        """`logs` gets a file for each."""
        self._logs = logs
        self._guardian = guardian
        self._kept: list[Service] = []

    @contextmanager
    def run(
        self, name: str, *command: str, environment: Mapping[str, str] = os.environ, keep: bool = True
    ) -> Iterator[Service]:
        """A `Service` that is stopped at the end, and if `keep` one of those that are revived until then."""
        running = Service(command, self.log(name), environment, self._guardian)
        try:
            if keep:
                self._kept.append(running)
            yield running
        finally:
            if keep:
                self._kept.remove(running)
            running.stop()

    def log(self, name: str) -> Path:
        """The file that gets all that a service prints."""
        return self._logs / f"{name}.log"

    def revive(self) -> list[str]:
        """Start again what has ended, and keep logs short; returns the names of what was started now."""
        for service in self._kept:
            service.shorten_log()
        return [service.name for service in self._kept if service.revive()]


def make_logs(data_dir: Path) -> Path:
    """The folder for logs in a data directory, made if need be. Raises LocalError where it cannot be."""
    try:
        (data_dir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(f"The data directory {data_dir} cannot be used: {error.strerror}.") from None
    return data_dir / "logs"


def free_port(port: int = 0) -> int:
    """The port on 127.0.0.1 if it is free, any free one for 0. Raises LocalError for one that is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise LocalError(f"Port {port} is taken; choose another with --port, or --port 0 for a free one.") from None
        free: int = probe.getsockname()[1]
        return free


def port_beside(port: int) -> int:
    """The port after this one if it is free, else any."""
    try:
        return free_port(port + 1)
    except (LocalError, OverflowError):
        return free_port()


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
