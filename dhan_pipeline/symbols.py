"""What people write for an instrument, read without a database: `NIFTY`, `BSE:RELIANCE`, `NIFTY 26NOV 26000 CE`.

It can often be read in several ways; which of them exists, `store/symbols.py` finds out. The rules:

- Capitals do not matter. Before a colon stands an exchange (NSE, BSE, MCX), its derivatives (NFO, BFO, CDS, BCD) or an
  exchange segment (NSE_FNO). Digits alone are an instrument token; after a colon, the number in that segment: Dhan's
  security id, Kite's exchange token.
- A future or an option without an expiry is the nearest one that has not expired.
- A month is that month's last expiry; without a year, the next such month.
- `26NOV` is the next 26 November if it expires on that day, else November 2026.
- Where nothing stands between expiry and strike, it is as exchanges write it, and 26NOV the other way round: November
  2026 before the day. NIFTY26NOV26000CE, NIFTY26NOVFUT, and with the day NIFTY24NOV2626000CE, NIFTY26N2426000CE (months
  1 to 9, O, N, D).
"""

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import MAXYEAR, date
from typing import Literal

from dhan_pipeline.instruments import ExchangeSegment, token_of
from dhan_pipeline.sources import Source

#: Kite's names of indices that their derivatives, and Dhan, call otherwise.
KITE_INDICES = {
    "NIFTY 50": "NIFTY",
    "NIFTY BANK": "BANKNIFTY",
    "NIFTY FIN SERVICE": "FINNIFTY",
    "NIFTY MID SELECT": "MIDCPNIFTY",
    "NIFTY NEXT 50": "NIFTYNXT50",
    "NIFTY IT": "NIFTYIT",
    "NIFTY INFRA": "NIFTYINFRA",
    "NIFTY PSE": "NIFTYPSE",
    "NIFTY CPSE": "NIFTYCPSE",
    "NIFTY MIDCAP 50": "NIFTYMCAP50",
    "GIFT NIFTY": "GIFTNIFTY",
    "SENSEX": "SENSEX",
    "BANKEX": "BANKEX",
}
KITE_NAMES = {name: kite for kite, name in KITE_INDICES.items()}

#: A month's letter in the symbol of a weekly contract, January's first.
MONTH_CODES = "123456789OND"

_MONTHS = {name.upper(): number for number, name in enumerate(calendar.month_abbr) if name}

_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_OPTION = r"(?P<strike>\d{1,10}(?:\.\d{1,4})?)[ -]?(?P<type>CE|PE|CALL|PUT)"
_END = rf"(?:FUT|{_OPTION})"
_EXPIRY = rf"(?:(?P<iso>\d{{4}}-\d\d-\d\d)|(?:(?P<number>\d{{1,2}})[ -]?)?{_MONTH}(?:[ -]?(?P<year>\d{{4}}|\d\d))?)"

_GLUED = re.compile(rf"(?P<symbol>.+?)[ -]?(?P<number>\d\d){_MONTH}{_END}")
_DERIVATIVES = (
    re.compile(rf"(?P<symbol>.+?)[ -]+(?:{_EXPIRY}[ -]+)?{_END}"),
    _GLUED,
    re.compile(rf"(?P<symbol>.+?)[ -]?(?P<number>\d\d){_MONTH}(?P<year>\d\d){_END}"),
    re.compile(rf"(?P<symbol>.+?)(?P<year>\d\d)(?P<code>[{MONTH_CODES}])(?P<number>\d\d){_OPTION}"),
)
_SERIES = re.compile(r"(?P<symbol>.+)[ -](?P<series>[A-Z][A-Z0-9])")

_EXCHANGES = {"NSE": "NSE_EQ", "BSE": "BSE_EQ", "MCX": "MCX_COMM"}
_SEGMENTS = {"NFO": "NSE_FNO", "BFO": "BSE_FNO", "CDS": "NSE_CURRENCY", "BCD": "BSE_CURRENCY"} | {
    name: name for name in ExchangeSegment.__members__
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read what was written; what is None was not said."""

    kind: Literal["token", "name", "future", "option"]
    symbol: str = ""
    """In capitals: symbol or name; of a derivative, its underlying's symbol."""
    token: int | None = None
    exchange: str | None = None
    segment: str | None = None
    series: str | None = None
    first: date = date.min
    """The expiry lies from this day to the last one, both included."""
    last: date = date.max
    latest: bool = False
    """Of several expiries the last is meant, not the first."""
    strike: float | None = None
    option_type: Literal["CE", "PE"] | None = None


def read_symbol(text: str, on: date, source: Source) -> list[Reading]:
    """All ways to read what was written, the likeliest first; none where nothing was. `on` is the day it is, IST.

    Tokens are the source's. What cannot be printed is in no name, nor would a database take all of it.
    """
    words = " ".join(text.upper().split())
    prefix, colon, rest = (part.strip() for part in words.partition(":"))
    exchange = prefix if colon and prefix in _EXCHANGES else None
    segment = _SEGMENTS.get(prefix) if colon else None
    symbol = rest if exchange or segment else words
    if not symbol or not words.isprintable():
        return []
    readings = []
    if re.fullmatch(r"[0-9]{1,18}", symbol):
        token = int(symbol)
        if exchange or segment:
            try:
                token = token_of(source, ExchangeSegment[segment or _EXCHANGES[prefix]], token)
            except ValueError:
                token = -1
        readings.append(Reading("token", token=token))
    found = [(pattern, match) for pattern in _DERIVATIVES if (match := pattern.fullmatch(symbol))]
    for pattern, match in found:
        ways = list(_derivatives(match.groupdict(), on))
        readings.extend(reversed(ways) if pattern is _GLUED else ways)
    readings.append(Reading("name", symbol, first=on))
    if not found and (share := _SERIES.fullmatch(symbol)):
        readings.append(Reading("name", share["symbol"], series=share["series"], first=on))
    return list(dict.fromkeys(replace(reading, exchange=exchange, segment=segment) for reading in readings))


def _derivatives(parts: dict[str, str | None], on: date) -> Iterator[Reading]:
    strike, kind = parts["strike"], parts["type"]
    if strike and not float(strike):
        return
    for first, last in _expiries(parts, on):
        reading = Reading("future", parts["symbol"] or "", first=first, last=last, latest=last != date.max)
        if strike and kind:
            option_type: Literal["CE", "PE"] = "CE" if kind[0] == "C" else "PE"
            reading = replace(reading, kind="option", strike=float(strike), option_type=option_type)
        yield reading


def _expiries(parts: dict[str, str | None], on: date) -> Iterator[tuple[date, date]]:
    """First and last day of each span in which the expiry may lie."""
    month, number = _MONTHS.get(parts.get("month") or ""), int(parts.get("number") or 0)
    this_or_next = range(on.year, min(on.year + 1, MAXYEAR) + 1)
    if code := parts.get("code"):
        month = MONTH_CODES.index(code) + 1
    if iso := parts.get("iso"):
        year, month, number = map(int, iso.split("-"))
        yield from _day(year, month, number)
    elif not month:
        yield on, date.max
    elif text := parts.get("year"):
        year = int(text) + (2000 if len(text) == 2 else 0)
        yield from _day(year, month, number) if number else _month(year, month)
    elif number:
        days = [day for year in this_or_next for day in _day(year, month, number)]
        yield from [day for day in days if day[0] >= on][:1]
        if number > 9:
            yield from _month(2000 + number, month)
    else:
        for year in this_or_next:
            yield from ((max(first, on), last) for first, last in _month(year, month) if last >= on)


def _day(year: int, month: int, day: int) -> Iterator[tuple[date, date]]:
    if year and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]:
        yield date(year, month, day), date(year, month, day)


def _month(year: int, month: int) -> Iterator[tuple[date, date]]:
    if year:
        yield date(year, month, 1), date(year, month, calendar.monthrange(year, month)[1])


def write_symbol(underlying: str, expiry: date, strike: float | None, option_type: str | None) -> str:
    """A derivative as `read_symbol` reads it in one way only: `NIFTY 2026-11-24 26000 CE`, `NIFTY 2026-11-24 FUT`."""
    return f"{underlying} {expiry.isoformat()} " + ("FUT" if strike is None else f"{strike:.12g} {option_type}")
