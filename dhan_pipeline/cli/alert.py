"""Whether alerts get to people."""

from typing import Annotated

import typer

from dhan_pipeline.cli.common import JsonOption, print_json, read_settings
from dhan_pipeline.errors import PipelineError

alert_app = typer.Typer(help="What people are told.", no_args_is_help=True, rich_markup_mode=None)


@alert_app.callback()
def _alert() -> None:
    """What people are told."""


@alert_app.command("test", short_help="Send a test message to each channel.")
def alert_test(
    channel: Annotated[
        str | None, typer.Option("--channel", help="Only this one: slack, email, webhook or telegram.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send a test message to each channel that is set, and to whom ALERTS_FILE routes alerts. Exits 1 if one fails.

    A line each says what came of it. JSON has a line each, too.
    """
    from dhan_pipeline.alerts.channels import CHANNELS, NOTHING_SET, configured, try_out
    from dhan_pipeline.alerts.rules import all_destinations, load_rules, unset

    if channel is not None and channel not in CHANNELS:
        raise typer.BadParameter(f"{channel} is none of {', '.join(CHANNELS)}.", param_hint="--channel")
    settings = read_settings()
    channels, wrong = configured(settings)
    if not channels:
        raise PipelineError(" ".join([*wrong, NOTHING_SET]))
    rules = load_rules(settings.alerts_file)
    wrong += unset(rules, channels)
    if channel is not None and channel not in channels:
        raise PipelineError(" ".join([f"The channel {channel} is not set.", *wrong]))
    chosen = [there for there in all_destinations(rules, channels) if channel in (None, there.partition(":")[0])]
    attempts = try_out(settings, chosen)
    for attempt in attempts:
        outcome = {"destination": attempt.destination, "ok": not attempt.problem, "problem": attempt.problem or None}
        if as_json:
            print_json({**outcome, "ms": round(attempt.seconds * 1000)})
        else:
            print(f"{attempt.destination}: {attempt.problem or f'taken after {attempt.seconds:.1f} s'}")
    failed = [attempt.destination for attempt in attempts if attempt.problem]
    if failed:
        wrong.append(f"The test message was not taken by {', '.join(failed)}.")
    if wrong:
        raise PipelineError(" ".join(wrong))
