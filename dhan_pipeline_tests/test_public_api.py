"""What `dhan_pipeline` gives to scripts: this list, described, typed, and loaded only when it is asked for."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dhan_pipeline

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "python-api.md").read_text(encoding="utf-8")

NAMES = ["PipelineError", "Settings", "load_instruments_cache", "read_candles", "read_ticks"]

#: What a user writes, and what a type checker says to it: nothing but what is asked for, and what is wrong.
SCRIPT = """
from datetime import date
from pathlib import Path

import dhan_pipeline
from dhan_pipeline import PipelineError, Settings, load_instruments_cache, read_ticks

settings = Settings(data_dir=Path("ticks"))
try:
    ticks = read_ticks(["RELIANCE", 256265], date(2026, 11, 20), "2026-11-21", settings=settings)
except PipelineError as error:
    print(error)
reveal_type(ticks)
reveal_type(dhan_pipeline.read_candles("INFY", "2026-11-20", "2026-11-21", minutes=15, as_="polars"))
reveal_type(load_instruments_cache()["NSE_EQ", 2885].trading_symbol)
dhan_pipeline.read_tick
"""
ANSWERS = [
    'note: Revealed type is "pandas.core.frame.DataFrame"',
    'note: Revealed type is "polars.dataframe.frame.DataFrame"',
    'note: Revealed type is "str | None"',
    'error: Module has no attribute "read_tick"; maybe "read_ticks"?  [attr-defined]',
]


def test_the_package_exports_what_users_need_and_nothing_else() -> None:
    assert dhan_pipeline.__all__ == NAMES
    assert dir(dhan_pipeline) == NAMES
    for name in NAMES:
        assert inspect.getdoc(getattr(dhan_pipeline, name))
    with pytest.raises(AttributeError, match="has no attribute 'Reader'"):
        dhan_pipeline.Reader  # noqa: B018


def test_the_page_describes_every_name_and_no_other_with_its_parameters() -> None:
    assert re.findall(r"^## (\w+)$", PAGE, re.MULTILINE) == re.findall(r"^\| \[`(\w+)`\]", PAGE, re.MULTILINE)
    assert sorted(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)) == NAMES
    for name, written in re.findall(r"^(read_\w+|load_\w+)\((.*)\)$", PAGE, re.MULTILINE):
        parameters = inspect.signature(getattr(dhan_pipeline, name)).parameters.values()
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
        assert str(inspect.Signature(bare)) == "(" + written.replace('"', "'") + ")"


def test_importing_the_package_loads_nothing() -> None:
    show = "import sys; before = set(sys.modules); import dhan_pipeline; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names == {"dhan_pipeline"}


def test_a_script_of_a_user_is_type_checked_against_the_installed_package(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    checked = REPOSITORY / ".mypy_cache"  # by `make types`: saves reading pandas again
    if checked.exists():
        shutil.copytree(checked, tmp_path / "cache")
    command = (sys.executable, "-m", "mypy", "--config-file", str(REPOSITORY / "pyproject.toml"))
    done = subprocess.run([*command, "--cache-dir", "cache", "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert re.findall(r"^script.py:\d+: (.*)", done.stdout, re.MULTILINE) == ANSWERS, done.stdout + done.stderr
