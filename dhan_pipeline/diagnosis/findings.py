"""What was found, a line each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dhan_pipeline.sources import Source

State = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report."""

    name: str
    state: State
    found: str
    """A sentence, with numbers. Never a token, nor a URL."""
    fix: str = ""
    """What to do about it, or to type; empty where nothing is to be done."""
    source: Source | None = None
    """Whose it is, where it is one broker's and several are captured."""


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", found)


def warn(name: str, found: str, fix: str) -> Finding:
    """It will do, but somebody should know."""
    return Finding(name, "warn", found, fix)


def bad(name: str, found: str, fix: str) -> Finding:
    """A red line."""
    return Finding(name, "bad", found, fix)


def red(findings: Sequence[Finding]) -> list[str]:
    """The names of the red lines, in order, each once."""
    return list(dict.fromkeys(finding.name for finding in findings if finding.state == "bad"))
