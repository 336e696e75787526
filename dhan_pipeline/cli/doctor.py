"""Is everything fit for the session?"""

from dataclasses import asdict
from typing import Annotated

import typer

from dhan_pipeline.cli.common import JsonOption, parse_source, print_findings, print_json, read_settings
from dhan_pipeline.errors import PipelineError


def doctor(
    source: Annotated[
        str | None, typer.Option(help="The broker, dhan or kite; without it those of DATA_SOURCE.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at everything that a session needs, and say what to do about each red line. Changes nothing, starts nothing.

    Token and data plan, the broker's API and feed, the clock, database, migrations, instruments, subscriptions, the
    capture, disk, open files, calendar. Exits 1 where a line is red.
    """
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.diagnosis.findings import red
    from dhan_pipeline.diagnosis.readiness import examine

    settings = read_settings()
    if source is not None:
        settings = settings.of(parse_source(source))
    findings = examine(settings, Clock())
    reds = red(findings)
    if as_json:
        print_json({"ready": not reds, "red": reds, "findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(findings)
    if reds:
        raise PipelineError(f"Not ready: {', '.join(reds)}.")
    if not as_json:
        print("Ready.")
