"""A frame in words: the shape of what both brokers' `explain` gives, and what they share."""

from collections.abc import Callable
from math import isfinite
from struct import calcsize, unpack_from
from typing import TypedDict

from dhan_pipeline.feeds.layout import Field, Layout


class ExplainedField(TypedDict):
    """One field of a packet."""

    offset: int
    """From the start of the frame, in bytes."""
    field: str
    raw: int | float | str
    """The number on the wire; bytes that are no known field in hexadecimal."""
    meaning: str


class ExplainedPacket(TypedDict):
    """One packet of a frame."""

    kind: str
    offset: int
    """From the start of the frame, in bytes."""
    size: int
    error: str | None
    """Why the packet cannot be read, or None."""
    rows: list[ExplainedField]


def fields(
    frame: bytes, at: int, layout: Layout, meaning: Callable[[Field, float], str], prefix: str = ""
) -> list[ExplainedField]:
    """The fields of a layout, which begins at `at`; not those of its levels."""
    rows: list[ExplainedField] = []
    for field in layout.fields:
        (value,) = unpack_from(layout.order + field.format, frame, at)
        raw = value if isfinite(value) else str(value)
        rows.append({"offset": at, "field": prefix + field.name, "raw": raw, "meaning": meaning(field, value)})
        at += calcsize(layout.order + field.format)
    return rows


def remainder(frame: bytes, at: int, end: int) -> list[ExplainedField]:
    """What follows the known fields: the growth of a packet, or all of one that cannot be read."""
    if at >= end:
        return []
    return [{"offset": at, "field": "rest", "raw": frame[at:end].hex(), "meaning": f"{end - at} bytes, not known"}]
