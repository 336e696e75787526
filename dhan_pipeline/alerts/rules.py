"""A person's rules (YAML): what is muted, and whom an owner's alerts go to.

    mute:
      - name: live_feed/silent_instruments   # a check with or without its asset, an asset, or a job; * as a wildcard
        until: 2026-11-28 09:30               # India's time; a day alone: to its end; without it, for good
    routes:
      team:market-data: [slack, ops@example.in]

The file may be absent: nothing is muted, and every channel gets everything.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, ValidationError

from dhan_pipeline.alerts.channels import Channels
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.sessions import IST


class RulesError(PipelineError):
    """The file of rules cannot be used."""


def _until(given: object) -> datetime:
    words = str(given).strip()
    try:
        until = datetime.fromisoformat(words)
    except ValueError:
        raise ValueError(f"{words} is not a time such as 2026-11-28 09:30") from None
    if len(words) == len("2026-11-28"):
        until = datetime.combine(until, time.max)
    return until if until.tzinfo else until.replace(tzinfo=IST)


def _a_word(given: str) -> str:
    if not given.strip():
        raise ValueError("it is empty")
    return given.strip()


Word = Annotated[str, AfterValidator(_a_word)]


class Mute(BaseModel):
    """What is not told, and how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Word
    until: Annotated[AwareDatetime, BeforeValidator(_until)] | None = None
    why: str = ""


class Rules(BaseModel):
    """All rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mute: tuple[Mute, ...] = ()
    routes: dict[Word, tuple[Word, ...]] = {}


_WRONG = {
    "missing": "it is missing",
    "extra_forbidden": "there is no such key",
    "tuple_type": "a list is expected",
    "dict_type": "`key: value` lines are expected",
    "model_type": "`key: value` lines are expected",
    "string_type": "a word is expected",
}


def load_rules(path: Path) -> Rules:
    """Read a file of rules; none where it does not exist. Raises RulesError that says what is wrong."""
    try:
        # Every scalar stays a string: YAML would make of a time what it likes.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except FileNotFoundError:
        return Rules()
    except OSError as error:
        raise RulesError(f"The alert rules {path} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RulesError(f"{path}, line {line}: not valid YAML, {error.problem or error.context}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RulesError(f"{path} is not a file of alert rules.") from error
    try:
        return Rules.model_validate(content or {})
    except ValidationError as error:
        wrong = error.errors()[0]
        at = " ".join(str(part + 1) if isinstance(part, int) else part for part in wrong["loc"])
        what = _WRONG.get(wrong["type"]) or wrong["msg"].removeprefix("Value error, ")
        raise RulesError(f"{path}{', ' if at else ''}{at}: {what}.") from None


def is_muted(rules: Rules, names: Iterable[str], now: datetime) -> bool:
    """Whether one of a subject's names is muted now (aware)."""
    names = tuple(names)
    return any(
        fnmatchcase(name, mute.name) for mute in rules.mute if mute.until is None or now < mute.until for name in names
    )


def destinations(rules: Rules, owners: Iterable[str], channels: Channels) -> tuple[str, ...]:
    """Where the alerts of owners go: by the routes; to an owner that is an e-mail address; else to every channel.

    An entry that leads nowhere, because its channel is not set, is left out: see `unset`. Nobody is left without.
    """
    found: dict[str, None] = {}
    everyone = [destination for each in channels.values() for destination in each]
    for owner in owners:
        entries: Sequence[str] = rules.routes.get(owner, (owner,) if _is_address(owner) else ())
        found |= dict.fromkeys(there for entry in entries for there in _expand(entry, channels))
        if not entries:
            found |= dict.fromkeys(everyone)
    return tuple(found or dict.fromkeys(everyone))


def unset(rules: Rules, channels: Channels) -> list[str]:
    """A sentence for each entry of a route that leads nowhere."""
    return [
        f"{owner} is routed to {entry}, which is not set."
        for owner, entries in rules.routes.items()
        for entry in entries
        if not _expand(entry, channels)
    ]


def all_destinations(rules: Rules, channels: Channels) -> tuple[str, ...]:
    """Each place that alerts may go to, but for owners that are e-mail addresses themselves."""
    everyone = [destination for each in channels.values() for destination in each]
    routed = [there for entries in rules.routes.values() for entry in entries for there in _expand(entry, channels)]
    return tuple(dict.fromkeys([*everyone, *routed]))


def _expand(entry: str, channels: Channels) -> tuple[str, ...]:
    if entry in channels:
        return channels[entry]
    if _is_address(entry) and "email" in channels:
        return (f"email:{entry}",)
    channel, _, chat = entry.partition(":")
    return (entry,) if chat and channel == "telegram" and channel in channels else ()


def _is_address(owner: str) -> bool:
    return "@" in owner and not owner.startswith("team:")
