"""The times in which packets may have been missed."""

from contextlib import closing
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dhan_pipeline.cli.common import JsonOption, open_database, print_json, read_settings


def gaps(
    hour: Annotated[
        str | None, typer.Option(metavar="HOUR", help="Of one hour (IST), such as 2026-11-20T09:00.")
    ] = None,
    day: Annotated[
        str | None, typer.Option(metavar="DAY", help="Of one day (IST), such as 2026-11-20; without options, today.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Since a time until now: ISO 8601, IST unless it names an offset."),
    ] = None,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover",
            help="Fetch from the broker what ended gaps swallowed, as far as ticks are kept, and do not list.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the gaps: when a connection or an instrument brought nothing in session, why, and how it ended."""
    if recover:
        if hour or day or since:
            raise typer.BadParameter("all gaps are recovered; it goes with --json only", param_hint="--recover")
        _recover(as_json)
        return
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.quality.gap_words import connection_number
    from dhan_pipeline.quality.gaps import parts
    from dhan_pipeline.quality.now import SILENT_S
    from dhan_pipeline.sessions import IST, hour_key
    from dhan_pipeline.sources import source_of_capture
    from dhan_pipeline.store.engine import connect
    from dhan_pipeline.store.gaps import read_gaps
    from dhan_pipeline.store.ledger import statuses
    from dhan_pipeline.times import ist, to_minute, to_second

    now_ns = Clock().now_ns()
    start_ns, end_ns = _interval(hour, day, since, now_ns)
    end_ns = min(end_ns, now_ns)
    settings = read_settings()
    with open_database(settings) as url, closing(connect(url)) as conn:
        stored = read_gaps(conn, start_ns, end_ns)
        captures = statuses(conn)
        silent = [
            capture
            for capture in captures
            if end_ns == now_ns and capture.source in settings.sources and capture.age_s > SILENT_S
        ]
    found = parts(stored, start_ns, end_ns, settings.sessions == "always")

    rows: list[dict[str, Any]] = [
        {
            "source": source_of_capture(gap.capture),
            "capture": gap.capture,
            "connection": gap.connection,
            "instruments": gap.instruments,
            "started_at": ist(gap.started_ns).isoformat(),
            "ended_at": None if gap.lasts else ist(gap.ended_ns).isoformat(),
            "session_seconds": round(gap.seconds, 3),
            "cause": gap.cause.value,
            "detail": gap.detail,
            "recovery": gap.recovery,
        }
        for gap in found
    ]
    if as_json:
        interval = {"from": ist(start_ns).isoformat(), "to": ist(end_ns).isoformat()}
        told_silent = [
            {"source": each.source, "capture": each.capture, "since": each.updated_at.astimezone(IST).isoformat()}
            for each in silent
        ]
        counts = {"outside_sessions": len(stored) - len(found), "silent_captures": told_silent}
        print_json({**interval, "gaps": rows, **counts})
        return
    between = f"from {ist(start_ns):%Y-%m-%d %H:%M} to {to_minute(ist(end_ns))}"
    if found:
        with_days = hour_key(start_ns)[:10] != hour_key(max(end_ns - 1, start_ns))[:10]
        time_format = "%Y-%m-%d %H:%M:%S" if with_days else "%H:%M:%S"
        table = Table(title=f"Gaps in session {between}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("from", "to", "seconds", "conn.", "instr.", "cause"):
            table.add_column(name, justify="right" if name in ("seconds", "conn.", "instr.") else "left", no_wrap=True)
        table.add_column("what happened, and how it ended")
        for gap in found:
            table.add_row(
                f"{ist(gap.started_ns):{time_format}}",
                "lasts" if gap.lasts else f"{ist(gap.ended_ns):{time_format}}",
                f"{gap.seconds:,.1f}",
                connection_number(gap),
                f"{gap.instruments:,}",
                gap.cause.value,
                "; ".join(part for part in (gap.detail, gap.recovery) if part),
            )
        Console().print(table)
    elif captures:
        print(f"There is no gap in session {between}.")
    else:
        print("No capture has ever reported to this database, so no gap is known.")
    if outside := len(stored) - len(found):
        print(f"{outside} more {'was' if outside == 1 else 'were'} outside sessions.")
    for capture in silent:
        how = "was stopped at" if capture.status.get("stopped") else "has said nothing since"
        print(
            f"Capture {capture.capture} ({capture.source}) {how} {to_second(capture.updated_at)}."
            " What it misses is noted when it runs again."
        )


def _recover(as_json: bool) -> None:
    """Fetch what is due after gaps, also what could not be had before. Progress is said on standard error."""
    from dhan_pipeline.clock import Clock
    from dhan_pipeline.ingest.broker_bars import BrokerBarsError
    from dhan_pipeline.ingest.recovery import recover_gaps

    settings = read_settings()
    with open_database(settings) as url:
        recovered = recover_gaps(settings, url, Clock(), Console(stderr=True).print, again=True)
    for problem in recovered.problems:
        Console(stderr=True).print(problem)
    if as_json:
        print_json(asdict(recovered))
    else:
        print(recovered.in_words())
    if recovered.unfinished:
        raise BrokerBarsError(recovered.unfinished)


def _interval(hour: str | None, day: str | None, since: str | None, now_ns: int) -> tuple[int, int]:
    """Start and end in ns since the Unix epoch, UTC. Raises typer.BadParameter."""
    from dhan_pipeline.sessions import DAY_NS, HOUR_NS, IST, day_bounds_ns, day_start_ns, parse_hour_key

    if sum(option is not None for option in (hour, day, since)) > 1:
        raise typer.BadParameter("only one of --hour, --day and --since can be given", param_hint="--hour")
    if hour is not None:
        try:
            start_ns = parse_hour_key(hour)
        except ValueError:
            raise typer.BadParameter(f"{hour} is not an hour such as 2026-11-20T09:00", param_hint="--hour") from None
        end_ns = start_ns + HOUR_NS
    elif since is not None:
        try:
            at = datetime.fromisoformat(since)
            start_ns = int((at if at.tzinfo else at.replace(tzinfo=IST)).astimezone(UTC).timestamp() * 1e9)
        except (ValueError, OverflowError):
            raise typer.BadParameter(f"{since} is not a time such as 2026-11-20T09:15", param_hint="--since") from None
        end_ns = max(now_ns, start_ns)
    else:
        start_ns = day_start_ns(now_ns)
        if day is not None:
            try:
                start_ns, _ = day_bounds_ns(date.fromisoformat(day))
            except ValueError:
                raise typer.BadParameter(f"{day} is not a day such as 2026-11-20", param_hint="--day") from None
        end_ns = start_ns + DAY_NS
    if start_ns >= now_ns:
        raise typer.BadParameter("that is still to come", param_hint="--hour, --day, --since")
    if start_ns < 0:
        raise typer.BadParameter("that is before 1970", param_hint="--hour, --day, --since")
    return start_ns, end_ns
