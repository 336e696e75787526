"""Lanes: the queues between capture and workers. All packets of an instrument take one, so they stay in order."""

import numpy as np
from numpy.typing import NDArray

#: Workers share the lanes, so no more of them than this work at once. A message says how many there were.
LANES = 3

#: The lane of what belongs to no instrument: texts, heartbeats, torn bytes.
FIRST_LANE = 1

# Knuth's multiplicative hash: tokens of a segment are consecutive, those of several segments differ in high bits alone.
_FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)
_SHIFT = np.uint64(40)


def lane_of(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lane of each instrument token, 1 to `LANES`, shape (n,). The same in every process and version."""
    return ((tokens.astype(np.uint64) * _FACTOR >> _SHIFT) % np.uint64(LANES)).astype(np.int64) + FIRST_LANE
