"""The access token's life: a clock looks whether it lasts, and a run has a new one made if it does not.

Belongs here: when a token is too old for the day, and what a run says about it. Does not: how a token is made
(`feeds/dhan/token.py`), which also sees to it that only one process makes one.
"""

import dagster as dg

from dhan_pipeline.clock import Clock
from dhan_pipeline.feeds.dhan.auth import check_dhan_token_validity, get_dhan_credentials
from dhan_pipeline.feeds.dhan.errors import CredentialsError
from dhan_pipeline.feeds.dhan.token import can_refresh, read_profile, refresh_token
from dhan_pipeline.orchestration.calendar import token_needed_until
from dhan_pipeline.orchestration.resources import explained
from dhan_pipeline.orchestration.schedules import TIME_ZONE
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings


@dg.op(description="Has a new access token made where the present one does not last, and asks whether it is good.")
def refresh_access_token(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> None:
    """Refresh the token and read the profile. Fails with a sentence where a person has to act."""
    with explained():
        until = token_needed_until(settings, clock)
        made = refresh_token(settings, clock, needed_until=until) if can_refresh(settings) else None
        context.log.info("A new token was made." if made else "The token lasts; none was made.")
        profile = read_profile(settings, made or get_dhan_credentials(settings))
        valid_until = profile.valid_until.astimezone(IST)
        context.log.info(f"Dhan says that it is good until {valid_until:%Y-%m-%d %H:%M} IST.")
        if not profile.data_plan_active:
            raise dg.Failure(
                description="The account has no active data plan, so no packet will come: subscribe to Dhan's data"
                " APIs.",
                allow_retries=False,
            )


@dg.job(
    description="Has a new access token made where the present one does not last for today's sessions, and asks the"
    " broker whether it is good.",
    tags={"dhan/role": "token_refresh"},
)
def token_refresh_job() -> None:
    """Refresh the access token."""
    refresh_access_token()


@dg.schedule(
    job=token_refresh_job,
    name="token_refresh_schedule",
    cron_schedule="*/15 * * * *",
    execution_timezone=TIME_ZONE,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every quarter of an hour: starts `token_refresh_job` where the token does not last for today's"
    " sessions. Needs DHAN_PIN and DHAN_TOTP_SECRET.",
)
def token_refresh_schedule(
    settings: dg.ResourceParam[Settings], clock: dg.ResourceParam[Clock]
) -> dg.RunRequest | dg.SkipReason:
    """A run where a token is needed today that the present one is not."""
    until = token_needed_until(settings, clock)
    if until is None:
        return dg.SkipReason("No session is to come today.")
    try:
        credentials = get_dhan_credentials(settings)
    except CredentialsError as error:
        problem = str(error)
    else:
        if check_dhan_token_validity(credentials, until - clock.now(), clock.now()):
            return dg.SkipReason(
                f"The token lasts until {until.astimezone(IST):%H:%M} IST, when it is no longer needed."
            )
        problem = f"The token does not last until {until.astimezone(IST):%H:%M} IST."
    if not can_refresh(settings):
        return dg.SkipReason(f"{problem} Set DHAN_PIN and DHAN_TOTP_SECRET, or put a new one into the token file.")
    return dg.RunRequest()
