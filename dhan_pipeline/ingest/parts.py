"""Journal blocks -> their parts, a lane each, and parts -> the rows that are stored: the same as those of whole blocks.

A part stands alone. It carries what the packets of the day before it said about its instruments, so that whoever gets
it needs neither those packets nor the parts in order.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.enrich import MarketState, enrich
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.feeds.by_source import Decode
from dhan_pipeline.feeds.dhan.decode import decode as decode_dhan
from dhan_pipeline.instruments import InstrumentIndex
from dhan_pipeline.journal.notes import notes
from dhan_pipeline.journal.stretch import Stretch
from dhan_pipeline.store.ticks import Share, StoredBlocks
from dhan_pipeline.ticks import Decoded, RawTicks, StateUpdates
from dhan_pipeline.transport.lanes import FIRST_LANE, LANES, lane_of
from dhan_pipeline.transport.message import Part, Remembered

Ints = NDArray[np.int64]


class OtherLanesError(PipelineError):
    """The part was made for another number of lanes than there are here."""


def remembered(instruments: InstrumentIndex, state: MarketState, decoded: Decoded) -> Remembered:
    """What the state says of every instrument that has a packet here; nothing of those that it does not know."""
    found = [packets.instrument_token for packets in _of_instruments(decoded)]
    tokens = np.unique(np.concatenate(found))
    index = instruments.lookup(tokens)
    known = index >= 0
    index = index[known]
    nothing = MarketState(len(tokens))
    nothing.previous_close[known] = state.previous_close[index]
    nothing.announced[known] = state.announced[index]
    nothing.open_interest[known] = state.open_interest[index]
    return Remembered(tokens, nothing.previous_close, nothing.announced, nothing.open_interest)


def split(stretch: Stretch, decoded: Decoded, before: Remembered) -> Iterator[Part]:
    """The parts of blocks, one for each lane, in order. `before`: what is remembered of the instruments in them.

    A lane gets each message that has a packet of its own, whole; and hears of each block, if it has none of it.
    """
    lane = _lanes(decoded)
    starts = decoded.message.searchsorted(np.arange(len(stretch.received_ns)))  # of each message's first packet
    firsts, ends = stretch.first_messages[:-1], stretch.first_messages[1:]
    first_position = starts - starts.take(firsts).repeat(ends - firsts)
    lane_of_remembered = lane_of(before.tokens)
    for number in range(FIRST_LANE, FIRST_LANE + LANES):
        wanted = np.zeros(len(stretch.received_ns), np.bool_)
        wanted[decoded.message[lane == number]] = True
        at = np.flatnonzero(wanted)
        of_lane = lane_of_remembered == number
        payload, offsets = _messages(stretch, at)
        yield Part(
            lane=number,
            lanes=LANES,
            block_ids=stretch.block_ids,
            messages=ends - firsts,
            payload_bytes=stretch.offsets[ends] - stretch.offsets[firsts],
            first_received_ns=stretch.received_ns[firsts],
            last_received_ns=stretch.received_ns[ends - 1],
            first_messages=at.searchsorted(stretch.first_messages),
            received_ns=stretch.received_ns[at],
            connection=stretch.connection[at],
            text=stretch.text[at],
            first_position=first_position[at],
            payload=payload,
            offsets=offsets,
            remembered=Remembered(
                before.tokens[of_lane],
                before.previous_close[of_lane],
                before.announced[of_lane],
                before.open_interest[of_lane],
            ),
        )


class PartProcessor:
    """Decodes and enriches parts, in any order."""

    def __init__(self, tokens: Ints, decode: Decode = decode_dhan) -> None:
        """`tokens`: every known instrument token of the source, whose messages `decode` reads."""
        self._decode = decode
        self.learn(tokens)

    @property
    def instruments(self) -> InstrumentIndex:
        """The known instruments."""
        return self._instruments

    def learn(self, tokens: Ints) -> None:
        """Know these instruments from the next part on."""
        self._instruments = InstrumentIndex(tokens)
        self._state = MarketState(len(self._instruments))

    def process(self, part: Part) -> StoredBlocks:
        """Its rows, and what its ledger rows say. Raises OtherLanesError."""
        if part.lanes != LANES:
            raise OtherLanesError(f"The part is one of {part.lanes}, and here are {LANES} lanes.")
        stretch = Stretch(
            part.block_ids,
            part.first_messages,
            part.received_ns,
            part.connection,
            part.text,
            part.payload,
            part.offsets,
        )
        decoded = self._decode(part.payload, part.offsets, part.text)
        starts = decoded.message.searchsorted(np.arange(len(part.received_ns)))
        place = (part.first_position - starts).take(decoded.message) + np.arange(decoded.packets)
        self._recall(part.remembered)
        enriched = enrich(
            _only(replace(decoded, place=place), _lanes(decoded) == part.lane),
            part.block_ids,
            part.first_messages,
            part.received_ns,
            self._instruments,
            self._state,
        )
        share = Share(
            part.lane,
            part.lanes,
            part.messages,
            part.payload_bytes,
            part.first_received_ns,
            part.last_received_ns,
        )
        return StoredBlocks(stretch, enriched, tuple(notes(stretch)), share)

    def _recall(self, before: Remembered) -> None:
        index = self._instruments.lookup(before.tokens)
        known = index >= 0
        index = index[known]
        self._state.previous_close[index] = before.previous_close[known]
        self._state.announced[index] = before.announced[known]
        self._state.open_interest[index] = before.open_interest[known]


def _of_instruments(decoded: Decoded) -> list[RawTicks | StateUpdates]:
    return [*decoded.ticks, decoded.previous_close, decoded.open_interest]


def _lanes(decoded: Decoded) -> Ints:
    """The lane of each packet. What belongs to no instrument, or cannot be read, is the first one's."""
    lane = np.full(decoded.packets, FIRST_LANE)
    for packets in _of_instruments(decoded):
        lane[packets.position] = lane_of(packets.instrument_token)
    return lane


def _messages(stretch: Stretch, at: Ints) -> tuple[bytes, Ints]:
    """Payload of some of the messages, and where each begins and ends in it."""
    if len(at) == len(stretch.received_ns):
        return stretch.payload, stretch.offsets
    begins, ends = stretch.offsets[at], stretch.offsets[at + 1]
    offsets = np.zeros(len(at) + 1, np.int64)
    (ends - begins).cumsum(out=offsets[1:])
    payload = stretch.payload
    places = zip(begins.tolist(), ends.tolist(), strict=True)
    return b"".join([payload[begin:end] for begin, end in places]), offsets


def _only(decoded: Decoded, keep: NDArray[np.bool_]) -> Decoded:
    """Some of the packets, as if there were no others."""
    if keep.all():
        return decoded
    number = keep.cumsum() - 1  # of each packet among those that stay
    assert decoded.place is not None
    return Decoded(
        payload=decoded.payload,
        message=decoded.message[keep],
        ticks=[_chosen(packets, keep, number) for packets in decoded.ticks],
        open_interest=_chosen_updates(decoded.open_interest, keep, number),
        previous_close=_chosen_updates(decoded.previous_close, keep, number),
        control_positions={
            name: number[positions[keep[positions]]] for name, positions in decoded.control_positions.items()
        },
        rejected=[
            replace(rejection, position=int(number[rejection.position]))
            for rejection in decoded.rejected
            if keep[rejection.position]
        ],
        place=decoded.place[keep],
    )


def _chosen(ticks: RawTicks, keep: NDArray[np.bool_], number: Ints) -> RawTicks:
    at = keep[ticks.position]
    return replace(
        ticks,
        position=number[ticks.position[at]],
        message=ticks.message[at],
        instrument_token=ticks.instrument_token[at],
        columns={name: values[at] for name, values in ticks.columns.items()},
        start=ticks.start[at],
        size=ticks.size[at],
    )


def _chosen_updates(updates: StateUpdates, keep: NDArray[np.bool_], number: Ints) -> StateUpdates:
    at = keep[updates.position]
    return StateUpdates(
        position=number[updates.position[at]],
        message=updates.message[at],
        instrument_token=updates.instrument_token[at],
        value=updates.value[at],
        start=updates.start[at],
        size=updates.size[at],
    )
