"""Where ticks are, judged: whether TimescaleDB's background jobs run, and what its licence leaves out."""

from collections.abc import Mapping, Sequence

from dhan_pipeline.quality.outcome import CheckOutcome
from dhan_pipeline.store.timescale import Job, Storage
from dhan_pipeline.times import to_second

#: The checks, in the order in which they are judged.
STORAGE_CHECKS = ("jobs", "licence")

_LICENCES = {
    None: "Ticks are in native partitions of PostgreSQL: nothing is compressed, and nothing runs in the background.",
    "timescale": "TimescaleDB {version} compresses the hours of days that are over, and sums up live candles.",
    "apache": "TimescaleDB {version} has the Apache licence: ticks are in a hypertable without compression, background"
    " jobs and continuous aggregates. With the Timescale licence, `dhan-pipeline db to-timescaledb` adds them.",
}


def needs_run(job: Job) -> bool:
    """Whether the server's background workers leave undone what the job does."""
    return job.late or job.status == "Failed"


def storage_outcomes(storage: Storage, jobs: Sequence[Job], ran: Mapping[int, str | None]) -> list[CheckOutcome]:
    """The outcomes of `STORAGE_CHECKS`. `ran` has the jobs that we ran, and what went wrong, if anything."""
    return [_jobs(storage, jobs, ran), _licence(storage)]


def _licence(storage: Storage) -> CheckOutcome:
    return CheckOutcome(
        "licence",
        storage.licence != "apache",
        "WARN",
        None,
        "",
        "warning under the Apache licence",
        _LICENCES[storage.licence].format(version=storage.version),
    )


def _jobs(storage: Storage, jobs: Sequence[Job], ran: Mapping[int, str | None]) -> CheckOutcome:
    undone = [job for job in jobs if needs_run(job)]
    failed = [job for job in undone if ran.get(job.job_id, "it was not run from here") is not None]
    if undone:
        found = " ".join(_trouble(job, ran) for job in undone)
        found += (
            " Without them, hours stay uncompressed and live candles are summed up anew by every query. Look at"
            " `timescaledb_information.job_errors`, at the server's log, and whether timescaledb.max_background_workers"
            " is above the number of databases; docs/timescaledb.md names versions in which every job fails."
        )
    elif jobs:
        found = f"TimescaleDB's {len(jobs)} background jobs on ticks run: {', '.join(map(_success, jobs))}."
    elif storage.licence == "apache":
        found = "Under the Apache licence TimescaleDB has no background jobs."
    elif storage.licence is None:
        found = "Ticks are in native partitions: there are no background jobs."
    else:
        found = "The hypertable has no background jobs; `dhan-pipeline db to-timescaledb` adds them."
    missing = storage.licence == "timescale" and not jobs
    return CheckOutcome(
        "jobs",
        not undone and not missing,
        "ERROR" if failed else "WARN",
        float(len(undone)) if jobs else None,
        "jobs",
        "warning where a job failed or did not run for an hour; critical where it fails from here, too",
        found,
    )


def _trouble(job: Job, ran: Mapping[int, str | None]) -> str:
    if job.status == "Failed":
        what = f"{job.name} failed when the server last ran it ({job.error or 'it did not say why'})"
    elif job.status is None:
        what = f"{job.name} was never run by the server"
    else:
        what = f"{job.name} was not run by the server for an hour"
    error = ran.get(job.job_id, "it was not run from here")
    return f"{what}; run from here, it succeeded." if error is None else f"{what}; run from here, it failed: {error}."


def _success(job: Job) -> str:
    when = f" at {to_second(job.succeeded_at)}" if job.succeeded_at else ""
    return f"{job.name}{when}"
