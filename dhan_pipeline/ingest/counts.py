"""What was committed since the start: plain numbers that one thread adds up and any other may read."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.clock import Clock
from dhan_pipeline.ingest.latency import LatencyHistogram
from dhan_pipeline.store.ticks import StoredBlocks


@dataclass(slots=True)
class Counts:
    """Of blocks, their packets, and how long these took. Written by the thread that commits, and by no other."""

    blocks: int = 0
    """A lane's part of a block counts as one."""
    packets: int = 0
    ticks: int = 0
    state: int = 0
    control: int = 0
    rejected: int = 0
    batches: int = 0
    """Transactions that stored something."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Accepted packets by kind: ticker, quote, full, open_interest, previous_close, heartbeat, …"""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rejected packets by reason."""
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    """Of each message, from its receipt to the commit."""
    committed_through_ns: int = 0
    """Receive time of the last message committed, ever; 0 while that is unknown."""
    hours: frozenset[str] = frozenset()
    """Partition keys of hours that hold committed blocks. Replaced, never changed: another thread reads it."""

    def add(self, stored: Sequence[StoredBlocks], written: Collection[int], clock: Clock) -> None:
        """Count what was just committed: those of the blocks that have an id in `written`; the others were before."""
        now_ns = clock.now_ns()
        ids = set(written)
        self.blocks += len(ids)
        self.batches += bool(ids)
        for part in stored:
            stretch, enriched = part.stretch, part.enriched
            block_ids = stretch.block_ids.tolist()
            new: slice | NDArray[np.bool_] = slice(None)
            of_new = new
            if ids.issuperset(block_ids):
                self.kinds.update(enriched.kinds)
            else:  # some of them were counted when they were stored the first time, and their kinds with them
                new = np.array([block_id in ids for block_id in block_ids])
                of_new = new.repeat(np.diff(stretch.first_messages))
            self.latency.add((now_ns - stretch.received_ns[of_new]) / (1e6 * clock.speed))
            self.packets += sum(enriched.packets[new].tolist())
            self.ticks += sum(enriched.rows[new].tolist())
            self.state += sum(enriched.state[new].tolist())
            self.control += sum(enriched.control[new].tolist())
            if enriched.rejected:
                rejected = [rejection.reason for rejection in enriched.rejected if rejection.block_id in ids]
                self.rejected += len(rejected)
                self.reasons.update(rejected)
        if stored:
            self.hours |= {part.hour for part in stored}
            self.committed_through_ns = max(self.committed_through_ns, stored[-1].last_received_ns)
