"""Who holds a capture's lock, and how it ended: a line in the lock file, for people and for the next process."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from dhan_pipeline.gaps import Cause

#: The line is padded to this size and overwritten in place: that works on a full disk, too.
_SIZE = 128


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds the lock, or held it. What is unknown is None or empty."""

    pid: int | None = None
    boot: str = ""
    """Identity of the machine's run, which ends when the machine goes down."""
    end: Cause | None = None
    """STOP or DISK, once the process has said why it ends."""

    @classmethod
    def read(cls, fd: int) -> Self:
        """What the lock file says. Whatever is not a word of ours counts as unknown; never raises."""
        try:
            pid, boot, end, *_ = [
                *os.pread(fd, _SIZE, 0).decode(errors="replace").split("\n")[0].split("\t"),
                "",
                "",
                "",
            ]
        except OSError:
            return cls()
        cause = Cause(end.strip()) if end.strip() in (Cause.STOP, Cause.DISK) else None
        return cls(int(pid) if pid.strip().isdecimal() else None, boot.strip(), cause)

    def write(self, fd: int) -> None:
        """Replace what the lock file says, durably: it is asked for after the machine went down. Raises OSError."""
        line = f"{self.pid or ''}\t{self.boot}\t{self.end or ''}"
        os.pwrite(fd, line.ljust(_SIZE - 1).encode()[: _SIZE - 1] + b"\n", 0)
        os.ftruncate(fd, _SIZE)
        os.fsync(fd)

    def ended(self, boot: str) -> Cause:
        """How this process ended, seen from the machine's run `boot`."""
        if self.end is not None:
            return self.end
        return Cause.HOST_DOWN if self.boot and boot and self.boot != boot else Cause.RESTART


def held_since(path: Path) -> float | None:
    """Since when, in Unix seconds, a process that lives has held a lock, as its file says; None where none does."""
    try:
        with path.open("rb") as file:
            holder, since_s = Holder.read(file.fileno()), os.fstat(file.fileno()).st_mtime
        if holder.pid is None or holder.end is not None or holder.boot != boot_id():
            return None
        os.kill(holder.pid, 0)
    except PermissionError:  # another user's
        return since_s
    except OSError:
        return None
    return since_s


@cache
def boot_id() -> str:
    """What tells this run of the machine from those before; empty where the system does not say."""
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, subprocess.SubprocessError):
        return ""
