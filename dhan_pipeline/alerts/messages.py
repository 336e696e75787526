"""The words of alerts: what a channel sends of one change, or of several at once. All times are India's."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from dhan_pipeline.alerts.transitions import Level
from dhan_pipeline.amounts import duration
from dhan_pipeline.sessions import IST
from dhan_pipeline.times import beside

#: Of a message with several alerts, so many lines and links are shown, and of each so much. Telegram takes 4096
#: characters.
SHOWN = 20
LINKS = 3
SHOWN_CHARS = 140

#: A description may hold a table's worth of words.
TEXT_CHARS = 1500


class Alert(BaseModel):
    """One change that is told. Times are Unix seconds."""

    model_config = ConfigDict(frozen=True)

    name: str
    """The check with its asset, `live_feed/connected`, or the job."""
    after: Level
    before: Level | None = None
    """None: nobody knows, or it does not matter."""
    text: str
    """What was found, and what to do about it."""
    at_s: float
    """When it was told."""
    since_s: float | None = None
    lasted_s: float | None = None
    """How long it had been `before`."""
    partition: str = ""
    value: str = ""
    """The measured number with its unit."""
    limits: str = ""
    url: str = ""
    """Of the page of Dagster's UI that has more."""
    owners: tuple[str, ...] = ()


def title(alerts: Sequence[Alert]) -> str:
    """One line: the subject of an e-mail."""
    if len(alerts) == 1:
        return _head(alerts[0])
    counts = [(level, sum(alert.after == level for alert in alerts)) for level in reversed(Level)]
    return f"{len(alerts)} alerts: {', '.join(f'{count} {level.name}' for level, count in counts if count)}"


def text(alerts: Sequence[Alert], note: str = "") -> str:
    """All that a person reads below the title."""
    if len(alerts) == 1:
        lines = _body(alerts[0])
    else:
        lines = [*_lines(alerts), *sorted({alert.url.partition("?")[0] for alert in alerts if alert.url})[:LINKS]]
    return "\n".join([*lines, *([note] if note else [])])


def as_json(alerts: Sequence[Alert], note: str = "") -> dict[str, Any]:
    """What the webhook is sent."""
    return {
        "title": title(alerts),
        "text": text(alerts, note),
        "alerts": [
            {
                "name": alert.name,
                "level": alert.after.name,
                "was": alert.before.name if alert.before is not None else None,
                "text": alert.text,
                "value": alert.value or None,
                "limits": alert.limits or None,
                "partition": alert.partition or None,
                "since": _iso(alert.since_s),
                "told": _iso(alert.at_s),
                "url": alert.url or None,
                "owners": list(alert.owners),
            }
            for alert in alerts
        ],
    }


def summary(failing: Sequence[Alert], now_s: float) -> Alert:
    """One alert for all that fails where alerts begin."""
    lines = "\n".join(_lines(failing))
    found = "this fails already and is" if len(failing) == 1 else "these fail already and are"
    return Alert(
        name="alerts begin",
        after=Level.ERROR,
        text=f"What was told before is not known; {found} not told again:\n{lines}",
        at_s=now_s,
        url=failing[0].url if len(failing) == 1 else "",
    )


def hour_in_words(partition: str) -> str:
    """What an hour's or a day's key means to a person: `the hour 09:00 to 10:00 IST of 2026-11-20`."""
    try:
        start = datetime.fromisoformat(partition)
    except ValueError:
        return partition
    if "T" not in partition:
        return f"the day {partition}"
    return f"the hour {start:%H:%M} to {(start.hour + 1) % 24:02}:{start:%M} IST of {start:%Y-%m-%d}"


def _head(alert: Alert) -> str:
    return f"{_kind(alert)}: {alert.name}{f', {hour_in_words(alert.partition)}' if alert.partition else ''}"


def _kind(alert: Alert) -> str:
    if alert.after == Level.OK and alert.before is not None:
        return "OK again"
    was = f" (was {alert.before.name})" if alert.before else ""  # OK before is the usual, and goes without saying
    return f"{alert.after.name}{was}"


def _lines(alerts: Sequence[Alert]) -> list[str]:
    """A line for each of several alerts, and one for all that say the same, such as the checks of a dead capture."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for alert in alerts:
        alike.setdefault((_kind(alert), alert.partition, _short(alert.text)), []).append(alert.name)
    lines = []
    for (kind, partition, words), names in alike.items():
        lines.append(f"{kind}: {', '.join(names)}{f', {hour_in_words(partition)}' if partition else ''}: {words}")
    more = [f"And {len(lines) - SHOWN} more."] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]


def _body(alert: Alert) -> list[str]:
    lines = [alert.text[:TEXT_CHARS]]
    if alert.value or alert.limits:
        value = f"Found: {alert.value}. " if alert.value else ""
        lines.append(f"{value}Limits: {alert.limits}." if alert.limits else value.rstrip())
    if alert.since_s is not None:
        lasted = alert.lasted_s is not None and alert.before
        after = f", after {duration(alert.lasted_s or 0.0)} of {Level(alert.before or 0).name}" if lasted else ""
        lines.append(f"Since {beside(_at(alert.since_s), _at(alert.at_s))}{after}.")
    if alert.partition and alert.since_s is not None and _is_past(alert.partition, alert.since_s):
        lines.append(f"This is about {hour_in_words(alert.partition)}, which was judged again; it does not mean now.")
    if alert.url:
        lines.append(alert.url)
    return lines


def _is_past(partition: str, judged_s: float) -> bool:
    """Whether a key's hour had been over for two hours, or its day for half a day, when it was judged."""
    try:
        start = datetime.fromisoformat(partition).replace(tzinfo=IST)
    except ValueError:
        return False
    hours = 3 if "T" in partition else 36
    return judged_s - start.timestamp() > hours * 3600


def _short(words: str) -> str:
    line = " ".join(words.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[: SHOWN_CHARS - 1].rstrip()}…"


def _at(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, IST)


def _iso(at_s: float | None) -> str | None:
    return None if at_s is None else _at(at_s).isoformat(timespec="seconds")
