"""The database and what it has to know before a session: its schema, the instruments, and what to subscribe of them."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta

import psycopg2
from psycopg2.extensions import connection

from dhan_pipeline.amounts import first_of
from dhan_pipeline.clock import Clock
from dhan_pipeline.diagnosis.asking import DATABASE_FIRST, asked_database, start_database
from dhan_pipeline.diagnosis.findings import Finding, bad, ok, warn
from dhan_pipeline.errors import in_words
from dhan_pipeline.quality.calendar import SYNC_AT
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import timescale
from dhan_pipeline.store.engine import DatabaseError, server_version
from dhan_pipeline.store.instruments import count_active, living
from dhan_pipeline.store.migrate import MigrationError, lacking
from dhan_pipeline.store.resolved import resolve_rules
from dhan_pipeline.subscriptions import (
    MAX_SUBSCRIPTIONS,
    Subscription,
    SubscriptionError,
    load_rules,
    read_subscriptions,
)
from dhan_pipeline.times import to_minute_of_day

#: What the sync may take.
_SYNC_TAKES = timedelta(minutes=10)

MIGRATE = "Run `dhan-pipeline migrate`."
SYNC = "Run `dhan-pipeline sync-instruments --download`, or launch `instrument_sync_job`."


def database(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The findings `database` and `migrations`."""
    try:
        with asked_database(settings) as conn:
            extension = ""
            if version := timescale.version(conn):
                extension = f" with TimescaleDB {version} ({timescale.licence(conn)} licence)"
            where = "as set by DATABASE_URL" if settings.database_url else "the embedded one"
            found = ok("database", f"PostgreSQL {server_version(conn)}{extension}, {where}.")
            return [found, _migrations(conn)]
    except DatabaseError as error:
        return [bad("database", in_words(error), start_database(settings)), _unknown("migrations")]


def _migrations(conn: connection) -> Finding:
    try:
        names = [file.stem for file in lacking(conn)]
    except MigrationError as error:
        return bad("migrations", in_words(error), "Run the latest version of this program.")
    if names:
        return bad("migrations", f"To be applied: {first_of(names)}.", MIGRATE)
    return ok("migrations", "All are applied.")


def instruments(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The finding `instruments`: there are some, and the broker's list of them is today's."""
    now = clock.now().astimezone(IST)
    try:
        with asked_database(settings) as conn:
            active, changed_at = count_active(conn, settings.source)
    except DatabaseError:
        return [_unknown("instruments")]
    except psycopg2.errors.UndefinedTable as error:
        return [bad("instruments", in_words(error), MIGRATE)]
    if not active:
        return [bad("instruments", f"The database has no active instruments of {settings.source}.", SYNC)]
    try:
        listed_at = datetime.fromtimestamp(settings.master_path.stat().st_mtime, IST)
    except OSError:  # loaded from another folder, or another machine
        listed_at = changed_at.astimezone(IST) if changed_at else datetime.fromtimestamp(0, IST)
    found = f"{active:,} are active; the list is of {to_minute_of_day(listed_at)}"
    due = (now - _SYNC_TAKES - timedelta(hours=SYNC_AT.hour, minutes=SYNC_AT.minute)).date()
    days = (due - listed_at.date()).days
    if days <= 0:
        return [ok("instruments", f"{found}.")]
    if days == 1:
        return [warn("instruments", f"{found}, which is yesterday's.", SYNC)]
    return [bad("instruments", f"{found}: contracts have been listed and have expired since.", SYNC)]


def subscriptions(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The finding `subscriptions`: the rules find all that they name, and the list that they came to is today's."""
    apply = "Run `dhan-pipeline subscriptions`; a capture that runs takes it over within seconds."
    today = clock.now().astimezone(IST).date()
    try:
        rules = load_rules(settings.subscriptions_file)
    except SubscriptionError as error:
        return [bad("subscriptions", in_words(error), f"Write or correct {settings.subscriptions_file}.")]
    try:
        listed = read_subscriptions(settings.subscriptions_path, settings.source)
    except SubscriptionError as error:
        return [bad("subscriptions", in_words(error), apply)]
    try:
        with asked_database(settings) as conn:
            gone = _gone(conn, listed, today)
            if gone:
                words = f"Of {len(listed):,}, these have expired, or are not listed any more: {first_of(gone)}."
                return [bad("subscriptions", words, apply)]
            resolution = resolve_rules(conn, rules, settings.source, clock)
    except DatabaseError:
        words = f"{len(listed):,} are listed; the database cannot be asked about them."
        return [warn("subscriptions", words, DATABASE_FIRST)]
    except psycopg2.errors.UndefinedTable as error:
        return [bad("subscriptions", in_words(error), MIGRATE)]
    except SubscriptionError as error:
        return [bad("subscriptions", in_words(error), f"Correct {settings.subscriptions_file}.")]
    missing = [(rule.line, name) for rule in resolution.summary for name in rule.missing]
    if missing:
        lines = ", ".join(dict.fromkeys(str(line) for line, _ in missing))
        words = f"No active instrument of {settings.source} is called {first_of([name for _, name in missing])}."
        fix = f"Correct {settings.subscriptions_file}, line {lines}; `dhan-pipeline find` says what is near a name."
        return [bad("subscriptions", words, fix)]
    # What follows a price has moved on with it.
    now = {(s.instrument_token, s.mode) for s in resolution.subscriptions if not s.moves}
    then = {(s.instrument_token, s.mode) for s in listed if not s.moves}
    if now != then:
        words = f"The rules have come to something else since: {len(now - then):,} more, {len(then - now):,} less."
        return [warn("subscriptions", words, apply)]
    most = MAX_SUBSCRIPTIONS[settings.source]
    return [ok("subscriptions", f"{len(listed):,} of at most {most:,}; each is listed and has not expired.")]


def _gone(conn: connection, listed: Sequence[Subscription], today: date) -> list[str]:
    """Symbols of those that expired before today (IST), or that the latest master does not name."""
    symbols = {s.instrument_token: s.symbol for s in listed}
    return [symbols[token] for token in sorted(symbols.keys() - living(conn, list(symbols), today))]


def _unknown(name: str) -> Finding:
    return warn(name, "Not known: the database cannot be asked.", DATABASE_FIRST)
