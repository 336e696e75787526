"""Why does nothing come of an instrument? The way of its packets, link by link, and the first that is broken.

Instrument, subscription, session, capture, connection, packet in the journal, rejected packets, writer, row in `ticks`.
Later links are shown whatever an earlier one says, as far as they are known.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import psycopg2
from psycopg2.extensions import connection

from dhan_pipeline.amounts import counted, duration
from dhan_pipeline.clock import Clock
from dhan_pipeline.diagnosis.asking import asked_database, start_database
from dhan_pipeline.diagnosis.findings import Finding, bad, ok, warn
from dhan_pipeline.diagnosis.running import CATCHES_UP, latest_capture, refused, unheard_of, when_next
from dhan_pipeline.diagnosis.stored import MIGRATE, SYNC
from dhan_pipeline.errors import LACKS_TABLES, PipelineError, in_words
from dhan_pipeline.feeds.by_source import decoder, feed_of, instrument_mark
from dhan_pipeline.feeds.client import shard
from dhan_pipeline.gaps import Cause
from dhan_pipeline.instruments import segment_of
from dhan_pipeline.journal.latest import look_back
from dhan_pipeline.journal.stretch import Stretch
from dhan_pipeline.quality.calendar import capture_expected
from dhan_pipeline.quality.gap_words import ADVICE
from dhan_pipeline.quality.measures import SILENCE_ERROR_S
from dhan_pipeline.sessions import IST, QUIET_KINDS, day_start_ns, sessions
from dhan_pipeline.settings import Settings
from dhan_pipeline.sources import Source
from dhan_pipeline.store import ledger
from dhan_pipeline.store.gaps import read_gaps
from dhan_pipeline.store.instruments import read_activity, read_instruments
from dhan_pipeline.store.recent import LatestTick, latest_ticks
from dhan_pipeline.store.resolved import prices_of
from dhan_pipeline.store.subscribed import Subscribed, subscribed_during
from dhan_pipeline.store.symbols import SymbolError, find_instruments, resolve_symbols
from dhan_pipeline.subscriptions import Subscription, SubscriptionError, load_rules, read_subscriptions, resolve
from dhan_pipeline.threads import in_thread
from dhan_pipeline.times import beside, ist, to_minute, to_minute_of_day, to_second

#: How long the whole walk may take: a server that hangs takes connections, and answers nothing.
PATIENCE_S = 40.0

#: How long the journal is searched, in seconds.
_SEARCH_S = 5.0

#: A packet of an instrument that is this old is worth a word; so is silence of a whole feed.
_QUIET_S = 60.0
_FEED_QUIET_S = 10.0

#: What a capture has received is in the table after milliseconds. Behind by more, something holds it up.
_BEHIND_S = 5.0

_HOW_TO_FIND = (
    "`dhan-pipeline find` says what can be written; `dhan-pipeline sync-instruments --download` fetches what is new."
)

#: How far back a row of an instrument is looked for.
_ROWS_SINCE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Walk:
    """What was found on the way."""

    symbol: str
    """As it was written."""
    source: Source
    instrument_token: int | None
    links: Sequence[Finding]
    verdict: str

    @property
    def broken(self) -> str | None:
        """The name of the first link that is broken; None where the chain is whole."""
        return next((link.name for link in self.links if link.state == "bad"), None)


@dataclass(frozen=True, slots=True)
class _Packet:
    received_ns: int
    connection: int
    kind: str
    becomes_row: bool


@dataclass(frozen=True, slots=True)
class _Way:
    """What the links are asked about."""

    settings: Settings
    clock: Clock
    now_ns: int
    """When the journal and the table were looked at: ages are told as of then."""
    conn: connection | None
    away: str
    """Why the database cannot be asked; empty where it can."""
    token: int
    listed: Sequence[Subscription] | SubscriptionError
    capture: ledger.CaptureStatus | None
    """The running capture; None where none runs, or it is not known."""
    row: LatestTick | None
    packet: _Packet | None
    searched_from_ns: int
    unread: str
    """Why the journal cannot be read; empty where it can."""
    open: bool
    """Whether the instrument's segment is in session."""

    @property
    def now(self) -> datetime:
        return ist(self.now_ns)


def walk(settings: Settings, symbol: str, clock: Clock, patience_s: float = PATIENCE_S) -> Walk:
    """Walk the chain of an instrument of the settings' source, written as `find` takes it. Raises nothing."""
    walking = in_thread(partial(_walk, settings, symbol, clock), "walk")
    try:
        return walking.result(patience_s)
    except TimeoutError:
        found = f"No answer within {patience_s:.0f} s: the database, or the disk of the journal, hangs."
        link = bad("instrument", found, "See which with `dhan-pipeline doctor`.")
        return Walk(symbol, settings.source, None, [link], f"{link.found} {link.fix}")


def _walk(settings: Settings, symbol: str, clock: Clock) -> Walk:
    with contextlib.ExitStack() as stack:
        conn, away = None, ""
        try:
            conn = stack.enter_context(asked_database(settings))
        except PipelineError as error:
            away = in_words(error)
        listed: Sequence[Subscription] | SubscriptionError
        try:
            listed = read_subscriptions(settings.subscriptions_path, settings.source)
        except SubscriptionError as error:
            listed = error
        instrument, token = _guarded_instrument(conn, away, settings, symbol, clock, listed)
        if token is None:
            return Walk(symbol, settings.source, None, [instrument], f"{instrument.found} {instrument.fix}".strip())
        capture = None
        with contextlib.suppress(Exception):  # a database without our tables: the first link says so
            if conn is not None:
                found, runs = latest_capture(conn, settings)
                capture = found if runs else None
        packet, searched_from_ns, unread = None, clock.now_ns(), ""
        try:
            packet, searched_from_ns = _last_packet(settings, token, clock)
        except OSError as error:
            unread = in_words(error)
        row = None
        if conn is not None:  # after the journal: a row that is there must be found
            with contextlib.suppress(psycopg2.Error):
                since_ns = clock.now_ns() - int(_ROWS_SINCE.total_seconds() * 1e9)
                row = latest_ticks(conn, [token], since_ns).get(token)
        way = _Way(
            settings=settings,
            clock=clock,
            now_ns=clock.now_ns(),
            conn=conn,
            away=away,
            token=token,
            listed=listed,
            capture=capture,
            row=row,
            packet=packet,
            searched_from_ns=searched_from_ns,
            unread=unread,
            open=settings.sessions == "always" or _open_kind(token, clock) is not None,
        )
        links = [instrument, *(_guarded(name, link, way) for name, link in _LINKS.items())]
        return Walk(symbol, settings.source, token, links, _verdict(way, links))


def _guarded(name: str, link: Callable[[_Way], Finding], way: _Way) -> Finding:
    try:
        return link(way)
    except Exception as error:
        return bad(name, f"It could not be looked at: {in_words(error)}", "Mend that, and ask again.")


def _verdict(way: _Way, links: Sequence[Finding]) -> str:
    broken = next((link for link in links if link.state == "bad"), None)
    if broken is not None:
        return f"The link that broke is `{broken.name}`: {broken.found} {broken.fix}".strip()
    last = "the journal has no packet of it"
    if way.row is not None:
        last = f"its last tick came {_since(way.now_ns - way.row.received_ns)} ago"
    elif way.packet is not None:
        last = f"its last packet came {_since(way.now_ns - way.packet.received_ns)} ago"
    if not way.open:
        return f"No link is broken: {segment_of(way.token).name} is closed, and {last}."
    quiet = [link.name for link in links if link.state == "warn"]
    if quiet:
        return f"No link is broken, but look at {', '.join(f'`{name}`' for name in quiet)}: {last}."
    return f"All is well: {last}."


def _guarded_instrument(
    conn: connection | None,
    away: str,
    settings: Settings,
    symbol: str,
    clock: Clock,
    listed: Sequence[Subscription] | SubscriptionError,
) -> tuple[Finding, int | None]:
    fix = start_database(settings)
    try:
        if conn is not None:
            return _instrument(conn, settings, symbol, clock)
    except Exception as error:
        away = in_words(error)
        fix = MIGRATE if away == LACKS_TABLES else "Mend that, and ask again."
    # Without the database, the resolved list still knows the symbols that it has.
    known = listed if not isinstance(listed, SubscriptionError) else ()
    for subscription in known:
        if symbol.strip().casefold() in (subscription.symbol.casefold(), str(subscription.instrument_token)):
            words = f"{subscription.symbol}, by the resolved list, since the database cannot be asked."
            return warn("instrument", words, "Mend `writer` first."), subscription.instrument_token
    return bad("instrument", f"What {symbol} is cannot be said: {away}", fix), None


def _instrument(conn: connection, settings: Settings, symbol: str, clock: Clock) -> tuple[Finding, int | None]:
    """Known, and active."""
    source = settings.source
    try:
        (token,) = resolve_symbols(conn, [symbol], source=source)
    except SymbolError as error:
        found = in_words(error)
        return bad("instrument", found, SYNC if "; run: " in found else _HOW_TO_FIND), None
    matches = find_instruments(conn, symbol, source=source)
    row = matches[matches["instrument_token"] == token].iloc[0]
    what = f"{row['trading_symbol']} ({segment_of(token).name}, token {token})"
    if len(matches) > 1:
        what += f", the best of {len(matches)} matches"
    active, expiry, changed_at = read_activity(conn, token)
    if expiry is not None and expiry < clock.now().astimezone(IST).date():
        fix = "Name a contract that lives: `dhan-pipeline find` lists them."
        return bad("instrument", f"{what} expired on {expiry}.", fix), token
    if not active:
        since = f" since {to_minute(changed_at)}" if changed_at else ""
        return bad("instrument", f"{what} is not in the broker's list any more{since}.", SYNC), token
    return ok("instrument", f"{what} is known and active."), token


def _subscription(way: _Way) -> Finding:
    """In the resolved list, by which rule, and what the running capture makes of it."""
    apply = "Run `dhan-pipeline subscriptions`; a capture that runs takes it over within seconds."
    told = _told(way)
    captured = next((each for each in told if each.instrument_token == way.token), None)
    rule = _rule(way)
    by = f", by {rule}" if rule else ""
    if captured is not None:
        since = to_second(captured.since)
        return ok("subscription", f"The capture is subscribed to it in {captured.mode.value} mode since {since}{by}.")
    if isinstance(way.listed, SubscriptionError):
        return bad("subscription", in_words(way.listed), apply)
    mode = next((each.mode for each in way.listed if each.instrument_token == way.token), None)
    if mode is None:
        found = f"It is none of the {len(way.listed):,} instruments of the resolved list"
        if rule:
            return bad("subscription", f"{found}, though {rule} selects it.", apply)
        fix = f"Add it to a rule of {way.settings.subscriptions_file}, then run `dhan-pipeline subscriptions`."
        return bad("subscription", f"{found}, and no rule selects it.", fix)
    if told:
        late = "Ask again in some seconds; if that stays so, the ingest run says why the list cannot be used."
        return bad(
            "subscription", "It is in the resolved list, but the capture that runs has not subscribed to it.", late
        )
    return ok("subscription", f"It is in the resolved list in {mode.value} mode{by}.")


def _told(way: _Way) -> list[Subscribed]:
    """All that the running capture is subscribed to; empty where none runs, or it has not told yet."""
    if way.conn is None or way.capture is None:
        return []
    now = way.now
    return [each for each in subscribed_during(way.conn, now, now) if each.capture == way.capture.capture]


def _is_subscribed(way: _Way) -> bool:
    """Whether packets of it are to come: the running capture's word, else the list's."""
    listed = [] if isinstance(way.listed, SubscriptionError) else way.listed
    return any(each.instrument_token == way.token for each in _told(way) or listed)


def _rule(way: _Way) -> str:
    """The first rule that selects it, in words; empty where none does, or it cannot be said."""
    if way.conn is None:
        return ""
    try:
        rules = load_rules(way.settings.subscriptions_file)
    except SubscriptionError:
        return ""
    active, prices = read_instruments(way.conn, way.settings.source), prices_of(way.conn, way.clock)
    for rule in rules:
        with contextlib.suppress(SubscriptionError):  # it selects nothing
            selected = resolve([rule], active, way.now.date(), way.settings.source, prices).subscriptions
            if any(each.instrument_token == way.token for each in selected):
                return f"line {rule.line} of {way.settings.subscriptions_file} ({rule})"
    return ""


def _session(way: _Way) -> Finding:
    """Whether its segment trades now."""
    segment = segment_of(way.token).name
    if way.settings.sessions == "always":
        return ok("session", "Sessions never end (SESSIONS=always).")
    kind = _open_kind(way.token, way.clock)
    if kind is not None:
        quiet = ", in which little is said" if kind in QUIET_KINDS else ""
        return ok("session", f"{segment} is open: {kind.replace('_', ' ')}{quiet}.")
    opens = _next_opening(way.token, way.now)
    when = f" It opens {to_minute_of_day(opens)}." if opens else ""
    return ok("session", f"{segment} is closed: nothing is to come.{when}")


def _open_kind(token: int, clock: Clock) -> str | None:
    now = clock.now().astimezone(IST)
    found = [s.kind for s in sessions(segment_of(token), now.date()) if s.open <= now < s.close]
    return min(found, key=lambda kind: kind in QUIET_KINDS, default=None)


def _next_opening(token: int, now: datetime) -> datetime | None:
    for days in range(14):
        day: date = (now + timedelta(days=days)).date()
        for session in sessions(segment_of(token), day):
            if session.open > now:
                return session.open
    return None


def _capture(way: _Way) -> Finding:
    """A capture runs."""
    if way.conn is None:
        return warn("capture", "Not known: it is the database that tells.", "Mend `writer` first.")
    if way.capture is None:
        if capture_expected(way.settings, way.clock):
            none = f"Capture {way.settings.capture_number} does not run, and should."
            finding = unheard_of(way.settings, way.clock, none)
            # A market that is closed breaks no link: it is for the sake of others that one should run.
            return finding if way.open or finding.state != "bad" else warn("capture", finding.found, finding.fix)
        return ok("capture", f"None has to run now. {when_next(way.settings, way.clock)}")
    since = to_second(way.capture.started_at)
    found = f"Process {way.capture.pid} on {way.capture.host} runs since {since}."
    if problem := way.capture.status.get("token_problem"):
        fix = "Mend the token (`dhan-pipeline token check`): the capture goes on by itself."
        return bad("capture", f"{found} {problem}", fix)
    return ok("capture", found)


def _connection(way: _Way) -> Finding:
    """The connection that carries it is up, and something comes."""
    if way.conn is None or way.capture is None:
        return ok("connection", "No running capture is known that would have one.")
    status = way.capture.status
    up, of = status.get("connections_up"), status.get("connections")
    number = way.packet.connection if way.packet is not None else _expected_connection(way)
    found = f"Connection {number} carries it; " if number is not None else ""
    found += f"{up} of {of} are up"
    for gap in _open_gaps(way):
        if gap.cause is not Cause.SILENT:
            since = beside(ist(gap.started_ns), way.now)
            words = f"{found}, and connection {gap.connection} brings nothing since {since}: {gap.cause}"
            return bad("connection", words + (f", {gap.detail}." if gap.detail else "."), ADVICE[gap.cause])
    if up == 0:
        return bad("connection", f"{found}.", "It connects again by itself; `dhan-pipeline gaps` says why it was lost.")
    quiet_s = _since_last_message_s(way, status)
    if quiet_s is not None and quiet_s > _FEED_QUIET_S and way.open:
        fix = "The connection is replaced after FEED_SILENCE_S; if the market trades, ask the broker."
        words = f"{found}, but nothing came through any for {quiet_s:,.0f} s."
        return (bad if quiet_s > SILENCE_ERROR_S else warn)("connection", words, fix)
    gaps = f", with {counted(status['gaps'], 'gap')} since the start" if status.get("gaps") else ""
    return ok("connection", f"{found}{gaps}.")


def _expected_connection(way: _Way) -> int | None:
    """As a capture shares the list out when it starts."""
    if isinstance(way.listed, SubscriptionError):
        return None
    feed = feed_of(way.settings)
    modes = {each.instrument_token: each.mode for each in way.listed}
    shards = shard(modes, feed.max_instruments, feed.max_connections, feed.broker)
    return next((number for number, tokens in enumerate(shards) if way.token in tokens), None)


def _open_gaps(way: _Way) -> list[Any]:
    """What the running capture misses of it now."""
    if way.conn is None or way.capture is None:
        return []
    now_ns = way.now_ns
    return [
        gap
        for gap in read_gaps(way.conn, now_ns - 1, now_ns + 1)
        if gap.ended_ns is None and gap.capture == way.capture.capture and way.token in gap.instruments
    ]


def _since_last_message_s(way: _Way, status: dict[str, Any]) -> float | None:
    at = status.get("last_packet_at")
    return None if at is None else (way.now - datetime.fromisoformat(at)).total_seconds()


def _last_packet(settings: Settings, token: int, clock: Clock) -> tuple[_Packet | None, int]:
    decode = decoder(settings)
    offset, mark = instrument_mark(token)

    def find(stretch: Stretch) -> _Packet | None:
        decoded = decode(stretch.payload, stretch.offsets, stretch.text)
        found: list[tuple[int, int, str, bool]] = []
        for raw in decoded.ticks:
            at = np.flatnonzero(raw.instrument_token == token)
            if len(at):
                found.append((int(raw.position[at[-1]]), int(raw.message[at[-1]]), raw.mode.value, True))
        for kind, updates in (("open interest", decoded.open_interest), ("previous close", decoded.previous_close)):
            at = np.flatnonzero(updates.instrument_token == token)
            if len(at):
                found.append((int(updates.position[at[-1]]), int(updates.message[at[-1]]), kind, False))
        found += [
            (rejection.position, rejection.message, f"rejected: {rejection.reason}", False)
            for rejection in decoded.rejected
            if rejection.payload[offset : offset + len(mark)] == mark
        ]
        if not found:
            return None
        _, message, kind, becomes_row = max(found)
        return _Packet(int(stretch.received_ns[message]), int(stretch.connection[message]), kind, becomes_row)

    return look_back(settings.journal_dir, settings.capture_number, clock.now_ns(), find, _SEARCH_S)


def _packet(way: _Way) -> Finding:
    """The last packet of it that the journal holds."""
    now_ns = way.now_ns
    if way.unread:
        return bad(
            "packet", f"The journal cannot be read: {way.unread}", "Look at the disk, and at whose files they are."
        )
    for gap in _open_gaps(way):
        if gap.cause is Cause.SILENT:
            since = beside(ist(gap.started_ns), way.now)
            return bad("packet", f"It fell silent at {since}, while others went on: {gap.detail}.", ADVICE[gap.cause])
    if way.packet is None:
        found = f"None of the journal's packets of the last {_since(now_ns - way.searched_from_ns)} is of it"
        if not way.open or way.capture is None or not _is_subscribed(way):
            return ok("packet", f"{found}.")
        running_s = (now_ns - int(way.capture.started_at.timestamp() * 1e9)) / 1e9
        if running_s < _QUIET_S:
            return warn("packet", f"{found}; the capture runs for {running_s:.0f} s.", "Ask again in a minute.")
        fix = (
            "The broker sends nothing of it, not even on subscribing: see whether it trades at all on the broker's own"
            " chart. If it does, restart the capture: terminate the ingest run and launch `ingest_job`."
        )
        return bad("packet", f"{found}, though the broker sends one on subscribing.", fix)
    age_ns = now_ns - way.packet.received_ns
    found = (
        f"The last came at {ist(way.packet.received_ns):%Y-%m-%d %H:%M:%S.%f}"[:-3]
        + f" IST, {_since(age_ns)} ago, on connection {way.packet.connection}: {way.packet.kind}."
    )
    if way.open and way.capture is not None and age_ns > _QUIET_S * 1e9:
        return warn("packet", found, "It may just not trade: compare with the broker's own chart.")
    return ok("packet", found)


def _rejected(way: _Way) -> Finding:
    """What of it could not become a tick today."""
    if way.conn is None:
        return ok("rejected", "Not known without the database.")
    since_ns = day_start_ns(way.now_ns)
    rejected = ledger.rejections_of(way.conn, since_ns, *instrument_mark(way.token))
    if not rejected:
        return ok("rejected", "None of its packets was rejected today.")
    count, last_ns = sum(each.packets for each in rejected), max(each.last_ns for each in rejected)
    reasons = ", ".join(f"{each.reason} ({each.packets:,})" for each in rejected)
    found = f"Rejected today: {counted(count, 'packet')} of it, the last at {beside(ist(last_ns), way.now)}: {reasons}."
    fix = "Run `dhan-pipeline sync-instruments --download`, then `dhan-pipeline redrive`: they become ticks."
    if not any("unknown" in each.reason for each in rejected):
        fix = "Look at their bytes with `dhan-pipeline decode`; after a fix, `dhan-pipeline redrive` takes them again."
    return (bad if way.row is None or way.row.received_ns < last_ns else warn)("rejected", found, fix)


def _writer(way: _Way) -> Finding:
    """What arrived is stored."""
    if way.conn is None:
        fix = f"{start_database(way.settings)} The journal keeps all meanwhile; the capture catches up by itself."
        return bad("writer", way.away, fix)
    if way.capture is None:
        return ok("writer", "No capture runs, so none has anything to write.")
    status = way.capture.status
    behind_s, blocks = status.get("backlog_seconds") or 0.0, status.get("backlog_blocks", 0)
    found = f"It is {behind_s:,.1f} s behind what was received ({counted(blocks, 'block')} to store)."
    if "queue_depth" in status:
        return _workers(status, found, behind_s > _BEHIND_S)
    if problem := status.get("store_problem"):
        return bad("writer", f"{found} {refused(problem)}", CATCHES_UP)
    if behind_s > _BEHIND_S:
        return bad("writer", found, "It catches up by itself; look at the load and the disk of the database.")
    return ok("writer", found)


def _workers(status: dict[str, Any], found: str, behind: bool) -> Finding:
    """The finding `writer` of a capture that hands over to workers. They leave while RabbitMQ is away."""
    depth, workers, dead = status["queue_depth"], status.get("workers"), status.get("dead_letters") or 0
    if depth is None:
        fix = "Start the broker, or correct RABBITMQ_URL. The journal keeps all meanwhile; the capture catches up."
        return (bad if behind else warn)("writer", f"{found} RabbitMQ is away, or has not been asked yet.", fix)
    if not workers:
        return bad("writer", f"{found} No worker runs.", "Run `dhan-pipeline worker`.")
    found += f" RabbitMQ holds {counted(depth, 'message')} for {counted(workers, 'worker')}."
    if behind:
        return bad(
            "writer", found, "It catches up by itself; look at the messages of the workers, and at the database."
        )
    if dead:
        fix = "`dhan-pipeline redrive --list` says why; `dhan-pipeline redrive --dead-letters` puts them back."
        return warn("writer", f"{found} {dead:,} more could not be stored (dead letters).", fix)
    return ok("writer", found)


def _row(way: _Way) -> Finding:
    """The last row in `ticks`."""
    if way.conn is None:
        return ok("row", "Not known without the database.")
    now_ns = way.now_ns
    row = way.row
    packet_ns = way.packet.received_ns if way.packet is not None and way.packet.becomes_row else None
    replay = "If no capture catches up, materialise `ticks` of that hour: it is rebuilt from the journal."
    if row is None:
        found = f"The table has none of it of the last {_ROWS_SINCE.days} days"
        if packet_ns is None:
            return ok("row", f"{found}.")
        return bad("row", f"{found}, though the journal has packets.", replay)
    price = "no price" if row.last_price is None else f"{row.last_price:,.2f}"
    found = (
        f"{price} at {ist(row.received_ns):%Y-%m-%d %H:%M:%S.%f}"[:-3] + f" IST, {_since(now_ns - row.received_ns)} ago"
    )
    if row.latency_ms is not None:
        found += f", stored {row.latency_ms:,.0f} ms after it came"
    if packet_ns is not None and packet_ns - row.received_ns > _BEHIND_S * 1e9:
        return bad("row", f"{found}; the journal has a later packet.", replay)
    return ok("row", f"{found}.")


_LINKS: dict[str, Callable[[_Way], Finding]] = {
    "subscription": _subscription,
    "session": _session,
    "capture": _capture,
    "connection": _connection,
    "packet": _packet,
    "rejected": _rejected,
    "writer": _writer,
    "row": _row,
}

#: The links in their order.
LINKS = ("instrument", *_LINKS)


def _since(ns: int) -> str:
    return duration(max(ns, 0) / 1e9)
