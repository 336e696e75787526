"""The brokers whose feeds are captured, and which captures are whose."""

from typing import Literal, get_args

Source = Literal["dhan", "kite"]
SOURCES: tuple[Source, ...] = get_args(Source)

#: Captures of a source. Dhan's are numbered from 0 on, Kite's from 16: a block's id, and so a tick's, says whose it is.
CAPTURES = 16


def capture_number(source: Source, shard: int) -> int:
    """The number of a source's capture, of those from 0 to 31. Raises ValueError for a shard that is none of its 16."""
    if not 0 <= shard < CAPTURES:
        raise ValueError(f"a source has captures 0 to {CAPTURES - 1}, not {shard}")
    return SOURCES.index(source) * CAPTURES + shard


def source_of_capture(capture: int) -> Source:
    """Whose capture it is. Raises ValueError for a number that no capture has."""
    if not 0 <= capture < len(SOURCES) * CAPTURES:
        raise ValueError(f"no capture has the number {capture}")
    return SOURCES[capture // CAPTURES]
