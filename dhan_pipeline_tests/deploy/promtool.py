"""Prometheus' own checker, where it is installed; in CI it has to be."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PROMETHEUS = Path(__file__).parent.parent.parent / "deploy" / "prometheus"


def promtool(*arguments: str, cwd: Path = PROMETHEUS, stdin: str = "") -> str:
    """What it says; fails with that where it finds something wrong. Skips where there is none."""
    if not shutil.which("promtool"):
        if os.environ.get("CI"):
            pytest.fail("promtool is not installed (Debian: prometheus)")
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(["promtool", *arguments], cwd=cwd, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metric_names(expression: str) -> set[str]:
    """Names of the series in an expression of PromQL, those that rules record included."""
    without_labels = re.sub(r"\{[^}]*\}|\b(?:by|on|without|ignoring) \([^)]*\)", "", expression)
    return set(re.findall(r"(?<![\w:])(?:dhan|process)[_:][\w:]+", without_labels))
