"""The access token's life."""

from datetime import datetime
from typing import Annotated, Any

import typer

from dhan_pipeline.cli.common import JsonOption, parse_source, print_json, read_settings
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.settings import Settings

token_app = typer.Typer(help="The access token.", no_args_is_help=True, rich_markup_mode=None)

WhoseOption = Annotated[
    str | None, typer.Option("--source", help="The broker whose token it is: dhan or kite. Default: DATA_SOURCE.")
]


@token_app.command("check", short_help="Say whether the token is good, and how long.")
def token_check(source: WhoseOption = None, as_json: JsonOption = False) -> None:
    """Ask the broker whether the token is good, and say how long it lasts. Exits 1 when it is not good.

    With both brokers, JSON has an object for each.
    """
    settings = _of(source, read_settings())
    reports = {each: _report(settings.of(each), alone=len(settings.sources) == 1) for each in settings.sources}
    if as_json:
        print_json(reports if len(reports) > 1 else reports[settings.source])
    for each, report in reports.items():
        if not as_json:
            if len(reports) > 1:
                print(f"{each}:")
            _say(report)
    bad = {each: report["problem"] for each, report in reports.items() if not report["good"]}
    if bad:
        words = bad.values() if len(reports) == 1 else [f"{each}: {problem}" for each, problem in bad.items()]
        raise PipelineError(f"The access token was not found to be good: {' '.join(words)}")


@token_app.command("generate", short_help="Make a new token.")
def token_generate(
    source: WhoseOption = None,
    request_token: Annotated[
        str | None,
        typer.Option(
            help="Kite's: what the login left in the address that the browser was sent to, or that whole address."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and save it. It ends the token before.

    Dhan's is made with DHAN_PIN and DHAN_TOTP_SECRET. Kite's is made of a login with KITE_API_KEY and KITE_API_SECRET:
    without --request-token, this says where to log in, and exits 1.
    """
    from dhan_pipeline.clock import Clock

    settings = _one_of(source)
    if settings.source == "kite":
        from dhan_pipeline.feeds.kite.token import generate_token as generate_kite_token
        from dhan_pipeline.feeds.kite.token import login_url

        if request_token is None:
            url = login_url(settings)
            if as_json:
                print_json({"login_url": url})
            else:
                print(url)
            raise PipelineError(
                "Log in there. The address that the browser is sent to then has a request_token: within minutes, give"
                " it to `dhan-pipeline token generate --source kite --request-token`."
            )
        kite = generate_kite_token(settings, Clock(), request_token)
        _say_saved({"api_key": kite.api_key}, kite.source, kite.expires_at, as_json)
        return
    from dhan_pipeline.feeds.dhan.token import generate_token

    if request_token is not None:
        raise typer.BadParameter("Dhan's tokens are made without one", param_hint="--request-token")
    dhan = generate_token(settings, Clock())
    _say_saved({"client_id": dhan.client_id}, dhan.source, dhan.expires_at, as_json)


@token_app.command("renew", short_help="Have a living token replaced by a new one.")
def token_renew(source: WhoseOption = None, as_json: JsonOption = False) -> None:
    """Have a token that still lives replaced by a new one, and save it. Needs no PIN; the broker may refuse.

    Kite renews none.
    """
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.dhan.token import renew_token

    settings = _one_of(source)
    if settings.source == "kite":
        raise PipelineError(
            "Kite renews no token: log in for another with `dhan-pipeline token generate --source kite`."
        )
    dhan = renew_token(settings, Clock())
    _say_saved({"client_id": dhan.client_id}, dhan.source, dhan.expires_at, as_json)


def _of(source: str | None, settings: Settings) -> Settings:
    return settings if source is None else settings.of(parse_source(source))


def _one_of(source: str | None) -> Settings:
    settings = _of(source, read_settings())
    if len(settings.sources) > 1:
        raise typer.BadParameter("both brokers' feeds are captured, so say whose token is meant", param_hint="--source")
    return settings


def _report(settings: Settings, *, alone: bool) -> dict[str, Any]:
    """What the broker says of its token. Alone, one that is missing is an error; else the other is asked, too."""
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.feeds.errors import CredentialsError

    try:
        if settings.source == "kite":
            from dhan_pipeline.feeds.kite.token import token_report as kite_report

            return kite_report(settings, Clock())
        from dhan_pipeline.feeds.dhan.token import token_report

        return token_report(settings, Clock())
    except CredentialsError as error:
        if alone:
            raise
        return {"good": False, "problem": str(error)}


def _say(report: dict[str, Any]) -> None:
    """The report of one broker, but for what is wrong."""
    from dhan_pipeline.times import to_minute

    if "source" in report:
        whose = f"Client id {report['client_id']}" if "client_id" in report else f"API key {report['api_key']}"
        print(f"{whose}, from {report['source']}.")
        if report["expires_at"] is not None:
            print(f"Its time is over at {to_minute(datetime.fromisoformat(report['expires_at']))}.")
        if report["can_refresh"]:
            print("DHAN_PIN and DHAN_TOTP_SECRET are set: a new one is made before that.")
    if report["good"]:
        more = "the account has a data plan" if "client_id" in report else f"it is that of user {report['user_id']}"
        print(f"The token is good, and {more}.")


def _say_saved(whose: dict[str, str], source: str, expires_at: datetime | None, as_json: bool) -> None:
    """All about a new token but the token."""
    from dhan_pipeline.times import to_minute

    if as_json:
        print_json({**whose, "source": source, "expires_at": expires_at.isoformat() if expires_at else None})
        return
    until = f", good until {to_minute(expires_at)}," if expires_at else ""
    [(name, value)] = whose.items()
    print(f"A new token of {'client id' if name == 'client_id' else 'API key'} {value}{until} is in {source}.")
