"""The broker's side: the token and the data plan, the clock of its REST API, the address of its feed."""

import socket
import ssl
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from dhan_pipeline.clock import Clock
from dhan_pipeline.diagnosis.findings import Finding, bad, ok, warn
from dhan_pipeline.feeds.auth import check_feed_address
from dhan_pipeline.feeds.dhan import token as dhan_token
from dhan_pipeline.feeds.errors import CredentialsError, SourceError
from dhan_pipeline.feeds.kite import token as kite_token
from dhan_pipeline.quality.calendar import next_session, token_needed_until
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.times import to_minute_of_day

#: Longest wait for the broker's first answer, and for its feed to take a connection.
_ANSWER_S = 8.0

#: A clock that is off by less is as good as a second's resolution can tell; by more, trade times lie.
CLOCK_WARN_S = 2.0
CLOCK_BAD_S = 5.0

_READ_BY_OTHERS = stat.S_IRGRP | stat.S_IROTH

#: A data plan that ends sooner is worth a word.
_PLAN_AHEAD = timedelta(days=3)

_BROKERS = {"dhan": "Dhan", "kite": "Kite"}


def token_and_plan(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The findings `token` and `data plan`, for which the broker is asked once."""
    token, plan = _token_and_plan(settings, clock)
    path = settings.dhan_token_file if settings.source == "dhan" else settings.kite_token_file
    with suppress(OSError):
        if (mode := stat.S_IMODE(path.stat().st_mode)) & _READ_BY_OTHERS:
            found = f"{token.found} Others on this machine may read its file (mode {mode:04o})."
            fix = f"{token.fix} Run `chmod 600 {path}`.".strip()
            token = replace(token, state="warn" if token.state == "ok" else token.state, found=found, fix=fix)
    return [token, plan]


def _token_and_plan(settings: Settings, clock: Clock) -> tuple[Finding, Finding]:
    make = _how_to_make(settings)
    try:
        report_of = dhan_token.token_report if settings.source == "dhan" else kite_token.token_report
        report = report_of(settings, clock)
    except CredentialsError as error:
        return bad("token", str(error), make), _unknown_plan()
    plan = _plan(settings, clock, report)
    if not report.get("judged", True):
        until = (
            f" By itself it is good until {to_minute_of_day(datetime.fromisoformat(end))}."
            if (end := report["expires_at"])
            else ""
        )
        return warn("token", f"Not known: {report['problem']}{until}", "Mend `clock` first."), plan
    if not report["good"] and plan.state != "bad":
        if _lives(report, clock) or not report["can_refresh"]:
            # Over, or refused: where no session needs it, there is time.
            return _not_good(settings, clock, str(report["problem"]), make), plan
        return warn("token", "Its time is over. A new one is made by itself before it is needed.", make), plan
    return _lasts(settings, clock, report, make), plan


def _lives(report: Mapping[str, Any], clock: Clock) -> bool:
    left_s = report["seconds_left"]
    return left_s is None or left_s > 0


def _not_good(settings: Settings, clock: Clock, problem: str, make: str) -> Finding:
    if token_needed_until(settings, clock) is not None:
        return bad("token", problem, make)
    session = next_session(settings, clock)
    when = f" The next session opens {to_minute_of_day(session[0])}." if session else ""
    return warn("token", f"{problem}{when}", make)


def _lasts(settings: Settings, clock: Clock, report: Mapping[str, Any], make: str) -> Finding:
    """A token that the broker takes, against the last close of today."""
    if report["expires_at"] is None:
        return ok("token", "The broker takes it; it does not say how long it is good.")
    expires_at = datetime.fromisoformat(report["expires_at"]).astimezone(IST)
    needed_until = token_needed_until(settings, clock)
    lasts = f"The broker takes it, and it is good until {to_minute_of_day(expires_at)}"
    if needed_until is None:
        return ok("token", f"{lasts}. No session of today is left.")
    needed_until = needed_until.astimezone(IST)
    if expires_at >= needed_until:
        if settings.sessions == "always":
            return ok("token", f"{lasts}.")
        return ok("token", f"{lasts}, after today's last close at {needed_until:%H:%M}.")
    lasts += f", but it is needed until {to_minute_of_day(needed_until)}."
    if report["can_refresh"]:
        return ok("token", f"{lasts} A new one is made by itself before that.")
    return bad("token", lasts, make)


def _plan(settings: Settings, clock: Clock, report: Mapping[str, Any]) -> Finding:
    if settings.source == "kite":
        return ok("data plan", "Kite's feed belongs to the app: a token that is taken is enough.")
    active = report.get("data_plan_active")
    if active is None:
        return _unknown_plan()
    renew = "Subscribe to Dhan's data APIs on its web site: without them no packet comes."
    if not active:
        return bad("data plan", "The account has no active data plan.", renew)
    if report["data_plan_until"] is None:
        return ok("data plan", "Active.")
    ends_at = datetime.fromisoformat(report["data_plan_until"]).astimezone(IST)
    found = f"Active until {to_minute_of_day(ends_at)}."
    soon = ends_at - clock.now() < _PLAN_AHEAD
    return warn("data plan", found, "Renew it on Dhan's web site before that.") if soon else ok("data plan", found)


def _unknown_plan() -> Finding:
    return warn("data plan", "Not known: the broker tells it to those with a good token only.", "Mend `token` first.")


def _how_to_make(settings: Settings) -> str:
    command = f"Run `dhan-pipeline token generate --source {settings.source}`"
    if settings.source == "kite":
        return f"{command} and log in where it says."
    if dhan_token.can_refresh(settings):
        return f"{command}."
    return f"Write a new token into {settings.dhan_token_file}, or set DHAN_PIN and DHAN_TOTP_SECRET: then it is made."


def clock_in_sync(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The finding `clock`: the broker's REST API answers, and its time is ours."""
    broker = _BROKERS[settings.source]
    variable, url = (
        ("DHAN_API_URL", settings.dhan_api_url)
        if settings.source == "dhan"
        else ("KITE_API_URL", settings.kite_api_url)
    )
    problem = ""
    try:
        with httpx.Client(timeout=_ANSWER_S) as client:
            asked_ns, started = clock.now_ns(), time.perf_counter()
            reply = client.get(url)
            answered_ns, took_s = clock.now_ns(), time.perf_counter() - started
    except httpx.TimeoutException:
        problem = f"{broker}'s REST API does not answer within {_ANSWER_S:.0f} s."
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
        problem = f"{broker}'s REST API cannot be reached."
    if problem:
        return [bad("clock", problem, f"Look at the network, and whether {variable} is right.")]
    found = f"{broker}'s REST API answers in {took_s * 1000:,.0f} ms"
    try:
        # It tells whole seconds, and has cut the rest off.
        server_s = parsedate_to_datetime(reply.headers["date"]).timestamp() + 0.5
    except (KeyError, ValueError):
        return [warn("clock", f"{found}, but does not tell its time.", "Compare the machine's clock with another.")]
    off_s = (asked_ns + answered_ns) / 2e9 - server_s
    unsure_s = 0.5 + took_s / 2
    if abs(off_s) <= CLOCK_WARN_S:
        return [ok("clock", f"{found}, and its clock is ours within {max(abs(off_s), unsure_s):.1f} s.")]
    way = "ahead of" if off_s > 0 else "behind"
    off = f"{found}. Our clock is {abs(off_s):,.0f} s {way} its (give or take {unsure_s:.1f} s)."
    fix = "Have the machine's clock set by a time server: `timedatectl set-ntp true`, or chrony."
    return [(bad if abs(off_s) > CLOCK_BAD_S else warn)("clock", off, fix)]


def feed_reachable(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The finding `feed`: the feed's server takes a connection. Nothing is sent: a login may end another's."""
    variable, url = (
        ("DHAN_FEED_URL", settings.dhan_feed_url)
        if settings.source == "dhan"
        else ("KITE_FEED_URL", settings.kite_feed_url)
    )
    try:
        check_feed_address(url, variable)
    except SourceError as error:
        return [bad("feed", str(error), f"Correct {variable}.")]
    address = urlsplit(url)
    host, secure = address.hostname or "", address.scheme == "wss"
    started = time.perf_counter()
    try:
        with socket.create_connection((host, address.port or (443 if secure else 80)), _ANSWER_S) as plain:
            if secure:
                with ssl.create_default_context().wrap_socket(plain, server_hostname=host):
                    pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return [
            bad(
                "feed",
                f"The feed's server takes no connection: {reason}.",
                f"Look at the network and its firewall, and whether {variable} is right.",
            )
        ]
    return [ok("feed", f"The feed's server takes connections, in {(time.perf_counter() - started) * 1000:,.0f} ms.")]
