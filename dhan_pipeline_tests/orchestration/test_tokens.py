"""The schedule looks ahead to the end of the day's sessions; the job makes a token and asks the broker about it."""

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import get_dhan_credentials, save_token
from dhan_pipeline.feeds.kite.auth import save_kite_token
from dhan_pipeline.feeds.simulator.http_server import HttpServer
from dhan_pipeline.feeds.simulator.kite_rest import KiteRest
from dhan_pipeline.feeds.simulator.rest import RestServer
from dhan_pipeline.feeds.simulator.tokens import (
    API_KEY,
    CLIENT_ID,
    PIN,
    TOTP_SECRET,
    make_kite_access_token,
    make_token,
)
from dhan_pipeline.orchestration.tokens import (
    token_check_job,
    token_check_schedule,
    token_refresh_job,
    token_refresh_schedule,
)
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.settings import Settings

#: 08:00 IST of a trading day: the commodities close at 23:55, 16 hours later.
MORNING = Clock(parse_hour_key("2026-11-20T08:00"), speed=1e-9)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None,
        data_dir=tmp_path,
        dhan_token_file=tmp_path / "token.json",
        dhan_client_id=CLIENT_ID,
        dhan_pin=PIN,  # type: ignore[arg-type]
        dhan_totp_secret=TOTP_SECRET,  # type: ignore[arg-type]
    )


@contextmanager
def serving(rest: HttpServer) -> Iterator[str]:
    """Its address, while it serves on a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(rest.start(), loop).result(10)
        yield f"http://127.0.0.1:{rest.port}"
        asyncio.run_coroutine_threadsafe(rest.aclose(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def broker(settings: Settings, clock: Clock) -> Iterator[tuple[RestServer, Settings]]:
    """The broker's REST face."""
    rest = RestServer(clock)
    with serving(rest) as url:
        yield rest, settings.model_copy(update={"dhan_api_url": url, "dhan_auth_url": url})


def evaluate(settings: Settings, clock: Clock = MORNING) -> dg.RunRequest | dg.SkipReason:
    context = dg.build_schedule_context(resources={"settings": settings, "clock": clock})
    result = token_refresh_schedule(context)
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def why(result: dg.RunRequest | dg.SkipReason) -> str:
    assert isinstance(result, dg.SkipReason)
    return result.skip_message or ""


def test_a_token_that_ends_before_the_last_close_is_renewed_before_the_session(settings: Settings) -> None:
    save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=10 * 3600, clock=MORNING), CLIENT_ID)
    assert isinstance(evaluate(settings), dg.RunRequest)


def test_a_token_that_lasts_the_day_is_left_alone(settings: Settings) -> None:
    save_token(settings.dhan_token_file, make_token(CLIENT_ID, expires_in=20 * 3600, clock=MORNING), CLIENT_ID)
    assert "The token lasts until" in why(evaluate(settings))


WEB, APP = "SELF", "APP"
SUNDAY = Clock(parse_hour_key("2026-11-22T08:00"), speed=1e-9)


@pytest.mark.parametrize(
    ("consumer", "hours_left", "clock", "runs"),
    [
        (WEB, 0.5, SUNDAY, True),  # nobody but a person makes another once it is over
        (WEB, 1.0, SUNDAY, False),
        (WEB, -0.1, MORNING, False),
        (WEB, 10.0, MORNING, True),
        (APP, 0.5, SUNDAY, False),
        (APP, 10.0, MORNING, False),
    ],
)
def test_a_token_of_the_web_site_is_renewed_without_pin_and_secret_as_long_as_it_lives(
    settings: Settings, consumer: str, hours_left: float, clock: Clock, runs: bool
) -> None:
    poor = settings.model_copy(update={"dhan_pin": None})
    token = make_token(CLIENT_ID, expires_in=hours_left * 3600, clock=clock, consumer=consumer)
    save_token(settings.dhan_token_file, token, CLIENT_ID)
    assert isinstance(evaluate(poor, clock), dg.RunRequest) is runs


def test_no_token_is_made_at_midnight_to_end_at_the_next(settings: Settings) -> None:
    assert isinstance(evaluate(settings, Clock(parse_hour_key("2026-11-20T05:00"))), dg.SkipReason)
    assert isinstance(evaluate(settings, Clock(parse_hour_key("2026-11-20T06:00"))), dg.RunRequest)


def test_without_a_token_one_is_made(settings: Settings) -> None:
    assert isinstance(evaluate(settings), dg.RunRequest)


def test_without_pin_and_secret_a_person_is_told_what_to_do(settings: Settings) -> None:
    poor = settings.model_copy(update={"dhan_pin": None})
    assert "Set DHAN_PIN and DHAN_TOTP_SECRET" in why(evaluate(poor))


def test_on_a_day_without_sessions_no_token_is_needed(settings: Settings) -> None:
    assert why(evaluate(settings, SUNDAY)).startswith("No session is to come today")


def run(settings: Settings, clock: Clock, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return token_refresh_job.execute_in_process(
        resources={"settings": settings, "clock": clock}, instance=instance, raise_on_error=False
    )


def test_the_job_makes_a_token_that_the_broker_accepts(settings: Settings) -> None:
    clock = Clock()
    with broker(settings, clock) as (rest, online), dg.DagsterInstance.ephemeral() as instance:
        assert run(online, clock, instance).success
        assert rest.made == 1
        assert get_dhan_credentials(online).access_token.get_secret_value() == rest.active_token
        assert run(online, clock, instance).success
        assert rest.made == 1


def test_the_job_renews_a_token_of_the_web_site_without_pin_and_secret(settings: Settings) -> None:
    clock = Clock()
    with broker(settings, clock) as (rest, online), dg.DagsterInstance.ephemeral() as instance:
        poor = online.model_copy(update={"dhan_pin": None, "dhan_totp_secret": None})
        save_token(poor.dhan_token_file, make_token(CLIENT_ID, expires_in=600, clock=clock), CLIENT_ID)
        assert run(poor, clock, instance).success
        assert rest.made == 1
        assert get_dhan_credentials(poor).access_token.get_secret_value() == rest.active_token


@pytest.mark.parametrize(
    ("plan", "changes", "told"),
    [
        ("Active", {}, "A new token was made."),
        ("Deactive", {}, "no active data plan"),
        ("Active", {"dhan_pin": SecretStr("hunter2")}, "DH-901 Invalid Pin"),
        ("Active", {"dhan_totp_secret": SecretStr("hunter2")}, "is not a base32 secret"),
        ("Active", {"dhan_auth_url": "http://127.0.0.1:1"}, "it cannot be reached"),
    ],
    ids=["made", "no data plan", "pin", "secret", "away"],
)
def test_dagster_keeps_no_secret_whether_a_token_is_made_or_not(
    settings: Settings, tmp_path: Path, plan: str, changes: dict[str, Any], told: str
) -> None:
    clock, home = Clock(), tmp_path / "dagster"
    home.mkdir()
    everything = {"python_log_level": "DEBUG", "managed_python_loggers": ["root"]}
    overrides = {"telemetry": {"enabled": False}, "python_logs": everything}
    with broker(settings, clock) as (rest, online), dg.DagsterInstance.local_temp(str(home), overrides) as instance:
        rest.data_plan = plan
        online = online.model_copy(update=changes)
        result = run(online, clock, instance)
        assert result.success == (told == "A new token was made.")
        [stored] = instance.get_runs()
        rows = f"{stored}\n{instance.all_logs(result.run_id)}"
    [log] = home.glob("storage/*/compute_logs/*.err")
    kept = rows + "".join(path.read_text(errors="replace") for path in home.rglob("*") if path.is_file())
    assert told in rows
    assert told in log.read_text()
    secrets = [PIN, TOTP_SECRET, "hunter2", make_token(CLIENT_ID).partition(".")[0], "pin=", "totp="]
    assert not [secret for secret in secrets if re.search(rf"(?<![\d.]){re.escape(secret)}(?!\d)", kept)]


def test_the_job_fails_with_a_sentence_where_the_account_has_no_data_plan(settings: Settings) -> None:
    clock = Clock()
    with broker(settings, clock) as (rest, online), dg.DagsterInstance.ephemeral() as instance:
        rest.data_plan = "Deactive"
        result = run(online, clock, instance)
        assert not result.success
        [failure] = [event for event in result.all_events if event.is_step_failure]
        data = failure.step_failure_data
        assert "no active data plan" in str(data.user_failure_data)


@pytest.fixture
def kite(settings: Settings) -> Settings:
    """Settings of both brokers, with a token of Kite's made at the hour of MORNING."""
    path = settings.data_dir / "kite.json"
    save_kite_token(path, make_kite_access_token(expires_in=1e7, clock=MORNING), API_KEY, MORNING.now())
    return settings.model_copy(update={"data_source": "kite,dhan", "kite_token_file": path})


def look(settings: Settings, clock: Clock) -> dg.RunRequest | dg.SkipReason:
    result = token_check_schedule(dg.build_schedule_context(resources={"settings": settings, "clock": clock}))
    assert isinstance(result, dg.RunRequest | dg.SkipReason)
    return result


def test_kite_is_asked_once_a_day_an_hour_before_the_first_session(kite: Settings) -> None:
    requests = [look(kite, Clock(parse_hour_key(f"2026-11-20T{hour}"))) for hour in ("08:00", "10:00", "23:00")]
    assert [request.run_key for request in requests if isinstance(request, dg.RunRequest)] == ["2026-11-20"] * 3
    assert why(look(kite, Clock(parse_hour_key("2026-11-20T07:00")))).startswith("The first session opens at 09:00 IST")
    assert why(look(kite, SUNDAY)) == "No session is to come today."


def test_kite_is_not_asked_about_the_token_of_an_exchange_for_practice(kite: Settings) -> None:
    practice = kite.model_copy(update={"kite_feed_url": "ws://127.0.0.1:1", "sessions": "always"})
    assert "for practice" in why(look(practice, MORNING))
    with_rest = practice.model_copy(update={"kite_api_url": "http://127.0.0.1:1"})
    assert isinstance(look(with_rest, MORNING), dg.RunRequest)


NIGHT = Clock(parse_hour_key("2026-11-20T05:00"), speed=1e-9)


@pytest.mark.parametrize(
    ("clock", "changes", "told"),
    [
        (MORNING, {}, None),
        (NIGHT, {}, "Kite's access token dies at 2026-11-20 06:00 IST, and is needed until 23:55: after that, log in"),
        (MORNING, {"kite_api_key": API_KEY, "kite_token_file": Path("none.json")}, "KITE_ACCESS_TOKEN is not set"),
        (Clock(parse_hour_key("2026-11-21T08:00")), {}, "Its time is over: log in for another"),
        (MORNING, {"kite_api_url": "http://127.0.0.1:1"}, "Kite does not give the profile: it cannot be reached"),
    ],
    ids=["good", "dies", "missing", "over", "away"],
)
def test_the_check_of_kites_token_fails_with_a_sentence_where_a_person_has_to_log_in(
    kite: Settings, clock: Clock, changes: dict[str, Any], told: str | None
) -> None:
    if clock is NIGHT:
        save_kite_token(kite.kite_token_file, make_kite_access_token(clock=MORNING), API_KEY, NIGHT.now())
    with serving(KiteRest(MORNING)) as url, dg.DagsterInstance.ephemeral() as instance:
        online = kite.model_copy(update={"kite_api_url": url, **changes})
        result = token_check_job.execute_in_process(
            resources={"settings": online, "clock": clock}, instance=instance, raise_on_error=False
        )
    assert result.success == (told is None)
    if told is not None:
        [failure] = [event for event in result.all_events if event.is_step_failure]
        assert told in str(failure.step_failure_data.user_failure_data)
