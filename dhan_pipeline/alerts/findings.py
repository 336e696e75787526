"""From what is found to what is told: which changes are alerts, and where they go. Pure functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from dhan_pipeline.alerts.channels import Channels
from dhan_pipeline.alerts.messages import Alert
from dhan_pipeline.alerts.rules import Rules, destinations, is_muted
from dhan_pipeline.alerts.transitions import Change, Level, Patience, Reading, Standing, advance


@dataclass(frozen=True, slots=True)
class Finding:
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
    standings: Mapping[str, Standing], findings: Iterable[Finding], rules: Rules, now_s: float
) -> tuple[dict[str, Standing], list[Alert]]:
    """What stands after findings, in their order, and what is to be told.

    What is muted stays as it is: if it is still so when the mute ends, it is told then.
    """
    after, alerts = dict(standings), []
    for finding in _heard(findings, rules, now_s):
        standing, change = advance(after.get(finding.subject), finding.reading, now_s, finding.patience)
        if standing is None:
            after.pop(finding.subject, None)
        else:
            after[finding.subject] = standing
        if change is not None:
            alerts.append(_alert(finding, now_s, change))
    return after, alerts


def begin(findings: Iterable[Finding], rules: Rules, now_s: float) -> tuple[dict[str, Standing], list[Alert]]:
    """What stands where it is not known what was told: all of it counts as told. Also gives what fails."""
    poor = [finding for finding in _heard(findings, rules, now_s) if finding.reading.level != Level.OK]
    standings = {
        finding.subject: Standing(
            told=finding.reading.level,
            seen=finding.reading.level,
            since_s=finding.reading.at_s,
            partition=finding.reading.partition,
        )
        for finding in poor
    }
    return standings, [_alert(finding, now_s) for finding in poor if finding.reading.level == Level.ERROR]


def by_destination(alerts: Iterable[Alert], rules: Rules, channels: Channels) -> dict[str, list[Alert]]:
    """Alerts by where their owners want them."""
    addressed: dict[str, list[Alert]] = {}
    for alert in alerts:
        for destination in destinations(rules, alert.owners, channels):
            addressed.setdefault(destination, []).append(alert)
    return addressed


def _heard(findings: Iterable[Finding], rules: Rules, now_s: float) -> Sequence[Finding]:
    now = datetime.fromtimestamp(now_s, UTC)
    return [finding for finding in findings if not is_muted(rules, (finding.name, *finding.aliases), now)]


def _alert(finding: Finding, now_s: float, change: Change | None = None) -> Alert:
    return Alert(
        name=finding.name,
        after=change.after if change else finding.reading.level,
        before=change.before if change else None,
        text=finding.text(),
        at_s=now_s,
        since_s=change.since_s if change else finding.reading.at_s,
        lasted_s=change.lasted_s if change else None,
        partition=finding.reading.partition,
        value=finding.value,
        limits=finding.limits,
        url=finding.url,
        owners=finding.owners,
    )
