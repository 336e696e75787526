"""Gaps in words for a person: a sentence, a table, and what to do about them. Times are shown in IST."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dhan_pipeline.amounts import counted
from dhan_pipeline.gaps import Cause
from dhan_pipeline.quality.gaps import GapPart
from dhan_pipeline.quality.tables import table
from dhan_pipeline.sessions import IST, day_start_ns
from dhan_pipeline.sources import CAPTURES, source_of_capture

#: Rows of a table of gaps: a connection that comes and goes for an hour makes hundreds.
_TABLE_ROWS = 50
_COLUMNS = (
    "connection", "instruments", "from (IST)", "to", "seconds in session", "cause", "what happened, and how it ended"
)  # fmt: skip

#: What to do about a gap.
ADVICE = {
    Cause.STALL: "The connection stood and nothing came; after FEED_SILENCE_S it is replaced. If it happens often, ask"
    " the broker. If the exchange was closed, the calendar is wrong: write the day into the file of SESSIONS_FILE.",
    Cause.RESET: "If it happens often, look at the network, then ask the broker.",
    Cause.SERVER: "The broker's server ended the connection, and said why.",
    Cause.TOKEN: "Have a new token in time: Dhan's is made by itself with DHAN_PIN and DHAN_TOTP_SECRET set; for Kite,"
    " somebody logs in each morning.",
    Cause.LIMIT: "Does another program use the account? Else subscribe to less.",
    Cause.PLAN: "Subscribe to the data plan at the broker, then launch the ingest job.",
    Cause.RESTART: "Why the capture ended is in the ingest run of that time.",
    Cause.HOST_DOWN: "The machine went down: give it a supply of power, and updates, that spare the session.",
    Cause.DISK: "Look at the free space and the health of the disk below DATA_DIR.",
    Cause.SUSPENDED: "Keep the machine from sleeping in session.",
    Cause.STOP: "Somebody stopped the capture in session.",
    Cause.SILENT: "A halt or a price band explains it; if not, terminate the ingest run and launch the ingest job.",
}


def gap_in_words(gap: GapPart) -> str:
    """When the whole gap was, in IST, and why: `from 10:50:03.120 to 11:20:14.000 IST: restart`."""
    until = "on, and lasts" if gap.gap_ended_ns is None else f"to {_ist(gap.gap_ended_ns, gap.gap_started_ns)} IST"
    return f"from {_ist(gap.gap_started_ns, gap.started_ns)} {until}: {gap.cause}{f', {gap.detail}' * bool(gap.detail)}"


def gaps_table(gaps: Sequence[GapPart]) -> str:
    """The longest gaps in Markdown, by start, with times in IST; silent instruments as a number. Empty without any."""
    silences = sum(gap.of_one for gap in gaps)
    of_connections = sorted((gap for gap in gaps if not gap.of_one), key=lambda gap: -gap.seconds)
    shown = sorted(of_connections[:_TABLE_ROWS], key=lambda gap: (gap.started_ns, gap.capture, gap.connection))
    blocks = []
    if shown:
        rows = (
            (
                connection_number(gap),
                f"{gap.instruments:,}",
                _ist(gap.gap_started_ns, gap.started_ns),
                "lasts" if gap.gap_ended_ns is None else _ist(gap.gap_ended_ns, gap.started_ns),
                f"{gap.seconds:,.1f}",
                gap.cause,
                "; ".join(filter(None, (gap.detail, gap.recovery))),
            )
            for gap in shown
        )
        blocks.append(table(_COLUMNS, rows, numbers=_COLUMNS[:2] + _COLUMNS[4:5]))
    if len(of_connections) > len(shown):
        blocks.append(f"{len(of_connections) - len(shown):,} shorter gaps are left out.")
    if silences:
        blocks.append(f"{counted(silences, 'lively instrument')} fell silent.")
    return "\n\n".join(blocks)


def event_in_words(event: Mapping[str, Any]) -> str:
    """What a capture's event `gap` says: that one began, or that it is over. Raises KeyError, ValueError."""
    started_ns = int(datetime.fromisoformat(event["started_at"]).timestamp() * 1e9)
    started = f"{_ist(started_ns, started_ns + int(event['seconds'] * 1e9))} IST"
    cause, connection = event["cause"], event["connection"]
    some = "an instrument of " if event["instruments"] == 1 else f"{event['instruments']:,} instruments of "
    of = f"{some if cause == Cause.SILENT else ''}connection {connection}"
    if event["ended_at"] is None:
        detail = f", {event['detail']}" if event["detail"] else ""
        return f"A gap: {of} brings nothing since {started}: {cause}{detail}."
    return f"The gap of {of} since {started} ({cause}) is over after {event['seconds']:,.1f} s: {event['recovery']}."


def connection_number(gap: GapPart) -> str:
    """The broker and the number of a gap's connection, with that of its capture where there are several: `kite 1/0`."""
    shard = gap.capture % CAPTURES
    return f"{source_of_capture(gap.capture)} {f'{shard}/' if shard else ''}{gap.connection}"


def _ist(at_ns: int, beside_ns: int) -> str:
    """A time in IST, with its day where that is another than that of the time beside it."""
    at = f"{datetime.fromtimestamp(at_ns / 1e9, IST):%Y-%m-%d %H:%M:%S.%f}"[:-3]
    return at if day_start_ns(at_ns) != day_start_ns(beside_ns) else at.partition(" ")[2]
