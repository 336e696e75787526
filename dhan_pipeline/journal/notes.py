"""Notes: what the capture writes into its own journal, among the messages, about times in which there were none.

A note is a text message of JSON from a connection that no feed has. It is durable and in order like everything else,
so the gaps of a capture follow from its journal, whatever happens to the process or the database. Readers of packets
need not know of notes: a text message is no packet. Each note says all that it has to say, without those before it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dhan_pipeline.gaps import Cause, Gap
from dhan_pipeline.journal.block import Block
from dhan_pipeline.journal.stretch import Stretch

#: Stands in a block's `connection` where a message is a note. Feeds number theirs from 0.
NOTE_CONNECTION = 255

#: JSON can hold these, PostgreSQL cannot.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Started:
    """A capture's process began. Gaps that were open then ended, as far as that process is concerned, at `since_ns`."""

    pid: int
    since_ns: int | None
    """Receive time of the journal's last message before, ns since the Unix epoch, UTC; None if there was none."""
    cause: Cause
    """How the process before it ended: STOP, RESTART, DISK or HOST_DOWN."""
    last_gap_id: int
    """No gap of an earlier process has an id above this."""


Note = Gap | Started


def encode_note(note: Note) -> bytes:
    """The note as a message."""
    kind = "gap" if isinstance(note, Gap) else "started"
    return json.dumps({"note": kind, **asdict(note)}, separators=(",", ":")).encode()


def decode_note(payload: bytes) -> Note | None:
    """The note in a message; None for what is none that this version knows. Never raises.

    Everything in a note fits the database: numbers are of 63 bits, and characters that it cannot hold are replaced.
    """
    try:
        fields = json.loads(payload)
        cause = Cause(fields["cause"])
        if fields["note"] == "started":
            since_ns, last_gap_id = _number_or_none(fields["since_ns"]), _number(fields["last_gap_id"])
            return Started(_number(fields["pid"]), since_ns, cause, last_gap_id)
        if fields["note"] == "gap":
            instruments = fields.get("instruments")
            return Gap(
                gap_id=_number(fields["gap_id"]),
                connection=_number(fields["connection"], NOTE_CONNECTION),
                started_ns=_number(fields["started_ns"]),
                cause=cause,
                detail=_text(fields.get("detail", "")),
                instruments=None if instruments is None else tuple(map(_number, instruments)),
                ended_ns=_number_or_none(fields.get("ended_ns")),
                recovery=_text(fields.get("recovery", "")),
            )
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def notes(block: Block | Stretch) -> Iterator[tuple[int, Note]]:
    """The notes in order, each with its receive time (ns since the Unix epoch, UTC)."""
    for at in block.text.nonzero()[0].tolist():
        if block.connection[at] != NOTE_CONNECTION:
            continue
        note = decode_note(block.payload[block.offsets[at] : block.offsets[at + 1]])
        if note is not None:
            yield int(block.received_ns[at]), note


def _number(value: Any, limit: int = 1 << 63) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{value} is not a number of a note")
    return value


def _number_or_none(value: Any) -> int | None:
    return None if value is None else _number(value)


def _text(value: Any) -> str:
    return _UNSTORABLE.sub("\ufffd", value)
