import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from pydantic import ValidationError

from dhan_pipeline.settings import Settings

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the person who runs the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults_run_everything_on_this_machine() -> None:
    settings = Settings()
    assert settings.database_url is None
    assert settings.data_dir == Path("data")
    assert settings.journal_dir == Path("data/journal")
    assert settings.subscriptions_path == Path("data/subscriptions_kite.csv")


def test_variables_of_the_environment_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTURE", "3")
    monkeypatch.setenv("PARTITIONS_START", "2026-11-01")
    assert (Settings().capture, Settings().partitions_start) == (3, date(2026, 11, 1))


def test_a_file_env_counts_below_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CAPTURE=4\nRETENTION_DAYS=9\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("CAPTURE", "5")
    assert (Settings().capture, Settings().retention_days) == (5, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("capture", 16),
        ("capture", -1),
        ("flush_interval_ms", 0),
        ("retention_days", 0),
        ("sessions", "never"),
        ("data_source", "nobody"),
        ("data_source", "kite,kite"),
        ("data_source", ""),
    ],
)
def test_values_that_cannot_work_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gap_s_error": 4}, "Input should be at or above GAP_S_WARN"),
        ({"gap_s_warn": 61}, "Input should be at or above GAP_S_WARN"),
        ({"tick_rate_error": 10_001}, "Input should be at or below TICK_RATE_WARN"),
        ({"completeness_warn": 0.9}, "Input should be at or below COMPLETENESS_WARN"),
    ],
)
def test_what_fails_a_check_warns_before(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as raised:
        Settings(**values)
    assert [error["loc"][0] for error in raised.value.errors()] == [f"{next(iter(values)).rpartition('_')[0]}_error"]


def test_a_limit_may_be_that_of_the_warning() -> None:
    settings = Settings(gap_s_warn=7, gap_s_error=7, tick_rate_warn=0, tick_rate_error=0)
    assert (settings.gap_s_error, settings.tick_rate_error) == (7, 0)


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name.endswith("_error")])
def test_every_limit_is_held_to_its_warning(name: str) -> None:
    warn = Settings.model_fields[f"{name.removesuffix('_error')}_warn"].default
    error = Settings.model_fields[name].default
    with pytest.raises(ValidationError, match=f"{name}\n"):
        Settings(**{name: warn / 2 if error > warn else min(1, warn * 2) if warn < 1 else warn * 2})


def test_settings_do_not_change_and_do_not_show_the_token() -> None:
    settings = Settings(dhan_access_token="secret-token")
    with pytest.raises(ValidationError):
        settings.capture = 1
    assert "secret-token" not in repr(settings)
    assert "secret-token" not in str(settings)


def test_the_example_lists_every_setting_once_with_its_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = re.findall(
        r"^# ([A-Z0-9_]+)=(.*)$", (REPOSITORY / ".env.example").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [name.lower() for name, _ in lines] == list(Settings.model_fields)
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines))
    uncommented, default = Settings().model_dump(), Settings(_env_file=None).model_dump()
    for name, value in default.items():
        if value is not None:
            assert uncommented[name] == value, f"{name.upper()} has another default"


def test_the_guide_explains_every_setting() -> None:
    rows = re.findall(
        r"^\| `([A-Z0-9_]+)` \|", (REPOSITORY / "docs" / "guide.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [name.lower() for name in rows] == list(Settings.model_fields)


def test_a_container_s_secrets_may_be_files(tmp_path: Path) -> None:
    (tmp_path / "rabbitmq_url").write_text("amqp://dhan:secret@rabbitmq/%2F\n")
    show = "from dhan_pipeline.settings import Settings; print(Settings().rabbitmq_url.get_secret_value())"
    environment = {**os.environ, "SECRETS_DIR": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "amqp://dhan:secret@rabbitmq/%2F\n"
