"""From what is found to what is told: which changes are alerts, and where they go. Pure functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dhan_pipeline.alerts.channels import Channels
from dhan_pipeline.alerts.messages import Alert
from dhan_pipeline.alerts.rules import Rules, destinations, is_muted
from dhan_pipeline.alerts.transitions import Change, Level, Patience, Reading, Standing, advance


@dataclass(frozen=True, slots=True)
class Signal:
    """A reading of a subject, and what a message says of it."""

    subject: str
    """Its key: what was told of it is remembered under this."""
    name: str
    """What people call it."""
    reading: Reading
    patience: Patience
    text: Callable[[], str]
    """Asked for only where there is something to tell."""
    owners: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    """Other names by which it is muted."""
    url: str = ""
    value: str = ""
    limits: str = ""


def observe(
    standings: Mapping[str, Standing], signals: Iterable[Signal], rules: Rules, now_s: float
) -> tuple[dict[str, Standing], list[Alert]]:
    """What stands after signals, in their order, and what is to be told.

    What is muted stays as it is: if it is still so when the mute ends, it is told then.
    """
    after, alerts = dict(standings), []
    for signal in _heard(signals, rules, now_s):
        standing, change = advance(after.get(signal.subject), signal.reading, now_s, signal.patience)
        if standing is None:
            after.pop(signal.subject, None)
        else:
            after[signal.subject] = standing
        if change is not None:
            alerts.append(_alert(signal, now_s, change))
    return after, alerts


def begin(signals: Iterable[Signal], rules: Rules, now_s: float) -> tuple[dict[str, Standing], list[Alert]]:
    """What stands where it is not known what was told: all of it counts as told. Also gives what fails."""
    poor = [signal for signal in _heard(signals, rules, now_s) if signal.reading.level != Level.OK]
    standings = {
        signal.subject: Standing(
            told=signal.reading.level,
            seen=signal.reading.level,
            since_s=signal.reading.at_s,
            partition=signal.reading.partition,
        )
        for signal in poor
    }
    return standings, [_alert(signal, now_s) for signal in poor if signal.reading.level == Level.ERROR]


def by_destination(alerts: Iterable[Alert], rules: Rules, channels: Channels) -> dict[str, list[Alert]]:
    """Alerts by where their owners want them."""
    addressed: dict[str, list[Alert]] = {}
    for alert in alerts:
        for destination in destinations(rules, alert.owners, channels):
            addressed.setdefault(destination, []).append(alert)
    return addressed


def _heard(signals: Iterable[Signal], rules: Rules, now_s: float) -> Sequence[Signal]:
    now = datetime.fromtimestamp(now_s, UTC)
    return [signal for signal in signals if not is_muted(rules, (signal.name, *signal.aliases), now)]


def _alert(signal: Signal, now_s: float, change: Change | None = None) -> Alert:
    return Alert(
        name=signal.name,
        after=change.after if change else signal.reading.level,
        before=change.before if change else None,
        text=signal.text(),
        at_s=now_s,
        since_s=change.since_s if change else signal.reading.at_s,
        lasted_s=change.lasted_s if change else None,
        partition=signal.reading.partition,
        value=signal.value,
        limits=signal.limits,
        url=signal.url,
        owners=signal.owners,
    )
