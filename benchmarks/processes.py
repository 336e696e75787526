"""What processes cost: CPU time and memory, from /proc. Linux only."""

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU time that a process has taken, user and system, in seconds; 0 where it is gone."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def tree_cpu_s(pid: int) -> float:
    """CPU time of a process and of all of its children, those included that have ended and were waited for."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    own_and_waited_for = sum(int(field) for field in fields[11:15]) / _TICKS_PER_S
    return own_and_waited_for + sum(tree_cpu_s(child) for child in children(pid))


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int(_stat(int(entry.name))[1]) == pid:
                    found.append(int(entry.name))
            except OSError:  # it has ended meanwhile
                continue
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; the second may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
