"""The access token's life."""

import json
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from dhan_pipeline.cli.common import JsonOption, read_settings
from dhan_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from dhan_pipeline.feeds.dhan.auth import Credentials

token_app = typer.Typer(help="The access token.", no_args_is_help=True, rich_markup_mode=None)


@token_app.command("check", short_help="Say whether the token is good, and how long.")
def token_check(as_json: JsonOption = False) -> None:
    """Ask the broker whether the token is good, and say how long it lasts. Exits 1 when it is not good."""
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.dhan.token import token_report
    from dhan_pipeline.sessions import IST

    report = token_report(read_settings(), Clock())
    if as_json:
        print(json.dumps(report))
    else:
        print(f"Client id {report['client_id']}, from {report['source']}.")
        if report["expires_at"] is not None:
            expires_at = datetime.fromisoformat(report["expires_at"]).astimezone(IST)
            print(f"Its time is over at {expires_at:%Y-%m-%d %H:%M} IST.")
        if report["can_refresh"]:
            print("DHAN_PIN and DHAN_TOTP_SECRET are set: a new one is made before that.")
    if not report["good"]:
        raise PipelineError(f"The access token is not good: {report['problem']}")
    if not as_json:
        print("The token is good, and the account has a data plan.")


@token_app.command("generate", short_help="Make a new token with PIN and TOTP.")
def token_generate(as_json: JsonOption = False) -> None:
    """Make a token with DHAN_PIN and DHAN_TOTP_SECRET, and save it. It ends the token before."""
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.dhan.token import generate_token

    _say_saved(generate_token(read_settings(), Clock()), as_json)


@token_app.command("renew", short_help="Have a living token replaced by a new one.")
def token_renew(as_json: JsonOption = False) -> None:
    """Have a token that still lives replaced by a new one, and save it. Needs no PIN; the broker may refuse."""
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.dhan.token import renew_token

    _say_saved(renew_token(read_settings(), Clock()), as_json)


def _say_saved(credentials: "Credentials", as_json: bool) -> None:
    """All about a new token but the token."""
    from dhan_pipeline.sessions import IST

    expires_at = credentials.expires_at
    if as_json:
        facts = {"client_id": credentials.client_id, "source": credentials.source}
        print(json.dumps({**facts, "expires_at": expires_at.isoformat() if expires_at else None}))
        return
    until = f", good until {expires_at.astimezone(IST):%Y-%m-%d %H:%M} IST," if expires_at else ""
    print(f"A new token of client id {credentials.client_id}{until} is in {credentials.source}.")
