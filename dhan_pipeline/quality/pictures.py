"""Small drawings of what is measured: ticks through an hour or a session, with its gaps, and latencies.

SVG of at most 670 bytes each: the UI shows no more in place. Nothing is looked up here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from math import log, log10

from dhan_pipeline.amounts import counted
from dhan_pipeline.quality.gaps import GapPart
from dhan_pipeline.sessions import IST, MINUTE_NS
from dhan_pipeline.store.flow import LATENCY_LIMITS_MS

GOOD, BAD, FAINT = "#396", "#d44", "#999"

_WIDTH, _HEIGHT = 360, 50
#: The most columns that a picture has, and the most gaps: those that are next to one another are drawn as one then.
_COLUMNS, _GAPS = 60, 6
#: Where there are fewer limits than this, each is written below its column, else the powers of ten.
_LABELS = 9
#: A gap is as wide as this at least.
_GAP_PIXELS = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, and words for who cannot see it."""

    words: str
    svg: str


def ticks_picture(ticks: Sequence[int], start_ns: int, gaps: Sequence[GapPart]) -> Picture | None:
    """A column for every minute's ticks, or for every few minutes', and red below it the gaps of connections.

    `ticks` are those of each minute from `start_ns` on (ns since the Unix epoch, UTC). None without any ticks or gaps.
    """
    gaps = [gap for gap in gaps if not gap.of_one]
    if not gaps and not any(ticks):
        return None
    each = -(-len(ticks) // _COLUMNS)
    columns = [sum(ticks[at : at + each]) / len(ticks[at : at + each]) for at in range(0, len(ticks), each)]
    highest, width = max(*columns, 1), _WIDTH / len(columns)
    ends = [round(width * at) for at in range(len(columns) + 1)]
    tops = [round(_HEIGHT * (1 - count / highest)) for count in columns]
    steps = "".join(f"V{top}h{to - at}" for top, (at, to) in zip(tops, pairwise(ends), strict=True))
    span_ns = each * len(columns) * MINUTE_NS
    band = "".join(f"M{at} 54h{to - at}" for at, to in _bands(gaps, start_ns, span_ns))
    words = f"ticks a minute, up to {highest:,.0f}" + (f", and {counted(len(gaps), 'gap')}" if gaps else "")
    drawing = (
        f"<path fill='{GOOD}' d='M0 {_HEIGHT}{steps}V{_HEIGHT}z'/>"
        + (f"<path stroke='{BAD}' stroke-width='6' d='{band}'/>" if band else "")
        + _text(0, 68, _clock(start_ns))
        + _text(_WIDTH - 28, 68, _clock(start_ns + span_ns))
        + _text(0, -4, words)
    )
    return Picture(words, _svg(drawing, _WIDTH))


def latency_picture(counts: Sequence[int], warn_ms: float) -> Picture | None:
    """Ticks by the time that they took, as `store/flow.py` counts them; red where that is above `warn_ms`.

    Heights are logarithms, so that one slow tick of a million is seen. None without any.
    """
    some = [at for at, count in enumerate(counts) if count]
    if not some:
        return None
    first, last = some[0], some[-1]
    highest = max(counts)
    width = 24
    bars: dict[str, str] = {GOOD: "", BAD: ""}
    for x, at in enumerate(range(first, last + 1)):
        if counts[at]:
            height = round(4 + (_HEIGHT - 4) * log(counts[at]) / max(log(highest), 1))
            from_ms = LATENCY_LIMITS_MS[at - 1] if at else 0
            bars[BAD if from_ms >= warn_ms else GOOD] += f"M{width * x + width // 2} {_HEIGHT}v-{height}"
    limits = range(first, min(last + 1, len(LATENCY_LIMITS_MS)))
    labels = "".join(
        _text(width * (at - first + 1) - 6, 62, _short(LATENCY_LIMITS_MS[at]))
        for at in limits
        if len(limits) < _LABELS or log10(LATENCY_LIMITS_MS[at]).is_integer()
    )
    words = "ticks by latency in ms (heights: log)"
    drawing = "".join(f"<path stroke='{colour}' stroke-width='20' d='{d}'/>" for colour, d in bars.items() if d)
    return Picture(words, _svg(drawing + labels + _text(0, -4, words), max(width * (last - first + 2), 190)))


def _bands(gaps: Iterable[GapPart], start_ns: int, span_ns: int) -> list[tuple[int, int]]:
    """Where gaps begin and end, in pixels."""
    edges = []
    for gap in sorted(gaps, key=lambda gap: gap.started_ns):
        at, to = (round(_WIDTH * (at_ns - start_ns) / span_ns) for at_ns in (gap.started_ns, gap.ended_ns))
        at = max(min(at, _WIDTH - _GAP_PIXELS), 0)
        edges.append((at, min(max(to, at + _GAP_PIXELS), _WIDTH)))
    near = _GAP_PIXELS
    while len(bands := _merged(edges, near)) > _GAPS:
        near *= 2
    return bands


def _merged(edges: Iterable[tuple[int, int]], near: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for at, to in edges:
        if found and at < found[-1][1] + near:
            found[-1] = found[-1][0], max(to, found[-1][1])
        else:
            found.append((at, to))
    return found


def _text(x: int, y: int, words: str) -> str:
    return f"<text x='{x}' y='{y}'>{words}</text>"


def _svg(drawing: str, width: int) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' viewBox='0 -14 {width} 84' font-size='10'"
        f" fill='{FAINT}'>{drawing}</svg>"
    )


def _clock(at_ns: int) -> str:
    return f"{datetime.fromtimestamp(at_ns // 1_000_000_000, IST):%H:%M}"


def _short(limit: int) -> str:
    return f"{limit}" if limit < 1000 else f"{limit // 1000}k"
