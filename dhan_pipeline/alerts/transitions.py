"""When a change of level is told: once it has held for a while, and once. Pure functions over what was told before."""

from enum import IntEnum

from pydantic import BaseModel, ConfigDict

#: A level that was OK again for less than this before it got worse is a relapse.
RELAPSE_S = 900.0

#: With each relapse it has to be better for twice as long before that is told, but not more than so many times.
MOST_RELAPSES = 4


class Level(IntEnum):
    """How something is."""

    OK = 0
    WARN = 1
    ERROR = 2


class Patience(BaseModel):
    """For how many seconds a level has to hold before it is told."""

    model_config = ConfigDict(frozen=True)

    worse_s: float
    better_s: float


class Reading(BaseModel):
    """What is known of a subject now. `at_s`: when it was found, in Unix seconds."""

    model_config = ConfigDict(frozen=True)

    level: Level
    at_s: float
    partition: str = ""
    """What it is about, where that is not the present: an hour or a day. Later ones sort after earlier ones."""


class Standing(BaseModel):
    """What was told of a subject, and what was seen since."""

    model_config = ConfigDict(frozen=True)

    told: Level = Level.OK
    since_s: float = 0.0
    """Since when it has been what was told, in Unix seconds."""
    partition: str = ""
    relapses: int = 0
    turned_s: float | None = None
    """Since when it has been worse than what was told, or better; None where it is that."""
    seen: Level = Level.OK
    """What it was when it was looked at last."""


class Change(BaseModel):
    """What is to be told."""

    model_config = ConfigDict(frozen=True)

    before: Level
    after: Level
    since_s: float
    """Since when, in Unix seconds."""
    lasted_s: float | None
    """How long it had been `before`; None where nobody knows."""


def advance(
    before: Standing | None, reading: Reading, now_s: float, patience: Patience
) -> tuple[Standing | None, Change | None]:
    """What stands after a reading, and what is to be told. None stands for: all is well, and has been for long."""
    standing = before or Standing()
    if reading.level == standing.told:
        partition = max(standing.partition, reading.partition)
        standing = standing.model_copy(update={"turned_s": None, "seen": reading.level, "partition": partition})
        return _remembered(standing, now_s), None
    worse = reading.level > standing.told
    if not worse and reading.partition < standing.partition:
        return before, None  # an earlier hour is well: that says nothing of the one that was told
    turned_s = standing.turned_s
    if turned_s is None or worse != (standing.seen > standing.told):
        turned_s = max(min(reading.at_s, now_s), standing.since_s)
    held_s = patience.worse_s if worse else patience.better_s * 2.0**standing.relapses
    if now_s - turned_s < held_s:
        return standing.model_copy(update={"turned_s": turned_s, "seen": reading.level}), None
    relapses = standing.relapses
    if standing.told == Level.OK:
        relapsed = turned_s - standing.since_s < RELAPSE_S
        relapses = min(relapses + 1, MOST_RELAPSES) if relapsed else 0
    after = Standing(
        told=reading.level, seen=reading.level, since_s=turned_s, partition=reading.partition, relapses=relapses
    )
    lasted_s = turned_s - standing.since_s if standing.since_s else None
    return after, Change(before=standing.told, after=reading.level, since_s=turned_s, lasted_s=lasted_s)


def unchanged(standing: Standing) -> Reading:
    """The reading of a subject of which nothing new is known."""
    return Reading(level=standing.seen, at_s=standing.turned_s or standing.since_s, partition=standing.partition)


def _remembered(standing: Standing, now_s: float) -> Standing | None:
    return None if standing.told == Level.OK and now_s - standing.since_s >= RELAPSE_S else standing
