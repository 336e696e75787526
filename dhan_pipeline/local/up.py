"""The capture of the real feed with all that it needs, on this machine: what `dhan-pipeline up` runs.

What is missing is said before anything starts. Then PostgreSQL (unless DATABASE_URL says where one is), Dagster, the
instrument sync unless today's is done, and the daemon, whose sensor runs the capture while a session is open.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from rich.console import Console

from dhan_pipeline.clock import Clock
from dhan_pipeline.errors import PipelineError, redacted
from dhan_pipeline.feeds.auth import check_token_validity, expired
from dhan_pipeline.feeds.dhan.auth import get_dhan_credentials
from dhan_pipeline.feeds.dhan.token import can_refresh
from dhan_pipeline.feeds.kite.auth import get_kite_credentials
from dhan_pipeline.holidays import calendar_problem_left
from dhan_pipeline.local.guardian import LocalError, guarded
from dhan_pipeline.local.services import Services, free_port, make_logs
from dhan_pipeline.local.site import dagster, ingest_runs, live_page, postgres, sync_instruments, write_dagster_home
from dhan_pipeline.local.terminal import LiveLine, interruptible, statuses, stderr_console
from dhan_pipeline.quality.calendar import CAPTURE_START_S, LEAD, capture_expected, next_session
from dhan_pipeline.sessions import IST
from dhan_pipeline.settings import Settings
from dhan_pipeline.store import embedded
from dhan_pipeline.store.engine import connect, libpq_url
from dhan_pipeline.store.instruments import load_tokens
from dhan_pipeline.store.migrate import migrate
from dhan_pipeline.subscriptions import load_rules
from dhan_pipeline.transport.broker import broker_url


def missing(settings: Settings, dagster_home: str | None) -> list[str]:
    """What a person has to do before the capture can run, a sentence each. Asks nobody: all of it is on this machine.

    `dagster_home` is DAGSTER_HOME, if it is set.
    """
    looks: list[Callable[[], object]] = [partial(load_rules, settings.subscriptions_file)]
    looks += [partial(_credentials, settings.of(source)) for source in settings.sources]
    if settings.database_url:
        looks.append(partial(libpq_url, settings.database_url))
    if settings.transport == "rabbitmq":
        looks.append(partial(broker_url, settings))
    found = []
    for look in looks:
        try:
            look()
        except PipelineError as error:
            found.append(str(error))
    if dagster_home and not (Path(dagster_home) / "dagster.yaml").is_file():
        found.append(
            f"DAGSTER_HOME is {dagster_home}, where no dagster.yaml is: unset it, or copy deploy/local/dagster.yaml"
            " there."
        )
    return found


def _credentials(settings: Settings) -> Any:
    """The broker's, None where they are about to be made. Raises CredentialsError."""
    if settings.source == "kite":
        return get_kite_credentials(settings)
    if can_refresh(settings) and settings.dhan_client_id and not settings.dhan_token_file.exists():
        return None
    return get_dhan_credentials(settings)


def run_up(settings: Settings, *, port: int, live_line: bool, on_start: Callable[[dict[str, Any]], None]) -> None:
    """Run until interrupted. `port` of the Dagster UI, 0 for a free one; the live page is beside it.

    `on_start` is told where everything is.

    Raises PipelineError where something is missing (see `missing`), or cannot start.
    """
    console = stderr_console()
    home = os.environ.get("DAGSTER_HOME")
    if sentences := missing(settings, home):
        for sentence in sentences[:-1]:
            console.print(f"dhan-pipeline: {sentence}")  # as the program says the last one
        raise LocalError(sentences[-1])
    port = free_port(port)
    data_dir = settings.data_dir.resolve()
    logs = make_logs(data_dir)
    with interruptible(console), ExitStack() as stack:
        guardian = stack.enter_context(guarded(data_dir, settings.postgres_bin_dir))
        services = Services(logs, guardian)
        if settings.database_url:
            database_url, revive = libpq_url(settings.database_url), None
        else:
            database_url = stack.enter_context(postgres(data_dir, guardian, settings.postgres_bin_dir))
            revive = partial(_revived, data_dir, settings.postgres_bin_dir)
        migrate(database_url)
        if not home:
            home = str(data_dir / "dagster")
            write_dagster_home(Path(home), anew=False)
        dagster_url = f"http://127.0.0.1:{port}"
        # Where a person opens the UI may be another address, such as a proxy's.
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(Path(home).resolve()),
            "DAGSTER_URL": settings.dagster_url or dagster_url,
        }
        for sentence in cautions(settings, Clock()):
            console.print(sentence)

        def before_capture(instance: dg.DagsterInstance) -> None:
            if not synced_today(settings, database_url, Clock().now()):
                console.print("The instruments are synced: the broker's list is downloaded, and the rules are applied.")
                _sync(services, environment, instance, settings, console)

        console.print("PostgreSQL is there. Dagster starts.")
        if settings.transport == "rabbitmq":
            stack.enter_context(services.run("worker", "dhan-pipeline", "worker"))
        with (
            dagster(services, environment, port, before_capture) as instance,
            live_page(services, environment, port, database_url) as live_url,
        ):
            addresses = {"live_url": live_url, "dagster_url": dagster_url, "database_url": redacted(database_url)}
            console.print(f"\nLive      {live_url}\nDagster   {dagster_url}\nDatabase  {addresses['database_url']}\n")
            on_start(addresses)
            said = statuses(services, database_url, revive, console)
            line = LiveLine(console) if live_line else None
            _watch(said, settings, console, lambda: len(ingest_runs(instance)), line)


def cautions(settings: Settings, clock: Clock) -> list[str]:
    """What a person should know and may mend while everything runs, a sentence each."""
    found = []
    for source in settings.sources:
        of_one = settings.of(source)
        credentials = _credentials(of_one)
        if credentials is not None and not check_token_validity(credentials, LEAD, clock.now()):
            if source == "kite":
                found.append(f"{expired(credentials)} Log in: dhan-pipeline token generate --source kite.")
            elif not can_refresh(of_one):
                found.append(f"{expired(credentials)} Write a new one there; the capture waits for it.")
    if problem := calendar_problem_left(settings, clock.now().astimezone(IST).date()):
        found.append(problem)
    return found


def synced_today(settings: Settings, database_url: str, now: datetime) -> bool:
    """Whether today's instruments (IST) are in the table, and the rules as they are were applied to them."""
    rules_s = settings.subscriptions_file.stat().st_mtime
    for source in settings.sources:
        try:
            applied_s = settings.of(source).subscriptions_path.stat().st_mtime
        except FileNotFoundError:
            return False
        if applied_s < rules_s or datetime.fromtimestamp(applied_s, IST).date() != now.astimezone(IST).date():
            return False
    with closing(connect(database_url)) as conn:
        return all(len(load_tokens(conn, source)) for source in settings.sources)


def _sync(
    services: Services,
    environment: dict[str, str],
    instance: dg.DagsterInstance,
    settings: Settings,
    console: Console,
) -> None:
    """Sync the instruments. Where that fails, what was synced last will do, if there is any."""
    try:
        sync_instruments(services, environment)
    except LocalError as error:
        sentence = _why_failed(instance, "instrument_sync_job") or str(error)
        if not all(settings.of(source).subscriptions_path.exists() for source in settings.sources):
            raise LocalError(f"The instrument sync failed: {sentence}") from None
        console.print(f"The instrument sync failed, so that what was synced last is captured: {sentence}")


def _why_failed(instance: dg.DagsterInstance, job: str) -> str | None:
    """What the last run of a job said when a step of it failed."""
    for run in instance.get_runs(dg.RunsFilter(job_name=job), limit=1):
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
            event = entry.dagster_event
            user = event.step_failure_data.user_failure_data if event else None
            if user is not None and user.description:
                return str(user.description)
    return None


def _revived(data_dir: Path, bin_dir: Path | None) -> bool:
    return embedded.start(data_dir, bin_dir).started


def _watch(
    seconds: Iterable[Sequence[dict[str, Any]]],
    settings: Settings,
    console: Console,
    runs: Callable[[], int],
    line: LiveLine | None,
) -> None:
    """For ever: show what the captures say of themselves; where one does not, say why, once.

    `runs` tells how many ingest runs are on their way.
    """
    clock, well_s, last = Clock(), time.monotonic(), ""
    for said in seconds:
        sentence = ""
        expected = any(capture_expected(settings.of(source), clock) for source in settings.sources)
        if not expected or len(said) >= len(settings.sources):
            well_s = time.monotonic()
        if not expected and not said:
            sentence = _closed(settings, clock)
        elif time.monotonic() - well_s > CAPTURE_START_S:
            sentence = "A capture does not run, though it should: see the ingest runs in the Dagster UI."
            if runs() >= len(settings.sources):
                sentence = "A capture takes long to start, or to store anything: see its log in the Dagster UI."
        if sentence and sentence != last:
            console.print(sentence)
        last = sentence
        if said and line is not None:
            line.show(said)


def _closed(settings: Settings, clock: Clock) -> str:
    """When the capture begins."""
    to_come = [bounds for source in settings.sources if (bounds := next_session(settings.of(source), clock))]
    if not to_come:
        return "No session comes within two weeks."
    opens = min(bounds[0] for bounds in to_come)
    return (
        f"No session is open. The next one opens on {opens:%A, %-d %B, at %H:%M} IST; the capture begins before that."
    )
