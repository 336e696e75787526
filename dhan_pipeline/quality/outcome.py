"""The outcome of a check: what every measure comes to, whoever asks."""

from dataclasses import dataclass
from typing import Literal

from dhan_pipeline.quality.pictures import Picture

Severity = Literal["WARN", "ERROR"]


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """One check, judged. `severity` is that of the failure, and WARN where the check passed."""

    name: str
    passed: bool
    severity: Severity
    value: float | None
    """The measured number in `unit`; None where there was nothing to measure."""
    unit: str
    limits: str
    """The target and thresholds, in words."""
    description: str
    """What was found, what it means, and what to do about it."""
    table: str = ""
    """What a person looks at next, in Markdown."""
    picture: Picture | None = None


def above(value: float, error: float) -> Severity:
    """The severity where a value is too high."""
    return "ERROR" if value > error else "WARN"


def below(value: float, error: float) -> Severity:
    """The severity where a value is too low."""
    return "ERROR" if value < error else "WARN"
