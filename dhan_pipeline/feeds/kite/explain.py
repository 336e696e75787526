"""A frame in words: every packet and every field, with offset, value and meaning. For people, not for speed."""

from dhan_pipeline.feeds.explained import ExplainedField, ExplainedPacket, fields, remainder
from dhan_pipeline.feeds.kite.framing import split
from dhan_pipeline.feeds.kite.packets import exchange_time
from dhan_pipeline.feeds.kite.wire import COUNT_SIZE, DIVISORS, HEARTBEAT_SIZE, LAYOUTS, LENGTH_SIZE
from dhan_pipeline.feeds.layout import Field
from dhan_pipeline.instruments import KiteSegment
from dhan_pipeline.ticks import DEPTH_LEVELS
from dhan_pipeline.times import to_second

_SEGMENTS: dict[int, str] = {segment: segment.name for segment in KiteSegment}
_DIVISORS: dict[int, int] = {int(segment): divisor for segment, divisor in DIVISORS.items()}


def explain(frame: bytes) -> list[ExplainedPacket]:
    """Every packet and field of a binary message of the feed. Its count is a packet of its own. Never raises."""
    if not frame:
        return []
    packets: list[ExplainedPacket] = []
    if len(frame) >= COUNT_SIZE:
        count = int.from_bytes(frame[:COUNT_SIZE], "big")
        row: ExplainedField = {"offset": 0, "field": "packets", "raw": count, "meaning": f"{count} packets follow"}
        packets.append({"kind": "count", "offset": 0, "size": COUNT_SIZE, "error": None, "rows": [row]})
    for start, size, error in split(frame):
        if error is not None:
            packets.append(_unread("unknown", frame, start, size, error))
        elif size:
            packets.append(_packet(frame, start, size))
        elif len(frame) == HEARTBEAT_SIZE:
            packets.append(_unread("heartbeat", frame, 0, HEARTBEAT_SIZE, None))
    return packets


def _unread(kind: str, frame: bytes, start: int, size: int, error: str | None) -> ExplainedPacket:
    rows = remainder(frame, start, start + size)
    return {"kind": kind, "offset": start, "size": size, "error": error, "rows": rows}


def _packet(frame: bytes, start: int, size: int) -> ExplainedPacket:
    layout = LAYOUTS[size]
    divisor = _DIVISORS.get(frame[start + 3], 100)
    length: ExplainedField = {
        "offset": start - LENGTH_SIZE,
        "field": "length",
        "raw": size,
        "meaning": f"{size} bytes: {layout.name}",
    }
    rows = [length, *fields(frame, start, layout, lambda field, value: _meaning(field, int(value), divisor))]
    if layout.level is not None:
        at = start + layout.levels_start
        for number in range(layout.levels):
            side = f"{'bid' if number < DEPTH_LEVELS else 'ask'}[{number % DEPTH_LEVELS}]."
            rows += fields(frame, at, layout.level, lambda field, value: _meaning(field, int(value), divisor), side)
            at += layout.level.size
    return {"kind": layout.name, "offset": start - LENGTH_SIZE, "size": LENGTH_SIZE + size, "error": None, "rows": rows}


def _meaning(field: Field, number: int, divisor: int) -> str:
    match field.name:
        case "instrument_token":
            segment = _SEGMENTS.get(number & 0xFF, "an unknown segment")
            return f"{segment}, exchange token {number >> 8}"
        case "change":
            return f"{number / divisor:.{_decimals(divisor)}f} rupees"
        case "last_trade_time" | "exchange_timestamp":
            time = exchange_time(number)
            return to_second(time) if time else "never"
        case "orders":
            return f"{number} orders"
        case "padding":
            return "not used"
    if field.format == "i":
        if number < 0:
            return "impossible price"
        return f"{number / divisor:.{_decimals(divisor)}f} rupees" if number else "no price"
    return f"{number} units"


def _decimals(divisor: int) -> int:
    return 2 if divisor == 100 else 4
