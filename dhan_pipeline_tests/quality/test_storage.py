from datetime import datetime

from dhan_pipeline.quality.measures import CheckOutcome
from dhan_pipeline.quality.storage import STORAGE_CHECKS, needs_run, storage_outcomes
from dhan_pipeline.sessions import IST
from dhan_pipeline.store.timescale import Job, Storage

NATIVE = Storage(None, None, 7, 1000)
APACHE = Storage("2.29.2", "apache", 7, 1000)
TIMESCALE = Storage("2.29.2", "timescale", 7, 1000)
AT = datetime(2026, 11, 20, 12, 0, tzinfo=IST)

COMPRESSION = Job(1000, "Columnstore Policy [1000]", "Success", AT, None, False, None)
REFRESH = Job(1001, "Refresh Policy [1001]", "Success", AT, None, False, "an old error")
FAILED = Job(1000, "Columnstore Policy [1000]", "Failed", None, None, False, "cannot drop portal")
NEVER = Job(1001, "Refresh Policy [1001]", None, None, None, True, None)


def jobs(storage: Storage, *found: Job, ran: dict[int, str | None] | None = None) -> CheckOutcome:
    outcomes = storage_outcomes(storage, found, ran or {})
    assert tuple(outcome.name for outcome in outcomes) == STORAGE_CHECKS
    return outcomes[0]


def licence(storage: Storage) -> CheckOutcome:
    return storage_outcomes(storage, [], {})[1]


def test_native_partitions_pass_and_say_so() -> None:
    assert jobs(NATIVE).passed
    assert jobs(NATIVE).description == "Ticks are in native partitions: there are no background jobs."
    assert licence(NATIVE).passed
    assert "native partitions" in licence(NATIVE).description


def test_the_apache_licence_is_a_warning_that_says_what_is_left_out() -> None:
    said = licence(APACHE)
    assert (said.passed, said.severity) == (False, "WARN")
    assert "without compression, background jobs and continuous aggregates" in said.description
    assert jobs(APACHE).passed
    assert licence(TIMESCALE).passed


def test_jobs_that_run_pass_whatever_failed_long_ago() -> None:
    said = jobs(TIMESCALE, COMPRESSION, REFRESH)
    assert (said.passed, said.value) == (True, 0)
    assert "Columnstore Policy [1000] at 2026-11-20 12:00:00 IST" in said.description


def test_what_the_server_failed_at_and_we_did_is_a_warning() -> None:
    said = jobs(TIMESCALE, FAILED, NEVER, ran={1000: None, 1001: None})
    assert (said.passed, said.severity, said.value) == (False, "WARN", 2)
    assert "failed when the server last ran it (cannot drop portal); run from here, it succeeded." in said.description
    assert "Refresh Policy [1001] was never run by the server; run from here, it succeeded." in said.description
    assert "job_errors" in said.description


def test_what_fails_from_here_too_is_an_error() -> None:
    said = jobs(TIMESCALE, FAILED, REFRESH, ran={1000: "disk full"})
    assert (said.passed, said.severity) == (False, "ERROR")
    assert "run from here, it failed: disk full." in said.description


def test_a_hypertable_without_its_jobs_is_a_warning() -> None:
    assert (jobs(TIMESCALE).passed, jobs(TIMESCALE).severity) == (False, "WARN")


def test_jobs_are_run_that_failed_or_that_nobody_ran() -> None:
    assert [needs_run(job) for job in (COMPRESSION, REFRESH, FAILED, NEVER)] == [False, False, True, True]
