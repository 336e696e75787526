"""Looking back from the journal's end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dhan_pipeline.journal.block import first_block_id
from dhan_pipeline.journal.reader import read_stretches
from dhan_pipeline.journal.stretch import Stretch

T = TypeVar("T")

#: How far each step looks back, in seconds: what came just now is found at once, and each step costs like all before.
_STEPS_S = (5, 20, 80, 320, 1280, 5120, 20_480, 86_400)


def look_back(
    journal_dir: Path, capture: int, now_ns: int, find: Callable[[Stretch], T | None], within_s: float
) -> tuple[T | None, int]:
    """The last thing that `find` finds in a stretch, and from when on all was looked at (ns since the epoch, UTC).

    Looks back a day at most, and for no longer than `within_s` real seconds: what is found in the last step that it
    came to is then perhaps not the last. Raises OSError where the journal cannot be read.
    """
    deadline = time.monotonic() + within_s
    until: int | None = None
    seen_ns = now_ns
    for step_s in _STEPS_S:
        since_ns = now_ns - step_s * 1_000_000_000
        after = first_block_id(capture, since_ns) - 1
        found: T | None = None
        for stretch in read_stretches(journal_dir, capture, after, until):
            latest = find(stretch)
            found = found if latest is None else latest
            if time.monotonic() > deadline:
                return found, seen_ns
        seen_ns, until = since_ns, after
        if found is not None:
            break
    return found, seen_ns
