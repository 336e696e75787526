"""Processes, real ones: kept running, stopped with all that they started, ended when who started them is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dhan_pipeline.local import services as services_module
from dhan_pipeline.local.guardian import LocalError, guarded
from dhan_pipeline.local.services import Services
from dhan_pipeline.store import embedded

#: Prints its process id and that of a child in its process group, and waits for ever.
PARENT = (
    "import subprocess, sys, time;"
    " child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    " print(child.pid, flush=True); time.sleep(600)"
)

#: A demo of one service, which says who runs and then waits to be killed.
DEMO = f"""
import sys, time
from pathlib import Path
from dhan_pipeline.local.guardian import guarded
from dhan_pipeline.local.services import Services
from dhan_pipeline.store import embedded
data_dir = Path(sys.argv[1])
with guarded(data_dir) as guardian:
    if "postgres" in sys.argv:
        embedded.start(data_dir)
        guardian.begin(data_dir)
    with Services(data_dir / "logs", guardian).run("parent", "python", "-c", {PARENT!r}) as parent:
        print(parent.pid, flush=True)
        time.sleep(600)
"""


def until(condition: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether it is a process that has not ended."""
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(said) and not said.startswith("Z")


def numbers(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


@pytest.fixture
def services(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    monkeypatch.setattr(services_module, "MAX_BACKOFF_S", 0.1)
    with guarded(data_dir) as guardian:
        yield Services(data_dir / "logs", guardian)


def killed_demo(data_dir: Path, *words: str) -> list[int]:
    """Runs a demo, kills it, and returns the ids of the processes that it had started."""
    demo = subprocess.Popen([sys.executable, "-c", DEMO, str(data_dir), *words], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    with demo:
        parent = int(demo.stdout.readline())
        until(lambda: bool(numbers(data_dir / "logs" / "parent.log")))
        demo.kill()
    return [parent, *numbers(data_dir / "logs" / "parent.log")]


def test_a_service_is_stopped_with_all_that_it_started(services: Services, data_dir: Path) -> None:
    with services.run("parent", "python", "-c", PARENT) as parent:
        until(lambda: bool(numbers(data_dir / "logs" / "parent.log")))
        pids = [parent.pid, *numbers(data_dir / "logs" / "parent.log")]
        assert all(map(runs, pids))
    assert not any(map(runs, pids))


def test_a_service_that_was_killed_is_started_again_and_what_it_had_started_is_stopped_at_the_end(
    services: Services, data_dir: Path
) -> None:
    log = data_dir / "logs" / "parent.log"
    with services.run("parent", "python", "-c", PARENT) as parent:
        until(lambda: len(numbers(log)) == 1)
        first = parent.pid
        assert services.revive() == []
        os.kill(first, signal.SIGKILL)
        until(lambda: services.revive() == ["parent"])
        assert parent.pid != first
        until(lambda: len(numbers(log)) == 2)
        assert all(map(runs, [parent.pid, *numbers(log)]))
        last = parent.pid
    assert not any(map(runs, [first, last, *numbers(log)]))
    assert services.revive() == []


def test_a_service_that_ends_at_once_is_not_started_in_a_tight_loop(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(services_module.time, "monotonic", lambda: now)
    starts = []
    with guarded(data_dir) as guardian:
        services = Services(data_dir / "logs", guardian)
        with services.run("brief", "python", "-c", "pass") as brief:
            for _ in range(70):
                brief._process.wait()
                if services.revive():
                    starts.append(now)
                now += 1.0
    assert starts == [102.0, 107.0, 116.0, 133.0, 164.0]


def test_a_log_does_not_grow_for_ever(services: Services, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services_module, "LOG_BYTES", 2000)
    log, before = data_dir / "logs" / "counts.log", data_dir / "logs" / "counts.log.1"
    counts = "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.0005)"
    with services.run("counts", "python", "-c", counts):
        until(lambda: log.stat().st_size > 2000)
        assert services.revive() == []
        assert before.stat().st_size > 2000
        until(lambda: log.read_text().count("\n") > 1)
        first = int(log.read_text().split()[0])
    assert first > int(before.read_text().split()[-2])  # the process goes on in the new one, from its beginning
    assert "\0" not in log.read_text()


def test_a_task_is_not_started_again(services: Services) -> None:
    with services.run("task", "python", "-c", "pass", keep=False) as task:
        task.wait_until_done()
        assert services.revive() == []


def test_a_task_that_fails_is_said(services: Services) -> None:
    with (
        services.run("task", "python", "-c", "raise SystemExit(3)", keep=False) as task,
        pytest.raises(LocalError, match=r"^The task failed; see .*task\.log\.$"),
    ):
        task.wait_until_done()


def test_what_a_killed_demo_had_started_is_ended_and_the_next_one_waits_for_that(data_dir: Path) -> None:
    pids = killed_demo(data_dir)
    assert len(pids) == 2
    with guarded(data_dir):
        assert not any(map(runs, pids))


def test_the_database_that_a_killed_demo_had_started_is_stopped(open_dir: Path) -> None:
    data_dir = open_dir / "killed-demo"
    (data_dir / "logs").mkdir(parents=True)
    killed_demo(data_dir, "postgres")
    with guarded(data_dir):
        assert embedded.url(data_dir) is None


def test_the_port_beside_another_is_the_next_one_or_any_that_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert services_module.port_beside(port - 1) not in (0, port)
    assert services_module.port_beside(65_535) > 0


def test_two_demos_in_one_folder_are_refused(data_dir: Path) -> None:
    with (
        guarded(data_dir),
        pytest.raises(LocalError, match=r"^A demo, or `dhan-pipeline up`, runs already in .*; stop it,"),
    ):
        guarded(data_dir).__enter__()
    with guarded(data_dir):
        pass
