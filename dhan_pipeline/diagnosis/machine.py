"""This machine: room on its disks for the day, open files, and whether the calendar of its days is known."""

import os
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg2

from dhan_pipeline.clock import Clock
from dhan_pipeline.diagnosis.asking import asked_database
from dhan_pipeline.diagnosis.findings import Finding, bad, ok, warn
from dhan_pipeline.errors import PipelineError
from dhan_pipeline.journal.reader import captures, list_files
from dhan_pipeline.quality.measures import DISK_ERROR_GB, DISK_WARN_GB
from dhan_pipeline.sessions import DAY_NS, IST, calendar_known, calendar_problem, day_start_ns
from dhan_pipeline.settings import Settings
from dhan_pipeline.special_days import problems
from dhan_pipeline.store.engine import server_directory
from dhan_pipeline.store.ledger import most_ticks_a_day
from dhan_pipeline.subscriptions import SubscriptionError, read_subscriptions
from dhan_pipeline.ticks import Mode

#: Days that are looked back to for how much one takes.
_LOOK_BACK_DAYS = 7

#: Bytes of a tick in the table, its index included, and in the journal by mode: see docs/performance.md.
ROW_BYTES = 300
PACKET_BYTES = {Mode.FULL: 120, Mode.QUOTE: 60, Mode.TICKER: 40}

#: Where no day has been captured yet: packets a second of an instrument, over all of a session. The liveliest futures
#: send one or two, most options none for minutes.
_PACKETS_A_SECOND = 0.5
_SESSION_S = 23_400  # 09:00 to 15:30
_DAY_S = 86_400

#: Bytes below which a disk counts as full: less than a second of a busy feed.
_FULL = 1 << 20

#: A capture, PostgreSQL and Dagster need some hundreds each.
FILES_WARN = 1024
FILES_BAD = 256


@dataclass(frozen=True, slots=True)
class _Need:
    """What a day takes, in bytes, and how that is known."""

    journal: float
    table: float
    how: str
    estimated: bool


def calendar(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The finding `calendar`: the holidays of the year are known, and of the next one in time."""
    today = clock.now().astimezone(IST).date()
    problem = calendar_problem(today)
    if settings.sessions == "always":
        return [ok("calendar", "Sessions never end (SESSIONS=always): no calendar is needed.")]
    if problem is None:
        return [ok("calendar", f"The holidays of {today.year} are known.")]
    fix = "After an upgrade, run `dhan-pipeline sync-instruments --download`: it takes over what is known then."
    if problems():
        fix = "Correct that file: it is read again at once. docs/operations.md has an example."
    return [(warn if calendar_known(today) and not problems() else bad)("calendar", problem, fix)]


def disk(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The finding `disk`: the disks of the journal and of the database have room for a day at the expected rate."""
    if unusable := _unusable(settings.data_dir) or _unusable(settings.journal_dir):
        return [bad("disk", unusable, "Correct DATA_DIR, or make that folder writable for who captures.")]
    ticks, cluster = _of_database(settings, clock)
    need = _need(settings, clock, ticks)
    needs: dict[int, float] = {}  # by disk
    paths: dict[int, Path] = {}
    places = [(settings.journal_dir, need.journal)] + ([(cluster, need.table)] if cluster else [])
    for path, size in places:
        there = next(each for each in (path, *path.absolute().parents) if each.exists())
        device = there.stat().st_dev
        needs[device] = needs.get(device, 0.0) + size
        paths.setdefault(device, there)
    device = min(needs, key=lambda each: shutil.disk_usage(paths[each]).free - needs[each])
    free, needed = shutil.disk_usage(paths[device]).free, needs[device]
    what = "of the journal" if paths[device] != cluster else "of the database"
    what += " and the database" if len(places) > len(needs) else ""
    takes = f"a day takes {_size(needed)} ({need.how})" if needed else f"what a day takes is not known: {need.how}"
    found = f"{_size(free)} free on the disk {what}; {takes}."
    if cluster is None:
        found += " The database's own disk cannot be seen from here."
    fix = "Make room, or move DATA_DIR to a larger disk; sealed days of the journal may be moved away."
    if paths[device] == cluster:
        fix = "Make room there, or lower RETENTION_DAYS and launch `retention_job`; the journal keeps what comes."
    if free < DISK_ERROR_GB * 1e9 or (free < needed and not need.estimated):
        return [bad("disk", found, fix)]
    if free < max(DISK_WARN_GB * 1e9, 2 * needed):
        return [warn("disk", found, fix)]
    return [ok("disk", found)]


def journal_is_full(settings: Settings) -> bool:
    """Whether the disk of the journal, as seen from here, has no room to speak of."""
    return settings.journal_dir.exists() and shutil.disk_usage(settings.journal_dir).free < _FULL


def _unusable(folder: Path) -> str:
    """Why nothing can be written below a folder, which need not be there yet; empty where it can."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        return f"The data directory {folder} cannot be used: {there} is not a directory."
    if not os.access(there, os.W_OK | os.X_OK):
        return f"The data directory {folder} cannot be used: {there} may not be written."
    return ""


def _of_database(settings: Settings, clock: Clock) -> tuple[int | None, Path | None]:
    """Ticks of the fullest of the last days, and where the cluster is; None for what cannot be known."""
    ticks, cluster = None, None
    try:
        with asked_database(settings) as conn:
            since_ns = day_start_ns(clock.now_ns()) - _LOOK_BACK_DAYS * DAY_NS
            ticks = most_ticks_a_day(conn, since_ns)
            cluster = server_directory(conn)
    except (psycopg2.Error, PipelineError):  # the finding `database` says why; not everybody may ask for the directory
        pass
    return ticks, cluster


def _need(settings: Settings, clock: Clock, ticks: int | None) -> _Need:
    now = clock.now().astimezone(IST)
    today, first = f"{now:%Y-%m-%d}", f"{now - timedelta(days=_LOOK_BACK_DAYS):%Y-%m-%d}"
    by_day: dict[str, int] = {}
    for capture in captures(settings.journal_dir):
        for path in list_files(settings.journal_dir, capture, since=first):
            by_day[path.parent.name] = by_day.get(path.parent.name, 0) + path.stat().st_size
    if any(day != today for day in by_day):  # today is not over, and says too little alone
        day, size = max(by_day.items(), key=lambda item: item[1])
        rows = size / PACKET_BYTES[Mode.FULL] if ticks is None else ticks
        return _Need(size, rows * ROW_BYTES, f"as {day} did", estimated=False)
    modes = _modes(settings)
    packets = _PACKETS_A_SECOND * (_DAY_S if settings.sessions == "always" else _SESSION_S)
    journal = sum(PACKET_BYTES[mode] * count * packets for mode, count in modes.items())
    total = sum(modes.values())
    if not total:
        return _Need(0.0, 0.0, "nothing is subscribed yet", estimated=True)
    how = f"estimated: {total:,} instruments with a packet in 2 s each; no whole day was captured yet"
    return _Need(journal, total * packets * ROW_BYTES, how, estimated=True)


def _modes(settings: Settings) -> Mapping[Mode, int]:
    """How many instruments are subscribed in each mode."""
    modes: dict[Mode, int] = {}
    for source in settings.sources:
        try:
            for subscription in read_subscriptions(settings.of(source).subscriptions_path):
                modes[subscription.mode] = modes.get(subscription.mode, 0) + 1
        except SubscriptionError:  # the finding `subscriptions` says so
            pass
    return modes


def open_files(settings: Settings, clock: Clock) -> Sequence[Finding]:
    """The finding `open files`: how many this process, and what is started like it, may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [judge_open_files(soft, hard)]


def judge_open_files(soft: int, hard: int) -> Finding:
    """The limits, judged; -1 is no limit, as `getrlimit` has it."""
    if soft == resource.RLIM_INFINITY:
        return ok("open files", "A process may have any number of files open.")
    found = f"A process may have {soft:,} files open; {FILES_WARN:,} are enough."
    if soft >= FILES_WARN:
        return ok("open files", found)
    most = FILES_WARN if hard == resource.RLIM_INFINITY else min(hard, FILES_WARN)
    fix = f"Run `ulimit -n {most}` before what you start, or set LimitNOFILE of the service."
    if most <= soft:
        fix = "Raise the hard limit, which is no higher: LimitNOFILE of the service, or root's `ulimit -Hn`."
    return (bad if soft < FILES_BAD else warn)("open files", found, fix)


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
