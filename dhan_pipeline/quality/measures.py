"""Check outcomes from counts: of a sealed hour (history), and of a capture's status line (now).

Pure functions. The ingest run, the checks of a backfill and the live checks all come through here, so that an hour is
judged by the same numbers whoever asks. Targets and thresholds are those of the data-quality table in the docs; the
configurable ones are in `Settings`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dhan_pipeline.amounts import counted, duration
from dhan_pipeline.gaps import Cause
from dhan_pipeline.quality.completeness import Completeness, hour_completeness, live_completeness
from dhan_pipeline.quality.gap_words import ADVICE, connection_number, gap_in_words, gaps_table
from dhan_pipeline.quality.gaps import GapPart
from dhan_pipeline.quality.held_up import held_up, held_up_then
from dhan_pipeline.quality.outcome import CheckOutcome, Severity, above, below
from dhan_pipeline.quality.pictures import Picture, latency_picture, ticks_picture
from dhan_pipeline.quality.rates import hour_insert_rate, hour_tick_rate, live_insert_rate, live_tick_rate
from dhan_pipeline.quality.trade_clock import moved_in_words
from dhan_pipeline.sessions import parse_hour_key
from dhan_pipeline.settings import Settings
from dhan_pipeline.store.digests import DigestRecord
from dhan_pipeline.store.flow import HourFlow
from dhan_pipeline.times import beside, to_minute

#: A capture reports each second; its word is not taken for the present when it is older than this.
STATUS_STALE_S = 30.0

#: In session something arrives all the time: a feed that says nothing for this long is not a quiet market.
SILENCE_ERROR_S = 60.0

#: Free space of the journal's disk, in GB. A full packet takes some 120 bytes there.
DISK_WARN_GB = 2.0
DISK_ERROR_GB = 0.5

#: Names of the checks, in the order in which outcomes are returned.
_BOTH = ("tick_rate", "parser_error_rate", "latency_p99", "insert_rate", "conservation", "gaps", "completeness")
HOUR_CHECKS = (*_BOTH, "digest")
LIVE_CHECKS = (
    *_BOTH,
    "connected",
    "silent_instruments",
    "trade_clock",
    "token",
    "memory",
    "cpu",
    "disk",
    "queue_depth",
)


@dataclass(frozen=True, slots=True)
class HourMeasures:
    """What is known of one IST hour, over all captures: in the journal, in the ledger, in the table."""

    hour: str
    """Partition key, `2026-11-20T09:00` IST."""
    journal_blocks: int
    journal_messages: int
    journal_bytes: int
    """Payload bytes, before compression."""
    journal_damage: tuple[str, ...]
    """What of the journal's files could not be read, a sentence each."""
    first_received_ns: int | None
    """Nanoseconds since the Unix epoch, UTC; None where the journal holds nothing of the hour."""
    last_received_ns: int | None
    blocks: int
    """Blocks in the ledger; so are the counts that follow."""
    messages: int
    packets: int
    ticks: int
    state: int
    control: int
    rejected: int
    rows: int
    """Rows of `ticks` that are in the table."""
    latency_p99_ms: float | None
    """From receipt to commit, in milliseconds; None where no block of the hour was stored live."""
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_p999_ms: float | None = None
    flow: HourFlow = field(default_factory=HourFlow)
    waits: Mapping[str, int] = field(default_factory=dict)
    """Seconds in which ticks of the hour waited, by what held them up; as far as captures that run remember it."""
    trading: tuple[int, ...] | None = None
    """Of how many instruments packets were due in each minute; None where that is not on record."""
    completeness: Completeness | None = None
    """None where the table has none of its ticks."""
    gaps: tuple[GapPart, ...] = ()
    """The parts of gaps in the hour of which some was in session."""
    latencies: Picture | None = None
    day: Picture | None = None
    """The day's ticks a minute, and its gaps, to the end of the hour."""
    digest: str = ""
    """Of the rows in the table; see `store/digests.py`."""
    recorded: tuple[DigestRecord, ...] = ()
    """What is on record of them: the last two records, the oldest first."""
    expired: bool = False
    """Whether the table has none of its ticks because they are older than the retention."""


def hour_outcomes(measures: HourMeasures, settings: Settings) -> list[CheckOutcome]:
    """The outcomes of `HOUR_CHECKS` for a sealed hour."""
    hour = measures.hour
    why = held_up_then(measures.waits, measures.flow.waited_in_parts)
    percentiles = (
        measures.latency_p50_ms,
        measures.latency_p95_ms,
        measures.latency_p99_ms,
        measures.latency_p999_ms,
    )
    return [
        hour_tick_rate(
            hour,
            measures.flow,
            measures.trading,
            settings,
            ticks_picture(measures.flow.ticks_by_minute, parse_hour_key(hour), measures.gaps),
        ),
        _parser_error_rate(measures.rejected, measures.packets, f"of the hour {hour}", settings),
        _latency(
            measures.latency_p99_ms,
            settings,
            found=f"99 % of the ticks of {hour} were in the database {{value}} after they arrived.",
            unknown=f"No block of {hour} was stored as it arrived (it was rebuilt, or is empty): no latency to judge.",
            percentiles=percentiles,
            picture=measures.latencies,
            why=why,
        ),
        hour_insert_rate(hour, measures.flow, measures.trading, settings, why),
        _conservation(
            {
                "journal blocks = ledger blocks": (measures.journal_blocks, measures.blocks),
                "journal messages = ledger messages": (measures.journal_messages, measures.messages),
                **_packet_balance(
                    measures.packets, measures.ticks, measures.state, measures.control, measures.rejected
                ),
                **({} if measures.expired else {"ticks = rows stored": (measures.ticks, measures.rows)}),
            },
            f"of the hour {hour}",
            advice=" ".join(
                [
                    f"Materialise `ticks` for {hour} again: it rebuilds the hour from the journal.",
                    *measures.journal_damage,
                ]
            ),
        ),
        gaps_outcome(hour, measures.gaps, settings),
        hour_completeness(hour, measures.completeness, settings),
        _digest(measures),
    ]


def live_outcomes(
    status: Mapping[str, Any],
    settings: Settings,
    feed_expected: bool = True,
    earlier: Mapping[str, Any] | None = None,
    token_until: datetime | None = None,
) -> list[CheckOutcome]:
    """The outcomes of `LIVE_CHECKS` for a capture's status line.

    Counts of a status run since the capture started. With an `earlier` status of the same capture the error rate is
    that of the time between the two, else that since the start. Without `feed_expected`, out of session, connections
    are not judged. `token_until`: how long the token is needed, None where nothing more is expected today.
    """
    packets, rejected, span = status["packets"], status["rejected"], "since the capture started"
    if earlier is not None and earlier["packets"] < packets:
        packets, rejected = packets - earlier["packets"], rejected - earlier["rejected"]
        span = f"since {beside(*(datetime.fromisoformat(each['at']) for each in (earlier, status)))}"
    behind_ms = 1000.0 * (status["backlog_seconds"] or 0.0)
    p99 = status["latency_p99_ms"]
    latency = behind_ms if p99 is None else max(p99, behind_ms)
    unknown = "Nothing was stored in the last 10 s and nothing waits: no latency to judge."
    if status.get("ticks_per_minute") is None:
        # What its predecessor left to be stored says nothing of the database.
        latency, unknown = None, "The capture has not run for a minute yet."
    elif p99 is None and not behind_ms:
        latency = None
    return [
        live_tick_rate(status, settings),
        _parser_error_rate(rejected, packets, span, settings),
        _latency(
            latency,
            settings,
            found="Packets are in the database {value} after they arrive, or have waited that long"
            " (p99 of the last 10 s, or the backlog).",
            unknown=unknown,
            percentiles=[status.get(f"latency_{name}_ms") for name in ("p50", "p95", "p99", "p999")],
            picture=latency_picture(status.get("latency_counts", ()), settings.latency_p99_ms_warn),
            why=held_up(status),
        ),
        live_insert_rate(status, settings),
        _conservation(
            _packet_balance(status["packets"], status["ticks"], status["state"], status["control"], status["rejected"]),
            "since the capture started",
            advice="The decoder loses packets: keep the journal and rebuild the hour once it is mended.",
        ),
        _live_gaps(status, settings),
        live_completeness(status, settings),
        _connected(status) if feed_expected else _closed("connected", "No session is on: the feed may be silent."),
        _silent_instruments(status),
        _trade_clock(status, settings),
        _token(status, settings, token_until),
        _memory(status, settings),
        _cpu(status, settings),
        disk_outcome(status),
        _queue_depth(status, settings),
    ]


def absent_outcomes(reason: str) -> list[CheckOutcome]:
    """The outcomes of `LIVE_CHECKS` where a capture should be running and its status is not known."""
    return [
        CheckOutcome(name, False, "ERROR", None, "", "a status each second", f"{reason} Nothing can be said about now.")
        for name in LIVE_CHECKS
    ]


def closed_outcomes(reason: str) -> list[CheckOutcome]:
    """The outcomes of `LIVE_CHECKS` where no capture is expected to run."""
    return [_closed(name, reason) for name in LIVE_CHECKS]


def _closed(name: str, reason: str) -> CheckOutcome:
    return CheckOutcome(name, True, "WARN", None, "", "only judged in session", reason)


def _packet_balance(packets: int, ticks: int, state: int, control: int, rejected: int) -> dict[str, tuple[int, int]]:
    return {"packets = ticks + state + control + rejected": (packets, ticks + state + control + rejected)}


def _parser_error_rate(rejected: int, packets: int, span: str, settings: Settings) -> CheckOutcome:
    warn, error = settings.parser_error_rate_warn, settings.parser_error_rate_error
    rate = rejected / packets if packets else 0.0
    found = f"{rejected:,} of {packets:,} packets {span} were rejected ({rate:.3%})."
    if rate > warn:
        found += (
            " Rejected packets are kept with their reason and bytes in `rejected_packets`: a new reason means that the"
            " feed changed or the instruments are out of date; materialise the hour again after mending it."
        )
    return CheckOutcome(
        "parser_error_rate",
        rate <= warn,
        above(rate, error),
        100 * rejected / max(packets, 1),
        "percent",
        f"target below 0.1 %, warning above {100 * warn:g} %, critical above {100 * error:g} %",
        found,
    )


def _latency(
    p99_ms: float | None,
    settings: Settings,
    *,
    found: str,
    unknown: str,
    percentiles: Sequence[float | None],
    picture: Picture | None,
    why: str,
) -> CheckOutcome:
    """`percentiles`: the 50th, 95th, 99th and 99.9th, in milliseconds. `why` it is high, and what to do."""
    warn, error = settings.latency_p99_ms_warn, settings.latency_p99_ms_error
    limits = f"target below 500 ms, warning above {warn:g} ms, critical above {error:g} ms"
    if p99_ms is None:
        return CheckOutcome("latency_p99", True, "WARN", None, "ms", limits, unknown)
    description = found.format(value=f"{p99_ms:,.0f} ms" if p99_ms < 10_000 else duration(p99_ms / 1000))
    if p99_ms > warn:
        description += f" {why[0].upper()}{why[1:]}. Nothing is lost, the journal holds what waits."
    others = [
        f"{name} {value:,.0f} ms"
        for name, value in zip(("p50", "p95", "p99", "p99.9"), percentiles, strict=True)
        if value is not None
    ]
    if others:
        description += f" Of those stored: {', '.join(others)}."
    return CheckOutcome(
        "latency_p99",
        p99_ms <= warn,
        above(p99_ms, error),
        p99_ms,
        "ms",
        limits,
        description,
        picture=picture,
    )


def _conservation(equalities: Mapping[str, tuple[int, int]], span: str, advice: str) -> CheckOutcome:
    broken = {name: pair for name, pair in equalities.items() if pair[0] != pair[1]}
    if broken:
        differences = "; ".join(
            f"{name} does not hold: {left:,} and {right:,}" for name, (left, right) in broken.items()
        )
        description = f"The counts {span} differ: {differences}. {advice}"
    else:
        description = f"Every packet {span} is accounted for: {', '.join(equalities)}."
    return CheckOutcome(
        "conservation",
        not broken,
        "ERROR" if broken else "WARN",
        float(sum(abs(left - right) for left, right in broken.values())),
        "not accounted for",
        "anything that is not accounted for is critical",
        description,
    )


def _digest(measures: HourMeasures) -> CheckOutcome:
    hour, found = measures.hour, (measures.rows, measures.digest)
    earlier, last = (None, None, *measures.recorded)[-2:]
    passed, value = True, 0.0
    severity: Severity = "WARN"
    if measures.expired:
        description = (
            f"The {measures.ticks:,} ticks of {hour} have left the database, for they are older than the retention:"
            f" there is nothing to compare. Materialise `ticks` for {hour} to have them there again for a while."
        )
    elif last is None:
        description = f"Nothing is on record of {hour} yet."
    elif (last.rows, last.digest) != found:
        passed, severity, value = False, "ERROR", float(max(abs(measures.rows - last.rows), 1))
        description = (
            f"The {measures.rows:,} rows of {hour} are not the {last.rows:,} that were there at"
            f" {to_minute(last.made_at)}: something other than this pipeline has changed them. `dhan-pipeline replay"
            f" --hour {hour} --diff` shows what the journal says of each; materialise `ticks` for {hour} to have that"
            " again."
        )
    elif _left_others(earlier, last):
        passed = False
        counts = (last.added, last.removed, last.changed)
        value = float(sum(count or 0 for count in counts) or abs(last.rows - (earlier.rows if earlier else 0)))
        what = (
            f"The rebuild of {to_minute(last.made_at)} left other rows of {hour} than were there: {last.added or 0:,}"
            f" added, {last.removed or 0:,} removed, {last.changed or 0:,} changed."
            " A mended decoder or an instrument sync explains it"
            if last.origin == "rebuild"
            else f"The redrive of {to_minute(last.made_at)} left other rows of {hour} than were there: now"
            f" {last.rows:,}, before {earlier.rows if earlier else 0:,}. Packets that had been rejected explain it"
        )
        description = (
            f"{what}; what was made of the rows before has to be made again. Materialise `ticks` for {hour} once more:"
            " if the rows stay as they are, this passes."
        )
    else:
        by = {"capture": "the capture", "rebuild": "a rebuild", "redrive": "a redrive"}[last.origin]
        description = f"The {measures.rows:,} rows of {hour} are those that {by} left, by their digest {last.digest}."
    return CheckOutcome(
        "digest", passed, severity, value, "rows", "any difference warns, critical if made by others", description
    )


def _left_others(earlier: DigestRecord | None, last: DigestRecord) -> bool:
    """Whether a rebuild or redrive left other rows than were recorded before it, and did so itself."""
    if earlier is None or last.origin == "capture" or last.of == earlier.of:
        return False
    return last.origin == "redrive" or bool(last.added or last.removed or last.changed)


def _connected(status: Mapping[str, Any]) -> CheckOutcome:
    up, connections = status["connections_up"], status["connections"]
    last = status["last_packet_at"]
    silent_s = (datetime.fromisoformat(status["at"]) - datetime.fromisoformat(last)).total_seconds() if last else None
    if up < connections:
        description = (
            f"{up} of {connections} connections to the feed are up. The capture reconnects by itself; if it does not,"
            " look at its warnings in the ingest run: token, network, the broker's limits."
        )
    elif silent_s is not None and silent_s > SILENCE_ERROR_S:
        description = (
            f"The connections are up, but nothing has arrived for {silent_s:,.0f} s. Is the market open, and does the"
            " subscription hold instruments that trade now?"
        )
    else:
        all_up = (
            "The connection to the feed is up"
            if connections == 1
            else f"All {connections} connections to the feed are up"
        )
        description = all_up + (
            "; nothing has arrived yet."
            if silent_s is None
            else f", and the last packet is {max(silent_s, 0):,.1f} s old."
        )
    passed = up >= connections and (silent_s is None or silent_s <= SILENCE_ERROR_S)
    return CheckOutcome(
        "connected",
        passed,
        "WARN" if passed else "ERROR",
        silent_s,
        "seconds since the last packet",
        f"every connection up, silent for less than {SILENCE_ERROR_S:g} s",
        description,
    )


def _gap_limits(settings: Settings) -> str:
    warn, error = settings.gap_s_warn, settings.gap_s_error
    return f"none in session, warning above {warn:g} s, critical above {error:g} s"


def gaps_outcome(hour: str, gaps: Sequence[GapPart], settings: Settings) -> CheckOutcome:
    """The outcome of the check `gaps` for a sealed hour."""
    silences = [gap for gap in gaps if gap.of_one]
    gaps_of_connections = [gap for gap in gaps if not gap.of_one]
    longest = max(gaps_of_connections, key=lambda gap: gap.seconds, default=None)
    seconds = longest.seconds if longest else 0.0
    if longest:
        total_s = sum(gap.seconds for gap in gaps_of_connections)
        found = (
            f"{counted(len(gaps_of_connections), 'gap')} of {hour}, {total_s:,.1f} s of the session in all."
            f" The longest, {seconds:,.1f} s on connection {connection_number(longest)}, {gap_in_words(longest)}."
        )
        if seconds > settings.gap_s_warn:
            found += f" {ADVICE[longest.cause]} No rebuild brings back what was not received."
    else:
        found = f"No connection missed a second of {hour} in session."
    if silences:
        found += (
            f" {counted(len(silences), 'lively instrument')} fell silent while others on their connection went on:"
            f" a halt or a price band explains it. `dhan-pipeline gaps --hour {hour}` lists them."
        )
    return CheckOutcome(
        "gaps",
        seconds <= settings.gap_s_warn and not silences,
        above(seconds, settings.gap_s_error),
        seconds,
        "seconds",
        _gap_limits(settings),
        found,
        gaps_table(gaps),
    )


def _live_gaps(status: Mapping[str, Any], settings: Settings) -> CheckOutcome:
    """A gap that a person made by a stop is no reason to act: of now it warns. Its hour is judged as any other is."""
    open_s, recent_s, stopped_s = (status.get(f"gap_{name}_s", 0.0) for name in ("open", "recent", "stopped"))
    of_faults = max(open_s, recent_s)
    seconds = max(of_faults, stopped_s)
    found = []
    if open_s > 0:
        found.append(
            f"Packets have been missing for {open_s:,.1f} s of the session; a lost connection reconnects by itself."
        )
    elif recent_s > 0:
        found.append(f"The longest gap of the last five minutes took {recent_s:,.1f} s of the session, and is over.")
    elif not stopped_s:
        found.append("No connection has missed a second of the last five minutes in session.")
    if of_faults > settings.gap_s_warn and (cause := status.get("gap_cause")):
        found.append(f"Cause: {cause}. {ADVICE[Cause(cause)]}")
    if stopped_s:
        found.append(
            f"The capture was asked to stop, and missed {duration(stopped_s)} of the session until it was started"
            " again: what came meanwhile is in no journal, and no rebuild brings it back."
        )
    return CheckOutcome(
        "gaps",
        seconds <= settings.gap_s_warn,
        above(of_faults, settings.gap_s_error),
        seconds,
        "seconds",
        f"{_gap_limits(settings)}; after a stop that was asked for, a warning",
        " ".join(found),
    )


def _silent_instruments(status: Mapping[str, Any]) -> CheckOutcome:
    count = status.get("silent_count", 0)
    found = "Every lively instrument goes on."
    if count:
        tokens = status.get("silent", [])
        more = f" and {count - len(tokens)} more" if count > len(tokens) else ""
        found = (
            f"{counted(count, 'lively instrument')} fell silent while others on the connection went on:"
            f" {', '.join(map(str, tokens))}{more}. A halt or a price band explains it; if it does not, terminate the"
            " ingest run and launch the ingest job to subscribe anew."
        )
    return CheckOutcome(
        "silent_instruments", not count, "WARN", float(count), "instruments", "none, warning above 0", found
    )


def _trade_clock(status: Mapping[str, Any], settings: Settings) -> CheckOutcome:
    limits = "trade times within two minutes of receipt"
    match status.get("trade_clock"):
        case "moved":
            found = moved_in_words(settings.source, settings.trade_time_offset_s)
            return CheckOutcome("trade_clock", False, "ERROR", None, "", limits, found)
        case "ok":
            found = "Trades arrive moments after their trade time."
        case _:
            found = "Too few of the last packets report a trade of just now to say anything."
    return CheckOutcome("trade_clock", True, "WARN", None, "", limits, found)


def _token(status: Mapping[str, Any], settings: Settings, needed_until: datetime | None) -> CheckOutcome:
    limits = "good for today's sessions, critical when its time is over, or the broker refuses it"
    if (problem := status.get("token_problem")) is not None:
        found = f"{problem.rstrip('.')}. The capture waits for another token, and takes it by itself."
        return CheckOutcome("token", False, "ERROR", None, "", limits, found)
    if (expires := status.get("token_expires_at")) is None:
        return CheckOutcome("token", True, "WARN", None, "", limits, "How long the token is good is unknown.")
    expires_at = datetime.fromisoformat(expires)
    left_s = (expires_at - datetime.fromisoformat(status["at"])).total_seconds()
    expired, short = left_s <= 0, needed_until is not None and expires_at < needed_until
    found = (
        f"The access token's time was over at {to_minute(expires_at)}."
        if expired
        else f"The access token is good until {to_minute(expires_at)}."
    )
    if short and needed_until is not None:
        found += f" It is needed until {to_minute(needed_until)}."
    if expired or short:
        found += (
            " With DHAN_PIN and DHAN_TOTP_SECRET a new one is made by itself; else put one into the token file."
            if settings.source == "dhan"
            else " Log in for another: `dhan-pipeline token generate --source kite`."
        )
        found += " A connection that stands goes on until the broker ends it."
    return CheckOutcome(
        "token", not expired and not short, "ERROR" if expired else "WARN", left_s / 3600, "hours", limits, found
    )


def _memory(status: Mapping[str, Any], settings: Settings) -> CheckOutcome:
    warn, error = settings.memory_mb_warn, settings.memory_mb_error
    used_mb = status["rss_mb"]
    found = f"The capture's process has {used_mb:,.0f} MB of memory."
    if used_mb > warn:
        found += (
            " Usual is below 200 MB, whatever waits. Out of session, terminate the ingest run and launch the ingest"
            " job; if it grows again, keep the numbers for a report."
        )
    return CheckOutcome(
        "memory",
        used_mb <= warn,
        above(used_mb, error),
        used_mb,
        "MB",
        f"target below 200 MB, warning above {warn:g} MB, critical above {error:g} MB",
        found,
    )


def _cpu(status: Mapping[str, Any], settings: Settings) -> CheckOutcome:
    warn, error = settings.cpu_percent_warn, settings.cpu_percent_error
    limits = f"target 5 to 15 % of a core, warning above {warn:g} %, critical above {error:g} %"
    percent = status.get("cpu_percent_minute")
    if percent is None:
        found = "The capture has not run for a minute yet."
        return CheckOutcome("cpu", True, "WARN", None, "percent of a core", limits, found)
    a_second = (status.get("ticks_per_minute") or 0.0) / 60
    found = (
        f"The capture's process took {percent:,.1f} % of a core in the last minute, for {a_second:,.0f} ticks a second."
    )
    if percent > warn:
        found += (
            " Catching up after an outage takes more for a while, and so do far more than 10,000 ticks a second: then"
            " raise CPU_PERCENT_WARN. Else the database answers in small steps: look at its load."
        )
    return CheckOutcome("cpu", percent <= warn, above(percent, error), percent, "percent of a core", limits, found)


def disk_outcome(status: Mapping[str, Any]) -> CheckOutcome:
    """The outcome of `disk` for a capture's status line."""
    free_gb = status["disk_free_gb"]
    found = f"The journal's disk has {free_gb:,.1f} GB left."
    if free_gb < DISK_WARN_GB:
        found += " The capture ends when it is full: make room."
    return CheckOutcome(
        "disk",
        free_gb >= DISK_WARN_GB,
        below(free_gb, DISK_ERROR_GB),
        free_gb,
        "GB",
        f"warning below {DISK_WARN_GB:g} GB, critical below {DISK_ERROR_GB:g} GB",
        found,
    )


def _queue_depth(status: Mapping[str, Any], settings: Settings) -> CheckOutcome:
    warn, error = settings.queue_depth_warn, settings.queue_depth_error
    limits = f"target below 1000, warning above {warn:,} and of any dead letter, critical above {error:,}"
    if settings.transport == "direct" and "queue_depth" not in status:  # who looks may have other settings
        found = "The capture writes into the database itself: no queue is used."
        return CheckOutcome("queue_depth", True, "WARN", None, "messages", limits, found)
    depth, workers, dead = status.get("queue_depth"), status.get("workers") or 0, status.get("dead_letters") or 0
    if depth is None:
        found = (
            "RabbitMQ is away, or has not been asked yet. If it stays so, start it, or correct RABBITMQ_URL:"
            " `dhan-pipeline doctor` says what it answers. The journal keeps what is not handed over to it."
        )
        return CheckOutcome("queue_depth", False, "ERROR", None, "messages", limits, found)
    alone = depth > 0 and not workers
    found = f"RabbitMQ holds {counted(depth, 'message')} for {counted(workers, 'worker')}."
    if alone:
        found += " Nobody stores them: start one with `dhan-pipeline worker`."
    elif depth > warn:
        found += " The database or the workers do not keep up: look at their messages. Nothing is lost."
    if dead:
        found += (
            f" {dead:,} more could not be stored at all: `dhan-pipeline redrive --list` says why, and"
            " `dhan-pipeline redrive --dead-letters` puts them back; materialising their hours stores them, too."
        )
    return CheckOutcome(
        "queue_depth",
        depth <= warn and not dead and not alone,
        "ERROR" if alone else above(depth, error),
        float(depth),
        "messages",
        limits,
        found,
    )
