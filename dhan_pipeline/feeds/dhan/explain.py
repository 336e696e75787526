"""A frame in words: every packet and every field, with offset, value and meaning. For people, not for speed."""

from math import isfinite

from dhan_pipeline.feeds.dhan.depth import Levels, depth_disconnect_reason, split_depth
from dhan_pipeline.feeds.dhan.framing import split
from dhan_pipeline.feeds.dhan.packets import trade_time
from dhan_pipeline.feeds.dhan.wire import (
    DEPTH_HEADER,
    DEPTH_ROW,
    HEADER,
    LAYOUTS,
    DepthCode,
    ResponseCode,
    disconnect_reason,
)
from dhan_pipeline.feeds.explained import ExplainedField, ExplainedPacket, fields, remainder
from dhan_pipeline.feeds.layout import Field, Layout
from dhan_pipeline.instruments import PRICE_DECIMALS, ExchangeSegment
from dhan_pipeline.times import to_second

_SEGMENTS: dict[int, str] = {segment: segment.name for segment in ExchangeSegment}
_DECIMALS: dict[int, int] = {int(segment): decimals for segment, decimals in PRICE_DECIMALS.items()}
_KINDS: dict[int, str] = {ResponseCode.INDEX: "index"} | {code: layout.name for code, layout in LAYOUTS.items()}
_DEPTH_KINDS: dict[int, str] = {code: code.name.lower() for code in DepthCode}


def explain(frame: bytes) -> list[ExplainedPacket]:
    """Every packet and field of a message of the live feed, or of a 20- or 200-level depth feed. Never raises."""
    if _is_depth(frame):
        length = int.from_bytes(frame[:2], "little")
        levels: Levels = 20 if length == DEPTH_HEADER.size + 20 * DEPTH_ROW.size else 200
        return [_depth_packet(frame, *packet, levels) for packet in split_depth(frame, levels)]
    return [_packet(frame, *packet) for packet in split(frame)]


def _is_depth(frame: bytes) -> bool:
    """Depth feeds put the length first, which makes their first byte no code of the live feed."""
    return len(frame) >= DEPTH_HEADER.size and frame[2] in _DEPTH_KINDS and frame[0] not in LAYOUTS


def _packet(frame: bytes, start: int, size: int, code: int, error: str | None) -> ExplainedPacket:
    at, rows = start, []
    if size >= HEADER.size:
        layout = LAYOUTS.get(code, HEADER)
        if size < layout.size:
            layout = HEADER
        decimals = _DECIMALS.get(frame[start + 3], 2)
        rows = _fields(frame, at, layout, decimals)
        at += layout.levels_start
        if layout.level is not None:
            for level in range(layout.levels):
                rows += _fields(frame, at, layout.level, decimals, f"depth[{level}].")
                at += layout.level.size
    rows += remainder(frame, at, start + size)
    return {"kind": _KINDS.get(code, "unknown"), "offset": start, "size": size, "error": error, "rows": rows}


def _depth_packet(frame: bytes, start: int, size: int, code: int, error: str | None, levels: Levels) -> ExplainedPacket:
    kind = _DEPTH_KINDS.get(code, "unknown")
    at, rows = start, []
    if size >= DEPTH_HEADER.size:
        rows = _fields(frame, at, DEPTH_HEADER, 2)
        at += DEPTH_HEADER.size
        if code == DepthCode.DISCONNECT:
            at = _disconnect(frame, start, size, rows)
        elif levels == 20:
            rows[-1] |= {"field": "sequence", "meaning": "not used"}
        if error is None and code != DepthCode.DISCONNECT:
            count = 20 if levels == 20 else int(rows[-1]["raw"])
            for level in range(count):
                rows += _fields(frame, at, DEPTH_ROW, 2, f"{kind}[{level}].")
                at += DEPTH_ROW.size
    rows += remainder(frame, at, start + size)
    return {"kind": kind, "offset": start, "size": size, "error": error, "rows": rows}


def _disconnect(frame: bytes, start: int, size: int, rows: list[ExplainedField]) -> int:
    """Add the reason of a disconnect packet of the depth feeds to the rows of its header. Returns where it ends."""
    at = start + DEPTH_HEADER.size
    found = depth_disconnect_reason(frame[start : start + size])
    if found and int.from_bytes(frame[at : start + size][:2], "little") != found:
        at = rows.pop()["offset"]  # it stands where other packets have their rows
    elif size < DEPTH_HEADER.size + 2:
        return at
    reason = int.from_bytes(frame[at : at + 2], "little")
    rows.append({"offset": at, "field": "reason_code", "raw": reason, "meaning": disconnect_reason(reason)})
    return at + 2


def _fields(frame: bytes, at: int, layout: Layout, decimals: int, prefix: str = "") -> list[ExplainedField]:
    return fields(frame, at, layout, lambda field, value: _meaning(field, value, decimals), prefix)


def _meaning(field: Field, value: float, decimals: int) -> str:
    if field.format in "fd":
        if not isfinite(value) or value < 0:
            return "impossible price"
        return f"{value:.{decimals}f} rupees" if value else "no price"
    number = int(value)
    match field.name:
        case "response_code":
            return (_KINDS | _DEPTH_KINDS).get(number, "unknown")
        case "message_length":
            return f"{number} bytes"
        case "exchange_segment":
            return _SEGMENTS.get(number, "not assigned")
        case "security_id":
            return "security id"
        case "last_trade_time":
            time = trade_time(number)
            return to_second(time) if time else "never traded"
        case "reason_code":
            return disconnect_reason(number)
        case "rows":
            return f"{number} rows"
        case "bid_orders" | "ask_orders" | "orders":
            return f"{number} orders"
        case _:
            return f"{number} units"
