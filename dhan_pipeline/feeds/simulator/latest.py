"""The packets of a recording as a client is to get them: cut down to a mode, framed, and the latest of each instrument.

What a client asked for and what was recorded need not agree. A packet of more than was asked for is cut down, field by
field; one of less goes out as it was recorded, because nobody knows the rest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.dhan.wire import LAYOUTS, NEVER_TRADED_S, ResponseCode
from dhan_pipeline.feeds.simulator.dhan import MODE_BITS
from dhan_pipeline.feeds.simulator.market import frame_header
from dhan_pipeline.feeds.simulator.recording import ABOUT_INSTRUMENTS
from dhan_pipeline.instruments import InstrumentIndex

#: Places for instruments at first; there are always twice as many as before when they do not suffice.
_PLACES = 1024


def _sent_modes(recorded: int, seen: int, wanted: int) -> int:
    """As what a packet is sent that was recorded in one mode, of an instrument seen in some and wanted in some (bits).

    In the mode in which it was recorded, if that is wanted; cut down to those below it that are wanted as well and
    do not come by themselves; and where only a higher one is wanted, as it is.
    """
    below = wanted & (recorded - 1)
    if wanted & recorded:
        return recorded | below & ~seen
    return below or (recorded if wanted else 0)


#: The same as a table for each kind of packet, shape (seen, wanted).
SENT_MODES = {
    code: np.array([[_sent_modes(bit, seen, wanted) for wanted in range(8)] for seen in range(8)], np.uint8)
    for code, bit in MODE_BITS.items()
}


def framed(
    packets: NDArray[Any], code: ResponseCode, mode: ResponseCode, shift_s: NDArray[np.int64] | int = 0
) -> NDArray[np.void]:
    """Each packet in a WebSocket frame of its own, cut down to a lower mode if that is another one.

    `packets` are of the layout of `code`, as opaque items. Trade times move by `shift_s` seconds. Items of what is
    returned are opaque.
    """
    layout = LAYOUTS[mode]
    header = frame_header(layout.size)
    opaque = f"V{len(header)}"
    rows = np.empty(len(packets), [("frame", opaque), ("packet", f"V{layout.size}")])
    rows["frame"] = np.frombuffer(header, opaque)
    if code == mode:
        rows["packet"] = packets
    shifted = code in MODE_BITS and np.any(shift_s)
    if code != mode or shifted:
        fields = rows.view([("frame", opaque), ("packet", layout.dtype)])["packet"]
        if code != mode:
            recorded = packets.view(LAYOUTS[code].dtype)
            for field in layout.fields:
                fields[field.name] = recorded[field.name]
            fields["response_code"] = mode
            fields["message_length"] = layout.size
        if shifted:
            raw = fields["last_trade_time"].astype(np.int64)
            fields["last_trade_time"] = np.where(raw > NEVER_TRADED_S, raw + shift_s, raw)
    return rows.view(f"V{rows.itemsize}")


class Latest:
    """The last packet of each kind of every instrument that was recorded until now, or asked for.

    Each has an index, which stays. There are more places than instruments, so that arrays need not grow each time.
    """

    def __init__(self) -> None:
        self.shift_s = 0
        """Seconds by which trade times move in what `frames` gives."""
        self.seen: NDArray[np.uint8] = np.zeros(_PLACES, np.uint8)
        """In which modes each was recorded, as bits: 1 ticker, 2 quote, 4 full."""
        self._instruments = InstrumentIndex([])
        self._rows = {code: np.zeros(_PLACES, f"V{LAYOUTS[code].size}") for code in ABOUT_INSTRUMENTS}
        # When each was recorded, as a number that grows; -1 for never.
        self._order = {code: np.full(_PLACES, -1, np.int64) for code in ABOUT_INSTRUMENTS}

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Token of each instrument, by index."""
        return self._instruments.tokens

    @property
    def recorded(self) -> NDArray[np.bool_]:
        """Whether anything was recorded of each instrument, by index."""
        recorded: NDArray[np.bool_] = np.maximum.reduce([*self._order.values()]) >= 0
        return recorded

    def lookup(self, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
        """Index of each instrument, -1 for one that is not here, and for the token -1."""
        index: NDArray[np.int32]
        if tokens.size and tokens.min() < 0:
            index = np.full(len(tokens), -1, np.int32)
            named = tokens >= 0
            index[named] = self._instruments.lookup(tokens[named])
            return index
        return self._instruments.lookup(tokens)

    def enter(self, tokens: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int32]:
        """Index of each instrument; those that are not here get one."""
        tokens = np.asarray(tokens, np.int64)
        index = self._instruments.lookup(tokens)
        new = tokens[index < 0]
        if not len(new):
            return index
        new = new[np.sort(np.unique(new, return_index=True)[1])]  # in order of appearance
        self._instruments = InstrumentIndex(np.concatenate((self.tokens, new)))
        while len(self.tokens) > len(self):
            self.seen = np.concatenate((self.seen, np.zeros_like(self.seen)))
            for code in ABOUT_INSTRUMENTS:
                self._rows[code] = np.concatenate((self._rows[code], np.zeros_like(self._rows[code])))
                self._order[code] = np.concatenate((self._order[code], np.full_like(self._order[code], -1)))
        return self._instruments.lookup(tokens)

    def keep(
        self, code: ResponseCode, index: NDArray[np.int32], packets: NDArray[np.void], order: NDArray[np.int64]
    ) -> None:
        """Packets of one kind, as opaque items in order of receipt, with a number each that grows over all kinds."""
        self._rows[code][index] = packets
        self._order[code][index] = order
        if code in MODE_BITS:
            self.seen[index] |= np.uint8(MODE_BITS[code])

    def has(self, code: ResponseCode, index: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those instruments of which there is such a packet."""
        return index[self._order[code][index] >= 0]

    def mode_of(self, mode: ResponseCode, index: NDArray[np.intp]) -> NDArray[np.uint8]:
        """The mode in which each instrument can be sent where this one is asked for, as a bit; 0 where it can not.

        It is a lower one where no more was recorded.
        """
        source = self._source(mode, index)
        return np.minimum(source, MODE_BITS[mode]).astype(np.uint8)

    def packets(self, code: ResponseCode, index: NDArray[np.intp]) -> NDArray[Any]:
        """The latest packets of these instruments: a structured array of that layout."""
        layout = LAYOUTS[code]
        rows = self._framed(code, index)
        header = len(frame_header(layout.size))
        return rows.view([("frame", f"V{header}"), ("packet", layout.dtype)])["packet"]

    def frames(self, code: ResponseCode, index: NDArray[np.intp]) -> bytes:
        """The same, each in a WebSocket frame of its own, one after another."""
        return self._framed(code, index).tobytes()

    def _framed(self, code: ResponseCode, index: NDArray[np.intp]) -> NDArray[np.void]:
        if code not in MODE_BITS:
            return framed(self._rows[code][index], code, code)
        source = self._source(code, index)
        size = LAYOUTS[code].size
        rows = np.zeros(len(index), f"V{size + len(frame_header(size))}")
        for recorded, bit in MODE_BITS.items():
            chosen = source == bit
            if chosen.any():
                rows[chosen] = framed(self._rows[recorded][index[chosen]], recorded, code, self.shift_s)
        return rows

    def _source(self, mode: ResponseCode, index: NDArray[np.intp]) -> NDArray[np.uint8]:
        """The mode whose packet says it, as a bit: the newest of those that suffice, else the highest; 0 for none."""
        newest = np.full(len(index), -1, np.int64)
        source = np.zeros(len(index), np.uint8)
        for code, bit in MODE_BITS.items():  # from the lowest
            order = self._order[code][index]
            better = (order >= 0) & ((order > newest) | (source < MODE_BITS[mode]))
            source[better] = bit
            newest[better] = order[better]
        return source
