"""Amounts as people say them: a duration, a count with its noun, a number with its unit, the first of many names."""

import re
from collections.abc import Sequence


def duration(seconds: float) -> str:
    """`0.3 s`, `40 s`, `12 min`, `3 h 20 min`, `4 d 2 h`."""
    if seconds < 120:
        return f"{round(seconds, 1 if seconds < 10 else None):g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return _two(minutes, 60, "h", "min")
    return _two(round(minutes / 60), 24, "d", "h")


def _two(amount: int, size: int, large: str, small: str) -> str:
    whole, rest = divmod(amount, size)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun: `1 gap`, `2 gaps`; `many` where that is more than `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def measured(number: float, unit: str) -> str:
    """A number with its unit, which is written as of many: `1 row`, `2 rows`, `1 tick a minute`."""
    if number == 1:
        unit = re.sub(r"(?<=[a-z]{3})s\b", "", unit)
    return f"{number:,.6g} {unit}".strip()


def first_of(names: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """The names, or the first of them and how many more there are: `a, b, c, d, e and 3 more`."""
    return between.join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
