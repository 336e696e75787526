"""The access tokens' life: a clock looks whether one lasts, and a run has a new one made, or says that somebody has to.

Belongs here: when a token is too old for the day, and what a run says about it. Does not: how a token is made
(`feeds/dhan/token.py`, `feeds/kite/token.py`), which also sees to it that only one process makes one.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import (
    Credentials,
    check_dhan_token_validity,
    get_dhan_credentials,
    is_renewable,
)
from dhan_pipeline.feeds.dhan.token import can_refresh, read_profile, refresh_token
from dhan_pipeline.feeds.errors import CredentialsError, TokenError
from dhan_pipeline.feeds.kite.token import token_report
from dhan_pipeline.orchestration.names import ROLE_TAG, SOURCE_TAG
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.orchestration.schedules import TIME_ZONE
from dhan_pipeline.quality.calendar import first_opening, token_needed_until
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.times import to_minute

#: Tokens live for 24 hours: one that is made at midnight would end, and be renewed, while commodities trade.
FIRST_HOUR = 6

#: A token that can be renewed is renewed this long before its end, two looks of the schedule ahead.
RENEW_AHEAD = timedelta(minutes=32)

#: How long before the first session somebody who has not logged in to Kite yet is told to.
LOGIN_AHEAD = timedelta(hours=1)


@dg.op(description="Has a new access token made where the present one does not last, and asks whether it is good.")
def refresh_access_token(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> None:
    """Refresh Dhan's token and read the profile. Fails with a sentence where a person has to act."""
    settings = settings.of("dhan")
    with explained():
        try:
            credentials = get_dhan_credentials(settings)
        except CredentialsError:
            credentials = None
        until = _needed_until(settings, clock, credentials)
        can_be_had = _can_be_had(settings, clock, credentials)
        made = refresh_token(settings, clock, needed_until=until) if can_be_had else None
        context.log.info("A new token was made." if made else "The token lasts; none was made.")
        profile = read_profile(settings, made or get_dhan_credentials(settings))
        context.log.info(f"Dhan says that it is good until {to_minute(profile.valid_until)}.")
        if not profile.data_plan_active:
            raise dg.Failure(
                description="The account has no active data plan, so no packet will come: subscribe to Dhan's data"
                " APIs.",
                allow_retries=False,
            )


@dg.job(
    description="Has a new access token made where the present one does not last for today's sessions, and asks the"
    " broker whether it is good.",
    tags={ROLE_TAG: "token_refresh", SOURCE_TAG: "dhan"},
)
def token_refresh_job() -> None:
    """Refresh the access token."""
    refresh_access_token()


def _needed_until(settings: Settings, clock: Clock, credentials: Credentials | None) -> datetime | None:
    """How long a token is needed; None if not at all."""
    now = clock.now()
    until = token_needed_until(settings, clock) if now.astimezone(IST).hour >= FIRST_HOUR else None
    # Once the time of a renewable one is over, only a person makes another: also on a day without sessions.
    return max(until or now, now + RENEW_AHEAD) if _can_be_renewed(credentials, now) else until


def _can_be_had(settings: Settings, clock: Clock, credentials: Credentials | None) -> bool:
    """Whether a token can be had without a person."""
    return can_refresh(settings) or _can_be_renewed(credentials, clock.now())


def _can_be_renewed(credentials: Credentials | None, now: datetime) -> bool:
    return (
        credentials is not None
        and is_renewable(credentials.access_token.get_secret_value())
        and check_dhan_token_validity(credentials, timedelta(0), now)
    )


@dg.schedule(
    job=token_refresh_job,
    name="token_refresh_schedule",
    cron_schedule="*/15 * * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=token_refresh_job.tags,
    description="Every quarter of an hour: starts token_refresh_job where the token does not last for today's"
    " sessions, or is about to end and can be renewed. Dhan renews those of its web site; others are made where"
    " DHAN_PIN and DHAN_TOTP_SECRET are set.",
)
def token_refresh_schedule(
    settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.RunRequest | dg.SkipReason:
    """A run where a token is needed that the present one is not, and can be had."""
    settings = settings.of("dhan")
    credentials, problem = None, ""
    try:
        credentials = get_dhan_credentials(settings)
    except CredentialsError as error:
        problem = str(error)
    until = _needed_until(settings, clock, credentials)
    if until is None:
        return dg.SkipReason(f"No session is to come today, or it is before {FIRST_HOUR}:00 IST.")
    if credentials is not None:
        at = f"{until.astimezone(IST):%H:%M} IST"
        if check_dhan_token_validity(credentials, until - clock.now(), clock.now()):
            return dg.SkipReason(f"The token lasts until {at}, which is long enough.")
        problem = f"The token does not last until {at}."
    if not _can_be_had(settings, clock, credentials):
        return dg.SkipReason(f"{problem} Set DHAN_PIN and DHAN_TOTP_SECRET, or put a new one into the token file.")
    return dg.RunRequest()


@dg.op(description="Asks whether Kite's access token is good, and whether it lasts for today's sessions.")
def check_kite_token(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> None:
    """Ask Kite about its token. Fails with a sentence where a person has to act."""
    settings = settings.of("kite")
    with explained():
        report = token_report(settings, clock)
        if not report["good"]:
            raise TokenError(f"Kite's access token is not good: {report['problem']}")
        expires_at, until = report["expires_at"], token_needed_until(settings, clock)
        if expires_at is None:
            context.log.info("Kite takes the access token; how long it is good is unknown.")
            return
        dies_at = datetime.fromisoformat(expires_at)
        if until is not None and dies_at < until:
            raise TokenError(
                f"Kite's access token dies at {to_minute(dies_at)}, and is needed until"
                f" {until.astimezone(IST):%H:%M}: after that, log in for another (`dhan-pipeline token generate"
                " --source kite`)."
            )
        context.log.info(f"Kite takes the access token, which dies at {to_minute(dies_at)}.")


@dg.job(
    description="Asks Kite whether its access token is good for today's sessions. Only a person's login makes another:"
    " where it is not, the run fails and says so, in time before the first session.",
    tags={ROLE_TAG: "token_check", SOURCE_TAG: "kite"},
)
def token_check_job() -> None:
    """Check Kite's access token."""
    check_kite_token()


@dg.schedule(
    job=token_check_job,
    name="token_check_schedule",
    cron_schedule="*/15 * * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags=token_check_job.tags,
    description="Every quarter of an hour: starts token_check_job once on each day of sessions, an hour before the"
    " first. Tokens of Kite die at 06:00 IST, and only a person's login makes another.",
)
def token_check_schedule(
    settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.RunRequest | dg.SkipReason:
    """A run a day, soon enough before the first session for a person to log in."""
    settings = settings.of("kite")
    now = clock.now().astimezone(IST)
    if settings.kite_feed_url.startswith("ws:") and settings.kite_api_url.startswith("https:"):
        return dg.SkipReason("The token of an exchange for practice is none of Kite's business.")
    if token_needed_until(settings, clock) is None:
        return dg.SkipReason("No session is to come today.")
    opens = first_opening(settings, clock)
    if opens is not None and now < opens - LOGIN_AHEAD:
        return dg.SkipReason(f"The first session opens at {opens:%H:%M} IST; Kite is asked an hour before.")
    return dg.RunRequest(run_key=f"{now:%Y-%m-%d}")


#: What keeps each broker's token good.
TOKEN_JOBS: Mapping[Source, dg.JobDefinition] = {"dhan": token_refresh_job, "kite": token_check_job}
TOKEN_SCHEDULES: Mapping[Source, dg.ScheduleDefinition] = {
    "dhan": token_refresh_schedule,
    "kite": token_check_schedule,
}
