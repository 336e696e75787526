"""Hours and trading sessions of the Indian exchanges, in India Standard Time."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

IST = ZoneInfo("Asia/Kolkata")

#: India Standard Time is UTC+05:30, without daylight saving.
IST_OFFSET_S = 19_800

HOUR_NS = 3_600_000_000_000

#: Format of an hour's partition key, which is the IST wall clock at its start: `2026-11-20T09:00`.
HOUR_KEY_FORMAT = "%Y-%m-%dT%H:%M"


def hour_start_ns(at_ns: int) -> int:
    """Start of the IST hour that holds the instant, both in nanoseconds since the Unix epoch, UTC."""
    offset = IST_OFFSET_S * 1_000_000_000
    return (at_ns + offset) // HOUR_NS * HOUR_NS - offset


def day_start_ns(at_ns: int) -> int:
    """Midnight, IST, of the day that holds the instant, both in nanoseconds since the Unix epoch, UTC."""
    offset = IST_OFFSET_S * 1_000_000_000
    return (at_ns + offset) // (24 * HOUR_NS) * 24 * HOUR_NS - offset


def hour_key(at_ns: int) -> str:
    """Partition key of the IST hour that holds the instant (nanoseconds since the Unix epoch, UTC)."""
    return datetime.fromtimestamp(hour_start_ns(at_ns) / 1e9, IST).strftime(HOUR_KEY_FORMAT)


def parse_hour_key(key: str) -> int:
    """Start of the hour of a partition key, in nanoseconds since the Unix epoch, UTC. Raises ValueError."""
    start = datetime.strptime(key, HOUR_KEY_FORMAT).replace(tzinfo=IST)
    if start.minute or start.strftime(HOUR_KEY_FORMAT) != key:
        raise ValueError(f"{key} is not the start of an hour")
    return int(start.astimezone(UTC).timestamp()) * 1_000_000_000
