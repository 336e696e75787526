"""Recorded messages as packets: where each lies, what it is, which instrument it is about. Whole arrays at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dhan_pipeline.feeds.dhan.decode import REJECTED, split_packets
from dhan_pipeline.feeds.dhan.wire import HEADER, LAYOUTS, ResponseCode
from dhan_pipeline.instruments import dhan_tokens

#: Stands in for the response code of a packet that is longer than its layout. `REJECTED` and `TEXT` stand for others.
GROWN = 253

#: Kinds of packets that are about an instrument.
ABOUT_INSTRUMENTS = (
    ResponseCode.TICKER,
    ResponseCode.QUOTE,
    ResponseCode.FULL,
    ResponseCode.OPEN_INTEREST,
    ResponseCode.PREVIOUS_CLOSE,
)
_IS_ABOUT_ONE = np.isin(np.arange(256), [*ABOUT_INSTRUMENTS, GROWN])
_MAY_NAME_ONE = _IS_ABOUT_ONE | np.isin(np.arange(256), [REJECTED])

#: Size of each kind's layout, by response code.
_LAYOUT_SIZES = np.zeros(256, np.int64)
_LAYOUT_SIZES[list(LAYOUTS)] = [layout.size for layout in LAYOUTS.values()]


@dataclass(frozen=True, slots=True)
class Messages:
    """Recorded messages in order of receipt: `payload[start[i]:start[i] + size[i]]` is message i.

    Never empty. Times are ns since the Unix epoch, UTC, and do not step back.
    """

    received_ns: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    text: NDArray[np.bool_]
    """Whether the message was a text frame."""
    payload: bytes

    def __len__(self) -> int:
        return len(self.received_ns)

    def part(self, begin: int, end: int) -> "Messages":
        """The messages from `begin` on and before `end`, which are some; their bytes lie in order."""
        first = int(self.start[begin])
        return Messages(
            self.received_ns[begin:end],
            self.start[begin:end] - first,
            self.size[begin:end],
            self.text[begin:end],
            self.payload[first : int(self.start[end - 1] + self.size[end - 1])],
        )


@dataclass(frozen=True, slots=True)
class Packets:
    """Packets in order of receipt, those of a message one after another."""

    received_ns: NDArray[np.int64]
    code: NDArray[np.uint8]
    """Response code; `GROWN`, `REJECTED` and `TEXT` for what is as long as no packet of its code, or is none."""
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    token: NDArray[np.int64]
    """The instrument that the header names, -1 where it names none."""
    payload: bytes

    def __len__(self) -> int:
        return len(self.code)

    @property
    def instruments(self) -> NDArray[np.int64]:
        """Tokens of the readable packets that are about an instrument."""
        return self.token[_IS_ABOUT_ONE.take(self.code)]


def packets_of(messages: Messages) -> Packets:
    """Every packet in the messages but those that end a connection. Never raises."""
    payload = messages.payload
    start, size, code, message = split_packets(payload, messages.start, messages.size, messages.text)
    received_ns = messages.received_ns[message]
    known = _LAYOUT_SIZES.take(code)
    grown = (size > known) & (known > 0)
    if grown.any():
        code[grown] = np.where(_IS_ABOUT_ONE.take(code[grown]), GROWN, REJECTED)
    stays = code != ResponseCode.DISCONNECT
    if not stays.all():
        start, size, code, received_ns = start[stays], size[stays], code[stays], received_ns[stays]
    named = np.flatnonzero(_MAY_NAME_ONE.take(code) & (size >= HEADER.size))
    token = np.full(len(code), -1, np.int64)
    if len(named):
        windows = np.ndarray((len(payload) - HEADER.size + 1,), f"V{HEADER.size}", payload, strides=(1,))
        header = windows[start[named]].view(HEADER.dtype)
        token[named] = dhan_tokens(header["exchange_segment"], header["security_id"])
    return Packets(received_ns, code, start, size, token, payload)


def merge(recordings: Sequence[Iterator[Messages]]) -> Iterator[Messages]:
    """Several recordings as one, in order of receipt. Of each, one piece at a time is held."""
    heads = [(head, recording) for recording in recordings if (head := next(recording, None)) is not None]
    while len(heads) > 1:
        until_ns = min(head.received_ns[-1] for head, _ in heads)
        parts: list[Messages] = []
        later: list[tuple[Messages, Iterator[Messages]]] = []
        for head, recording in heads:
            cut = int(head.received_ns.searchsorted(until_ns, "right"))
            if cut:
                parts.append(head.part(0, cut))
            rest = head.part(cut, len(head)) if cut < len(head) else next(recording, None)
            if rest is not None:
                later.append((rest, recording))
        heads = later
        yield _interleaved(parts)
    for head, recording in heads:
        yield head
        yield from recording


def _interleaved(parts: Sequence[Messages]) -> Messages:
    if len(parts) == 1:
        return parts[0]
    received_ns = np.concatenate([part.received_ns for part in parts])
    order = received_ns.argsort(kind="stable")
    begins = np.array([0, *(len(part.payload) for part in parts)]).cumsum()
    start = np.concatenate([part.start + begin for part, begin in zip(parts, begins[:-1], strict=True)])
    return Messages(
        received_ns[order],
        start[order],
        np.concatenate([part.size for part in parts])[order],
        np.concatenate([part.text for part in parts])[order],
        b"".join([part.payload for part in parts]),
    )
