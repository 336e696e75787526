"""Draws what `end_to_end` measured, for docs/performance.md.

    python benchmarks/pictures.py RESULT.json FOLDER

`RESULT.json` is the object that `end_to_end.py --json` ends with. Two files are written: `latency.svg`, latency against
rate, and `cost.svg`, processor time of a tick by stage.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

# The same picture is the same file.
mpl.use("svg")
mpl.rcParams.update(
    {"svg.hashsalt": "dhan_pipeline", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)
METADATA = {"Date": None}
SIZE_INCHES = (6.5, 3.4)


def draw_latency(rows: list[dict[str, Any]], path: Path) -> None:
    """Percentiles of receive-to-commit latency against the rate; both axes logarithmic."""
    figure, axes = plt.subplots(figsize=SIZE_INCHES)
    rates = [row["rate"] for row in rows]
    for name, label in (("p50_ms", "p50"), ("p99_ms", "p99"), ("p999_ms", "p99.9")):
        axes.plot(rates, [row[name] for row in rows], marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="ticks a second", ylabel="arrival to commit, ms")
    axes.set_xticks(rates, [f"{rate:,}" for rate in rates])
    axes.set_yticks(ticks := [5, 10, 20, 50, 100, 200, 500], [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_cost(rows: list[dict[str, Any]], path: Path) -> None:
    """Processor time of a tick by stage, a bar a rate."""
    figure, axes = plt.subplots(figsize=SIZE_INCHES)
    labels = [f"{row['rate']:,}" for row in rows]
    left = [0.0] * len(rows)
    for stage in rows[0]["cpu_us_by_stage"]:
        costs = [row["cpu_us_by_stage"][stage] for row in rows]
        axes.barh(labels, costs, left=left, label=stage)
        left = [at + cost for at, cost in zip(left, costs, strict=True)]
    for bar, at in enumerate(left):
        axes.text(at, bar, f" {at:.1f}", va="center")
    axes.set(xlabel="processor time of a tick, us", ylabel="ticks a second")
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata=METADATA)
    print(path)


def main() -> None:
    """Draw both."""
    result, folder = Path(sys.argv[1]), Path(sys.argv[2])
    rows = json.loads(result.read_text().splitlines()[-1])["rows"]
    draw_latency(rows, folder / "latency.svg")
    draw_cost([row for row in rows if row["rate"] >= 20_000], folder / "cost.svg")


if __name__ == "__main__":
    main()
